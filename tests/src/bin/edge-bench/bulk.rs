//! Data on a connection that a cookie made, beside one that the kernel made: how much a second
//! goes either way while the service is defended.
//!
//! As with [`crate::service`], one processor is the host's and the other one everybody else's.
//! The connections take turns, so that what else the machine does befalls all of them.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    panic,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_common::{
    addr::Family,
    defence::{ServiceCounter, When},
};
use edge_tests::{
    harness::Harness,
    lab::{Lab, Link},
    receiver::attach,
    wait::PATIENCE,
};
use edge_userspace::datapath::counter;
use serde_json::json;

use crate::{
    client,
    defence::{Defence, PORT, scale_of, set_sysctls, sysctl},
    edge::{CHECKS, Edge, capacity, family_name},
    machine,
    packets::{BOTH, Bench},
    report::{Report, Row, Target, median},
    service::{HOST_CPU, HOST_DEVICE, OUTSIDE_CPU, OUTSIDE_DEVICE, receive_on},
    syn::INCOMPLETE,
};

/// The share of an ordinary connection's rate that is to be reached.
const TARGET: Target = Target::AtLeast(0.95);
/// How long each turn goes on before it is measured, and then.
const WARM_UP: Duration = Duration::from_millis(50);
const TURN: Duration = Duration::from_millis(150);
/// Bytes of a send buffer: at first, and at most. Less than the 256 frames that a veth pair
/// holds back, so that none is lost, which would measure luck.
const SEND_BUFFER: &str = "4096 65536 262144";
/// Bytes of a write or a read.
const CHUNK: usize = 256 << 10;
/// Real-time priority of both ends: before the receiving of packets, as in [`crate::service`].
const PRIORITY: i32 = 2;

/// A connection by its ends.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn new(link: &Link, listener: &TcpListener, to: SocketAddr) -> Result<Self> {
        let from = match to.ip() {
            IpAddr::V4(_) => link.v4(2),
            IpAddr::V6(_) => link.v6(2),
        };
        let from = SocketAddr::new(from, 0);
        let client = link.outside.inside(|| client::connect_from(from, to))?;
        client.set_nonblocking(false)?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        Ok(Self { client, server })
    }

    /// Gigabits a second to the host, or from it.
    fn rate(&self, upwards: bool) -> Result<f64> {
        let (client, server) = ((&self.client, OUTSIDE_CPU), (&self.server, HOST_CPU));
        let (from, to) = if upwards {
            (client, server)
        } else {
            (server, client)
        };
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| send(from, &stop));
            let receiver = scope.spawn(|| {
                let rate = receive(to, &stop);
                // Also when it failed.
                stop.store(true, Relaxed);
                rate
            });
            let rate = receiver.join().unwrap_or_else(|p| panic::resume_unwind(p));
            sender.join().unwrap_or_else(|p| panic::resume_unwind(p))?;
            rate
        })
    }
}

fn settle(cpu: usize) -> Result<()> {
    machine::pin(cpu)?;
    machine::real_time_thread(0, PRIORITY)
}

/// Sends zeros until it is to stop, and then a one.
fn send((mut to, cpu): (&TcpStream, usize), stop: &AtomicBool) -> Result<()> {
    settle(cpu)?;
    let zeros = vec![0; CHUNK];
    while !stop.load(Relaxed) {
        to.write_all(&zeros)?;
    }
    Ok(to.write_all(&[1])?)
}

/// Receives up to the one.
fn receive((mut from, cpu): (&TcpStream, usize), stop: &AtomicBool) -> Result<f64> {
    settle(cpu)?;
    let mut buffer = vec![0; CHUNK];
    let start = Instant::now();
    let (mut bytes, mut mark, mut rate) = (0u64, None, None);
    loop {
        let got = from.read(&mut buffer)?;
        ensure!(got > 0, "the connection has ended");
        bytes += got as u64;
        let now = Instant::now();
        ensure!(
            now - start < PATIENCE,
            "{bytes} bytes in all that time: the connection is as good as dead"
        );
        match mark {
            None if now - start >= WARM_UP => mark = Some((now, bytes)),
            Some((since, before)) if rate.is_none() && now - since >= TURN => {
                let seconds = (now - since).as_secs_f64();
                rate = Some((bytes - before) as f64 * 8e-9 / seconds);
                stop.store(true, Relaxed);
            }
            _ => {}
        }
        if buffer.get(got - 1) == Some(&1) {
            return rate.context("the sender stopped too early");
        }
    }
}

fn names(family: Family, upwards: bool) -> [String; 2] {
    let way = if upwards { "to" } else { "from" };
    ["normal connection", "no Edge"].map(|other| {
        let family = family_name(family);
        format!("{family} syn, bulk {way} the host, cookie / {other}")
    })
}

