//! How the daemon is spoken to: JSON lines over a Unix socket.

pub mod check;
pub mod client;
mod connection;
pub mod events;
pub mod protocol;
pub mod server;
pub mod socket;
pub mod stats;
