//! What the host was last seen to have.

use std::io;

use crate::services::facts::{Host, Listeners, TcpMemory};

/// What the host has, and whether that has changed.
#[derive(Debug, Default)]
pub(super) struct Sight {
    pub(super) host: Host,
    pub(super) memory: TcpMemory,
    pub(super) listeners: Listeners,
    changed: bool,
}

impl Sight {
    /// Asks what is given to be asked.
    ///
    /// # Errors
    /// The first one. What was told before it is taken in.
    pub(super) fn look(
        &mut self,
        host: Option<impl FnOnce() -> io::Result<(Host, TcpMemory)>>,
        listeners: Option<impl FnOnce() -> io::Result<Listeners>>,
    ) -> io::Result<()> {
        if let Some(ask) = host {
            let (host, memory) = ask()?;
            self.changed |= host != self.host || memory != self.memory;
            (self.host, self.memory) = (host, memory);
        }
        if let Some(ask) = listeners {
            let listeners = ask()?;
            self.changed |= listeners != self.listeners;
            self.listeners = listeners;
        }
        Ok(())
    }

    /// Whether anything has changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(mtu: u32) -> io::Result<(Host, TcpMemory)> {
        let protected_mtu = Some(mtu);
        let host = Host {
            protected_mtu,
            ..Host::default()
        };
        Ok((host, TcpMemory::default()))
    }

    #[test]
    fn what_changed_before_an_error_is_not_lost() {
        let mut sight = Sight::default();
        let fail = || Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        let fine = || Ok(Listeners::default());
        assert!(sight.look(Some(|| host(1400)), Some(fail)).is_err());
        assert!(sight.take_changed());
        assert_eq!(sight.host.protected_mtu, Some(1400));
        sight.look(Some(|| host(1400)), Some(fine)).unwrap();
        assert!(!sight.take_changed());
    }
}
