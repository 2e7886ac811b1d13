//! The flood defence on real listeners: every reply is compared byte by byte with one that the
//! packet builder makes, but for the cookie, which the kernel's secret decides; that one is sent
//! back, and must be taken.

mod age;
mod attack;
mod challenge;
mod cookies;
mod segment;
mod state;
mod world;

use std::thread;

use anyhow::Result;
use edge_common::{abi::Config, reason::Reason};
use edge_userspace::tables::TableError;

use super::TableReport;
use crate::program::Rigs;

pub(super) use segment::{FAMILIES, to};
pub(super) use world::World;

use age::*;
use attack::*;
use challenge::*;
use cookies::*;
use segment::*;
use state::*;
use world::*;

/// A test in a world of its own.
pub(super) type Test = fn(&mut World);

/// The reasons that the packets here end with, and no row of a table does.
pub const REASONS: [Reason; 8] = [
    Reason::ReplySynCookie,
    Reason::ReplyChallenge,
    Reason::ReplyReset,
    Reason::ChallengeAnswered,
    Reason::SynClosed,
    Reason::SynBadChecksum,
    Reason::CookieInvalid,
    Reason::TcpOutOfState,
];

/// Ports of the services.
pub(super) const LOCAL: u16 = 443;
const CLOSED: u16 = 81;
const UNLEARNT: u16 = 82;
const AUTO: u16 = 444;
const DRY: u16 = 445;
const FORWARDED: u16 = 446;
/// No service's.
pub(super) const OTHER: u16 = 447;
/// Of a forwarded service that is defended under attack.
const FORWARDED_AUTO: u16 = 448;
/// A UDP service.
pub(super) const UDP: u16 = 4500;

const CLIENT_PORT: u16 = 40_000;
const WSCALE: u8 = 9;
const WINDOW: u16 = 0xfedc;
const TTL: u8 = 61;
/// A second and a millisecond of the program's clock.
pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;
/// Seconds for which a source stays verified; a step is 1.07 s.
const VERIFIED_STEPS: u32 = 10;

/// Runs everything.
pub(super) fn run(rigs: &mut Rigs, tell: &mut impl FnMut(TableReport)) {
    let all: [(&str, Test); 11] = [
        ("cookies for every offer", every_offer),
        ("options that are malformed", malformed_options),
        ("checksums of SYNs", checksums),
        ("segments without a connection", out_of_state),
        ("connections are left alone", connections),
        ("closed and unlearnt ports", closed),
        ("the challenge", challenge),
        ("attempts without an answer", second_attempts),
        ("an attack comes and goes", auto),
        ("handshakes that complete", crowd),
        ("dry run", dry_run),
    ];
    for (name, test) in all {
        tell(report(rigs, name, |_| {}, test));
    }
    // And where nothing is always defended, which is another way through the gate.
    let sometimes: [(&str, Test); 4] = [
        ("an attack comes and goes, else quiet", auto),
        ("handshakes that complete, else quiet", crowd),
        ("ports of no service", rest),
        ("the challenge after a flood", challenge_after_flood),
    ];
    for (name, test) in sometimes {
        tell(report(
            rigs,
            name,
            |c| {
                c.always_defended = 0;
                c.rest = 1;
            },
            test,
        ));
    }
    tell(report(
        rigs,
        "cookies without timestamps",
        |c| c.tcp_features = 0,
        without_timestamps,
    ));
}

/// What becomes of cookies as they age. It takes a minute or two, so it is no part of [`run`].
pub(super) fn age_report() -> TableReport {
    report(
        &mut Rigs::default(),
        "cookies that are too old",
        |_| {},
        cookies_age,
    )
}

/// Runs one test on a thread and in a network namespace of its own.
pub(super) fn report(
    rigs: &mut Rigs,
    name: &str,
    change: impl FnOnce(&mut Config) + Send,
    test: fn(&mut World),
) -> TableReport {
    let outcome = thread::scope(|scope| {
        let run = move || -> Result<_> {
            let mut world = World::new(rigs, change)?;
            test(&mut world);
            world.tables.refill::<TableError>([])?;
            rigs.give_back(world.rig)?;
            Ok((world.rows, world.failures))
        };
        scope.spawn(run).join()
    });
    let (rows, failures) = match outcome {
        Ok(Ok(ran)) => ran,
        Ok(Err(e)) => (0, vec![format!("{e:#}")]),
        Err(_) => (0, vec!["it panicked".to_owned()]),
    };
    TableReport {
        name: format!("flood defence: {name}"),
        rows,
        failures,
    }
}
