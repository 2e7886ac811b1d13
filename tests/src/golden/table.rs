//! What a table of golden packets is made of.

use std::net::Ipv4Addr;

use edge_common::{
    abi::{FragmentPolicy, LimitKind, Mode},
    addr::Prefix,
    gcra::Limit,
    reason::{Reason, Verdict},
    table::{FLAG_BOGON, FLAG_MANAGEMENT, FOREVER, Meta, Stamp, stamp},
};
use edge_userspace::tables::Listing;

use crate::{
    packet::{Arp, Ip, QTAG},
    program::Settings,
};

/// Time at the start of each table, nanoseconds: far from 0, also in the few bits of it that leases
/// have, and on a step of the stamps.
pub(super) const START: u64 = 1 << 40 | 1 << 30;

/// One packet, or several of it in a row.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is about.
    pub what: String,
    /// The frame.
    pub frame: Vec<u8>,
    /// How often it comes.
    pub times: u32,
    /// Nanoseconds that pass before it.
    pub wait: u64,
    /// What each of them ends with.
    pub ends: Reason,
    /// What checks in dry run find on the way, in their order.
    pub would_drop: Vec<Reason>,
    /// What later checks would find if those before let the packet go.
    pub also: Vec<Reason>,
    /// Bytes that are counted for each, when that is not the frame.
    pub counted: Option<usize>,
    /// How many of the packets' findings are sampled.
    pub samples: usize,
}

/// A frame, however it was made.
pub(super) trait Frame {
    /// Its bytes.
    fn frame(self) -> Vec<u8>;
}

impl Frame for Ip {
    fn frame(self) -> Vec<u8> {
        self.build()
    }
}

impl Frame for Arp {
    fn frame(self) -> Vec<u8> {
        self.build()
    }
}

impl Frame for Vec<u8> {
    fn frame(self) -> Vec<u8> {
        self
    }
}

/// A packet that ends with a reason.
pub(super) fn row(what: &str, frame: impl Frame, ends: Reason) -> Row {
    Row {
        what: what.to_owned(),
        frame: frame.frame(),
        times: 1,
        wait: 0,
        ends,
        would_drop: Vec::new(),
        also: Vec::new(),
        counted: None,
        samples: 0,
    }
}

impl Row {
    /// It comes this often.
    pub const fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// It comes so many milliseconds after the packet before.
    pub const fn after_ms(mut self, ms: u64) -> Self {
        self.wait = ms * 1_000_000;
        self
    }

    /// Checks in dry run find this.
    pub fn would(mut self, reasons: &[Reason]) -> Self {
        self.would_drop = reasons.to_vec();
        self
    }

    /// If the check that drops it let it go, these would be found, too.
    pub fn also(mut self, reasons: &[Reason]) -> Self {
        self.also = reasons.to_vec();
        self
    }

    /// So many bytes are counted, and not those of the frame.
    pub const fn counted(mut self, bytes: usize) -> Self {
        self.counted = Some(bytes);
        self
    }

    /// So many samples are taken.
    pub const fn sampled(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Bytes counted for each packet.
    pub fn bytes(&self) -> usize {
        self.counted.unwrap_or(self.frame.len())
    }
}

/// Rows that are run in their order through one load of the program.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it is about.
    pub name: String,
    /// What the program is loaded with.
    pub settings: Settings,
    /// What the policy tables hold.
    pub entries: Vec<(Prefix, Listing)>,
    /// The ARP bindings.
    pub arp: Vec<(Ipv4Addr, [u8; 6])>,
    /// The packets.
    pub rows: Vec<Row>,
}

impl Table {
    /// A table without entries on any list.
    pub fn new(name: &str, settings: Settings, rows: impl Into<Vec<Row>>) -> Self {
        Self {
            name: name.to_owned(),
            settings,
            entries: Vec::new(),
            arp: Vec::new(),
            rows: rows.into(),
        }
    }

    /// A table under which every check is enforced.
    pub fn enforced(name: &str, rows: impl Into<Vec<Row>>) -> Self {
        Self::new(name, Settings::enforced(), rows)
    }

    /// Blacklists a host or prefix for good.
    #[must_use]
    pub fn black(self, prefix: &str) -> Self {
        self.black_until(prefix, FOREVER)
    }

    /// Blacklists until a stamp.
    #[must_use]
    pub fn black_until(self, prefix: &str, black: Stamp) -> Self {
        self.entry(prefix, |listing| listing.black = black)
    }