impl Bench {
    /// Measures all rows.
    pub(crate) fn bulk(&mut self) -> Result<()> {
        let wanted: Vec<(Family, bool)> = BOTH
            .into_iter()
            .flat_map(|family| [(family, true), (family, false)])
            .filter(|(family, up)| names(*family, *up).iter().any(|name| self.wants(name)))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        machine::need_two()?;
        Report::head("Data on a connection, each segment in XDP", "ratio");
        let lab = Lab::new(1);
        let link = lab.link();
        // Received in NAPI, with any program or none.
        lab.host.run("ethtool", &["-K", HOST_DEVICE, "gro", "on"]);
        receive_on(&lab.host, HOST_DEVICE, HOST_CPU)?;
        receive_on(&link.outside, OUTSIDE_DEVICE, OUTSIDE_CPU)?;
        for namespace in [&lab.host, &link.outside] {
            namespace.inside(|| sysctl("net/ipv4/tcp_wmem", SEND_BUFFER))?;
        }
        let listener = lab
            .host
            .inside(|| TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, PORT)))?;
        let host = BOTH.map(|family| {
            let address = match family {
                Family::V4 => link.v4(1),
                Family::V6 => link.v6(1),
            };
            SocketAddr::new(address, PORT)
        });
        // Else the kernel itself makes cookies.
        lab.host.inside(|| sysctl("net/ipv4/tcp_syncookies", "1"))?;
        let connect = || -> Result<Vec<Connection>> {
            let all = host.iter().map(|to| Connection::new(link, &listener, *to));
            all.collect()
        };
        let normal = connect()?;
        lab.host.inside(set_sysctls)?;
        let scales = normal.iter().map(|c| scale_of(&c.client));
        let scales: Vec<u8> = scales.collect::<Result<_>>()?;
        let wscale = *scales.first().context("no connection")?;
        let defence = Defence {
            when: When::Always,
            incomplete: INCOMPLETE,
            wscale,
            addresses: host.map(|at| at.ip()).to_vec(),
            reflection: None,
        };
        let mut edge = Edge::defending(CHECKS, capacity(131_072, 65_536, 65_536), None, &defence)?;
        let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
        let (edge_fd, passing) = (edge.fd()?, harness.contender("floor_pass")?);
        let index = lab.host.ifindex(HOST_DEVICE);
        let guarded = || lab.host.inside(|| attach(edge_fd.as_fd(), index));
        let cookie = {
            let _edge = guarded()?;
            connect()?
        };
        let valid = counter(&edge.services()?.counters(0)?, ServiceCounter::CookiesValid);
        ensure!(valid == 2, "{valid} connections of 2 were made by a cookie");
        for (family, upwards) in wanted {
            let n = usize::from(family == Family::V6);
            let (Some(normal), Some(cookie)) = (normal.get(n), cookie.get(n)) else {
                continue;
            };
            let mut rates = [const { Vec::new() }; 3];
            let turns = self.effort.rounds.div_ceil(10);
            for _ in 0..turns {
                let [unguarded, others @ ..] = &mut rates;
                {
                    let _passing = lab.host.inside(|| attach(passing.as_fd(), index))?;
                    unguarded.push(normal.rate(upwards)?);
                }
                let _edge = guarded()?;
                for (rates, connection) in others.iter_mut().zip([normal, cookie]) {
                    rates.push(connection.rate(upwards)?);
                }
            }
            self.add_bulk(&names(family, upwards), rates, turns);
        }
        Ok(())
    }

    /// Two rows of the rates of an ordinary connection behind a program that only passes, and
    /// of the two behind Edge.
    fn add_bulk(&mut self, names: &[String; 2], mut rates: [Vec<f64>; 3], turns: u32) {
        for rates in &mut rates {
            rates.sort_by(|a, b| f64::total_cmp(b, a));
        }
        let best = |rates: &[f64]| rates.first().copied().unwrap_or(f64::NAN);
        let [unguarded, normal, cookie] = &rates;
        let rows = [
            (normal, Some(TARGET), "Gbit/s; both through Edge, defended"),
            (
                unguarded,
                None,
                "Gbit/s; floor: a normal one, a program that only passes",
            ),
        ];
        for (name, (floor, target, note)) in names.iter().zip(rows) {
            if !self.wants(name) {
                continue;
            }
            self.report.add(Row {
                name: name.clone(),
                unit: "times a normal connection's rate",
                floor: Some(best(floor)),
                gross: Some(best(cookie)),
                value: best(cookie) / best(floor),
                target,
                note: note.to_owned(),
                more: json!({
                    "median_floor": median(floor),
                    "median_gross": median(cookie),
                    "turns": turns,
                }),
            });
        }
    }
}
