//! Frames for tests: a builder whose packets are valid, checksums included,
//! until a test breaks them on purpose.
//!
//! ```
//! use edge_tests::packet::{ip, Edit as _, SYN};
//!
//! let syn = ip("198.51.100.7", "203.0.113.1").tcp(SYN).vlan(5).build();
//! assert_eq!(syn.len(), 14 + 4 + 20 + 20);
//! let broken = syn.with(18, &[0x65]); // version 6 in an IPv4 header
//! assert_eq!(broken[18], 0x65);
//! ```

use std::{net::IpAddr, ops::Range};

pub use edge_common::parse::{
    proto,
    tcp::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG},
};

/// Length of the Ethernet header.
pub const ETH: usize = 14;
/// Length of the IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of the fixed IPv6 header.
pub const IPV6: usize = 40;

/// EtherType of an 802.1Q tag.
pub const QTAG: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const ADTAG: u16 = 0x88a8;
/// EtherType of a service tag before 802.1ad.
pub const OLD_QINQ: u16 = 0x9100;

/// MAC address that frames come from unless told otherwise.
pub const SOURCE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// MAC address that frames go to.
pub const DEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

const IPV4_TYPE: u16 = 0x0800;
const IPV6_TYPE: u16 = 0x86dd;
const ARP_TYPE: u16 = 0x0806;

/// An Ethernet frame with up to any number of tags.
#[derive(Clone, Debug)]
struct Ethernet {
    source: [u8; 6],
    /// EtherType and tag control of each, outermost first.
    tags: Vec<(u16, u16)>,
}

impl Ethernet {
    const fn new() -> Self {
        Self {
            source: SOURCE_MAC,
            tags: Vec::new(),
        }
    }

    fn frame(&self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [DEST_MAC, self.source].concat();
        for (kind, control) in &self.tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        frame.extend(ether_type.to_be_bytes());
        frame.extend(payload);
        frame
    }
}

/// An IPv6 extension header; lengths are those of the whole header in bytes,
/// multiples of 8 (of 4 for [`Extension::Auth`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options.
    HopByHop(usize),
    /// A routing header of this type.
    Routing(u8, usize),
    /// A fragment header: offset in bytes, and whether more follow.
    Fragment(u16, bool),
    /// Authentication header.
    Auth(usize),
    /// Destination options.
    DestOpts(usize),
    /// Mobility header.
    Mobility(usize),
}

impl Extension {
    /// Its protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(..) => 43,
            Self::Fragment(..) => 44,
            Self::Auth(_) => 51,
            Self::DestOpts(_) => 60,
            Self::Mobility(_) => 135,
        }
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        let (len, len_field, third) = match self {
            Self::Fragment(offset, more) => {
                let [a, b] = (offset & !7 | u16::from(more)).to_be_bytes();
                return vec![next, 0, a, b, 0, 0, 0, 7];
            }
            Self::Auth(len) => (len, len / 4 - 2, 0),
            Self::Routing(kind, len) => (len, len / 8 - 1, kind),
            Self::HopByHop(len) | Self::DestOpts(len) | Self::Mobility(len) => {
                (len, len / 8 - 1, 0)
            }
        };
        let mut bytes = vec![0; len];
        bytes[..3].copy_from_slice(&[next, u8::try_from(len_field).unwrap(), third]);
        if let Self::HopByHop(_) | Self::DestOpts(_) = self {
            pad_options(&mut bytes[2..]);
        }
        bytes
    }
}

/// Fills space for IPv6 options with PadN (RFC 8200, 4.2).
fn pad_options(mut space: &mut [u8]) {
    while let [kind, len, rest @ ..] = space {
        let n = rest.len().min(255);
        (*kind, *len) = (1, u8::try_from(n).unwrap());
        space = rest.split_at_mut(n).1;
    }
}

/// An IP packet of either family in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Ip {
    ethernet: Ethernet,
    source: IpAddr,
    dest: IpAddr,
    options: Vec<u8>,
    extensions: Vec<Extension>,
    fragment: Option<(u16, bool)>,
    piece: Option<Range<usize>>,
    proto: u8,
    transport: Vec<u8>,
    padding: usize,
    id: u16,
}

