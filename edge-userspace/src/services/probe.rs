//! A SYN that asks a listener for its window scale, and what the answer says.

use std::net::{IpAddr, SocketAddr};

/// Bytes of a TCP header without options.
const FIXED: usize = 20;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
/// Those of a Linux client: MSS 1460, SACK permitted, timestamps, NOP, window
/// scale 7. Without a timestamp a cookie would have no room for the others.
const OPTIONS: [u8; 20] = [
    2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
];

const END: u8 = 0;
const NOP: u8 = 1;
const WINDOW_SCALE: u8 = 3;

/// A SYN from one port of a host to another one, both addresses the same.
pub fn syn(from: SocketAddr, to: SocketAddr, seq: u32) -> [u8; FIXED + OPTIONS.len()] {
    let mut segment = [0; FIXED + OPTIONS.len()];
    let words = from.port().to_be_bytes().into_iter();
    let head = words
        .chain(to.port().to_be_bytes())
        .chain(seq.to_be_bytes())
        .chain([0; 4])
        // Ten words of header.
        .chain([10 << 4, SYN])
        .chain(u16::MAX.to_be_bytes())
        .chain([0; 4])
        .chain(OPTIONS);
    for (to, from) in segment.iter_mut().zip(head) {
        *to = from;
    }
    let sum = checksum(from.ip(), to.ip(), &segment);
    if let Some(field) = segment.get_mut(16..18) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    segment
}

/// RFC 9293, 3.1.
fn checksum(source: IpAddr, dest: IpAddr, segment: &[u8]) -> u16 {
    let octets = |address| match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let mut bytes = [octets(source), octets(dest)].concat();
    bytes.extend([0, 6]);
    bytes.extend((segment.len() as u16).to_be_bytes());
    bytes.extend(segment);
    let (pairs, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |&b| u32::from(b) << 8);
    let mut sum = last;
    for pair in pairs {
        sum += u32::from(u16::from_be_bytes(*pair));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// What a TCP segment says, if it is the SYN-ACK to `seq`: the window scale, or
/// that there is none.
pub fn scale_of(segment: &[u8], from: SocketAddr, to: SocketAddr, seq: u32) -> Option<Option<u8>> {
    let (head, rest) = segment.split_first_chunk::<FIXED>()?;
    let [a, b, c, d, _, _, _, _, e, f, g, h, offset, flags, ..] = *head;
    let is_answer = u16::from_be_bytes([a, b]) == to.port()
        && u16::from_be_bytes([c, d]) == from.port()
        && u32::from_be_bytes([e, f, g, h]) == seq.wrapping_add(1)
        && flags & SYN_ACK == SYN_ACK;
    if !is_answer {
        return None;
    }
    let options = rest.get(..(usize::from(offset >> 4) * 4).checked_sub(FIXED)?)?;
    Some(window_scale(options))
}

/// The window scale among options, which are taken as far as they make sense.
fn window_scale(mut options: &[u8]) -> Option<u8> {
    loop {
        options = match options {
            [] | [END, ..] => return None,
            [NOP, rest @ ..] => rest,
            [WINDOW_SCALE, 3, scale, ..] => return Some(*scale),
            [_, len, ..] => options.get(usize::from(*len).max(2)..)?,
            [_] => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (SocketAddr, SocketAddr) {
        (
            "192.0.2.1:50000".parse().unwrap(),
            "192.0.2.1:80".parse().unwrap(),
        )
    }

    /// The answer to a SYN, with these options.
    fn answer(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0; FIXED];
        segment[0..4].copy_from_slice(&[0, 80, 0xc3, 0x50]);
        segment[8..12].copy_from_slice(&8u32.to_be_bytes());
        segment[12] = (((FIXED + options.len()) / 4) << 4) as u8;
        segment[13] = SYN_ACK;
        segment.extend_from_slice(options);
        segment
    }

    #[test]
    fn a_syn_has_a_right_checksum() {
        let v6 = (
            "[2001:db8::1]:50000".parse().unwrap(),
            "[2001:db8::1]:80".parse().unwrap(),
        );
        for (from, to) in [ends(), v6] {
            let segment = syn(from, to, 0x0102_0304);
            // Over a segment with its checksum the sum is zero.
            assert_eq!(checksum(from.ip(), to.ip(), &segment), 0);
            assert_eq!(segment[..4], [0xc3, 0x50, 0, 80]);
            assert_eq!(segment[4..8], [1, 2, 3, 4]);
        }
    }

    #[test]
    fn the_answer_is_read_with_suspicion() {
        let (from, to) = ends();
        let scaled = answer(&[2, 4, 5, 0xb4, 1, 3, 3, 9]);
        assert_eq!(scale_of(&scaled, from, to, 7), Some(Some(9)));
        assert_eq!(scale_of(&answer(&[2, 4, 5, 0xb4]), from, to, 7), Some(None));
        assert_eq!(scale_of(&answer(&[]), from, to, 7), Some(None));
        for broken in [[2, 0, 3, 3], [2, 9, 3, 3], [0, 3, 3, 7], [1, 1, 1, 2]] {
            assert_eq!(scale_of(&answer(&broken), from, to, 7), Some(None));
        }
        // Another port, another number, no SYN-ACK.
        assert_eq!(scale_of(&scaled, to, from, 7), None);
        assert_eq!(scale_of(&scaled, from, to, 8), None);
        let mut reset = scaled.clone();
        reset[13] = 0x14;
        assert_eq!(scale_of(&reset, from, to, 7), None);
        for end in 0..scaled.len() {
            assert_eq!(scale_of(&scaled[..end], from, to, 7), None, "{end}");
        }
        let mut long = scaled;
        long[12] = 0x40;
        assert_eq!(scale_of(&long, from, to, 7), None);
    }
}
