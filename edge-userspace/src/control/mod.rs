//! How the daemon is spoken to: JSON lines over a Unix socket.

pub mod protocol;
pub mod server;
pub mod wire;
