//! Test rigs: network namespaces, links, senders and counters of real packets, the daemon as a
//! process, and the servers behind it; frames, the real program to run them through, and the golden
//! packets.
//!
//! Nothing here is global to the machine. Namespaces have no names: they live as long as this
//! process holds them open, and so vanish with it however it ends. The BPF file system is a private
//! mount in the namespace of the protected host, so pins vanish too.

pub mod client;
pub mod cpu;
pub mod daemon;
pub mod decap;
pub mod frames;
pub mod golden;
pub mod harness;
pub mod lab;
pub mod netns;
pub mod packet;
pub mod program;
pub mod raw;
pub mod receiver;
pub mod server;
pub mod test_run;
pub mod tunnel;
pub mod wait;