/// A packet between two addresses of one family, with an empty payload of
/// protocol 59 ("no next header") until it is given another.
pub fn ip(source: &str, dest: &str) -> Ip {
    Ip {
        ethernet: Ethernet::new(),
        source: source.parse().unwrap(),
        dest: dest.parse().unwrap(),
        options: Vec::new(),
        extensions: Vec::new(),
        fragment: None,
        piece: None,
        proto: 59,
        transport: Vec::new(),
        padding: 0,
        id: 7,
    }
}

impl Ip {
    /// A TCP segment with these flags, from port 40000 to 443.
    pub fn tcp(self, flags: u8) -> Self {
        self.tcp_with(flags, 0, 0)
    }

    /// A TCP segment with `options` bytes of options (a multiple of 4) and `len` of payload.
    pub fn tcp_with(self, flags: u8, options: usize, len: usize) -> Self {
        let mut segment = vec![0; 20 + options + len];
        segment[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
        segment[4..8].copy_from_slice(&[0, 0, 0, 1]);
        segment[12] = u8::try_from(((20 + options) / 4) << 4).unwrap();
        segment[13] = flags;
        segment[14..16].copy_from_slice(&[0xff, 0xff]);
        segment[20..20 + options].fill(1);
        self.payload(proto::TCP, segment)
    }

    /// A UDP datagram from port 40000 to 53 with `len` bytes of payload.
    pub fn udp(self, len: usize) -> Self {
        let mut datagram = vec![0; 8 + len];
        datagram[..4].copy_from_slice(&[0x9c, 0x40, 0, 53]);
        // A datagram beyond 65,535 bytes exists as a jumbogram only, with length 0.
        let length = u16::try_from(8 + len).unwrap_or(0);
        datagram[4..6].copy_from_slice(&length.to_be_bytes());
        self.payload(proto::UDP, datagram)
    }

    /// An ICMP or, between IPv6 addresses, ICMPv6 message of this type with
    /// `len` bytes behind its first 8.
    pub fn icmp(self, kind: u8, len: usize) -> Self {
        let mut message = vec![0; 8 + len];
        message[0] = kind;
        let proto = match self.source {
            IpAddr::V4(_) => proto::ICMP,
            IpAddr::V6(_) => proto::ICMPV6,
        };
        self.payload(proto, message)
    }

    /// Any bytes of any protocol.
    pub fn payload(mut self, proto: u8, bytes: impl Into<Vec<u8>>) -> Self {
        self.proto = proto;
        self.transport = bytes.into();
        self
    }

    /// IPv4 options: `len` bytes of no-operation, a multiple of 4 up to 40.
    pub fn options(mut self, len: usize) -> Self {
        self.options = vec![1; len];
        self
    }

    /// Adds an IPv6 extension header behind those that are there.
    pub fn extension(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// Makes it a fragment: the payload stands at `offset` bytes (a multiple of
    /// 8) of the whole. In IPv6 the header goes behind the extension headers so far.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        match self.source {
            IpAddr::V4(_) => self.fragment = Some((offset, more)),
            IpAddr::V6(_) => self.extensions.push(Extension::Fragment(offset, more)),
        }
        self
    }

    /// Makes it the fragment that carries these bytes of the payload so far.
    pub fn piece(self, range: Range<usize>) -> Self {
        let more = range.end < self.transport.len();
        let mut fragment = self.fragment(u16::try_from(range.start).unwrap(), more);
        fragment.piece = Some(range);
        fragment
    }

    /// Adds an 802.1Q tag inside the tags so far.
    pub fn vlan(self, id: u16) -> Self {
        self.tag(QTAG, id)
    }

    /// Adds a tag of any EtherType inside the tags so far.
    pub fn tag(mut self, ether_type: u16, control: u16) -> Self {
        self.ethernet.tags.push((ether_type, control));
        self
    }

