//! Hosts and paths of requests in one form, for those who choose by them and for those who write
//! the choice down.

pub mod host;
pub mod path;
