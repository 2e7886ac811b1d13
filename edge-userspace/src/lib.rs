//! The Edge daemon.

pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod durable;
pub mod entry;
pub mod feed;
pub mod health;
pub mod host;
pub mod l4;
pub mod l7;
pub mod memory;
pub mod metrics;
pub mod netlink;
pub mod policy;
pub mod services;
pub mod status;
pub mod store;
pub mod tables;
pub mod uri;
pub mod wire;