    /// The identification of an IPv4 packet.
    pub const fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Adds `len` bytes behind the packet.
    pub fn pad(mut self, len: usize) -> Self {
        self.padding = len;
        self
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let mut transport = self.transport.clone();
        self.set_checksum(&mut transport);
        let piece = self.piece.clone().unwrap_or(0..transport.len());
        let payload = &transport[piece];
        let mut frame = match (self.source, self.dest) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let header = IPV4 + self.options.len();
                let total = u16::try_from(header + payload.len()).unwrap();
                let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
                packet.extend(total.to_be_bytes());
                let fragment = self.fragment.map_or(0x4000, |(offset, more)| {
                    offset >> 3 | if more { 0x2000 } else { 0 }
                });
                packet.extend(self.id.to_be_bytes());
                packet.extend(fragment.to_be_bytes());
                packet.extend([64, self.proto, 0, 0]);
                packet.extend(s.octets());
                packet.extend(d.octets());
                packet.extend(&self.options);
                let sum = checksum(&[&packet]);
                packet[10..12].copy_from_slice(&sum);
                packet.extend(payload);
                self.ethernet.frame(IPV4_TYPE, &packet)
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                let (first, extensions) = self.extension_bytes();
                let length = u16::try_from(extensions.len() + payload.len()).unwrap();
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend(length.to_be_bytes());
                packet.extend([first, 64]);
                packet.extend(s.octets());
                packet.extend(d.octets());
                packet.extend(extensions);
                packet.extend(payload);
                self.ethernet.frame(IPV6_TYPE, &packet)
            }
            _ => panic!("a packet has two addresses of one family"),
        };
        frame.resize(frame.len() + self.padding, 0);
        frame
    }

    /// The type of the first extension header, and all of them.
    fn extension_bytes(&self) -> (u8, Vec<u8>) {
        let (mut next, mut bytes) = (self.proto, Vec::new());
        for extension in self.extensions.iter().rev() {
            bytes = [extension.bytes(next), bytes].concat();
            next = extension.number();
        }
        (next, bytes)
    }

    fn set_checksum(&self, transport: &mut [u8]) {
        let (at, pseudo) = match self.proto {
            proto::TCP => (16, true),
            proto::UDP => (6, true),
            proto::ICMP => (2, false),
            proto::ICMPV6 => (2, true),
            _ => return,
        };
        if transport.len() < at + 2 {
            return;
        }
        let mut head = Vec::new();
        if pseudo {
            for address in [self.source, self.dest] {
                match address {
                    IpAddr::V4(a) => head.extend(a.octets()),
                    IpAddr::V6(a) => head.extend(a.octets()),
                }
            }
            head.extend(u32::try_from(transport.len()).unwrap().to_be_bytes());
            head.extend([0, 0, 0, self.proto]);
        }
        transport[at..at + 2].fill(0);
        let sum = match checksum(&[&head, transport]) {
            // Zero means "no checksum" to UDP.
            [0, 0] if self.proto == proto::UDP => [0xff, 0xff],
            sum => sum,
        };
        transport[at..at + 2].copy_from_slice(&sum);
    }
}

/// The Internet checksum (RFC 1071); every part but the last has even length.
pub(crate) fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let sum: u64 = parts
        .iter()
        .flat_map(|part| part.chunks(2))
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    (!u16::try_from(folded).unwrap()).to_be_bytes()
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Debug)]
pub struct Arp {
    ethernet: Ethernet,
    sender_mac: [u8; 6],
    operation: u16,
    sender_ip: [u8; 4],
    target_ip: [u8; 4],
}

/// An ARP reply that says that `sender_ip` is at [`SOURCE_MAC`].
pub fn arp(sender_ip: [u8; 4]) -> Arp {
    Arp {
        ethernet: Ethernet::new(),
        sender_mac: SOURCE_MAC,
        operation: 2,
        sender_ip,
        target_ip: [203, 0, 113, 1],
    }
}

impl Arp {
    /// Claims another MAC address for the sender, in the packet and not in the frame.
    pub const fn claiming(mut self, mac: [u8; 6]) -> Self {
        self.sender_mac = mac;
        self
    }

    /// Sends it from another MAC address than the one that it claims.
    pub const fn sent_by(mut self, mac: [u8; 6]) -> Self {
        self.ethernet.source = mac;
        self
    }

    /// Makes it a request.
    pub const fn request(mut self) -> Self {
        self.operation = 1;
        self
    }

    /// Adds an 802.1Q tag.
    pub fn vlan(mut self, id: u16) -> Self {
        self.ethernet.tags.push((QTAG, id));
        self
    }

    /// The frame, without padding.
    pub fn build(&self) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4];
        packet.extend(self.operation.to_be_bytes());
        packet.extend(self.sender_mac);
        packet.extend(self.sender_ip);
        packet.extend([0; 6]);
        packet.extend(self.target_ip);
        self.ethernet.frame(ARP_TYPE, &packet)
    }
}

