//! The control socket as a client meets it, with an engine that keeps a list in
//! memory.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use edge_common::{addr::Prefix, reason::Reason};
use edge_userspace::{
    control::{
        client::{Client, ClientError},
        protocol::{
            Addition, ClientMessage, Event, Failure, FailureKind, ImportHeader, List, MAX_LINE,
            Origin, Request, Response, ServerMessage, VERSION,
        },
        server::{Bounds, Handler, Reply},
    },
    status::{Source, Status},
};

use crate::rig::{self, DEADLINE, until};

/// A list in memory. It answers from a thread of its own, as an engine does.
#[derive(Default)]
struct Memory {
    entries: Arc<Mutex<BTreeMap<Prefix, String>>>,
    /// Replies that the test answers itself.
    stuck: Mutex<Vec<Reply>>,
    /// What is noted as slow waits until this is opened.
    gate: Arc<Gate>,
}

/// Closed until somebody opens it.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn pass(&self) {
        let closed = self.0.lock().unwrap();
        let (_open, waited) = self
            .1
            .wait_timeout_while(closed, DEADLINE, |open| !*open)
            .unwrap();
        assert!(!waited.timed_out(), "nobody opened the gate");
    }
}

impl Source for Memory {
    fn status(&self) -> Status {
        Status {
            version: "test".to_owned(),
            ..Status::default()
        }
    }
}

impl Handler for Memory {
    fn handle(&self, request: Request, reply: Reply) {
        let (entries, gate) = (self.entries.clone(), self.gate.clone());
        match request {
            Request::Add(Addition { header, prefixes }) => {
                std::thread::spawn(move || {
                    if header.note == "slow" {
                        reply.progress(1, 2);
                        gate.pass();
                    }
                    let mut entries = entries.lock().unwrap();
                    let before = entries.len();
                    for prefix in &prefixes {
                        entries.insert(*prefix, header.note.clone());
                    }
                    let added = (entries.len() - before) as u64;
                    reply.send(Ok(Response::Added {
                        added,
                        updated: prefixes.len() as u64 - added,
                        removed: 0,
                    }));
                });
            }
            Request::Limits {} => self.stuck.lock().unwrap().push(reply),
            Request::Reload {} => drop(reply),
            _ => reply.send(Err(Failure::new(FailureKind::Store, "disk full"))),
        }
    }

    fn import_limit(&self) -> u64 {
        100_000
    }
}

fn start(bounds: Bounds) -> rig::Rig<Memory> {
    rig::Rig::start(Memory::default(), bounds)
}

