//! Which server of a group gets a request.
//!
//! Pure: time, random numbers and the request's key are arguments. A [`Group`] is what
//! workers share: servers whose state is plain atomics, and what follows from the
//! configuration alone. Each worker has a [`Picker`] of its own for it, which remembers
//! positions and a digest of the servers' state; the digest is made anew when the state
//! has changed, so that a pick looks at as few servers as its algorithm needs.
//!
//! Who is asked, in this order:
//!
//! 1. the primaries that are usable: up, not ejected, not draining, with a weight;
//! 2. if none of them is, the backups that are usable;
//! 3. all primaries that nobody drained, whatever is known of their health, when fewer of
//!    them are usable than the panic threshold says (1. with too few left, or neither 1. nor
//!    2.): where most seem to have failed, it is more likely that the checks did, and the
//!    few that are left would fail under the load of all.
//!
//! A request that was tried elsewhere before goes to a server where it was not, if need be
//! to a usable backup, and only if there is no such server to the same one again.

mod group;
mod hashing;
mod picker;
pub mod sticky;
#[cfg(test)]
mod tests;
mod tier;

pub use group::{Active, Algorithm, Group, Member, Server, Settings};
pub use hashing::{address_key, key};
pub use picker::{Ask, Picker};