/// A frame of any EtherType.
pub fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    Ethernet::new().frame(ether_type, payload)
}

/// Breaks a frame on purpose.
pub trait Edit {
    /// With other bytes at an offset.
    fn with(self, at: usize, bytes: &[u8]) -> Vec<u8>;
    /// Only the first `len` bytes.
    fn cut(self, len: usize) -> Vec<u8>;
}

impl Edit for Vec<u8> {
    fn with(mut self, at: usize, bytes: &[u8]) -> Vec<u8> {
        self[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn cut(mut self, len: usize) -> Vec<u8> {
        assert!(len <= self.len(), "the frame has only {} bytes", self.len());
        self.truncate(len);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over a part with its checksum in place is all ones.
    fn is_summed(parts: &[&[u8]]) -> bool {
        checksum(parts) == [0, 0]
    }

    #[test]
    fn ipv4_is_laid_out_as_rfc_791_has_it() {
        let frame = ip("192.0.2.1", "203.0.113.9")
            .options(8)
            .udp(3)
            .tag(ADTAG, 7)
            .vlan(0x2005)
            .pad(2)
            .build();
        assert_eq!(&frame[12..22], [0x88, 0xa8, 0, 7, 0x81, 0, 0x20, 5, 8, 0]);
        let packet = &frame[22..];
        assert_eq!(&packet[..4], [0x47, 0, 0, 39]);
        assert_eq!(&packet[12..20], [192, 0, 2, 1, 203, 0, 113, 9]);
        assert!(is_summed(&[&packet[..28]]));
        assert_eq!(&packet[28..34], [0x9c, 0x40, 0, 53, 0, 11]);
        assert_eq!(packet.len(), 39 + 2);
    }

    #[test]
    fn transport_checksums_hold_in_both_families() {
        let v4 = ip("192.0.2.1", "203.0.113.9").tcp_with(SYN, 8, 5).build();
        let pseudo = [&v4[26..34], &[0, 6, 0, 33]].concat();
        assert!(is_summed(&[&pseudo, &v4[34..]]));
        let v6 = ip("2001:db8::1", "2001:db8::2").icmp(128, 4).build();
        let pseudo = [&v6[22..54], &[0, 0, 0, 12, 0, 0, 0, 58]].concat();
        assert!(is_summed(&[&pseudo, &v6[54..]]));
    }

    #[test]
    fn extension_headers_form_a_chain() {
        let frame = ip("2001:db8::1", "2001:db8::2")
            .extension(Extension::HopByHop(16))
            .extension(Extension::Routing(2, 24))
            .extension(Extension::Auth(12))
            .fragment(16, true)
            .udp(8)
            .build();
        assert_eq!(&frame[18..21], [0, 16 + 24 + 12 + 8 + 16, 0]);
        let chain = &frame[54..];
        assert_eq!(&chain[..4], [43, 1, 1, 12]);
        assert_eq!(&chain[16..19], [51, 2, 2]);
        assert_eq!(&chain[40..42], [44, 1]);
        assert_eq!(&chain[52..56], [17, 0, 0, 17]);
    }

    #[test]
    fn pieces_make_up_the_whole() {
        for (source, dest, header) in [
            ("192.0.2.1", "203.0.113.9", ETH + IPV4),
            ("2001:db8::1", "2001:db8::2", ETH + IPV6 + 8),
        ] {
            let whole = ip(source, dest).udp(100);
            let plain = whole.build();
            let pieces = [0..56, 56..104, 104..108].map(|r| whole.clone().piece(r).build());
            let joined: Vec<u8> = pieces.iter().flat_map(|p| p[header..].to_vec()).collect();
            assert!(plain.ends_with(&joined) && joined.len() == 108);
        }
    }

    #[test]
    fn arp_tells_claim_and_sender_apart() {
        let frame = arp([192, 0, 2, 1]).claiming([9; 6]).request().build();
        assert_eq!(frame.len(), ETH + 28);
        assert_eq!(frame[6..12], SOURCE_MAC);
        assert_eq!(&frame[20..32], [0, 1, 9, 9, 9, 9, 9, 9, 192, 0, 2, 1]);
    }
}
