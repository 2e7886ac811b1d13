//! How long it takes from the command line to the effect in the kernel, told by
//! packets: one after the other comes in from the address that is to be blacklisted,
//! until none passes any more.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_common::addr::{Family, Prefix};
use edge_tests::{
    daemon::Installation,
    frames::Payload,
    lab::Lab,
    raw::{self, Tap},
    wait::PATIENCE,
};
use edge_userspace::control::{
    client::Client,
    protocol::{Addition, ImportHeader, List, Origin, Request},
};
use serde_json::json;

use crate::{
    lists,
    packets::{Bench, HOSTS},
    report::{Report, Row, Target, median},
    rig,
};

/// Between two packets: how exactly the effect is seen.
const INTERVAL: Duration = Duration::from_micros(50);
/// Packets that must be sent after the command has ended: should one of them pass, the
/// command said too early that it was done.
const AFTERWARDS: usize = 50;
/// Milliseconds within which an address should be dropped.
const TARGET: Target = Target::AtMost(5.0);
/// The first of the addresses that are added: on no list of the bench, and no bogon.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 52, 0, 0);

/// The rows with each state of the list.
const WHAT: [&str; 5] = [
    "CLI add until drop, median",
    "CLI add until drop, worst",
    "CLI add, whole command, median",
    "control socket, look-up, median",
    "control socket, durable add, median",
];

/// Milliseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
        self.0.sort_by(f64::total_cmp);
    }

    fn best(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        median(&self.0)
    }

    fn worst(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }
}

/// What is measured, with one state of the list.
#[derive(Default)]
struct Measured {
    /// From the start of `edge blacklist add` until no packet passes.
    effect: Times,
    /// From its start to its end.
    command: Times,
    /// A look-up on an open connection.
    lookup: Times,
    /// An addition on an open connection, which is answered when it is durable.
    add: Times,
}

impl Bench {
    /// Measures all rows: with an empty list, then with a million entries on it.
    pub(crate) fn latencies(&mut self) -> Result<()> {
        let lists = [("empty list", 0), ("1 M listed", HOSTS)];
        let wanted =
            lists.map(|(list, _)| WHAT.iter().any(|what| self.wants(&row_name(what, list))));
        if !wanted.contains(&true) {
            return Ok(());
        }
        Report::head("From the command line to the kernel", "ms");
        let lab = Lab::new(1);
        let installation = Installation::new(&lab.host, &["eth0"], &rig::settings(HOSTS, 0, 0));
        let daemon = installation.start();
        let mut probe = Probe::new(&lab, &installation);
        for ((list, entries), _) in lists.into_iter().zip(wanted).filter(|(_, wanted)| *wanted) {
            if entries > 0 {
                rig::import(&installation, lists::hosts(Family::V4, entries.into()))?;
            }
            let measured = probe.measure(self.effort.rounds.div_ceil(8))?;
            self.latency(list, &measured);
        }
        drop(probe);
        daemon.stop();
        Ok(())
    }

    fn latency(&mut self, list: &str, measured: &Measured) {
        let Measured {
            effect,
            command,
            lookup,
            add,
        } = measured;
        let values = [
            (effect, effect.median(), Some(TARGET)),
            (effect, effect.worst(), Some(TARGET)),
            (command, command.median(), None),
            (lookup, lookup.median(), None),
            (add, add.median(), None),
        ];
        for (what, (times, value, target)) in WHAT.into_iter().zip(values) {
            let name = row_name(what, list);
            if !self.wants(&name) {
                continue;
            }
            let (best, median, worst) = (times.best(), times.median(), times.worst());
            self.report.add(Row {
                name,
                unit: "ms",
                floor: None,
                gross: None,
                value,
                target,
                note: format!("{best:.2} to {worst:.2} in {} times", times.0.len()),
                more: json!({
                    "best": best,
                    "median": median,
                    "worst": worst,
                    "times": times.0.len(),
                }),
            });
        }
    }
}

fn row_name(what: &str, list: &str) -> String {
    format!("{what}, {list}")
}

/// Adds addresses while packets come from them.
struct Probe<'a> {
    lab: &'a Lab,
    installation: &'a Installation<'a>,
    tap: Tap,
    /// The number of the next packet.
    number: u64,
    /// The next address that is on no list.
    address: u32,
}

