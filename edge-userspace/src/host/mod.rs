//! What this host has: addresses, listeners, sysctls. Always of the network
//! namespace of the calling thread.

mod addresses;
mod links;
mod listeners;
mod neighbours;
pub mod next_hop;
mod probe;
mod routes;
mod stack;
pub mod sysctl;
pub mod tunnel;

pub use addresses::{host, smallest_mtu};
pub use listeners::listeners;
pub use probe::window_scale;
pub use stack::{Stack, stack};
