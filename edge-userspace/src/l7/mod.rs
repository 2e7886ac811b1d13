//! The L7 proxy.
//!
//! * [`route`]: which route a request takes.

pub mod route;
