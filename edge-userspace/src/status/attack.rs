//! An attack on a service or on the host as a whole, as it is told.

use std::collections::BTreeMap;

use edge_common::addr::Prefix;
use serde::{Deserialize, Serialize};

use crate::wire;

/// An attack, under way or over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attack {
    /// Its number: one more for each attack.
    pub id: u64,
    /// The service; [`crate::config::services::HOST`] for the host as a whole.
    pub service: String,
    /// What it is found by.
    #[serde(default)]
    pub found: Found,
    /// When it began, Unix milliseconds.
    pub began_unix_ms: u64,
    /// When the defence ended, Unix milliseconds; `null` while the attack is on.
    pub ended_unix_ms: Option<u64>,
    /// What it consists of, the larger part first.
    pub kinds: Vec<KindCount>,
    /// What is done about it.
    pub remedy: Remedy,
    /// Real clients that got through meanwhile: handshakes completed, with a cookie
    /// or without, and sources that answered a challenge. 0 where they are not told from
    /// the flood ([`Attack::knows_clients`]).
    pub clients: u64,
    /// What was counted meanwhile, by
    /// [`edge_common::defence::ServiceCounter::name`], or by
    /// [`edge_common::reason::Reason::name`] for the host as a whole.
    pub counters: BTreeMap<String, u64>,
    /// Packets of it that were sampled; [`Attack::sources`] and [`Attack::ports`] are
    /// of these.
    pub sampled: u64,
    /// The most frequent source prefixes among the samples, /24 of IPv4 and /48 of
    /// IPv6.
    pub sources: Vec<Share<Source>>,
    /// The most frequent destination ports among the samples.
    pub ports: Vec<Share<u16>>,
}

impl Attack {
    /// What it consists of, for a person.
    pub fn floods(&self) -> String {
        let kinds: Vec<&str> = self.kinds.iter().map(|k| k.kind.flood()).collect();
        kinds.join(" and ")
    }

    /// What is done, for a person.
    pub fn remedied(&self) -> &'static str {
        match (self.remedy, self.knows_clients()) {
            (Remedy::Drops, false) => "what is over the limit is dropped",
            (remedy, _) => remedy.sentence(),
        }
    }

    /// Whether clients are told from the flood: of TCP, by their handshakes.
    pub fn knows_clients(&self) -> bool {
        self.found == Found::Segments
    }
}

/// What an attack is found by. Each is an attack of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// Handshakes of a service that are not completed, and segments of no connection: by
    /// the program.
    #[default]
    Segments,
    /// UDP from ports of reflectors for a service, over its limit.
    Reflection,
    /// ICMP of the whole host, over its limits.
    Icmp,
    /// Packets from or to prefixes, over their limits.
    Prefixes,
}

impl Found {
    /// Those that befall the host as a whole.
    pub const HOST: [Self; 2] = [Self::Icmp, Self::Prefixes];

    /// The word for it, also the value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Segments => "segments",
            Self::Reflection => "reflection",
            Self::Icmp => "icmp",
            Self::Prefixes => "prefixes",
        }
    }
}

/// What a flood is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SYNs whose handshakes are not completed.
    Syn,
    /// Acknowledgements with guessed cookies.
    Ack,
    /// Other segments that belong to no connection.
    OutOfState,
    /// UDP from ports of reflectors.
    Reflection,
    /// ICMP and ICMPv6.
    Icmp,
    /// Packets from prefixes that send more than any may.
    Source,
    /// Packets for destinations and prefixes that get more than any may.
    Destination,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Syn,
        Self::Ack,
        Self::OutOfState,
        Self::Reflection,
        Self::Icmp,
        Self::Source,
        Self::Destination,
    ];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Ack => "ack",
            Self::OutOfState => "out_of_state",
            Self::Reflection => "reflection",
            Self::Icmp => "icmp",
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// What it is found by.
    pub const fn found(self) -> Found {
        match self {
            Self::Syn | Self::Ack | Self::OutOfState => Found::Segments,
            Self::Reflection => Found::Reflection,
            Self::Icmp => Found::Icmp,
            Self::Source | Self::Destination => Found::Prefixes,
        }
    }

    /// Such a flood, for a person.
    pub const fn flood(self) -> &'static str {
        match self {
            Self::Syn => "a SYN flood",
            Self::Ack => "a flood of guessed acknowledgements",
            Self::OutOfState => "a flood of segments of no connection",
            Self::Reflection => "a reflection flood",
            Self::Icmp => "an ICMP flood",
            Self::Source => "a flood from few prefixes",
            Self::Destination => "a flood of few destinations",
        }
    }
}

/// How much there is of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KindCount {
    /// The kind.
    pub kind: Kind,
    /// Packets.
    pub packets: u64,
    /// Packets a second, lately; 0 when the attack is over.
    pub per_second: f64,
    /// The most packets a second.
    pub peak_per_second: f64,
}

/// What is done about an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// SYNs are answered with cookies.
    Cookies,
    /// Sources that are not verified get a challenge.
    Challenges,
    /// It is dropped: segments of no connection, or what is over a limit.
    Drops,
    /// It is only counted what would be done.
    DryRun,
    /// Nothing: the service is not to be defended.
    Nothing,
}

impl Remedy {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cookies => "cookies",
            Self::Challenges => "challenges",
            Self::Drops => "drops",
            Self::DryRun => "dry_run",
            Self::Nothing => "nothing",
        }
    }

    /// What is done about a flood of TCP, for a person.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Cookies => "answered with SYN cookies",
            Self::Challenges => "answered with challenges",
            Self::Drops => "which are dropped",
            Self::DryRun => "NOT DEFENDED (dry run)",
            Self::Nothing => "NOT DEFENDED (syn = \"off\")",
        }
    }
}

/// How often something was among the samples, at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share<K> {
    /// What.
    pub of: K,
    /// In so many samples at the most.
    pub samples: u64,
    /// So many of them may have been of others.
    pub error: u64,
}

/// A source prefix, written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Source(#[serde(with = "wire::text")] pub Prefix);

/// An attack began or ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// When it was noticed, Unix milliseconds.
    pub unix_ms: u64,
    /// Which of the two.
    pub change: Change,
    /// The attack, as it was then.
    pub attack: Attack,
}

/// What became of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It began.
    Began,
    /// It had begun before the daemon was restarted, and goes on.
    GoesOn,
    /// It is over.
    Ended,
}
