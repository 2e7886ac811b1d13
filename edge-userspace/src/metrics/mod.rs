//! Prometheus metrics: the names, the text, the endpoint.

pub mod names;
mod proxy;
pub mod registry;
pub mod serve;
