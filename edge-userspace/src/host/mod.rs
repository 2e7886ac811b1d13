//! What this host has: addresses, listeners, sysctls. Always of the network
//! namespace of the calling thread.

mod addresses;
mod listeners;
mod probe;
pub mod sysctl;

pub use addresses::{Stack, host, stack};
pub use listeners::listeners;
pub use probe::window_scale;
