//! Sampled packets from the kernel's ring buffer.

use std::io;

use aya::maps::{MapData, RingBuf};
use edge_common::abi::Event;
use tokio::io::{Interest, unix::AsyncFd};

/// The ring buffer before it is bound to a runtime.
pub struct EventRing(pub(super) RingBuf<MapData>);

/// The reading end of the ring buffer. There must be only one of a ring.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Binds a ring to the current tokio runtime.
    ///
    /// # Errors
    /// When the descriptor cannot be registered.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn new(ring: EventRing) -> io::Result<Self> {
        // SAFETY: a `RingBuf` owns its map's descriptor, never exchanges it, and
        // closes it only when it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring.0, Interest::READABLE)? };
        Ok(Self { ring })
    }

    /// Waits until there are events and appends up to `most` of them. Records
    /// that are no events are skipped. Loses nothing when cancelled.
    ///
    /// # Errors
    /// When the descriptor cannot be waited for.
    pub async fn read(&mut self, events: &mut Vec<Event>, most: usize) -> io::Result<()> {
        let mut guard = self.ring.readable_mut().await?;
        for _ in 0..most {
            let event = guard.get_inner_mut().next().map(|r| Event::read(&r));
            let Some(event) = event else {
                guard.clear_ready();
                break;
            };
            events.extend(event);
        }
        // Not cleared when there may be more: the next call returns at once.
        Ok(())
    }
}
