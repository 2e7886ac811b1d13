//! HTTP/2 between the proxy and servers, over the loopback interface.

#[allow(dead_code, reason = "each test binary has its own use for it")]
#[path = "../http2/raw.rs"]
mod raw;
#[allow(dead_code, reason = "each test binary has its own use for it")]
#[path = "../proxy/rig.rs"]
mod rig;

mod checks;
mod client;
mod frames;
mod nginx;
mod server;
mod streams;
