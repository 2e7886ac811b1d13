//! How long a cookie is taken: until the kernel's count of minutes, which is in every
//! cookie, has gone on twice (`MAX_SYNCOOKIE_AGE`, include/net/tcp.h).
//!
//! Nobody can set that count, so this waits for it, a minute or two. That it has gone on is
//! seen in the cookies: the same SYN gets the same one all minute long, and another one in
//! the next.

use std::time::Duration;

use edge_common::{defence::ServiceCounter, reason::Reason};

use crate::{
    packet::{ACK, RST, SYN},
    wait,
};

use super::*;

/// Minutes that a cookie is good for, that in which it was made among them.
const GOOD_FOR: usize = 2;
/// A minute of the kernel's, and patience.
const MINUTE: Duration = Duration::from_secs(90);
/// After which nothing is remembered of a connection that was proven.
const FORGOTTEN: u64 = 3 * SECOND;

/// The cookies of a minute, by family.
type Made = [u32; FAMILIES.len()];

pub(super) fn cookies_age(world: &mut World) {
    let (first, challenges) = loop {
        let first = made(world);
        let challenges = [7001, 7002].map(|port| numbers(world, port));
        // All in one minute.
        if made(world) == first {
            break (first, challenges);
        }
    };
    let mut minutes = vec![first];
    loop {
        let taken = judged(world, &mut minutes);
        let age = taken.len() - 1;
        let wanted: Vec<_> = (0..=age).rev().map(|age| [age < GOOD_FOR; 2]).collect();
        world.check(
            &format!("taken of {age} minutes ago and later: {taken:?}"),
            taken == wanted,
        );
        if age == 1 {
            answer(world, 7001, challenges[0], Reason::ChallengeAnswered);
        }
        if age == GOOD_FOR {
            answer(world, 7002, challenges[1], Reason::Pass);
            break;
        }
        next(world, &mut minutes);
    }
    // Nor does it get younger by saying so.
    for minutes_later in 1..=GOOD_FOR as u32 {
        let count = |cookie: u32| cookie.wrapping_add(minutes_later << 24);
        let taken = is_taken(world, minutes[0].map(count));
        world.check(
            "an old one with another count is taken",
            taken == [false; 2],
        );
    }
}

/// What a SYN gets now. Asked for again and again, so nothing is counted.
fn made(world: &mut World) -> Made {
    FAMILIES.map(|(source, dest)| {
        let syn = to(LOCAL, SYN).packet(source, dest).build();
        let run = world.rig.run(&syn, 1).expect("a test run");
        number_at(&run.output, 4)
    })
}

/// A number of the TCP header of an answer.
fn number_at(answer: &[u8], at: usize) -> u32 {
    let number = tcp_of(answer).and_then(|tcp| tcp.get(at..)?.first_chunk());
    u32::from_be_bytes(*number.expect("a TCP header"))
}

/// Whether the listener's acknowledgements of these are taken.
fn is_taken(world: &mut World, cookies: Made) -> [bool; FAMILIES.len()] {
    let mut taken = [false; FAMILIES.len()];
    for (((source, dest), cookie), taken) in FAMILIES.into_iter().zip(cookies).zip(&mut taken) {
        world.pass_time(FORGOTTEN);
        let valid = world.counted(0, ServiceCounter::CookiesValid);
        let seq = to(LOCAL, SYN).seq.wrapping_add(1);
        let ack = to(LOCAL, ACK).numbers(seq, cookie.wrapping_add(1));
        let out = world.send(&ack.packet(source, dest).build());
        *taken = out.reason() == Some(Reason::Pass);
        let counted = world.counted(0, ServiceCounter::CookiesValid) - valid;
        world.check("it was counted otherwise", counted == u64::from(*taken));
        let refused = out.reason() == Some(Reason::CookieInvalid);
        world.check("it ended otherwise", *taken != refused);
    }
    taken
}

/// Whether those of each minute so far are taken, all within one minute.
fn judged(world: &mut World, minutes: &mut Vec<Made>) -> Vec<[bool; FAMILIES.len()]> {
    loop {
        let taken = minutes.clone().into_iter().map(|m| is_taken(world, m));
        let taken = taken.collect();
        if minutes.last() == Some(&made(world)) {
            return taken;
        }
        next(world, minutes);
    }
}

/// Waits for the next minute.
fn next(world: &mut World, minutes: &mut Vec<Made>) {
    let last = *minutes.last().expect("the first minute");
    let new = wait::until_some_within(MINUTE, "the kernel's next minute", || {
        let new = made(world);
        // It may begin between the families.
        let all = new.iter().zip(last).all(|(new, last)| *new != last);
        all.then_some(new)
    });
    minutes.push(new);
}

/// What a client of the forwarded service is challenged with.
fn numbers(world: &mut World, port: u16) -> Made {
    FAMILIES.map(|(source, dest)| {
        let syn = to(FORWARDED, SYN).on_port(port);
        let syn = syn.packet(&client(source, port), dest).build();
        let out = world.ends("a SYN to the other", &syn, Reason::ReplyChallenge);
        number_at(&out.run.output, 8)
    })
}

fn answer(world: &mut World, port: u16, numbers: Made, reason: Reason) {
    for ((source, dest), number) in FAMILIES.into_iter().zip(numbers) {
        let rst = to(FORWARDED, RST).on_port(port).numbers(number, 0);
        let rst = rst.packet(&client(source, port), dest).build();
        world.ends("the answer to a challenge", &rst, reason);
    }
}

/// A source of its own for each port: what answers verifies the source.
fn client(source: &str, port: u16) -> String {
    match source.rsplit_once(':') {
        None => format!("198.51.100.{}", port - 6900),
        Some(_) => format!("2001:db8:{port}::1"),
    }
}
