//! Prometheus metrics: the names, the text, the endpoint.

pub mod names;
pub mod registry;
pub mod serve;
