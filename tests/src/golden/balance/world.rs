//! The loaded program with balanced services, and what must come out of it: outer headers
//! made here, from the RFCs, and checksums by a plain sum.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use edge_common::{
    abi::{Config, Mode},
    balance::{Backend, BackendWord, Balance, Forward, HashBy, Idle, hop},
    defence::{
        SOURCE_PROTO, TARGET_FORWARDED, TARGET_SOURCE, Target, TargetKey, WSCALE_UNKNOWN, v4_halves,
    },
    hash::Seed,
    nat::Source,
    reason::Reason,
};
use edge_userspace::datapath::{BalanceTables, ServiceTables};

use super::super::table::START;
use crate::{
    packet::proto,
    program::{Moved, Rig, Rigs, SEED, Settings},
    test_run::Run,
};

/// The secret of the choice of backends.
pub(super) const BALANCE_SEED: Seed = Seed::new([
    0x7d3a_91c6_5e20_f48b,
    0xc2b7_0e95_6a1d_83f5,
    0x39e4_d06b_f172_8ac9,
    0x8b51_2fd7_c60e_94a3,
]);
/// How long flows are kept.
pub(super) const IDLE: Idle = Idle { tcp: 900, udp: 100 };
/// Slots of a ring.
pub(super) const SLOTS: u32 = 251;
/// The next hop's MAC address, and that of the interface to it.
pub(super) const HOP: [u8; 6] = [2, 0, 0, 0, 9, 1];
pub(super) const OWN: [u8; 6] = [2, 0, 0, 0, 9, 2];
/// The interface that test runs come from, and another one.
pub(super) const HERE: u32 = 1;
pub(super) const ELSEWHERE: u32 = 77;
/// Where tunnels come from.
pub(super) const FROM_V4: &str = "192.0.2.1";
pub(super) const FROM_V6: &str = "2001:db8:e::1";
/// The smallest MTU on the way to any backend.
pub(super) const MTU: u16 = 1500;

/// The loaded program and its tables.
pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) services: ServiceTables,
    pub(super) tables: BalanceTables,
    targets: BTreeMap<TargetKey, Target>,
    /// Of backends by number: how their service is balanced, and what they are without that.
    ways: BTreeMap<u32, (Forward, bool)>,
    /// The same of those that are in no ring yet.
    latest: (Forward, bool),
    words: BTreeMap<u32, BackendWord>,
    pub(super) now: u64,
    pub(super) rows: usize,
    pub(super) failures: Vec<String>,
}

/// What became of a packet.
pub(super) struct Out {
    pub(super) run: Run,
    pub(super) moved: Moved,
}

impl World {
    pub(super) fn new(rigs: &mut Rigs, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let settings = Settings::checks(Mode::Off).with(|c| {
            c.services = 8;
            c.defended = 1;
            c.rings = 8;
            c.slots = SLOTS;
            c.backends = 16;
            c.flow_buckets = 1024;
            c.tcp_idle = IDLE.tcp;
            c.udp_idle = IDLE.udp;
            c.clamp_mss = 1;
            c.reply_ttl = 61;
            c.balance_seed = BALANCE_SEED;
            change(c);
        });
        let settings = Settings {
            targets: 64,
            ..settings
        };
        let mut rig = rigs.take(&settings)?;
        rig.set_time(START)?;
        let (services, tables) = (rig.services()?, rig.balance()?);
        Ok(Self {
            rig,
            services,
            tables,
            targets: BTreeMap::new(),
            ways: BTreeMap::new(),
            latest: (Forward::Ipip, false),
            words: BTreeMap::new(),
            now: START,
            rows: 0,
            failures: Vec::new(),
        })
    }

    /// Enters a service at an address and port (0: all), and what its pings and fragments
    /// are found by.
    pub(super) fn enter(&mut self, address: &str, protocol: u8, port: u16, service: u32) {
        let address: IpAddr = address.parse().expect("an address");
        let halves = halves(address);
        for (port, proto) in [
            (port, protocol),
            (0, proto::ICMP),
            (u16::from(protocol), proto::FRAGMENT),
        ] {
            let key = TargetKey {
                address: halves,
                port: port.to_be(),
                proto,
                pad: [0; 5],
            };
            let target = Target {
                service,
                mss: 0,
                wscale: WSCALE_UNKNOWN,
                kind: TARGET_FORWARDED,
                marked_at: 0,
            };
            self.targets.insert(key, target);
        }
        self.services
            .set_targets(&self.targets, &[], &SEED)
            .expect("room for targets");
    }

    /// Makes these the source addresses of NAT, by number.
    pub(super) fn sources(&mut self, sources: &[(Option<&str>, Option<&str>)]) {
        let parsed = |address: &Option<&str>| {
            address.map_or([0; 2], |a| halves(a.parse().expect("an address")))
        };
        let sources: Vec<Source> = sources
            .iter()
            .map(|(v4, v6)| Source {
                v4: parsed(v4),
                v6: parsed(v6),
            })
            .collect();
        for (number, source) in (0..).zip(&sources) {
            for address in [source.v4, source.v6].into_iter().filter(|a| *a != [0; 2]) {
                let key = TargetKey {
                    address,
                    port: 0,
                    proto: SOURCE_PROTO,
                    pad: [0; 5],
                };
                let target = Target {
                    service: number,
                    mss: 0,
                    wscale: WSCALE_UNKNOWN,
                    kind: TARGET_SOURCE,
                    marked_at: 0,
                };
                self.targets.insert(key, target);
            }
        }
        self.services
            .set_targets(&self.targets, &[], &SEED)
            .expect("room for targets");
        self.tables.set_sources(&sources);
    }

