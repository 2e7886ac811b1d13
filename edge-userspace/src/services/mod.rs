//! From services, and what this host has, to the tables of the flood defence.
//!
//! Pure: addresses, listeners and times are given. What the kernel looks up are
//! exact targets, an address and a port each; here services are resolved to them
//! ([`resolve`]), source addresses of NAT have numbers ([`sources`]), and kept in mind is what is known of each listener's window
//! scale ([`scales`]), which is found out with the packets of [`probe`]. What the program
//! finds is followed ([`watch`]) and remembered ([`attacks`]).

pub mod attacks;
pub mod facts;
pub mod probe;
pub mod resolve;
pub mod scales;
pub mod slots;
pub mod sources;
pub mod watch;
