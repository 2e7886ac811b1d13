//! The loaded program, its services, and listeners in a network namespace.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use edge_common::{
    abi::{Config, Mode},
    defence::{
        Service, ServiceCounter, TARGET_FORWARDED, TARGET_LOCAL, TARGET_REST, Target, TargetKey,
        WSCALE_UNKNOWN, When, reply::feature, v4_halves,
    },
    gcra::Limit,
    reason::{Reason, Verdict},
    table::Meta,
};
use edge_userspace::{
    datapath::{ServiceTables, counter},
    tables::{Listing, Tables},
};

use super::super::{V4_DEST, V6_DEST, table::START};
use crate::{
    packet::proto,
    program::{Moved, Rig, Rigs, SEED, Settings},
    test_run::Run,
};

use super::*;

/// The loaded program, services, and listeners in a namespace.
pub(in crate::golden) struct World {
    pub(super) rig: Rig,
    pub(super) services: ServiceTables,
    pub(super) tables: Tables,
    listeners: Vec<TcpListener>,
    pub(super) now: u64,
    pub(super) rows: usize,
    pub(super) failures: Vec<String>,
}

/// What became of a packet.
pub(in crate::golden) struct Out {
    pub(super) run: Run,
    pub(in crate::golden) moved: Moved,
}

impl Out {
    pub(in crate::golden) fn reason(&self) -> Option<Reason> {
        match self.moved.ended[..] {
            [(reason, 1, _)] => Some(reason),
            _ => None,
        }
    }
}

impl World {
    pub(in crate::golden) fn new(
        rigs: &mut Rigs,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        enter_namespace()?;
        for (name, value) in [("tcp_syncookies", "2"), ("tcp_timestamps", "2")] {
            sysctl(name, value)?;
        }
        let listeners = [LOCAL, UNLEARNT, AUTO, DRY]
            .map(|port| TcpListener::bind(("::", port)))
            .into_iter()
            .collect::<io::Result<_>>()
            .context("cannot listen")?;
        let mut settings = Settings::checks(Mode::Off).with(|c| {
            c.services = 7;
            c.defended = 1;
            c.always_defended = 1;
            c.tcp_features = feature::ALL;
            c.reply_ttl = u32::from(TTL);
            c.reply_window = u32::from(WINDOW);
            c.verified_buckets = 64;
            c.verified_ttl = VERIFIED_STEPS;
            change(c);
        });
        settings.targets = 64;
        let mut rig = rigs.take(&settings)?;
        rig.set_time(START)?;
        let mut services = rig.services()?;
        let tables = rig.tables()?;
        let always = Service {
            when: When::Always as u32,
            credit: 2,
            hold_ns: 10 * SECOND,
            incomplete: Limit::per_second(10, 20).context("a limit")?,
            ..Service::OFF
        };
        services.set_services(&[
            always,
            Service {
                when: When::Auto as u32,
                ..always
            },
            Service {
                dry_run: 1,
                ..always
            },
            always,
            Service {
                reflection: Limit::per_second(10, 5).context("a limit")?,
                ..Service::OFF
            },
            Service {
                when: When::Auto as u32,
                ..always
            },
            Service {
                when: When::Auto as u32,
                ..always
            },
        ])?;
        let mut targets = BTreeMap::new();
        for address in [V4_DEST, V6_DEST, "127.0.0.1", "::1"] {
            for (port, service, wscale, kind) in [
                (LOCAL, 0, WSCALE, TARGET_LOCAL),
                (CLOSED, 0, WSCALE_UNKNOWN, TARGET_LOCAL),
                (UNLEARNT, 0, WSCALE_UNKNOWN, TARGET_LOCAL),
                (AUTO, 1, WSCALE, TARGET_LOCAL),
                (DRY, 2, WSCALE, TARGET_LOCAL),
                (FORWARDED, 3, WSCALE, TARGET_FORWARDED),
                (FORWARDED_AUTO, 6, WSCALE, TARGET_FORWARDED),
            ] {
                let address: IpAddr = address.parse()?;
                targets.insert(
                    key(address, proto::TCP, port),
                    Target {
                        service,
                        mss: mss(address),
                        wscale,
                        kind,
                        marked_at: 0,
                    },
                );
            }
            let rest = Target {
                service: 5,
                mss: 0,
                wscale: WSCALE_UNKNOWN,
                kind: TARGET_REST,
                marked_at: 0,
            };
            targets.insert(key(address.parse()?, proto::TCP, 0), rest);
            let udp = Target {
                service: 4,
                mss: 0,
                wscale: WSCALE_UNKNOWN,
                kind: TARGET_LOCAL,
                marked_at: 0,
            };
            targets.insert(key(address.parse()?, proto::UDP, UDP), udp);
        }
        services.set_targets(&targets, &[53, 123], &SEED)?;
        Ok(Self {
            rig,
            services,
            tables,
            listeners,
            now: START,
            rows: 0,
            failures: Vec::new(),
        })
    }

