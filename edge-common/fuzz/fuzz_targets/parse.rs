//! The packet parser over any frame: as it comes, as each protocol that the parser knows, and cut.
#![no_main]

#[path = "../../tests/parser/oracle.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;

/// Behind the MAC addresses.
const ETHER_TYPE: usize = 12;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];

fuzz_target!(|frame: &[u8]| {
    oracle::check(frame);
    // Cuts near every change of the fuzzer's, without the cost of all of them.
    let step = (frame.len() / 8).max(1);
    for len in (0..frame.len()).rev().step_by(step) {
        oracle::check_cut(frame, len);
    }
    let mut frame = frame.to_vec();
    for ether_type in [IPV4, IPV6, ARP] {
        if let Some(bytes) = frame.get_mut(ETHER_TYPE..ETHER_TYPE + 2) {
            bytes.copy_from_slice(&ether_type);
            oracle::check(&frame);
        }
    }
});
