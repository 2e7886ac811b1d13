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
//! 2. if none of them is, or fewer of them than the panic threshold says, counted by servers,
//!    the backups that are usable as well: the few that are left would fail under the load of
//!    all;
//! 3. where too few primaries are usable and no backup is, all primaries that nobody drained,
//!    whatever is known of their health: where most seem to have failed, it is more likely that
//!    the checks did.
//!
//! A session stays with its server, also with one that is draining or has no weight, as long as
//! that is up and not ejected; with a backup only as long as backups are used.
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
