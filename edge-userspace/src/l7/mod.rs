//! The HTTP tier.

pub mod balance;
pub mod resilience;
