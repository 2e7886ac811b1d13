//! HTTP/1.0 and HTTP/1.1 (RFC 9112), read strictly: what could be read in two ways is
//! refused, as a server behind this one would perhaps read it in the other.
//!
//! [`parse_request`] and [`parse_response`] read heads from the beginning of a buffer that may
//! not yet have all of them, and go on where they stopped when it has more. [`Chunked`] finds
//! the data of a chunked body. What goes to the other side is made by [`write`](mod@write) from what was
//! understood; of the received bytes only names and values of fields are copied.

mod chunked;
mod fields;
mod request;
mod response;
#[cfg(test)]
mod tests;
pub mod write;

pub use chunked::{Chunked, MAX_TRAILER, Step};
pub use request::parse_request;
pub use response::{Asked, parse_response};
