//! The control socket, as its clients meet it.

mod rig;
mod socket;
