//! HTTP/1 messages made of any bytes, whole and in pieces.
#![no_main]

// The rooms of the proxy that know nothing of sockets, as they stand in the daemon, which is too
// much to build for them.
#[path = "../../../edge-userspace/src/l7"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod l7 {
    pub mod head;
    pub mod http1;
}

#[path = "../../../edge-userspace/src/l7/http1/tests/forward.rs"]
mod forward;

use forward::{LIMITS, Outcome, check_upstream, forward};
use l7::head::Response;
use l7::http1::{Asked, parse_response};
use libfuzzer_sys::fuzz_target;

// The input is what a client sends and nothing else, so that a crasher is a row of the table of
// vectors as it is.
fuzz_target!(|bytes: &[u8]| {
    let whole = forward(bytes, &[]);
    let third = bytes.len() / 3;
    assert_eq!(forward(bytes, &[third, 2 * third]), whole);
    if bytes.len() < 200 {
        let each: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(forward(bytes, &each), whole);
    }
    if let Outcome::Forwarded { consumed, upstream } = whole {
        assert!(consumed <= bytes.len());
        check_upstream(&upstream);
    }
    answer(bytes);
});

/// The same bytes as an answer.
fn answer(bytes: &[u8]) {
    let mut whole = Response::default();
    let read = parse_response(bytes, &LIMITS, Asked::default(), &mut whole);
    let mut pieces = Response::default();
    let half = &bytes[..bytes.len() / 2];
    match parse_response(half, &LIMITS, Asked::default(), &mut pieces) {
        Ok(None) => {
            let rest = parse_response(bytes, &LIMITS, Asked::default(), &mut pieces);
            assert_eq!(rest, read);
        }
        done => assert_eq!(done, read),
    }
    if let Ok(Some(_)) = read {
        assert_eq!(pieces, whole);
    }
}
