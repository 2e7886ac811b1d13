//! What is forwarded on a link: a flood comes out of one end of a veth pair, and behind its
//! other end Edge, the kernel's routing and nftables, in turn, send it on over another pair,
//! at whose end it is dropped and counted.
//!
//! All on one processor, as in [`crate::rates`].

use std::{net::IpAddr, os::fd::AsFd as _, time::Instant};

use anyhow::{Context, Result, ensure};
use edge_common::{addr::Family, reason::Verdict};
use edge_tests::{
    harness::{Harness, Sources},
    receiver::attach,
    test_run,
};
use serde_json::json;

use crate::{
    balance::{Balanced, segment},
    defence::sysctl,
    edge::family_name,
    frame, lists,
    packets::{BOTH, Bench},
    pair::{FAR, Pair, call, received},
    report::{Report, Row, Target},
};

/// The pair that packets leave by.
const OUT: &std::ffi::CStr = c"bench-out";
const SINK: &std::ffi::CStr = c"bench-sink";
/// MAC address of its far end.
const HOP: [u8; 6] = [2, 0, 0, 0, 9, 1];
/// Frames of one flood, and floods in each turn: as [`crate::rates`].
const FRAMES: u32 = 20_000;
const FLOODS: u32 = 10;
/// The table of nftables.
const TABLE: &str = "bench";

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forwarder {
    /// Edge, by a position in [`crate::balance::WAYS`].
    Edge(u32),
    Kernel,
    Dnat,
    /// A program that sends every frame on without looking: what no other can surpass.
    Floor,
}

/// In the order of their turns.
const ALL: [(Forwarder, &str); 6] = [
    (Forwarder::Kernel, "the kernel's routing alone"),
    (Forwarder::Dnat, "DNAT by nftables"),
    (Forwarder::Edge(0), "Edge, ipip"),
    (Forwarder::Edge(2), "Edge, l2"),
    (Forwarder::Edge(3), "Edge, nat"),
    (Forwarder::Floor, "  sent on without looking,"),
];

impl Bench {
    /// Measures all rows.
    pub(crate) fn forwarding(&mut self) -> Result<()> {
        let peers = [(0, "routing", 4.0), (1, "DNAT", 6.0)];
        let name = |family, who: &str, peer: &str| {
            format!(
                "{} balance, veth, {who} against {peer}",
                family_name(family)
            )
        };
        for family in BOTH {
            let mut rows = Vec::new();
            for (i, (forwarder, who)) in ALL.iter().enumerate() {
                for (peer, of, least) in peers {
                    let name = name(family, who, of);
                    let target = match forwarder {
                        Forwarder::Edge(_) => Some(Target::AtLeast(least)),
                        Forwarder::Floor => None,
                        Forwarder::Kernel | Forwarder::Dnat => continue,
                    };
                    if self.wants(&name) {
                        rows.push((name, i, peer, target));
                    }
                }
            }
            if rows.is_empty() {
                continue;
            }
            Report::head(
                "Forwarded on veth, all on one CPU, million packets/s",
                "times",
            );
            let rates = self.forwarders(family)?;
            let of = |i: usize| rates.get(i).map(|(best, _)| *best);
            for (name, i, peer, target) in rows {
                let (Some(ours), Some(floor)) = (of(i), of(peer)) else {
                    continue;
                };
                self.report.add(Row {
                    name,
                    unit: "times",
                    floor: Some(floor),
                    gross: Some(ours),
                    value: ours / floor,
                    target,
                    note: String::new(),
                    more: json!({
                        "floor_and_gross": "million packets/s, the best flood",
                        "medians": rates.iter().map(|(_, median)| median).collect::<Vec<_>>(),
                        "packets_a_round": FRAMES,
                    }),
                });
            }
        }
        Ok(())
    }

