//! What both sides of Edge agree on: map layouts, the packet parser, the
//! reasons a packet can end with, and the arithmetic of every decision.
//!
//! The crate is `no_std` and depends on nothing of ours. Everything in it is
//! compiled twice: into the XDP program, where the verifier reads it, and into
//! the daemon and the tests, where it runs on slices.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod addr;
pub mod balance;
pub mod bench;
pub mod decap;
pub mod decide;
pub mod defence;
pub mod gcra;
pub mod hash;
pub mod header;
pub mod lease;
pub mod nat;
pub mod parse;
pub mod quic;
pub mod reason;
pub mod table;
pub mod tunnel;
