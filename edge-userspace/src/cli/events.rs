//! `edge events`.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde::Serialize;

use super::{Error, attacks, output::Out, text};
use crate::{
    control::{
        client::Client,
        protocol::{Event, Packet, ServerMessage},
    },
    status::{
        attack::{Attack, Change, Notice},
        balance::HealthNotice,
    },
};

/// Prints the `last` events, and if `follow` those that come.
pub(super) fn events<W: Write>(
    last: u32,
    follow: bool,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Lost {
        lost: u64,
    }
    let mut client = Client::connect(socket)?;
    client.events(last, follow)?;
    while let Some(message) = client.next_event()? {
        match message {
            ServerMessage::Event(event) => out.either(&event, || line(&event))?,
            ServerMessage::Attack(notice) => out.either(&notice, || attack(&notice))?,
            ServerMessage::Health(notice) => out.either(&notice, || health(&notice))?,
            ServerMessage::Lost(lost) => out.either(&Lost { lost }, || {
                format!("({lost} events lost here: the output is read too slowly)\n")
            })?,
            // `next_event` gives nothing else.
            _ => {}
        }
        if follow {
            out.flush()?;
        }
    }
    Ok(())
}

/// An event on a line: when, where, what became of it, why, and of whom.
fn line(event: &Event) -> String {
    let verdict = if event.would_drop {
        "would-drop"
    } else {
        "drop"
    };
    format!(
        "{} {} {verdict} {} {} {} bytes\n",
        text::timestamp(event.unix_ms),
        event.interface,
        event.reason.name(),
        event.packet.as_ref().map_or("-".to_owned(), packet),
        event.frame_len
    )
}

/// An attack on a line: when, where, what became of it.
fn attack(notice: &Notice) -> String {
    let Attack { id, service, .. } = &notice.attack;
    let change = match notice.change {
        Change::Began => "attack-began",
        Change::GoesOn => "attack-goes-on",
        Change::Ended => "attack-ended",
    };
    format!(
        "{} service {service} {change} attack {id}: {}, {}{}\n",
        text::timestamp(notice.unix_ms),
        notice.attack.floods(),
        notice.attack.remedied(),
        attacks::got_through(&notice.attack),
    )
}

/// A change of health on a line.
fn health(notice: &HealthNotice) -> String {
    let HealthNotice {
        unix_ms,
        service,
        backend,
        old,
        new,
        why,
    } = notice;
    let when = text::timestamp(*unix_ms);
    format!("{when} service {service} backend {backend} {old} -> {new}: {why}\n")
}

fn packet(p: &Packet) -> String {
    format!(
        "{} {} > {}",
        p.protocol,
        endpoint(p.source, p.source_port),
        endpoint(p.destination, p.destination_port)
    )
}

fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use edge_common::reason::Reason;

    use super::*;

    #[test]
    fn a_line_has_all_there_is() {
        let mut event = Event {
            unix_ms: 1_795_325_503_123,
            interface: "eth0".to_owned(),
            reason: Reason::LimitSyn,
            would_drop: false,
            frame_len: 60,
            packet: Some(Packet {
                source: "2001:db8::1".parse().unwrap(),
                destination: "2001:db8::2".parse().unwrap(),
                protocol: "tcp".to_owned(),
                source_port: Some(4711),
                destination_port: Some(443),
            }),
            data: "00ff".to_owned(),
        };
        assert_eq!(
            line(&event),
            "2026-11-22T05:31:43.123Z eth0 drop limit_syn tcp [2001:db8::1]:4711 > [2001:db8::2]:443 60 bytes\n"
        );
        event.would_drop = true;
        event.packet = None;
        assert_eq!(
            line(&event),
            "2026-11-22T05:31:43.123Z eth0 would-drop limit_syn - 60 bytes\n"
        );
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"unix_ms":1795325503123,"interface":"eth0","reason":"limit_syn","would_drop":true,"frame_len":60,"packet":null,"data":"00ff"}"#
        );
    }
    #[test]
    fn a_change_of_health_is_an_event() {
        let notice = HealthNotice {
            unix_ms: 1_795_325_503_123,
            service: "web".to_owned(),
            backend: "web-1".to_owned(),
            old: "up".to_owned(),
            new: "down".to_owned(),
            why: "connect: connection refused".to_owned(),
        };
        assert_eq!(
            health(&notice),
            "2026-11-22T05:31:43.123Z service web backend web-1 up -> down: connect: connection refused\n"
        );
    }

    #[test]
    fn an_attack_is_an_event() {
        let notice = Notice {
            unix_ms: 1_795_325_503_123,
            change: Change::Began,
            attack: super::super::attacks::tests::attack(),
        };
        assert_eq!(
            attack(&notice),
            "2026-11-22T05:31:43.123Z service web attack-began attack 7: a SYN flood and a flood \
             of guessed acknowledgements, answered with SYN cookies, 1,234 clients got through\n"
        );
        let json = serde_json::to_string(&notice).unwrap();
        let start = r#"{"unix_ms":1795325503123,"change":"began","attack":{"id":7,"#;
        assert!(json.starts_with(start), "{json}");
    }
}
