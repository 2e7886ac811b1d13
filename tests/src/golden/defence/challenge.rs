//! The challenge to sources of forwarded services.

use edge_common::{defence::ServiceCounter, reason::Reason};

use super::super::V4;
use crate::packet::{ACK, RST, SYN};

use super::*;

/// The first challenge to a SYN.
pub(super) fn challenge_of(
    syn: &Segment,
    source: &str,
    dest: &str,
) -> impl FnOnce(u32, u32) -> Vec<u8> {
    let ports = (syn.ports.1, syn.ports.0);
    move |_, number| {
        let ack = Segment {
            ports,
            window: 0,
            ..to(0, ACK)
        };
        ack.numbers(0, number).reply(source, dest, 0)
    }
}

pub(super) fn challenge(world: &mut World) {
    for (n, (source, dest)) in FAMILIES.into_iter().enumerate() {
        let syn = to(FORWARDED, SYN).options(&[2, 4, 5, 0xb4, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0]);
        let frame = syn.packet(source, dest).build();
        let expected = challenge_of(&syn, source, dest);
        let Some((_, number)) = world.answered(source, &frame, Reason::ReplyChallenge, expected)
        else {
            return world.fail("no challenge");
        };
        let rst = |number: u32| {
            to(FORWARDED, RST)
                .numbers(number, 0)
                .packet(source, dest)
                .build()
        };
        // The lowest bits are the index of an MSS.
        for wrong in [number.wrapping_add(4), number.wrapping_sub(1), !number, 0] {
            world.ends("a number that was guessed", &rst(wrong), Reason::Pass);
        }
        world.ends("still unknown", &frame, Reason::ReplyChallenge);
        world.ends("the answer", &rst(number), Reason::ChallengeAnswered);
        world.ends("now it is known", &frame, Reason::Pass);
        let again = to(FORWARDED, SYN).on_port(55_555);
        world.ends(
            "on every port",
            &again.packet(source, dest).build(),
            Reason::Pass,
        );
        let other = if n == 0 {
            "198.51.100.8"
        } else {
            "2001:db8:1:3::7"
        };
        let frame_of_other = syn.packet(other, dest).build();
        world.ends("and nobody else", &frame_of_other, Reason::ReplyChallenge);
        world.ends(
            "nor at the other's number",
            &{
                to(FORWARDED, RST)
                    .numbers(number, 0)
                    .packet(other, dest)
                    .build()
            },
            Reason::Pass,
        );
        let ack = to(FORWARDED, ACK).numbers(5, 6).packet(other, dest).build();
        world.ends("segments of connections pass", &ack, Reason::Pass);
        // As long as it comes again now and then.
        for _ in 0..4 {
            world.pass_time(8 * SECOND);
            world.ends("it stays known", &frame, Reason::Pass);
        }
        world.pass_time((u64::from(VERIFIED_STEPS) + 1) << 30);
        world.ends("and is forgotten", &frame, Reason::ReplyChallenge);
        let verified = world.counted(3, ServiceCounter::Verified);
        world.check("one source was verified", verified == n as u64 + 1);
    }
}

pub(super) fn second_attempts(world: &mut World) {
    for (source, dest) in FAMILIES {
        let syn = to(FORWARDED, SYN);
        let frame = syn.packet(source, dest).build();
        world.ends("the first", &frame, Reason::ReplyChallenge);
        world.pass_time(100 * MS);
        let expected = challenge_of(&syn, source, dest);
        world.answered("a copy", &frame, Reason::ReplyChallenge, expected);
        world.pass_time(900 * MS);
        let numbers = world.answered("sent again", &frame, Reason::ReplyChallenge, |seq, _| {
            let reply = Segment {
                ports: (FORWARDED, CLIENT_PORT),
                window: 0,
                ..to(0, SYN | ACK)
            };
            let reply = reply.numbers(seq, syn.seq + 1);
            reply.reply(source, dest, 0)
        });
        let Some((cookie, _)) = numbers else {
            return world.fail("no cookie");
        };
        let end = to(FORWARDED, ACK).numbers(syn.seq + 1, cookie.wrapping_add(1));
        let wrong = end.clone().numbers(syn.seq + 1, cookie.wrapping_add(5));
        let wrong = wrong.packet(source, dest).build();
        world.ends("an acknowledgement of something else", &wrong, Reason::Pass);
        world.answered(
            "the cookie",
            &end.packet(source, dest).build(),
            Reason::ReplyReset,
            |_, _| {
                let reset = Segment {
                    ports: (FORWARDED, CLIENT_PORT),
                    window: 0,
                    ..to(0, RST)
                };
                let reset = reset.numbers(cookie.wrapping_add(1), 0);
                reset.reply(source, dest, 0)
            },
        );
        world.ends("now it is known", &frame, Reason::Pass);
    }
}

pub(super) fn challenge_after_flood(world: &mut World) {
    for (source, dest) in FAMILIES {
        world.pass_time(1000 * SECOND);
        for port in 0..30 {
            let syn = to(FORWARDED_AUTO, SYN).on_port(1024 + port);
            world.send(&syn.packet(source, dest).build());
        }
        // The flood is over, the defence is not, and who comes now must get in.
        for (seconds, client) in [(3, 7001), (3, 7002), (3, 7003)] {
            world.pass_time(seconds * SECOND);
            let other = if source == V4 {
                format!("198.51.100.{}", client - 6900)
            } else {
                format!("2001:db8:{client}::1")
            };
            let syn = to(FORWARDED_AUTO, SYN).on_port(client);
            let frame = syn.packet(&other, dest).build();
            let out = world.ends("a client is asked", &frame, Reason::ReplyChallenge);
            let Some(tcp) = tcp_of(&out.run.output) else {
                return world.fail("no challenge");
            };
            let number = u32::from_be_bytes(tcp[8..12].try_into().unwrap());
            let answer = to(FORWARDED_AUTO, RST).on_port(client).numbers(number, 0);
            let answer = answer.packet(&other, dest).build();
            world.ends("its answer is seen", &answer, Reason::ChallengeAnswered);
            world.ends("and it gets in", &frame, Reason::Pass);
            let again = world.counted(6, ServiceCounter::Verified);
            world.ends("once is enough", &answer, Reason::ChallengeAnswered);
            let same = world.counted(6, ServiceCounter::Verified) == again;
            world.check("a proof counted twice", same);
        }
        world.pass_time(20 * SECOND);
        let syn = to(FORWARDED_AUTO, SYN).on_port(9).packet(source, dest);
        world.ends("nobody is asked any more", &syn.build(), Reason::Pass);
    }
}
