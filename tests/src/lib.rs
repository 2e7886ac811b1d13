//! Test rigs.

pub mod daemon;
pub mod netns;
