//! Properties of the packet parser.

mod oracle;
mod packets;

use edge_common::parse;
use packets::{VALID, WILD};
use proptest::{collection::vec, prelude::*, sample::Index};

/// Cuts beyond the headers of the longest packet show nothing new.
const HEADERS: usize = 240;

/// Versions, lengths, protocols and EtherTypes.
static TELLING: [u8; 18] = [
    0, 1, 4, 5, 6, 8, 17, 43, 44, 51, 58, 60, 0x45, 0x4f, 0x60, 0x81, 135, 255,
];

/// A change of one byte, to one that means something as often as not.
fn change() -> impl Strategy<Value = (Index, u8)> {
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(&TELLING[..])];
    (any::<Index>(), byte)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_valid_packet_gives_back_its_fields((frame, packet) in packets::frame(VALID)) {
        prop_assert_eq!(parse::parse(&frame[..]), Ok(packet));
        oracle::check(&frame);
    }

    #[test]
    fn a_changed_packet_is_read_right_or_refused(
        (mut frame, _) in packets::frame(WILD),
        changes in vec(change(), 0..6),
    ) {
        // The MAC addresses decide nothing.
        let headers = 12..frame.len().min(HEADERS);
        for (at, byte) in changes {
            frame[headers.start + at.index(headers.len())] = byte;
        }
        oracle::check(&frame);
    }

    #[test]
    fn any_bytes_are_read_right_or_refused(
        mut frame in vec(any::<u8>(), 0..120),
        ether_type in proptest::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100]),
    ) {
        oracle::check(&frame);
        if let Some(bytes) = frame.get_mut(12..14) {
            bytes.copy_from_slice(&ether_type.to_be_bytes());
            oracle::check(&frame);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_packet_is_whole_or_refused_wherever_it_is_cut((frame, _) in packets::frame(VALID)) {
        for len in 0..=frame.len().min(HEADERS) {
            oracle::check_cut(&frame, len);
        }
        oracle::check_cut(&frame, frame.len());
    }
}