    /// Puts a host or prefix on the allowlist for good.
    #[must_use]
    pub fn allow(self, prefix: &str) -> Self {
        self.allow_until(prefix, FOREVER)
    }

    /// Puts it on the allowlist until a stamp.
    #[must_use]
    pub fn allow_until(self, prefix: &str, allow: Stamp) -> Self {
        self.entry(prefix, |listing| listing.allow = allow)
    }

    /// Makes a host or prefix a management one.
    #[must_use]
    pub fn management(self, prefix: &str) -> Self {
        self.entry(prefix, |listing| listing.meta.flags |= FLAG_MANAGEMENT)
    }

    /// Makes a prefix a bogon.
    #[must_use]
    pub fn bogon(self, prefix: &str) -> Self {
        self.entry(prefix, |listing| listing.meta.flags |= FLAG_BOGON)
    }

    /// Gives a host or prefix a limit profile.
    #[must_use]
    pub fn profile(self, prefix: &str, profile: u8) -> Self {
        self.entry(prefix, |listing| listing.meta.profile = profile)
    }

    /// Binds an address to a MAC address.
    #[must_use]
    pub fn bind(mut self, address: [u8; 4], mac: [u8; 6]) -> Self {
        self.arp.push((address.into(), mac));
        self
    }

    fn entry(mut self, prefix: &str, change: impl FnOnce(&mut Listing)) -> Self {
        let prefix: Prefix = prefix.parse().unwrap();
        let at = self.entries.iter().position(|(p, _)| *p == prefix);
        let at = at.unwrap_or_else(|| {
            let nothing = Listing {
                meta: Meta::default(),
                ..Listing::default()
            };
            self.entries.push((prefix, nothing));
            self.entries.len() - 1
        });
        change(&mut self.entries[at].1);
        self
    }

    /// The same with this many VLAN tags before each packet.
    #[must_use]
    pub fn tagged(&self, tags: usize) -> Self {
        let mut table = self.clone();
        table.name = format!("{}, {tags} VLAN tags", self.name);
        for row in &mut table.rows {
            for id in 0..tags {
                let [a, b] = QTAG.to_be_bytes();
                row.frame.splice(12..12, [a, b, 0, 100 + id as u8]);
            }
            row.counted = row.counted.map(|bytes| bytes + 4 * tags);
        }
        table
    }

    /// The same with every check in dry run or off: nothing drops.
    #[must_use]
    pub fn in_mode(&self, mode: Mode) -> Self {
        let mut table = self.clone();
        table.name = format!("{}, {}", self.name, mode.name());
        let policy = self.settings.config.fragment_policy;
        table.settings.config = Settings::checks(mode).config;
        table.settings.config.fragment_policy = policy;
        for row in &mut table.rows {
            if row.ends.verdict() == Verdict::Pass {
                continue;
            }
            row.would_drop = match mode {
                Mode::DryRun => [vec![row.ends], row.also.clone()].concat(),
                Mode::Off | Mode::Enforce => Vec::new(),
            };
            row.ends = match row.ends {
                Reason::ArpSpoof => Reason::PassArp,
                _ if row.ends.is_malformed() || row.also.iter().any(|also| also.is_malformed()) => {
                    Reason::PassUnparsed
                }
                _ => Reason::Pass,
            };
        }
        table
    }
}

/// The stamp so many steps (of 134 ms) after [`START`].
pub(super) const fn stamp_after(steps: Stamp) -> Stamp {
    stamp(START) + steps
}

/// Settings with every check enforced and all fragments dropped.
pub(super) fn drop_all_fragments() -> Settings {
    Settings::enforced().with(|c| c.fragment_policy = FragmentPolicy::DropAll as u32)
}

/// Settings with one limit of the default profile, in this mode, and no checks
/// but the blacklist.
pub(super) fn limited(kind: LimitKind, mode: Mode, rate: u64, burst: u64) -> Settings {
    Settings::checks(Mode::Off)
        .with(|c| c.blacklist = Mode::Enforce as u32)
        .limit(0, kind, rate, burst)
        .limit_mode(kind, mode)
}

/// Settings with every check enforced and this many samples a second of each reason.
pub(super) fn sampled(per_second: u64) -> Settings {
    Settings::enforced().with(|c| {
        c.sample = Limit::per_second(per_second, per_second).unwrap();
    })
}
