use proptest::{collection::vec, prelude::*};
use serde_json::{from_slice, from_str, to_string};

use super::*;
use crate::{
    control::check,
    status::{
        attack::{Change, Found, Kind, KindCount, Remedy, Share, Source},
        balance::HealthNotice,
        route::Outcome as RouteOutcome,
    },
};

fn header() -> ImportHeader {
    ImportHeader {
        list: List::Black,
        origin: Origin::Feed,
        feed: "drop".parse().ok(),
        ttl_s: None,
        note: "scan".to_owned(),
        replace: false,
    }
}

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn attack() -> Attack {
    Attack {
        id: 7,
        service: "web".to_owned(),
        found: Found::Segments,
        began_unix_ms: 1,
        ended_unix_ms: None,
        kinds: vec![KindCount {
            kind: Kind::OutOfState,
            packets: 5,
            per_second: 1.0,
            peak_per_second: 2.0,
        }],
        remedy: Remedy::DryRun,
        clients: 3,
        counters: [("syns".to_owned(), 5)].into(),
        sampled: 1,
        sources: vec![Share {
            of: Source(p("192.0.2.0/24")),
            samples: 1,
            error: 0,
        }],
        ports: vec![],
    }
}

/// Every message a client can send, as it is written on the wire. A change of
/// any of them is another version of the protocol.
fn client_messages() -> Vec<(ClientMessage, &'static str)> {
    let call = ClientMessage::Call;
    let prefixes = vec![p("10.0.0.0/8"), p("2001:db8::1")];
    vec![
        (
            ClientMessage::Hello {
                protocol: 1,
                upgrade: false,
            },
            r#"{"hello":{"protocol":1}}"#,
        ),
        (call(Request::Status {}), r#"{"call":{"status":{}}}"#),
        (call(Request::Reload {}), r#"{"call":{"reload":{}}}"#),
        (
            call(Request::Compare {
                text: "a = 1\n".to_owned(),
                file: "edge.toml".to_owned(),
            }),
            r#"{"call":{"compare":{"text":"a = 1\n","file":"edge.toml"}}}"#,
        ),
        (
            call(Request::Add(Addition {
                header: header(),
                prefixes: prefixes.clone(),
            })),
            r#"{"call":{"add":{"header":{"list":"blacklist","origin":"feed","feed":"drop","ttl_s":null,"note":"scan","replace":false},"prefixes":["10.0.0.0/8","2001:db8::1"]}}}"#,
        ),
        (
            call(Request::Remove {
                list: List::Allow,
                prefixes: prefixes.clone(),
            }),
            r#"{"call":{"remove":{"list":"allowlist","prefixes":["10.0.0.0/8","2001:db8::1"]}}}"#,
        ),
        (
            call(Request::List {
                list: List::Black,
                within: None,
                after: Some(p("::/0")),
                limit: 5,
            }),
            r#"{"call":{"list":{"list":"blacklist","within":null,"after":"::/0","limit":5}}}"#,
        ),
        (
            call(Request::Flush {
                list: List::Black,
                origin: Some(Origin::L7),
                feed: None,
            }),
            r#"{"call":{"flush":{"list":"blacklist","origin":"l7","feed":null}}}"#,
        ),
        (
            call(Request::Lookup {
                address: "::1".parse().unwrap(),
            }),
            r#"{"call":{"lookup":{"address":"::1"}}}"#,
        ),
        (call(Request::Limits {}), r#"{"call":{"limits":{}}}"#),
        (
            call(Request::Upgrade {
                binary: Some("/edge".into()),
                timeout_ms: 60_000,
            }),
            r#"{"call":{"upgrade":{"binary":"/edge","timeout_ms":60000}}}"#,
        ),
        (
            call(Request::SetLimit(SetLimit {
                kind: LimitKind::Syn,
                prefix: None,
                rate: Some(LimitValue::Unlimited),
                mode: Some(Mode::DryRun),
            })),
            r#"{"call":{"set_limit":{"kind":"syn","prefix":null,"rate":"unlimited","mode":"dry-run"}}}"#,
        ),
        (
            call(Request::ResetLimits {
                kind: None,
                prefix: Some(p("10.0.0.0/8")),
            }),
            r#"{"call":{"reset_limits":{"kind":null,"prefix":"10.0.0.0/8"}}}"#,
        ),
        (
            call(Request::Upstream {
                name: "app".to_owned(),
                server: "10.0.0.1:80".to_owned(),
                change: ServerChange::Drain {},
            }),
            r#"{"call":{"upstream":{"name":"app","server":"10.0.0.1:80","change":{"drain":{}}}}}"#,
        ),
        (
            call(Request::Upstream {
                name: "app".to_owned(),
                server: "unix:/a".to_owned(),
                change: ServerChange::Weight { weight: 5 },
            }),
            r#"{"call":{"upstream":{"name":"app","server":"unix:/a","change":{"weight":{"weight":5}}}}}"#,
        ),
        (call(Request::Routes {}), r#"{"call":{"routes":{}}}"#),
        (
            call(Request::RouteTest(Question {
                url: "/".to_owned(),
                method: "GET".to_owned(),
                headers: vec![("host".to_owned(), "a".to_owned())],
                listener: None,
                from: None,
            })),
            r#"{"call":{"route_test":{"url":"/","method":"GET","headers":[["host","a"]],"listener":null}}}"#,
        ),
        (call(Request::Attacks {}), r#"{"call":{"attacks":{}}}"#),
        (
            call(Request::Attack { id: 7 }),
            r#"{"call":{"attack":{"id":7}}}"#,
        ),
        (
            ClientMessage::ImportBegin(header()),
            r#"{"import_begin":{"list":"blacklist","origin":"feed","feed":"drop","ttl_s":null,"note":"scan","replace":false}}"#,
        ),
        (
            ClientMessage::ImportChunk { prefixes },
            r#"{"import_chunk":{"prefixes":["10.0.0.0/8","2001:db8::1"]}}"#,
        ),
        (ClientMessage::ImportCommit {}, r#"{"import_commit":{}}"#),
        (
            ClientMessage::Events {
                last: 3,
                follow: true,
            },
            r#"{"events":{"last":3,"follow":true}}"#,
        ),
    ]
}

#[test]
fn client_messages_keep_their_form() {
    for (message, text) in client_messages() {
        assert_eq!(to_string(&message).unwrap(), text);
        assert_eq!(from_str::<ClientMessage>(text).unwrap(), message);
    }
}

#[test]
fn server_messages_survive_a_round_trip() {
    let entry = Entry {
        prefix: p("10.0.0.0/8"),
        list: List::Allow,
        origin: Origin::Auto,
        feed: None,
        created_unix_ms: 1,
        expires_unix_ms: Some(2),
        note: "é\"\\".to_owned(),
        hits: 3,
    };
    let failure = Failure::new(FailureKind::Full, "raise tables.hosts_v4");
    let messages = [
        ServerMessage::Hello {
            protocol: 1,
            version: "0.1.0".to_owned(),
        },
        ServerMessage::Progress { done: 1, total: 2 },
        ServerMessage::Error(failure),
        ServerMessage::Lost(7),
        ServerMessage::Result(Response::Status(Box::default())),
        ServerMessage::Result(Response::Removed {
            removed: 1,
            missing: vec![p("::1")],
        }),
        ServerMessage::Result(Response::Page {
            entries: vec![entry],
            next: Some(p("10.0.0.0/8")),
        }),
        ServerMessage::Result(Response::Upstream(Box::default())),
        ServerMessage::Result(Response::Routes(vec![RouteEntry::default()])),
        ServerMessage::Result(Response::RouteTest(vec![Answer {
            listener: "web".to_owned(),
            trusted: false,
            method: "GET".to_owned(),
            host: "a".to_owned(),
            path: "/".to_owned(),
            route: None,
            outcome: RouteOutcome::Respond {
                status: 200,
                headers: vec![("x-a".to_owned(), "1".to_owned())],
                body_bytes: 3,
            },
        }])),
        ServerMessage::Result(Response::EventsEnd {}),
        ServerMessage::Attack(Box::new(Notice {
            unix_ms: 1,
            change: Change::GoesOn,
            attack: attack(),
        })),
        ServerMessage::Result(Response::Attack {
            attack: Box::new(attack()),
            samples: vec![],
        }),
        ServerMessage::Health(Box::new(HealthNotice {
            unix_ms: 1,
            service: "web".to_owned(),
            backend: "web-1".to_owned(),
            old: "up".to_owned(),
            new: "down".to_owned(),
            why: "connect: timed out".to_owned(),
        })),
    ];
    for message in messages {
        let text = to_string(&message).unwrap();
        assert!(!text.contains('\n'), "one line: {text}");
        assert_eq!(from_str::<ServerMessage>(&text).unwrap(), message);
    }
}

#[test]
fn a_chunk_of_the_longest_prefixes_fits_in_a_line() {
    let longest = p("1111:2222:3333:4444:5555:6666:7777:8000/113");
    assert_eq!(longest.to_string().len(), 43);
    let chunk = ClientMessage::ImportChunk {
        prefixes: vec![longest; MAX_CHUNK],
    };
    assert!(to_string(&chunk).unwrap().len() <= MAX_LINE);
    let add = ClientMessage::Call(Request::Add(Addition {
        header: ImportHeader {
            note: "\"".repeat(MAX_NOTE),
            ..header()
        },
        prefixes: vec![longest; MAX_CHUNK],
    }));
    assert!(to_string(&add).unwrap().len() <= MAX_LINE);
}

#[test]
fn unknown_fields_are_refused_everywhere() {
    for (_, text) in client_messages() {
        // Behind every opening brace in turn, except those that hold the name
        // of a variant, where a second name is refused in any case.
        for (at, _) in text.match_indices('{') {
            let mut wrong = text.to_owned();
            let comma = if text[at + 1..].starts_with('}') {
                ""
            } else {
                ","
            };
            wrong.insert_str(at + 1, &format!(r#""surplus":1{comma}"#));
            assert!(from_str::<ClientMessage>(&wrong).is_err(), "{wrong}");
        }
    }
}

proptest! {
    #[test]
    fn no_line_is_too_strange(bytes in vec(any::<u8>(), 0..300)) {
        let _ = from_slice::<ClientMessage>(&bytes);
    }

    #[test]
    fn no_mutation_is_too_strange(
        which in any::<prop::sample::Index>(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let messages = client_messages();
        let mut bytes = which.get(&messages).1.as_bytes().to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // What is still a message is either refused by its values, or one that
        // means the same when it is written again.
        if let Ok(message) = from_slice::<ClientMessage>(&bytes) {
            if let ClientMessage::Call(request) = &message {
                let _ = check::request(request);
            }
            let again = to_string(&message).unwrap();
            prop_assert_eq!(from_str::<ClientMessage>(&again).unwrap(), message);
        }
    }
}
