//! The proxy for HTTP.
//!
//! Its rooms know each other only through what composes them; what they share is [`head`].

pub mod forwarded;
pub mod head;
pub mod http1;
pub mod proxy_protocol;
