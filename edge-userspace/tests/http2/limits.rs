//! What a client may cost: what is limited, that the connection ends beyond it, and that each limit
//! is told by a reason of its own and is held against the client if it is an offence.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use edge_userspace::config::proxy::listener::Limits;

use super::{
    raw::{
        CONTINUATION, Client, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, RST_STREAM, field,
        get,
    },
    rig::{PATIENCE, Rig, until},
};

/// ENHANCE_YOUR_CALM.
const CALM: Option<u32> = Some(11);

#[test]
fn streams_reset_faster_than_they_may_be_end_the_connection() {
    let rig = Rig::new(Limits {
        h2_resets_per_second: 2,
        ..Limits::default()
    });
    for round in 1..=2 {
        let mut client = Client::new(rig.address);
        for n in 0..20 {
            let id = 2 * n + 1;
            let begin = Frame::new(HEADERS, END_HEADERS | END_STREAM, id, &get("/hang"));
            // Fails once the connection has ended.
            if client.send(&[begin]).is_err() {
                break;
            }
            // Each one is with the server when it is reset, until there is no other one.
            match rig.told.recv_timeout(Duration::from_secs(1)) {
                Ok(_) => {}
                Err(_) => break,
            }
            let _ = client.send(&[Frame::new(RST_STREAM, 0, id, &[0, 0, 0, 8])]);
        }
        let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
        assert_eq!(goaway.code(), CALM);
        until("the count", || {
            rig.refusals().get("h2_resets") == Some(&round)
        });
    }
    // One offence is borne.
    until("a ban", || rig.bans.lock().unwrap().len() == 1);
    let bans = rig.bans.lock().unwrap();
    assert!(bans[0].note.contains("h2_resets"), "{:?}", bans[0]);
}

#[test]
fn streams_reset_before_they_are_seen_end_the_connection() {
    let rig = Rig::new(Limits::default());
    let mut client = Client::new(rig.address);
    let flood: Vec<Frame> = (0..200)
        .flat_map(|n| {
            let id = 2 * n + 1;
            [
                Frame::new(HEADERS, END_HEADERS | END_STREAM, id, &get("/hello")),
                Frame::new(RST_STREAM, 0, id, &[0, 0, 0, 8]),
            ]
        })
        .collect();
    let _ = client.send(&flood);
    let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
    assert_eq!(goaway.code(), CALM);
    until("the count", || {
        rig.refusals() == [("h2_resets".to_owned(), 1)].into()
    });
    // None of them was worth a request.
    assert!(rig.told.try_recv().is_err());
}

#[test]
fn streams_that_we_are_made_to_reset_end_the_connection() {
    let rig = Rig::new(Limits {
        h2_resets_per_second: 2,
        ..Limits::default()
    });
    let mut client = Client::new(rig.address);
    const WINDOW_UPDATE: u8 = 8;
    for n in 0..20 {
        let id = 2 * n + 1;
        let begin = Frame::new(HEADERS, END_HEADERS | END_STREAM, id, &get("/hang"));
        if client.send(&[begin]).is_err() || rig.told.recv_timeout(Duration::from_secs(1)).is_err()
        {
            break;
        }
        // More than a window may be: an error of the stream (RFC 9113, 6.9.1).
        let most = Frame::new(WINDOW_UPDATE, 0, id, &0x7fff_ffff_u32.to_be_bytes());
        let _ = client.send(&[most]);
    }
    let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
    assert_eq!(goaway.code(), CALM);
    until("the count", || {
        rig.refusals().get("h2_made_resets") == Some(&1)
    });
    assert!(!rig.refusals().contains_key("h2_resets"));
}

#[test]
fn continuations_without_end_end_the_connection() {
    let rig = Rig::new(Limits::default());
    let mut client = Client::new(rig.address);
    let _ = client.send(&[Frame::new(HEADERS, END_STREAM, 1, &get("/hello"))]);
    let more = vec![Frame::new(CONTINUATION, 0, 1, &field(b"x-more", b"of it")); 100];
    let _ = client.send(&more);
    let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
    assert_eq!(goaway.code(), CALM);
    until("the count", || {
        rig.refusals().get("h2_continuations") == Some(&1)
    });
}

#[test]
fn a_small_head_that_unpacks_to_a_large_one_is_refused() {
    let rig = Rig::new(Limits::default());
    let mut client = Client::new(rig.address);
    let block = packed(10_000);
    let _ = client.send(&[Frame::new(HEADERS, END_HEADERS | END_STREAM, 1, &block)]);
    let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
    assert_eq!(goaway.code(), CALM);
    until("the count", || rig.refusals().get("h2_hpack") == Some(&1));
    assert!(rig.told.try_recv().is_err());
}

/// The fields of a GET, and one of 100 bytes that enters the table, and is then named by one byte,
/// so often.
fn packed(times: usize) -> Vec<u8> {
    let mut block = get("/hello");
    let large = field(b"x-bomb", &[b'x'; 100]);
    block.push(0x40);
    block.extend(&large[1..]);
    block.resize(block.len() + times, 0xbe);
    block
}

/// Waits until there is a ban, for that.
fn banned(rig: &Rig, reason: &str) {
    until("a ban", || !rig.bans.lock().unwrap().is_empty());
    let bans = rig.bans.lock().unwrap();
    assert!(bans[0].note.starts_with(reason), "{:?}", bans[0]);
}

