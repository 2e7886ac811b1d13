//! The control socket and the command line, as their users meet them.

mod attacks;
mod command_line;
mod proxy;
mod rig;
mod socket;