impl<'a> Probe<'a> {
    fn new(lab: &'a Lab, installation: &'a Installation<'a>) -> Self {
        Self {
            lab,
            installation,
            tap: Tap::new(&lab.host, &lab.link().interface),
            number: 0,
            address: FIRST.to_bits(),
        }
    }

    fn measure(&mut self, times: u32) -> Result<Measured> {
        let mut measured = Measured::default();
        for _ in 0..times {
            let (effect, command) = self.add()?;
            measured.effect.push(effect);
            measured.command.push(command);
        }
        let mut client = Client::connect(&self.installation.socket())?;
        let mut call = |request| -> Result<Duration> {
            let start = Instant::now();
            client.call(request)?;
            Ok(start.elapsed())
        };
        for _ in 0..times {
            let address = self.next_address();
            measured.lookup.push(call(Request::Lookup { address })?);
            measured.add.push(call(Request::Add(Addition {
                header: ImportHeader {
                    list: List::Black,
                    origin: Origin::Cli,
                    feed: None,
                    ttl_s: None,
                    note: String::new(),
                    replace: false,
                },
                prefixes: vec![Prefix::host(address)],
            }))?);
        }
        Ok(measured)
    }

    fn next_address(&mut self) -> IpAddr {
        self.address += 1;
        IpAddr::V4(self.address.into())
    }

    /// Blacklists an address by the command line. Returns the time from its start
    /// until the first packet from there that is sent and does not pass (which is late
    /// by up to [`INTERVAL`]), and until its end.
    fn add(&mut self) -> Result<(Duration, Duration)> {
        let address = self.next_address();
        let (sent, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let count = || sent.lock().unwrap_or_else(PoisonError::into_inner).len();
        let first = self.number;
        let (start, command, at_the_end) = thread::scope(|scope| {
            let _stop = Stop(&stop);
            let stream = scope.spawn(|| self.send(address, &sent, &stop));
            self.receive(first, first)?;
            let start = Instant::now();
            let ended = rig::edge(
                self.installation,
                &["blacklist", "add", &address.to_string()],
            )
            .stdout(Stdio::null())
            .status()?;
            let command = start.elapsed();
            ensure!(ended.success(), "edge blacklist add ended with {ended}");
            let at_the_end = count();
            while count() < at_the_end + AFTERWARDS {
                ensure!(!stream.is_finished(), "the packets ceased");
                thread::yield_now();
            }
            anyhow::Ok((start, command, at_the_end))
        })?;
        let sent: Vec<Instant> = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
        // One more from elsewhere: behind it nothing comes.
        let last = first + sent.len() as u64;
        self.number = last + 1;
        let link = self.lab.link();
        let mut frame = link.frame(link.v4(2), Payload::Udp(9));
        raw::mark(&mut frame, last);
        link.sender.send(&frame);
        let passed = self.receive(first, last)?;
        let dropped = usize::try_from(passed + 1 - first)?;
        ensure!(
            dropped <= at_the_end,
            "{address}: packets passed when edge blacklist add had ended"
        );
        let effect = sent.get(dropped).context("no packet was dropped")?;
        let effect = effect.saturating_duration_since(start);
        // It was there when the command ended, also if no packet was sent just then.
        Ok((effect.min(command), command))
    }

    /// Sends packet after packet from an address, and writes down when.
    fn send(&self, address: IpAddr, sent: &Mutex<Vec<Instant>>, stop: &AtomicBool) -> Result<()> {
        let link = self.lab.link();
        let mut frame = link.frame(address, Payload::Udp(9));
        for number in self.number.. {
            if stop.load(Relaxed) {
                break;
            }
            raw::mark(&mut frame, number);
            sent.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Instant::now());
            link.sender.send(&frame);
            // The pace of the packets; nothing waits for anything here.
            #[allow(clippy::disallowed_methods)]
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Receives from packet `first` on until `end` or a later one has come, and
    /// returns the number of the last one before that.
    fn receive(&self, first: u64, end: u64) -> Result<u64> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = first;
        loop {
            match self.tap.next() {
                Some(number) if number >= end => return Ok(last),
                Some(number) => last = last.max(number),
                None => ensure!(Instant::now() < deadline, "no packet comes through"),
            }
        }
    }
}

/// Ends the packets when the scope is left, whichever way.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
