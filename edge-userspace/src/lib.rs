//! The Edge daemon.

pub mod control;
pub mod status;
