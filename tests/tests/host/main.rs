//! Edge on a host with real links, clients and servers, as a user sees it.

mod apply;
mod attach;
mod attacks;
mod balance;
mod balanced;
mod bound;
mod bounded;
mod challenge;
mod cli;
mod decap;
mod flood;
mod floods;
mod import;
mod limits;
mod lists;
mod metrics;
mod nat;
mod proxy;
mod quic;
mod reload;
mod restart;
mod rig;
mod services;
mod traffic;
mod tunnelled;
mod watchdog;
