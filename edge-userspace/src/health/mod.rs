//! Health of the backends: what is asked of them, and what follows from the answers.
//!
//! * [`state`] and `damping`: one backend, from results of checks to up and down;
//! * [`passive`]: one backend, from what the traffic of clients says of it;
//! * `table`: all backends, which of them is asked next, and what has changed;
//! * [`probe`]: one check, through sockets or a program;
//! * [`tunnel`]: packets of checks on their way to backends behind tunnels;
//! * `carrier`: the task that carries them there;
//! * [`runner`]: the task that asks them all in time.
//!
//! Nothing here writes a map: states are published, and a new plan follows from them.

mod carrier;
mod damping;
pub mod passive;
pub mod probe;
pub mod runner;
pub mod state;
mod table;
mod target;
pub mod tunnel;

pub use state::{Health, State, Transition};
pub use table::Totals;
pub use target::{BackendKey, Route, Target, TlsTo};
