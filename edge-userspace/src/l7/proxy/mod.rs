//! The proxy at work: workers, connections, requests.
//!
//! Each worker is a thread with a runtime, sockets (`SO_REUSEPORT`), buffers, and connections to
//! servers of its own; workers share counters and what is known of servers, all plain atomics.
//! Where the stages compose is [`exchange`]: there a request finds its route and every failure
//! becomes an answer.

mod back;
mod buffers;
mod certificates;
mod choice;
mod conn;
mod crew;
mod descriptors;
mod exchange;
pub mod explain;
mod forward;
mod front;
mod group;
mod h2;
mod ids;
mod keys;
mod link;
mod listen;
mod log_writer;
mod mirror;
mod panics;
mod pool;
mod privileges;
mod relay;
mod request_head;
mod snapshot;
mod spans;
mod stream;
mod tell;
mod tier;
mod timers;
mod tls;
mod view;
mod waits;
mod watch;
mod worker;

pub use keys::Keys;
pub use listen::Given;
pub use snapshot::Ban;
pub use tier::{Prepared, Tier, TierError};
pub use tls::TlsError;
pub use view::{Change, NewWeight, NoServer, Said, View};
