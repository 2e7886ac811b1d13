//! What a packet costs that has to do with a SYN flood: nanoseconds on one processor,
//! net of the harness.
//!
//! The listener is a real one, in the network namespace of this thread, and so is
//! the connection whose acknowledgements are measured.

use std::{
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
};

use anyhow::{Context, Result, ensure};
use edge_common::{addr::Family, defence::When, reason::Verdict};
use edge_tests::{
    frames::CLIENT_PORT,
    harness::{Harness, Putting, Samples, Sources},
    wait,
};
use serde_json::json;

use crate::{
    client,
    defence::{Defence, PORT, scale_of, set_sysctls},
    edge::{ALL_ON, CHECKS, Edge, capacity, family_name},
    frame::{self, Payload},
    lists,
    packets::{BOTH, Bench},
    pair::call,
    report::{Report, Row, Target},
};

/// Number of the source that has a connection.
pub(crate) const CONNECTED: u64 = u64::MAX / 2;
/// Number of one that has none.
const UNCONNECTED: u64 = u64::MAX / 3;

/// Handshakes a second that may stay incomplete: the default of the configuration.
pub(crate) const INCOMPLETE: u64 = 1_000;
/// What a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A SYN that is answered, each from another source.
    Syn,
    /// The same SYN again and again: all that it takes is in the cache.
    SameSyn,
    /// An acknowledgement of a guessed cookie.
    Guess,
    /// A segment of a connection while its service is defended.
    Segment,
}

struct Spec {
    name: &'static str,
    what: What,
    settings: &'static str,
    target: Option<f64>,
}

const ROWS: [Spec; 5] = [
    Spec {
        name: "syn, answered with a cookie, all options",
        what: What::Syn,
        settings: CHECKS,
        target: Some(120.0),
    },
    Spec {
        name: "syn, answered, all options, same source",
        what: What::SameSyn,
        settings: CHECKS,
        target: None,
    },
    Spec {
        name: "syn, answered, all limits and samples on",
        what: What::Syn,
        settings: ALL_ON,
        target: None,
    },
    Spec {
        name: "syn flood, ACK of a guessed cookie dropped",
        what: What::Guess,
        settings: CHECKS,
        target: Some(45.0),
    },
    Spec {
        name: "syn flood, ACK of a connection passed",
        what: What::Segment,
        settings: CHECKS,
        target: None,
    },
];

/// A host in the network namespace of this thread: its listener, and a connection of each
/// family to it, from the source with the number [`CONNECTED`].
pub(crate) struct Host {
    _listener: TcpListener,
    _connections: Vec<TcpStream>,
    wscale: u8,
}

impl Host {
    pub(crate) fn new() -> Result<Self> {
        set_sysctls()?;
        call("ip", &["link", "set", "lo", "up"], "")?;
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        let mut connections = Vec::new();
        let mut wscale = None;
        for family in BOTH {
            let (host, source) = (frame::host(family), lists::source(family, CONNECTED));
            for address in [host, source] {
                let mut arguments = vec!["addr", "add"];
                let address = address.to_string();
                arguments.extend([address.as_str(), "dev", "lo"]);
                if family == Family::V6 {
                    arguments.push("nodad");
                }
                call("ip", &arguments, "")?;
            }
            let from = SocketAddr::new(source, CLIENT_PORT);
            // A new address of IPv6 is not there at once.
            let connection = wait::until_some("a connection on lo", || {
                client::connect_from(from, SocketAddr::new(host, PORT)).ok()
            });
            wscale = Some(scale_of(&connection)?);
            connections.extend([connection, listener.accept()?.0]);
        }
        Ok(Self {
            _listener: listener,
            _connections: connections,
            wscale: wscale.context("no connection")?,
        })
    }

    pub(crate) fn defence(&self, when: When) -> Defence {
        Defence {
            when,
            incomplete: INCOMPLETE,
            wscale: self.wscale,
            addresses: BOTH.map(frame::host).to_vec(),
            reflection: None,
        }
    }
}

impl Bench {
    /// Measures the rows of an attack.
    pub(crate) fn syn_packets(&mut self) -> Result<()> {
        let rows: Vec<(Family, &Spec)> = ROWS
            .iter()
            .flat_map(|row| BOTH.map(|family| (family, row)))
            .filter(|(family, row)| self.wants(&name(*family, row)))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        Report::head("SYN flood defence, a real listener", "net ns");
        let host = Host::new()?;
        let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
        for (family, row) in rows {
            self.defended(&mut harness, &host, family, row)?;
        }
        Ok(())
    }

