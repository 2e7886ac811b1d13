//! The packet parser over any frame, whole and cut.
#![no_main]

#[path = "../../tests/parser/oracle.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;

// The input is a frame and nothing else, so that a crasher is a packet of `tests/regressions` as
// it is; there it is cut everywhere.
fuzz_target!(|frame: &[u8]| {
    oracle::check(frame);
    let step = (frame.len() / 8).max(1);
    for len in (0..frame.len()).rev().step_by(step) {
        oracle::check_cut(frame, len);
    }
});
