//! Carries packets of checks from the TUN device into their tunnels.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{error, warn};

use super::probe::Ways;
use crate::host::tunnel::{DEVICE, Device};

/// Packets carried in one go, before others have their turn.
const BATCH: usize = 64;
/// More than the MTU of the device.
const PACKET: usize = 2048;
/// Packets, and that the interface is gone.
const TOLD: Interest = Interest::READABLE.add(Interest::ERROR);
/// How often rules and routes are looked after: others may have removed them, as
/// systemd-networkd does with those that it has not made.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the log says that they are not as they should be, at the most.
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

/// Carries what comes to the device that there is, until nobody can set another one.
pub(super) async fn carry(mut devices: watch::Receiver<Option<Arc<Device>>>, ways: Arc<Ways>) {
    loop {
        let device = devices.borrow_and_update().clone();
        let carrying = async {
            if let Some(device) = device
                && let Err(e) = carry_of(device, &ways).await
            {
                error!(
                    "health checks do not go through the tunnel any more, and health stays as it \
                     is: {DEVICE}: {e}; `edge reload` makes it anew"
                );
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            changed = devices.changed() => if changed.is_err() {
                return;
            },
            () = carrying => {}
        }
    }
}

/// A device that tokio can wait for.
struct DeviceFd(Arc<Device>);

impl AsRawFd for DeviceFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Ends only with an error: the device is gone.
async fn carry_of(device: Arc<Device>, ways: &Ways) -> io::Result<()> {
    // SAFETY: the descriptor is the device's own, which lives as long as the value.
    let device = unsafe { AsyncFd::register_with_interest(DeviceFd(device), TOLD)? };
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complained: Option<Instant> = None;
    let (mut packet, mut out) = ([0; PACKET], Vec::with_capacity(PACKET));
    loop {
        tokio::select! {
            ready = device.ready(TOLD) => {
                let mut ready = ready?;
                for _ in 0..BATCH {
                    match ready.get_inner().0.read(&mut packet) {
                        Ok(len) => {
                            let packet = packet.get(..len).unwrap_or_default();
                            pass_on(&ready.get_inner().0, packet, ways, &mut out);
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            ready.clear_ready();
                            break;
                        }
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => {
                            device.get_ref().0.lost();
                            return Err(e);
                        }
                    }
                }
                drop(ready);
                tokio::task::yield_now().await;
            }
            _ = looks.tick() => {
                let quiet = complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
                if let Err(e) = device.get_ref().0.look_after() && quiet {
                    complained = Some(Instant::now());
                    warn!("{e}");
                }
            }
        }
    }
}

fn pass_on(device: &Device, packet: &[u8], ways: &Ways, out: &mut Vec<u8>) {
    let Some(sending) = ways.carry(packet, out) else {
        return;
    };
    if let Err(e) = device.send(out, sending.to) {
        sending
            .carried
            .failed(e.raw_os_error().unwrap_or(libc::EIO));
    }
}