    /// A row of a service that is defended.
    fn defended(
        &mut self,
        harness: &mut Harness,
        host: &Host,
        family: Family,
        row: &Spec,
    ) -> Result<()> {
        let room = capacity(131_072, 65_536, 65_536);
        let defence = host.defence(When::Always);
        let mut edges = Vec::new();
        for object in std::iter::once(None).chain(self.against.iter().map(Some)) {
            let object = object.map(std::path::PathBuf::as_path);
            edges.push(Edge::defending(row.settings, room, object, &defence)?);
        }
        let home = lists::space(family);
        let (source, dest) = (lists::source(family, CONNECTED), frame::host(family));
        let (putting, sources, frame) = match row.what {
            What::Syn | What::SameSyn => {
                let syn = frame::linux_syn(source, dest);
                harness.put_syn(family, &syn)?;
                let sources = match row.what {
                    What::Syn => Sources::Fresh(home),
                    _ => Sources::Same(home, UNCONNECTED),
                };
                (Putting::Syn, sources, syn)
            }
            What::Guess => {
                let guess = frame::guess(source, dest);
                (Putting::Source, Sources::Fresh(home), guess)
            }
            _ => {
                let same = Sources::Same(home, CONNECTED);
                (Putting::Source, same, frame::build(family, Payload::Ack))
            }
        };
        // What the kernel's helpers cost alone, least first.
        let helpers: &[&str] = match (row.what, family) {
            (What::Syn | What::SameSyn, Family::V4) => &["cookie_syn4", "helpers_syn4"],
            (What::Syn | What::SameSyn, Family::V6) => &["cookie_syn6", "helpers_syn6"],
            (What::Guess, Family::V4) => &["cookie_ack4", "helpers_ack4"],
            (What::Guess, Family::V6) => &["cookie_ack6", "helpers_ack6"],
            _ => &[],
        };
        let floor = harness.contender("floor_pass")?;
        let helpers: Vec<_> = helpers
            .iter()
            .map(|name| harness.contender(name))
            .collect::<Result<_>>()?;
        let fds: Vec<_> = edges.iter_mut().map(Edge::fd).collect::<Result<_>>()?;
        let mut contenders = vec![floor.as_fd()];
        contenders.extend(fds.iter().map(AsFd::as_fd));
        contenders.extend(helpers.iter().map(AsFd::as_fd));
        let samples =
            harness.measure(family, putting, sources, &frame, &contenders, self.effort)?;
        let [floor, ours, others @ ..] = samples.as_slice() else {
            return Ok(());
        };
        let edge = edges.first().context("no program")?;
        let (wanted, what) = match row.what {
            What::Syn | What::SameSyn => (Verdict::Reply, "answered"),
            What::Guess => (Verdict::Drop, "dropped"),
            _ => (Verdict::Pass, "passed"),
        };
        let ended = |verdict| edge.ended(verdict);
        let all = ended(Verdict::Pass)? + ended(Verdict::Drop)? + ended(Verdict::Reply)?;
        let share = ended(wanted)? as f64 / all.max(1) as f64;
        ensure!(
            share > 0.999,
            "{}: only {:.1} % of the packets were {what}",
            row.name,
            share * 100.0
        );
        let net = |s: &Samples| s.best() - floor.best();
        let mut note = format!("{:.1} % {what}", share * 100.0);
        let (others, helpers) = others.split_at(others.len() - helpers.len());
        if let [cookie, all] = helpers {
            let (cookie, all) = (net(cookie), net(all));
            note += &format!("; the kernel's cookie alone {cookie:.1}, and look-up {all:.1}");
        }
        for other in others {
            note += &format!("; other object {:.1}", net(other));
        }
        self.report.add(Row {
            name: name(family, row),
            unit: "ns/packet",
            floor: Some(floor.best()),
            gross: Some(ours.best()),
            value: net(ours),
            target: row.target.map(Target::AtMost),
            note,
            more: json!({
                "median_floor": floor.median(),
                "median_gross": ours.median(),
                "median_net": ours.median() - floor.median(),
                "share": share,
                "kernel_helpers_alone_net": helpers.iter().map(net).collect::<Vec<_>>(),
                "others_net": others.iter().map(net).collect::<Vec<_>>(),
                "rounds": self.effort.rounds,
                "packets_a_round": self.effort.packets,
            }),
        });
        Ok(())
    }
}

fn name(family: Family, row: &Spec) -> String {
    format!("{} {}", family_name(family), row.name)
}
