//! An attack on a service, as it is told.

use std::collections::BTreeMap;

use edge_common::addr::Prefix;
use serde::{Deserialize, Serialize};

use crate::wire;

/// An attack, under way or over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attack {
    /// Its number: one more for each attack.
    pub id: u64,
    /// The service.
    pub service: String,
    /// When it began, Unix milliseconds.
    pub began_unix_ms: u64,
    /// When the defence ended, Unix milliseconds; `null` while the attack is on.
    pub ended_unix_ms: Option<u64>,
    /// What it consists of, the larger part first.
    pub kinds: Vec<KindCount>,
    /// What is done about it.
    pub remedy: Remedy,
    /// Real clients that got through meanwhile: handshakes completed, with a cookie
    /// or without, and sources that answered a challenge.
    pub clients: u64,
    /// What was counted meanwhile, by
    /// [`edge_common::defence::ServiceCounter::name`].
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
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Syn, Self::Ack, Self::OutOfState, Self::Reflection];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Ack => "ack",
            Self::OutOfState => "out_of_state",
            Self::Reflection => "reflection",
        }
    }

    /// Such a flood, for a person.
    pub const fn flood(self) -> &'static str {
        match self {
            Self::Syn => "a SYN flood",
            Self::Ack => "a flood of guessed acknowledgements",
            Self::OutOfState => "a flood of segments of no connection",
            Self::Reflection => "a reflection flood",
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
    /// Segments of no connection are dropped.
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

    /// What is done, for a person.
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
