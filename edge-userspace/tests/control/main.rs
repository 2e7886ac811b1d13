//! The control socket and the command line, as their users meet them.

mod command_line;
mod rig;
mod socket;
