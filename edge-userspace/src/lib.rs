//! The Edge daemon.
