//! The proxy with real sockets: what a client gets, and which bytes reach the servers.

mod balancing;
mod blame;
mod bodies;
mod changes;
#[allow(dead_code, reason = "each test binary has its own use for it")]
#[path = "../http2_servers/client.rs"]
mod client;
mod connections;
mod edges;
mod health;
mod hyper_server;
mod mirror;
mod resilience;
mod rig;
mod routes;
mod routing;
mod secured;
mod strict;
mod timeouts;
mod told;
mod traces;
