//! Datapath, daemon and next hops on the real kernel, one thing at a time: attaching,
//! taking over, replacing, rolling back.

mod daemon;
mod datapath;
mod home;
mod netns;
mod next_hop;
