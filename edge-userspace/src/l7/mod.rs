//! The proxy for HTTP.
//!
//! Its rooms know each other only through what composes them, [`proxy`]; what all of them share
//! is [`head`].

pub mod access_log;
pub mod balance;
pub mod bans;
pub mod forwarded;
pub mod head;
pub mod http1;
pub mod proxy;
pub mod proxy_protocol;
pub mod refusal;
pub mod resilience;
pub mod route;
pub mod stats;