/// A connection without the client's manners.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn greeted(path: &Path) -> Self {
        let mut raw = Self::connect(path);
        raw.send(format!(r#"{{"hello":{{"protocol":{VERSION}}}}}"#).as_bytes());
        assert!(matches!(raw.receive(), Some(ServerMessage::Hello { .. })));
        raw
    }

    /// Sends a line. The server may have hung up already: what counts is what it said.
    fn send(&mut self, line: &[u8]) {
        let _ = self.0.get_mut().write_all(line);
        let _ = self.0.get_mut().write_all(b"\n");
    }

    /// The next message; `None` when the server has hung up.
    fn receive(&mut self) -> Option<ServerMessage> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            // Unread input of ours makes the kernel reset instead of close.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(e) => panic!("{e}"),
        }
    }

    /// Asserts that the server says why and hangs up.
    fn is_refused(&mut self, kind: FailureKind, word: &str) {
        match self.receive() {
            Some(ServerMessage::Error(failure)) => {
                assert_eq!(failure.kind, kind, "{failure}");
                assert!(failure.message.contains(word), "{failure}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(self.receive(), None);
    }
}

fn header(note: &str) -> ImportHeader {
    ImportHeader {
        list: List::Black,
        origin: Origin::Feed,
        feed: None,
        ttl_s: Some(60),
        note: note.to_owned(),
        replace: false,
    }
}

fn hosts(n: u32) -> Vec<Prefix> {
    (0..n)
        .map(|i| Prefix::host(std::net::Ipv4Addr::from_bits(0x0a00_0000 + i).into()))
        .collect()
}

#[test]
fn requests_are_answered_and_counted() {
    let rig = start(Bounds::default());
    let mut client = rig.client();
    let add = |prefixes| {
        Request::Add(Addition {
            header: header("n"),
            prefixes,
        })
    };
    let answer = client.call(add(hosts(3))).unwrap();
    assert_eq!(
        answer,
        Response::Added {
            added: 3,
            updated: 0,
            removed: 0
        }
    );
    // Checked before the engine sees it, and the connection goes on.
    let e = client.call(add(vec![])).unwrap_err();
    assert!(matches!(e, ClientError::Failed(f) if f.kind == FailureKind::Invalid));
    match client.call(Request::Status {}).unwrap() {
        Response::Status(status) => assert_eq!(status.version, "test"),
        other => panic!("{other:?}"),
    }
    let flush = Request::Flush {
        list: List::Black,
        origin: None,
        feed: None,
    };
    let e = client.call(flush).unwrap_err();
    assert_eq!(e.to_string(), "disk full");
    // A reply that the engine drops is an answer too.
    let e = client.call(Request::Reload {}).unwrap_err();
    assert!(matches!(e, ClientError::Failed(f) if f.kind == FailureKind::Internal));
    assert_eq!(rig.engine.entries.lock().unwrap().len(), 3);
    assert_eq!(rig.count("add"), (1, 1));
    assert_eq!(rig.count("status"), (1, 0));
    assert_eq!(rig.count("flush"), (0, 1));
    assert_eq!(rig.count("reload"), (0, 1));
    assert_eq!(rig.count("malformed"), (0, 0));
}

#[test]
fn an_import_is_carried_out_at_its_commit() {
    let rig = start(Bounds::default());
    use edge_userspace::control::client::ImportStage::{Applied, Sent};
    let mut stages = Vec::new();
    let answer = rig
        .client()
        .import(header("slow"), &hosts(40_000), &mut |stage, done, total| {
            stages.push((stage, done, total));
            if stage == Applied {
                rig.engine.gate.open();
            }
        })
        .unwrap();
    assert!(matches!(answer, Response::Added { added: 40_000, .. }));
    assert_eq!(
        stages,
        [
            (Sent, 16_384, 40_000),
            (Sent, 32_768, 40_000),
            (Sent, 40_000, 40_000),
            (Applied, 1, 2)
        ]
    );
    assert_eq!(rig.count("import"), (1, 0));
}

#[test]
fn an_import_that_is_not_committed_changes_nothing() {
    let rig = start(Bounds::default());
    let begin = serde_json::to_vec(&ClientMessage::ImportBegin(header("x"))).unwrap();
    {
        let mut raw = Raw::greeted(&rig.path());
        raw.send(&begin);
        raw.receive().unwrap();
        raw.send(br#"{"import_chunk":{"prefixes":["192.0.2.1"]}}"#);
        let taken = Response::Import { prefixes: 1 };
        assert_eq!(raw.receive(), Some(ServerMessage::Result(taken)));
        // A second import has to wait.
        let e = rig
            .client()
            .import(header("y"), &hosts(1), &mut |_, _, _| ());
        assert!(matches!(e, Err(ClientError::Failed(f)) if f.kind == FailureKind::Busy));
    }
    // The first one's client has gone, and with it its import.
    until("an import after one that was given up", || {
        rig.client()
            .import(header("y"), &hosts(2), &mut |_, _, _| ())
            .is_ok()
    });
    assert_eq!(rig.engine.entries.lock().unwrap().len(), 2);

    let e = rig
        .client()
        .import(header("z"), &hosts(100_001), &mut |_, _, _| ())
        .unwrap_err();
    assert!(matches!(e, ClientError::Failed(f) if f.kind == FailureKind::Full));
    // What failed holds nothing up.
    rig.client()
        .import(header("z"), &hosts(3), &mut |_, _, _| ())
        .unwrap();
    assert_eq!(rig.engine.entries.lock().unwrap().len(), 3);
}

#[test]
fn other_versions_are_told_so() {
    let rig = start(Bounds::default());
    let mut raw = Raw::connect(&rig.path());
    raw.send(format!(r#"{{"hello":{{"protocol":{}}}}}"#, VERSION + 1).as_bytes());
    raw.is_refused(FailureKind::Protocol, &format!("daemon version {VERSION}"));
    let mut raw = Raw::connect(&rig.path());
    raw.send(br#"{"call":{"status":{}}}"#);
    raw.is_refused(FailureKind::Protocol, "hello");
    assert_eq!(rig.count("malformed"), (0, 2));
}

#[test]
fn clients_of_other_versions_may_upgrade_and_no_more() {
    let rig = start(Bounds::default());
    let hello = format!(
        r#"{{"hello":{{"protocol":{},"upgrade":true}}}}"#,
        VERSION + 1
    );
    let greeted = || {
        let mut raw = Raw::connect(&rig.path());
        raw.send(hello.as_bytes());
        let answer = raw.receive();
        assert!(
            matches!(answer, Some(ServerMessage::Hello { protocol, .. }) if protocol == VERSION),
            "{answer:?}"
        );
        raw
    };
    let mut raw = greeted();
    raw.send(br#"{"call":{"upgrade":{"binary":null,"timeout_ms":1000}}}"#);
    let answer = raw.receive().unwrap();
    let is_refused = matches!(&answer, ServerMessage::Error(f) if f.kind == FailureKind::Protocol);
    assert!(!is_refused, "{answer:?}");
    let mut raw = greeted();
    raw.send(br#"{"call":{"status":{}}}"#);
    raw.is_refused(FailureKind::Protocol, "may only upgrade");
}

#[test]
fn rubbish_is_refused_and_the_server_lives_on() {
    let rig = start(Bounds::default());
    for (line, word) in [
        (&b"GET / HTTP/1.1"[..], "expected value"),
        (b"", "EOF"),
        (b"{}", "expected"),
        (b"[[[[[[[[", "expected"),
        (b"\xff\xfe\x00", "expected"),
        (br#"{"call":{"explode":{}}}"#, "explode"),
        (br#"{"call":{"status":{"x":1}}}"#, "unknown field"),
        (br#"{"call":{"lookup":{"address":"1.2.3"}}}"#, "invalid"),
        (
            br#"{"call":{"remove":{"list":"blacklist","prefixes":["10.0.0.1/8"]}}}"#,
            "did you mean 10.0.0.0/8",
        ),
        (
            br#"{"call":{"remove":{"list":"greylist","prefixes":[]}}}"#,
            "greylist",
        ),
        (br#"{"import_commit":{}}"#, "import_begin"),
        (br#"{"import_chunk":{"prefixes":[]}}"#, "import_begin"),
        (br#"{"hello":{"protocol":1}}"#, "second hello"),
    ] {
        let mut raw = Raw::greeted(&rig.path());
        raw.send(line);
        raw.is_refused(FailureKind::Protocol, word);
    }
    // Nested deeper than any stack should go.
    let mut raw = Raw::greeted(&rig.path());
    raw.send(&b"{\"call\":".repeat(50_000));
    raw.is_refused(FailureKind::Protocol, "message");
    // A line that never ends, and one that breaks off.
    let mut raw = Raw::greeted(&rig.path());
    raw.send(&vec![b' '; MAX_LINE + 1]);
    raw.is_refused(FailureKind::Protocol, "1048576 bytes");
    let mut raw = Raw::greeted(&rig.path());
    raw.0.get_mut().write_all(b"{\"call\"").unwrap();
    raw.0.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    raw.is_refused(FailureKind::Protocol, "inside a line");
    assert_eq!(rig.count("malformed"), (0, 16));
    rig.client().call(Request::Status {}).unwrap();
}

#[test]
fn the_longest_line_is_served() {
    let rig = start(Bounds::default());
    let mut raw = Raw::greeted(&rig.path());
    let mut line = br#"{"call":{"status":{}}}"#.to_vec();
    line.resize(MAX_LINE, b' ');
    raw.send(&line);
    assert!(matches!(raw.receive(), Some(ServerMessage::Result(_))));
}

#[test]
fn connections_are_bounded() {
    let rig = start(Bounds {
        connections: 3,
        ..Bounds::default()
    });
    let mut held: Vec<_> = (0..3).map(|_| rig.client()).collect();
    let e = Client::connect(&rig.path()).unwrap_err();
    assert!(matches!(e, ClientError::Failed(f) if f.kind == FailureKind::Busy));
    // Those who are in are served all the same, and a place that is left is free.
    held[0].call(Request::Status {}).unwrap();
    held.pop();
    until("a place becomes free", || {
        Client::connect(&rig.path()).is_ok()
    });
}

#[test]
fn many_clients_at_once() {
    let rig = start(Bounds::default());
    std::thread::scope(|scope| {
        for i in 0..32 {
            let rig = &rig;
            scope.spawn(move || {
                let mut client = rig.client();
                let prefix = Prefix::host(std::net::Ipv4Addr::from_bits(i).into());
                for _ in 0..20 {
                    client
                        .call(Request::Add(Addition {
                            header: header("n"),
                            prefixes: vec![prefix],
                        }))
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(rig.engine.entries.lock().unwrap().len(), 32);
    assert_eq!(rig.count("add"), (32 * 20, 0));
}

#[test]
fn silence_is_not_waited_for_forever() {
    let rig = start(Bounds {
        hello: Duration::from_millis(50),
        ..Bounds::default()
    });
    let mut raw = Raw::connect(&rig.path());
    assert_eq!(raw.receive(), None);
    let rig = start(Bounds {
        idle: Duration::from_millis(50),
        ..Bounds::default()
    });
    let mut raw = Raw::greeted(&rig.path());
    assert_eq!(raw.receive(), None);
    // Nor for half a line.
    let mut raw = Raw::greeted(&rig.path());
    // It may have hung up already.
    while raw.0.get_mut().write_all(b"{").is_err() {
        raw = Raw::greeted(&rig.path());
    }
    assert_eq!(raw.receive(), None);
}

fn event(n: u64) -> Event {
    Event {
        unix_ms: n,
        interface: "eth0".to_owned(),
        reason: Reason::Blacklisted,
        would_drop: false,
        frame_len: 60,
        packet: None,
        data: "00".repeat(128),
    }
}

#[test]
fn events_are_followed_from_the_last_ones_on() {
    let rig = start(Bounds::default());
    for n in 0..5 {
        rig.hub.publish(event(n));
    }
    let mut client = rig.client();
    client.events(2, false).unwrap();
    let mut seen = Vec::new();
    while let Some(ServerMessage::Event(e)) = client.next_event().unwrap() {
        seen.push(e.unix_ms);
    }
    assert_eq!(seen, [3, 4]);

    let mut client = rig.client();
    client.events(1, true).unwrap();
    assert_eq!(
        client.next_event().unwrap(),
        Some(ServerMessage::Event(event(4)))
    );
    rig.hub.publish(event(5));
    assert_eq!(
        client.next_event().unwrap(),
        Some(ServerMessage::Event(event(5)))
    );
}

#[test]
fn a_slow_follower_loses_events_and_holds_nobody_up() {
    let rig = start(Bounds::default());
    let mut client = rig.client();
    client.events(0, true).unwrap();
    // Until it follows, it cannot lose anything.
    until("following", || rig.count("events").0 == 1);
    // Far more than the socket's buffer and the backlog hold; nobody reads.
    let sent = 20_000;
    let mut published = 0;
    until("events are lost", || {
        for _ in 0..100 {
            rig.hub.publish(event(published));
            published += 1;
        }
        published >= sent
    });
    let (mut got, mut lost, mut next) = (0, 0, 0);
    while next < sent {
        match client.next_event().unwrap() {
            Some(ServerMessage::Event(e)) => {
                assert_eq!(e.unix_ms, next, "in order, without a silent gap");
                got += 1;
                next += 1;
            }
            Some(ServerMessage::Lost(n)) => {
                lost += n;
                next += n;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 0, "nothing was lost");
    assert_eq!(got + lost, sent);
    assert_eq!(rig.hub.lost(), lost);
    rig.client().call(Request::Status {}).unwrap();
}

#[test]
fn followers_are_bounded() {
    let rig = start(Bounds {
        followers: 1,
        ..Bounds::default()
    });
    let mut first = rig.client();
    first.events(0, true).unwrap();
    until("following", || rig.count("events").0 == 1);
    let mut second = rig.client();
    second.events(0, true).unwrap();
    let e = second.next_event().unwrap_err();
    assert!(matches!(e, ClientError::Failed(f) if f.kind == FailureKind::Busy));
    drop(first);
    until("the place is free", || {
        let mut client = rig.client();
        client.events(0, false).unwrap();
        client.next_event().is_ok()
    });
}

#[test]
fn a_stop_ends_idle_connections_and_removes_the_socket() {
    let rig = start(Bounds::default());
    let mut idle = Raw::greeted(&rig.path());
    let mut follower = rig.client();
    follower.events(0, true).unwrap();
    until("following", || rig.count("events").0 == 1);
    // One that waits for the engine gets its answer.
    let mut waiting = Raw::greeted(&rig.path());
    waiting.send(br#"{"call":{"limits":{}}}"#);
    until("the engine has it", || {
        !rig.engine.stuck.lock().unwrap().is_empty()
    });
    rig.stop.send(true).unwrap();
    assert_eq!(idle.receive(), None);
    follower.next_event().unwrap_err();
    let reply = rig.engine.stuck.lock().unwrap().pop().unwrap();
    reply.send(Ok(Response::Flushed { removed: 7 }));
    assert!(matches!(waiting.receive(), Some(ServerMessage::Result(_))));
    let mut rest = Vec::new();
    waiting.0.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    until("the socket is gone", || !rig.path().exists());
    let e = Client::connect(&rig.path()).unwrap_err();
    assert!(matches!(e, ClientError::Unreachable { .. }));
}

#[test]
fn a_client_that_goes_away_gets_its_request_done_and_counted() {
    let rig = start(Bounds::default());
    let mut raw = Raw::greeted(&rig.path());
    let add = ClientMessage::Call(Request::Add(Addition {
        header: header("slow"),
        prefixes: hosts(2),
    }));
    raw.send(&serde_json::to_vec(&add).unwrap());
    // It saw the first progress, so the engine is at work.
    assert!(matches!(
        raw.receive(),
        Some(ServerMessage::Progress { .. })
    ));
    drop(raw);
    rig.engine.gate.open();
    until("it is counted", || rig.count("add") == (1, 0));
    assert_eq!(rig.engine.entries.lock().unwrap().len(), 2);
}
