//! What `edge decap` tells of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use edge_common::{addr::Prefix, decap::Outcome};
use serde::Serialize;

use super::AttachMode;
use crate::wire;

/// What there is to tell.
#[derive(Clone, Debug)]
pub enum News {
    /// Tunnels are taken in.
    Ready(Ready),
    /// They are no more.
    Ended(Totals),
}

/// What is in force.
#[derive(Clone, Debug, Serialize)]
pub struct Ready {
    /// The interfaces, in the order of the command line.
    pub interfaces: Vec<DecapInterface>,
    /// Where tunnels may come from.
    #[serde(with = "wire::texts")]
    pub sources: Vec<Prefix>,
    /// Where they may go to.
    pub local: BTreeSet<IpAddr>,
    /// The UDP port of GUE.
    pub gue_port: u16,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DecapInterface {
    /// Its name.
    pub name: String,
    /// How the program is attached; `None` while it is not.
    pub mode: Option<AttachMode>,
}

/// What became of all packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Packets by [`Outcome::name`], all of them.
    pub packets: BTreeMap<&'static str, u64>,
}

/// Packets by outcome.
pub type Packets = [u64; Outcome::COUNT];

impl From<Packets> for Totals {
    fn from(packets: Packets) -> Self {
        let names = Outcome::ALL.map(Outcome::name);
        Self {
            packets: names.into_iter().zip(packets).collect(),
        }
    }
}