    /// Balances a service over backends in turn, slot by slot.
    pub(super) fn balance(&mut self, service: u32, balance: Balance, backends: &[u32]) {
        let ring = service + 1;
        let numbers: Vec<u32> = (0..SLOTS as usize)
            .map(|slot| backends[slot % backends.len()])
            .collect();
        self.tables.write_ring(ring, &numbers);
        let balance = Balance {
            ring,
            is_on: true,
            ..balance
        };
        self.tables.set_balance(service as usize, balance);
        // Backends know how packets of their service reach them.
        let by_id = matches!(balance.by, HashBy::Quic(_));
        self.latest = (balance.forward, by_id);
        for &number in backends {
            self.ways.insert(number, self.latest);
        }
        for (&number, &word) in &self.words {
            let backend = Backend {
                word: self.way_of(number, word).word(),
                ..self.tables.backend(number)
            };
            self.tables.set_backend(number, &backend);
        }
    }

    fn way_of(&self, number: u32, word: BackendWord) -> BackendWord {
        let (forward, by_id) = self.ways.get(&number).copied().unwrap_or(self.latest);
        BackendWord {
            forward,
            by_id,
            ..word
        }
    }

    /// Puts a backend at a number.
    pub(super) fn backend(&mut self, number: u32, address: &str, out: u32, word: BackendWord) {
        let address: IpAddr = address.parse().expect("an address");
        let source = if address.is_ipv6() { FROM_V6 } else { FROM_V4 };
        let word = BackendWord {
            v6: address.is_ipv6(),
            ..word
        };
        self.words.insert(number, word);
        let backend = Backend {
            address: halves(address),
            source: halves(source.parse().expect("an address")),
            hop: hop(HOP, OWN, out),
            word: self.way_of(number, word).word(),
            spread: 0,
        };
        self.tables.set_backend(number, &backend);
    }

    /// Puts a backend at a number, to which flows come from sources that differ in these
    /// bits of the last byte.
    pub(super) fn spread_backend(&mut self, number: u32, address: &str, bits: u8) {
        self.backend(number, address, HERE, super::UP);
        let backend = Backend {
            spread: u32::from_ne_bytes([0, 0, 0, bits]).into(),
            ..self.tables.backend(number)
        };
        self.tables.set_backend(number, &backend);
    }

    pub(super) fn pass_time(&mut self, ns: u64) {
        self.now += ns;
        self.rig.set_time(self.now).expect("set the clock");
    }

    pub(super) fn send(&mut self, frame: &[u8]) -> Out {
        self.rows += 1;
        let (run, moved) = self.rig.run_and_count(frame, 1).expect("a test run");
        Out { run, moved }
    }

    pub(super) fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    pub(super) fn check(&mut self, what: &str, is: bool) {
        if !is {
            self.fail(what);
        }
    }

    /// Sends a packet that must end with this reason and action, as these bytes.
    pub(super) fn becomes(
        &mut self,
        what: &str,
        frame: &[u8],
        (reason, action): (Reason, u32),
        bytes: &[u8],
    ) {
        let out = self.send(frame);
        if !matches!(out.moved.ended[..], [(ended, 1, _)] if ended == reason)
            || out.run.action != action
        {
            let (moved, action) = (&out.moved, out.run.action);
            self.fail(format!("{what}: {moved}, action {action}, not {reason:?}"));
        } else if out.run.output != bytes {
            let output = &out.run.output;
            self.fail(format!("{what}:\n  is {output:02x?}\n not {bytes:02x?}"));
        }
    }

    /// The backend number that a packet went to; 0 when it went nowhere.
    pub(super) fn number_of(&mut self, frame: &[u8]) -> u32 {
        let packets = |world: &Self| -> Vec<u64> {
            (0..16)
                .map(|n| world.tables.counter(n).expect("a counter").packets)
                .collect()
        };
        let before = packets(self);
        self.send(frame);
        let after = packets(self);
        let mut went = (0u32..).zip(before.iter().zip(&after));
        went.find(|(_, (a, b))| a != b).map_or(0, |(n, _)| n)
    }
}

impl World {
    /// Sends a packet that must go to the backend with this number.
    pub(super) fn reaches(&mut self, what: &str, frame: &[u8], number: u32) {
        let went = self.number_of(frame);
        if went != number {
            self.fail(format!("{what}: went to {went}, not {number}"));
        }
    }
}

pub(super) fn halves(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(a) => v4_halves(u32::from_ne_bytes(a.octets())),
        IpAddr::V6(a) => {
            let [a, b, c, d, e, f, g, h, rest @ ..] = a.octets();
            [
                u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
                u64::from_ne_bytes(rest),
            ]
        }
    }
}