#[test]
fn small_heads_that_unpack_to_ones_too_large_are_no_more_than_resets_may_be() {
    let rig = Rig::new(Limits::default());
    for round in 1..=2 {
        let mut client = Client::new(rig.address);
        // Twice as large as is refused in our own words, and less than what ends a connection.
        let block = packed(600);
        let flood: Vec<Frame> = (0..500)
            .map(|n| Frame::new(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block))
            .collect();
        // Fails once the connection has ended.
        let _ = client.send(&flood);
        let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
        assert_eq!(goaway.code(), CALM);
        until("the count", || {
            rig.refusals().get("h2_heads") == Some(&round)
        });
    }
    // Of each connection those that are borne, and no more than came in the turn after them.
    let refusals = rig.refusals();
    let counted = refusals["head_too_large"];
    assert!((102..200).contains(&counted), "{refusals:?}");
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    banned(&rig, "h2_heads");
    assert!(rig.told.try_recv().is_err());
}

#[test]
fn a_stream_too_many_is_refused_and_counted() {
    let rig = Rig::new(Limits {
        h2_streams: 2,
        ..Limits::default()
    });
    let mut client = Client::new(rig.address);
    let begin = |id| Frame::new(HEADERS, END_HEADERS | END_STREAM, id, &get("/hang"));
    client.send(&[1, 3, 5, 7].map(begin)).unwrap();
    const REFUSED_STREAM: Option<u32> = Some(7);
    for id in [5, 7] {
        let reset = client.next_of(&[RST_STREAM, GOAWAY]).expect("an end");
        assert_eq!((reset.stream, reset.code()), (id, REFUSED_STREAM));
    }
    let expected = [("h2_streams".to_owned(), 2)].into();
    until("the count", || rig.refusals() == expected);
    // It is no offence: a client may not have read yet how many there may be.
    assert!(rig.bans.lock().unwrap().is_empty());
    rig.came();
    rig.came();
    assert!(rig.told.try_recv().is_err());
}

/// A short time for heads, and a long one for all else.
fn impatient() -> Limits {
    Limits {
        header_timeout: Duration::from_millis(300),
        ..Limits::default()
    }
}

#[test]
fn a_head_that_does_not_end_ends_the_connection_and_leads_to_a_ban() {
    let rig = Rig::new(impatient());
    let begun = Frame::new(HEADERS, END_STREAM, 1, &get("/hello"));
    for (round, more) in [
        // Nothing more, a byte of the next frame, or one piece after the other.
        Vec::new(),
        vec![0],
        Frame::new(CONTINUATION, 0, 1, &[]).bytes(),
    ]
    .iter()
    .enumerate()
    {
        let mut client = Client::new(rig.address);
        client.send(std::slice::from_ref(&begun)).unwrap();
        client.0.write_all(more).unwrap();
        let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
        assert_eq!(goaway.code(), CALM);
        assert!(client.next().is_none());
        let expected = [("head_timeout".to_owned(), round as u64 + 1)].into();
        until("the count", || rig.refusals() == expected);
    }
    banned(&rig, "head_timeout");
    assert_eq!(rig.listener().idle_timeouts, 0);
    assert!(rig.told.try_recv().is_err());
}

#[test]
fn a_head_has_no_more_time_because_there_are_other_streams() {
    let rig = Rig::new(impatient());
    let mut client = Client::new(rig.address);
    let whole = Frame::new(HEADERS, END_HEADERS | END_STREAM, 1, &get("/hang"));
    client.send(&[whole]).unwrap();
    rig.came();
    // The first stream has no end of its own.
    let begun = Frame::new(HEADERS, END_STREAM, 3, &get("/hello"));
    client.send(&[begun]).unwrap();
    let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
    assert_eq!(goaway.code(), CALM);
    // Nobody waits for its answer any more.
    rig.gone();
    until("the count", || {
        rig.refusals().get("head_timeout") == Some(&1)
    });
}

#[test]
fn slow_heads_of_http1_lead_to_a_ban() {
    let rig = Rig::new(impatient());
    for round in 1..=2 {
        let mut client = TcpStream::connect(rig.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert_eq!(rig.refusals()["head_timeout"], round);
    }
    banned(&rig, "head_timeout");
}

#[test]
fn a_client_that_begins_no_request_is_idle() {
    let rig = Rig::new(impatient());
    let mut client = Client::new(rig.address);
    const NO_ERROR: Option<u32> = Some(0);
    let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
    assert_eq!(goaway.code(), NO_ERROR);
    assert_eq!(rig.listener().idle_timeouts, 1);
    assert!(rig.refusals().is_empty());
}

#[test]
fn what_looks_like_http2_has_no_more_time_than_what_does_not() {
    let rig = Rig::new(Limits {
        header_timeout: Duration::from_secs(1),
        ..Limits::default()
    });
    let mut accepted = 0;
    let mut begin = |with: &[u8]| {
        let mut client = TcpStream::connect(rig.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(with).unwrap();
        accepted += 1;
        until("it is there", || rig.listener().accepted == accepted);
        client
    };
    // The last one comes last, and has to have ended by then.
    let mut all = [
        begin(b""),
        begin(b"P"),
        begin(b"PRI * HTTP/2.0\r\n"),
        begin(b"G"),
    ];
    let answers = [3, 0, 1, 2].map(|at: usize| {
        let mut answer = Vec::new();
        all[at].read_to_end(&mut answer).unwrap();
        if at == 3 {
            assert_eq!(rig.refusals(), [("head_timeout".to_owned(), 3)].into());
            assert_eq!(rig.listener().idle_timeouts, 1);
        }
        String::from_utf8_lossy(&answer).into_owned()
    });
    let [of_http1, silent, unknown, _] = answers;
    assert!(of_http1.starts_with("HTTP/1.1 408 "), "{of_http1}");
    assert!(unknown.starts_with("HTTP/1.1 408 "), "{unknown}");
    assert_eq!(silent, "");
}
