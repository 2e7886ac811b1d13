//! Packets in the classic format of tcpdump: draft-ietf-opsawg-pcap.

/// Microseconds; its byte order says that of the file.
const MAGIC: u32 = 0xa1b2_c3d4;
/// Version 2.4.
const VERSION: [u16; 2] = [2, 4];
/// Longest packet in the file, bytes.
const SNAP: u32 = 65_535;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// A packet, of which only the beginning may be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// When it came, Unix milliseconds.
    pub(super) unix_ms: u64,
    /// Its length, bytes.
    pub(super) length: u32,
    /// What was captured of it, from the Ethernet header on.
    pub(super) bytes: Vec<u8>,
}

/// The whole file.
pub(super) fn file(packets: &[Packet]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC.to_le_bytes());
    out.extend(VERSION.map(u16::to_le_bytes).as_flattened());
    // Time zone and accuracy, which nobody uses.
    out.extend([0; 8]);
    out.extend(SNAP.to_le_bytes());
    out.extend(ETHERNET.to_le_bytes());
    for packet in packets {
        let captured = packet.bytes.get(..SNAP as usize).unwrap_or(&packet.bytes);
        // Both fit: seconds until 2106, and a part of one.
        let seconds = u32::try_from(packet.unix_ms / 1000).unwrap_or(u32::MAX);
        let micros = u32::try_from(packet.unix_ms % 1000 * 1000).unwrap_or_default();
        let length = u32::try_from(captured.len()).unwrap_or(SNAP);
        let head = [seconds, micros, length, packet.length.max(length)];
        out.extend(head.map(u32::to_le_bytes).as_flattened());
        out.extend(captured);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let packet = Packet {
            unix_ms: 0x0102_0304 * 1000 + 5,
            length: 60,
            bytes: vec![0xaa, 0xbb],
        };
        let got = file(&[packet]);
        let head = [
            0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0,
            0,
        ];
        assert_eq!(got[..24], head);
        let record = [
            4, 3, 2, 1, 0x88, 0x13, 0, 0, 2, 0, 0, 0, 60, 0, 0, 0, 0xaa, 0xbb,
        ];
        assert_eq!(got[24..], record);
        assert_eq!(file(&[]), head);
    }

    #[test]
    fn no_packet_is_longer_than_itself() {
        let packet = Packet {
            unix_ms: u64::MAX,
            length: 0,
            bytes: vec![1; 70_000],
        };
        let got = file(&[packet]);
        assert_eq!(got.len(), 24 + 16 + 65_535);
        assert_eq!(got[32..40], [0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]);
    }
}
