//! Health of the backends: what is asked of them, and what follows from the answers.
//!
//! * [`state`] and `damping`: one backend, from results of checks to up and down;
//! * [`probe`]: one check, through sockets or a program.
//!
//! Nothing here writes a map: states are published, and a new plan follows from them.

mod damping;
pub mod probe;
pub mod state;
mod target;

pub use state::{Health, State, Transition};
pub use target::{BackendKey, Route, Target};