    /// The million packets a second that each forwards: the best flood, and the one in the
    /// middle.
    fn forwarders(&self, family: Family) -> Result<Vec<(f64, f64)>> {
        let pair = Pair::new()?;
        let out = Way::new()?;
        let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
        let mut balanced = Balanced::leaving(out.out, HOP, family)?;
        let edge = balanced.edge.fd()?;
        let number = u64::MAX / 2;
        let client = lists::source(family, number);
        let vip = frame::host(family);
        harness.start_over(Sources::Same(lists::space(family), number));
        let flood = harness.contender(match family {
            Family::V4 => "flood_syn4",
            Family::V6 => "flood_syn6",
        })?;
        harness.pace(0, 0);
        let redirect = harness.contender("floor_redirect")?;
        harness.forward_to(out.out);
        let drop_all = harness.contender("floor_drop")?;
        let _sink = attach(drop_all.as_fd(), out.sink)?;
        let _near = attach(flood.as_fd(), pair.near)?;
        let mut rates = vec![Vec::new(); ALL.len()];
        let rounds = self.effort.rounds.div_ceil(20);
        for _ in 0..rounds {
            for ((forwarder, who), rates) in ALL.iter().zip(&mut rates) {
                let port = match forwarder {
                    Forwarder::Edge(way) => 80 + *way as u16,
                    Forwarder::Kernel | Forwarder::Dnat | Forwarder::Floor => 80,
                };
                let mut frame = segment(client, vip, port)?;
                mac(FAR)?
                    .iter()
                    .zip(&mut frame)
                    .for_each(|(to, byte)| *byte = *to);
                harness.put_syn(family, &frame)?;
                let _link = match forwarder {
                    Forwarder::Edge(_) => Some(attach(edge.as_fd(), pair.far)?),
                    Forwarder::Floor => Some(attach(redirect.as_fd(), pair.far)?),
                    Forwarder::Kernel => None,
                    Forwarder::Dnat => {
                        out.dnat(vip)?;
                        None
                    }
                };
                let run = |times| {
                    test_run::run_live(flood.as_fd(), &frame, pair.near, times).context("no flood")
                };
                run(FRAMES)?;
                for _ in 0..FLOODS {
                    let (before, start) = (received(SINK)?, Instant::now());
                    run(FRAMES)?;
                    let took = start.elapsed();
                    let arrived = received(SINK)?.saturating_sub(before);
                    ensure!(
                        arrived > u64::from(FRAMES / 100 * 99),
                        "{who}: {arrived} of {FRAMES} packets arrived"
                    );
                    rates.push(arrived as f64 / took.as_secs_f64() / 1e6);
                }
                if *forwarder == Forwarder::Dnat {
                    call("nft", &["delete", "table", "inet", TABLE], "")?;
                }
            }
        }
        ensure!(
            balanced.edge.ended(Verdict::Forward)? > 0,
            "Edge has forwarded nothing"
        );
        out.remove()?;
        call("ip", &["link", "del", FAR.to_str()?], "")?;
        Ok(rates
            .into_iter()
            .map(|mut rates| {
                rates.sort_by(|a, b| f64::total_cmp(b, a));
                let at = |i: usize| rates.get(i).copied().unwrap_or(f64::NAN);
                (at(0), at(rates.len() / 2))
            })
            .collect())
    }
}

/// The pair that packets leave by, and what the kernel needs to route over it.
struct Way {
    out: u32,
    sink: u32,
}

impl Way {
    fn new() -> Result<Self> {
        let (out, sink) = (OUT.to_str()?, SINK.to_str()?);
        let ip = |arguments: &str| {
            let words: Vec<&str> = arguments.split(' ').collect();
            call("ip", &words, "").map(drop)
        };
        ip(&format!("link add {out} type veth peer name {sink}"))?;
        call("ethtool", &["-K", sink, "gro", "on"], "")?;
        for end in [out, sink] {
            ip(&format!("link set {end} addrgenmode none arp off"))?;
            ip(&format!("link set {end} up"))?;
        }
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            sysctl(key, value)?;
        }
        let far = FAR.to_str()?;
        sysctl(&format!("net/ipv4/conf/{far}/rp_filter"), "0")?;
        let mac = HOP.map(|byte| format!("{byte:02x}")).join(":");
        for (family, net, hop) in [
            ("-4", "192.0.2.0/24", "198.18.0.2"),
            ("-6", "2001:db8::/32", "fd18::2"),
        ] {
            let len = if family == "-4" { 24 } else { 64 };
            ip(&format!(
                "{family} addr add {}/{len} dev {out}",
                hop.replace(".2", ".1").replace("::2", "::1")
            ))?;
            ip(&format!(
                "{family} neigh replace {hop} lladdr {mac} dev {out} nud permanent"
            ))?;
            ip(&format!("{family} route replace {net} via {hop} dev {out}"))?;
            // Where clients are, so that no check of their addresses fails.
            ip(&format!("{family} route replace default dev {far}"))?;
        }
        Ok(Self {
            out: crate::pair::index(OUT)?,
            sink: crate::pair::index(SINK)?,
        })
    }

    fn remove(&self) -> Result<()> {
        call("ip", &["link", "del", OUT.to_str()?], "").map(drop)
    }

    /// Lets nftables translate packets to an address to that of a backend.
    fn dnat(&self, vip: IpAddr) -> Result<()> {
        let (family, to) = match vip {
            IpAddr::V4(_) => ("ip", "192.0.2.200"),
            IpAddr::V6(_) => ("ip6", "2001:db8::200"),
        };
        let rules = format!(
            "table inet {TABLE} {{
                chain prerouting {{
                    type nat hook prerouting priority -100;
                    {family} daddr {vip} tcp dport 80 dnat {family} to {to}
                }}
            }}"
        );
        call("nft", &["-f", "-"], &rules)?;
        // The connection was there before.
        sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
    }
}

/// The MAC address of an interface.
fn mac(interface: &std::ffi::CStr) -> Result<[u8; 6]> {
    let name = interface.to_str()?;
    let text = call("ip", &["-o", "link", "show", name], "")?;
    let words = text.split_whitespace();
    let mac = words.skip_while(|w| *w != "link/ether").nth(1);
    let bytes = mac.map(|mac| mac.split(':').map(|b| u8::from_str_radix(b, 16)).collect());
    let bytes: Vec<u8> = bytes.transpose()?.unwrap_or_default();
    bytes
        .try_into()
        .ok()
        .with_context(|| format!("{name} has no MAC address"))
}