    /// Connects to a listener; both ends. The client's end may be there before the listener's:
    /// until that one is as well, a segment of the connection belongs to nobody.
    pub(in crate::golden) fn connect(
        &mut self,
        address: &str,
        port: u16,
    ) -> Option<[TcpStream; 2]> {
        let both = TcpStream::connect((address, port)).and_then(|client| {
            let listening = |l: &&TcpListener| l.local_addr().is_ok_and(|a| a.port() == port);
            let listener = self.listeners.iter().find(listening);
            let listener = listener.ok_or(io::ErrorKind::NotFound)?;
            Ok([client, listener.accept()?.0])
        });
        both.inspect_err(|e| self.fail(format!("{address}: cannot connect to {port}: {e}")))
            .ok()
    }

    pub(in crate::golden) fn pass_time(&mut self, ns: u64) {
        self.now += ns;
        self.rig.set_time(self.now).expect("set the clock");
    }

    pub(in crate::golden) fn send(&mut self, frame: &[u8]) -> Out {
        self.rows += 1;
        let (run, moved) = self.rig.run_and_count(frame, 1).expect("a test run");
        Out { run, moved }
    }

    /// Sends segments, each another one, in as many slices of the time as it takes for their
    /// source to be sampled: of 64 one is, for 64, and 20 may come at once.
    pub(in crate::golden) fn sampled(&mut self, segment: &Segment, source: &str, dest: &str) {
        for n in 0..256 {
            let segment = segment.clone().numbers(7 * n, 9);
            self.send(&segment.packet(source, dest).build());
            self.pass_time(1 << 20);
        }
    }

    pub(in crate::golden) fn counted(&self, service: usize, which: ServiceCounter) -> u64 {
        let counters = self.services.counters(service).expect("the counters");
        counter(&counters, which)
    }

    pub(in crate::golden) fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    pub(in crate::golden) fn check(&mut self, what: &str, is: bool) {
        if !is {
            self.fail(what);
        }
    }

    /// Sends a packet that must end with this reason, unchanged unless it is answered.
    pub(in crate::golden) fn ends(&mut self, what: &str, frame: &[u8], reason: Reason) -> Out {
        let out = self.send(frame);
        let action = match reason.verdict() {
            Verdict::Drop => 1,
            Verdict::Pass => 2,
            Verdict::Reply | Verdict::Forward => 3,
        };
        if out.reason() != Some(reason) || out.run.action != action {
            let (moved, action) = (&out.moved, out.run.action);
            self.fail(format!("{what}: {moved}, action {action}, not {reason:?}"));
        } else if reason.verdict() != Verdict::Reply && out.run.output != frame {
            self.fail(format!("{what}: the frame was changed"));
        }
        out
    }

    /// Enters a source in the lists.
    pub(in crate::golden) fn list(&mut self, prefix: &str, change: impl FnOnce(&mut Listing)) {
        let mut listing = Listing {
            meta: Meta::default(),
            ..Listing::default()
        };
        change(&mut listing);
        let prefix = prefix.parse().expect("an address");
        self.tables.put(prefix, listing).expect("there is room");
    }

    /// What the verifier went through.
    pub(in crate::golden) fn verified_instructions(&mut self) -> u32 {
        self.rig.verified_instructions().expect("the kernel tells")
    }

    /// A dry run must have found this, and nothing else.
    pub(in crate::golden) fn would(&mut self, out: &Out, reason: Reason) {
        let would = out.moved.would_drop.iter().map(|(r, n, _)| (*r, *n));
        if !would.eq([(reason, 1)]) {
            self.fail(format!("{}, not would {reason:?}", out.moved));
        }
    }

    /// Sends a packet that must be answered with `reply`, in which the numbers are
    /// filled in from the answer: (sequence, acknowledgement).
    pub(in crate::golden) fn answered(
        &mut self,
        what: &str,
        frame: &[u8],
        reason: Reason,
        reply: impl FnOnce(u32, u32) -> Vec<u8>,
    ) -> Option<(u32, u32)> {
        let out = self.ends(what, frame, reason);
        let tcp = tcp_of(&out.run.output)?;
        let number = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let (seq, ack) = (number(4)?, number(8)?);
        let expected = reply(seq, ack);
        if out.run.output != expected {
            let got = &out.run.output;
            self.fail(format!("{what}: {got:02x?}\n  instead of {expected:02x?}"));
        }
        Some((seq, ack))
    }
}

/// Of the calling thread's network namespace.
pub(super) fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    fs::write(&path, value).with_context(|| path)
}

pub(super) fn enter_namespace() -> Result<()> {
    // SAFETY: no pointers; only this thread enters the new namespace.
    let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(made == 0, io::Error::last_os_error());
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    ensure!(socket >= 0, io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: a structure of numbers and arrays of them, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is of the type that the call wants, with a name that ends.
    let up = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    ensure!(up == 0, io::Error::last_os_error());
    Ok(())
}

pub(super) fn key(address: IpAddr, proto: u8, port: u16) -> TargetKey {
    let address = match address {
        IpAddr::V4(a) => v4_halves(u32::from_ne_bytes(a.octets())),
        IpAddr::V6(a) => {
            let octets = a.octets();
            let (halves, _) = octets.as_chunks::<8>();
            [halves[0], halves[1]].map(u64::from_ne_bytes)
        }
    };
    TargetKey {
        address,
        port: port.to_be(),
        proto,
        pad: [0; 5],
    }
}

pub(super) fn mss(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => 1460,
        IpAddr::V6(_) => 1440,
    }
}
