//! One packet parser for the kernel and the host.
//!
//! It reads through a [`PacketSource`]: a slice on the host, `data..data_end`
//! in XDP. Headers are read whole, as words in wire order; every length is
//! checked against the packet before it is believed. Nothing here allocates,
//! panics or loops without a bound, and the verifier accepts it inlined.
//!
//! Formats: Ethernet II, IEEE 802.1Q and 802.1ad tags (up to two), ARP
//! (RFC 826), IPv4 with options (RFC 791), IPv6 with extension headers
//! (RFC 8200), TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792), ICMPv6 (RFC 4443).

use crate::reason::Reason;
use network_types::eth::EtherType;

/// Bytes of a packet, by offset from the start of the frame.
pub trait PacketSource {
    /// `N` words of 4 bytes from `offset`, in the byte order of the wire;
    /// `None` when they are not all there.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// `N` words of 8 bytes, likewise: half as many to read and to keep.
    fn doubles<const N: usize>(&self, offset: usize) -> Option<[u64; N]>;

    /// Two bytes from `offset`, in the byte order of the wire.
    fn half(&self, offset: usize) -> Option<u16>;

    /// One byte.
    fn byte(&self, offset: usize) -> Option<u8>;

    /// Whether the frame has at least `len` bytes, counting parts that are not
    /// readable here (the fragments of a multi-buffer XDP frame).
    fn holds(&self, len: usize) -> bool;
}

impl PacketSource for [u8] {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let bytes = self.get(offset..)?.get(..N * 4)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        Some(words)
    }

    fn doubles<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let bytes = self.get(offset..)?.get(..N * 8)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*chunk);
        }
        Some(words)
    }

    fn half(&self, offset: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(*self.get(offset..)?.first_chunk()?))
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.get(offset).copied()
    }

    fn holds(&self, len: usize) -> bool {
        self.len() >= len
    }
}

/// Types of frames, as read from the wire (IANA).
pub mod ethertype {
    use network_types::eth::EtherType;

    /// IPv4.
    pub const IPV4: u16 = EtherType::Ipv4 as u16;
    /// IPv6.
    pub const IPV6: u16 = EtherType::Ipv6 as u16;
    /// A VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = EtherType::Ieee8021q as u16;
    /// A service's VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: u16 = EtherType::Ieee8021ad as u16;
    /// One from before 802.1ad.
    pub const OLD_SERVICE_VLAN: u16 = EtherType::Ieee8021QinQ1 as u16;
}

/// IP protocol numbers that matter here (IANA).
pub mod proto {
    use network_types::ip::IpProto;

    /// ICMP.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// IPv4 in another packet.
    pub const IPV4: u8 = IpProto::Ipv4 as u8;
    /// IPv6 in another packet.
    pub const IPV6: u8 = IpProto::Ipv6 as u8;
    /// TCP.
    pub const TCP: u8 = IpProto::Tcp as u8;
    /// UDP.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// ICMPv6.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    pub(super) const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
    pub(super) const ROUTING: u8 = IpProto::Ipv6Route as u8;
    /// The fragment header of IPv6, which also stands for fragments of both families.
    pub const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
    pub(super) const AUTH: u8 = IpProto::Ah as u8;
    pub(super) const DEST_OPTS: u8 = IpProto::Ipv6Opts as u8;
    pub(super) const MOBILITY: u8 = IpProto::MobilityHeader as u8;
}

/// TCP flag bits (RFC 9293, 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset the connection.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 16;
    /// The urgent pointer is significant.
    pub const URG: u8 = 32;
    /// ECN echo.
    pub const ECE: u8 = 64;
    /// Congestion window reduced.
    pub const CWR: u8 = 128;
}

/// What follows the Ethernet header and its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4 from the offset on.
    Ipv4,
    /// IPv6 from the offset on.
    Ipv6,
    /// ARP from the offset on.
    Arp,
    /// Something else; left to the kernel.
    Other,
}

/// The link layer: what follows, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The protocol behind the last tag.
    pub network: Network,
    /// Its offset: 14, 18 or 22.
    pub offset: usize,
}

/// Where a packet stands among its fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first one: it has the transport header.
    First,
    /// One of the others, starting `offset` bytes into the original payload.
    Later {
        /// In bytes, a multiple of 8, never 0.
        offset: u16,
    },
}

/// What a packet carries, as the checks behind the parser tell packets apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// None of the others; also TCP in later fragments.
    #[default]
    Other = 0,
    /// TCP, with its whole header.
    Tcp = 1,
    /// A first fragment that ends inside the TCP header.
    TcpHead = 2,
    /// UDP, in fragments too.
    Udp = 3,
    /// ICMP or ICMPv6, in fragments too.
    Icmp = 4,
}

/// The transport header, as far as it is there. Beside its kind all zero for
/// other protocols and for later fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// What it is.
    pub kind: Kind,
    /// Offset of the transport header in the frame.
    pub offset: usize,
    /// TCP or UDP source port, byte order of the wire.
    pub source_port: u16,
    /// TCP or UDP destination port, byte order of the wire.
    pub dest_port: u16,
    /// TCP flags: [`tcp`]; 0 when the fragment ends before them.
    pub tcp_flags: u8,
    /// ICMP or ICMPv6 type.
    pub icmp_type: u8,
    /// A first fragment that ends inside the transport header.
    pub truncated: bool,
}

/// An IP packet of either family; `A` is the address: [`V4`] or [`V6`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub dest: A,
    /// Where the packet ends in the frame; padding may follow.
    pub end: usize,
    /// Protocol behind the last extension header.
    pub proto: u8,
    /// Fragment or whole.
    pub fragment: Fragment,
    /// The transport header.
    pub transport: Transport,
}

/// An IPv4 address: the word as read from the wire.
pub type V4 = u32;
/// An IPv6 address: its two halves as read from the wire.
pub type V6 = [u64; 2];

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Claimed MAC of the sender.
    pub sender_mac: [u8; 6],
    /// Claimed address of the sender, byte order of the wire.
    pub sender_ip: V4,
    /// MAC that the frame comes from.
    pub frame_source: [u8; 6],
}

/// A parsed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// IPv4.
    Ipv4(Ip<V4>),
    /// IPv6.
    Ipv6(Ip<V6>),
    /// ARP.
    Arp(Arp),
    /// Anything else.
    Other,
}

const ETH_LEN: usize = 14;
const VLAN_LEN: usize = 4;
const MAX_VLANS: usize = 2;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_LEN: usize = 40;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
const TCP_LEN: usize = 20;
const ICMP_LEN: usize = 8;
const ICMPV6_LEN: usize = 4;
const FRAGMENT_LEN: usize = 8;
/// RFC 8200 lets each header occur once (destination options twice): six.
const MAX_EXTENSIONS: usize = 6;
/// Largest packet that fragments may make up.
const MAX_REASSEMBLED: usize = 65_535;

const ARP_TYPE: u16 = EtherType::Arp as u16;

/// Parses a whole frame.
///
/// # Errors
/// The [`Reason`] why the headers are malformed.
#[inline(always)]
pub fn parse<S: PacketSource + ?Sized>(source: &S) -> Result<Packet, Reason> {
    let link = link(source)?;
    match link.network {
        Network::Ipv4 => ipv4(source, link.offset).map(Packet::Ipv4),
        Network::Ipv6 => ipv6(source, link.offset).map(Packet::Ipv6),
        Network::Arp => arp(source, link.offset).map(Packet::Arp),
        Network::Other => Ok(Packet::Other),
    }
}

/// Parses the Ethernet header and up to two VLAN tags.
///
/// # Errors
/// [`Reason::EthTruncated`], [`Reason::VlanTooDeep`].
#[inline(always)]
pub fn link<S: PacketSource + ?Sized>(source: &S) -> Result<Link, Reason> {
    let mut offset = ETH_LEN;
    let mut ether_type = source.half(offset - 2).ok_or(Reason::EthTruncated)?;
    for _ in 0..MAX_VLANS {
        if !is_tag(ether_type) {
            break;
        }
        offset += VLAN_LEN;
        ether_type = source.half(offset - 2).ok_or(Reason::EthTruncated)?;
    }
    let network = match ether_type {
        ethertype::IPV4 => Network::Ipv4,
        ethertype::IPV6 => Network::Ipv6,
        ARP_TYPE => Network::Arp,
        t if is_tag(t) => return Err(Reason::VlanTooDeep),
        _ => Network::Other,
    };
    Ok(Link { network, offset })
}

#[inline(always)]
const fn is_tag(ether_type: u16) -> bool {
    matches!(
        ether_type,
        ethertype::VLAN | ethertype::SERVICE_VLAN | ethertype::OLD_SERVICE_VLAN
    )
}

/// Parses ARP for IPv4 over Ethernet.
///
/// # Errors
/// [`Reason::ArpMalformed`].
#[inline(always)]
pub fn arp<S: PacketSource + ?Sized>(source: &S, offset: usize) -> Result<Arp, Reason> {
    let bad = Reason::ArpMalformed;
    // Hardware and protocol type, their lengths and the operation; sender MAC
    // and IP; target MAC and IP: 28 bytes.
    let [kinds, lens_op, mac0, mac1_ip0, ip1_mac, _, _] = source.words::<7>(offset).ok_or(bad)?;
    let ethernet_ipv4 = u32::from_be(kinds) == 0x0001_0800;
    let [hlen, plen, op_hi, op_lo] = lens_op.to_ne_bytes();
    if !ethernet_ipv4 || hlen != 6 || plen != 4 || op_hi != 0 || op_lo == 0 {
        return Err(bad);
    }
    let [a, b, c, d] = mac0.to_ne_bytes();
    let [e, f, ip_a, ip_b] = mac1_ip0.to_ne_bytes();
    let [ip_c, ip_d, _, _] = ip1_mac.to_ne_bytes();
    let frame_head = source.words::<2>(4).ok_or(bad)?;
    let [_, _, fa, fb] = frame_head[0].to_ne_bytes();
    let [fc, fd, fe, ff] = frame_head[1].to_ne_bytes();
    Ok(Arp {
        sender_mac: [a, b, c, d, e, f],
        sender_ip: u32::from_ne_bytes([ip_a, ip_b, ip_c, ip_d]),
        frame_source: [fa, fb, fc, fd, fe, ff],
    })
}

/// An IPv4 header, before what it carries is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Head {
    /// Source address.
    pub source: V4,
    /// Destination address.
    pub dest: V4,
    /// Where the packet ends in the frame; padding may follow.
    pub end: usize,
    /// Where it begins.
    offset: usize,
    /// Bytes of the header.
    header: usize,
    /// Bytes behind it.
    payload: usize,
    /// Flags and fragment offset.
    fragment: u32,
    proto: u8,
}

/// Parses the header of IPv4, whose addresses may then be asked for before the rest.
///
/// # Errors
/// The reason why it is malformed.
#[inline(always)]
pub fn ipv4_head<S: PacketSource + ?Sized>(source: &S, offset: usize) -> Result<Ipv4Head, Reason> {
    let [w0, w1, w2, src, dst] = source.words::<5>(offset).ok_or(Reason::Ipv4Truncated)?;
    let (w0, w1, w2) = (u32::from_be(w0), u32::from_be(w1), u32::from_be(w2));
    if w0 >> 28 != 4 {
        return Err(Reason::Ipv4BadVersion);
    }
    let header = (w0 >> 22 & 0x3c) as usize;
    let total = (w0 & 0xffff) as usize;
    if header < IPV4_LEN || header > total {
        return Err(Reason::Ipv4BadIhl);
    }
    if !source.holds(offset + total) {
        return Err(Reason::Ipv4BadLength);
    }
    Ok(Ipv4Head {
        source: src,
        dest: dst,
        end: offset + total,
        offset,
        header,
        payload: total - header,
        fragment: w1,
        proto: (w2 >> 16) as u8,
    })
}

/// Parses what an IPv4 header of this source carries.
///
/// # Errors
/// The reason why a header is malformed.
#[inline(always)]
pub fn ipv4_rest<S: PacketSource + ?Sized>(source: &S, head: Ipv4Head) -> Result<Ip<V4>, Reason> {
    let Ipv4Head {
        offset,
        header,
        payload,
        proto,
        ..
    } = head;
    let more = head.fragment & 0x2000 != 0;
    let start = ((head.fragment & 0x1fff) << 3) as u16;
    let fragment = fragment(start, more, payload, header, MAX_REASSEMBLED)?;
    let transport = transport(source, offset + header, payload, proto, fragment)?;
    Ok(Ip {
        source: head.source,
        dest: head.dest,
        end: head.end,
        proto,
        fragment,
        transport,
    })
}

/// Parses IPv4 and what it carries.
///
/// # Errors
/// The reason why a header is malformed.
#[inline(always)]
pub fn ipv4<S: PacketSource + ?Sized>(source: &S, offset: usize) -> Result<Ip<V4>, Reason> {
    let head = ipv4_head(source, offset)?;
    ipv4_rest(source, head)
}

/// An IPv6 header, before what it carries is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Head {
    /// Source address.
    pub source: V6,
    /// Destination address.
    pub dest: V6,
    /// Where the packet ends in the frame; padding may follow.
    pub end: usize,
    /// Where it begins.
    offset: usize,
    /// Bytes behind the header.
    payload: usize,
    /// The first next header.
    next: u8,
}

/// Parses the header of IPv6, whose addresses may then be asked for before the rest.
///
/// # Errors
/// The reason why it is malformed.
#[inline(always)]
pub fn ipv6_head<S: PacketSource + ?Sized>(source: &S, offset: usize) -> Result<Ipv6Head, Reason> {
    let [head, s0, s1, d0, d1] = source.doubles::<5>(offset).ok_or(Reason::Ipv6Truncated)?;
    let head = u64::from_be(head);
    // The kernel's verifier has a third less to follow when this decides behind the length.
    let is_v6 = head >> 60 == 6;
    let payload = (head >> 16 & 0xffff) as usize;
    let end = offset + IPV6_LEN + payload;
    if !source.holds(end) {
        return Err(if is_v6 {
            Reason::Ipv6BadLength
        } else {
            Reason::Ipv6BadVersion
        });
    }
    if !is_v6 {
        return Err(Reason::Ipv6BadVersion);
    }
    Ok(Ipv6Head {
        source: [s0, s1],
        dest: [d0, d1],
        end,
        offset,
        payload,
        next: (head >> 8) as u8,
    })
}

/// Parses what an IPv6 header of this source carries, extension headers first.
///
/// # Errors
/// The reason why a header is malformed.
#[inline(always)]
pub fn ipv6_rest<S: PacketSource + ?Sized>(source: &S, head: Ipv6Head) -> Result<Ip<V6>, Reason> {
    let payload = head.payload;
    let start = head.offset + IPV6_LEN;
    let usual = |proto| {
        let transport = header::<S, false>(source, start, payload, proto)?;
        Ok((proto, Fragment::Whole, transport))
    };
    // The usual packets first: to tell an extension takes a dozen steps.
    let (proto, fragment, transport) = match head.next {
        proto::TCP => usual(proto::TCP)?,
        proto::UDP => usual(proto::UDP)?,
        next => {
            let Extensions {
                proto,
                taken,
                fragment,
            } = extensions(source, start, payload, next)?;
            let (at, left) = (start + taken, payload - taken);
            let transport = transport(source, at, left, proto, fragment)?;
            (proto, fragment, transport)
        }
    };
    Ok(Ip {
        source: head.source,
        dest: head.dest,
        end: head.end,
        proto,
        fragment,
        transport,
    })
}

/// Parses IPv6, its extension headers and what they carry.
///
/// # Errors
/// The reason why a header is malformed.
#[inline(always)]
pub fn ipv6<S: PacketSource + ?Sized>(source: &S, offset: usize) -> Result<Ip<V6>, Reason> {
    let head = ipv6_head(source, offset)?;
    ipv6_rest(source, head)
}

/// What the extension headers of a packet say, and what is behind them.
struct Extensions {
    /// Protocol behind the last one.
    proto: u8,
    /// Bytes of the payload that they take.
    taken: usize,
    /// Fragment or whole.
    fragment: Fragment,
}

/// Reads the extension headers from `start` on, if `first` is one, with `payload`
/// bytes of them and what they carry.
#[inline(always)]
fn extensions<S: PacketSource + ?Sized>(
    source: &S,
    start: usize,
    payload: usize,
    first: u8,
) -> Result<Extensions, Reason> {
    let mut all = Extensions {
        proto: first,
        taken: 0,
        fragment: Fragment::Whole,
    };
    if !is_extension(first) {
        return Ok(all);
    }
    for n in 0..MAX_EXTENSIONS {
        let ext = extension(source, start, all.taken, payload, all.proto, n == 0)?;
        all.taken = ext.end;
        all.proto = ext.next;
        if let Some(word) = ext.fragment {
            if all.fragment != Fragment::Whole {
                return Err(Reason::Ipv6ExtOrder);
            }
            let from = (word & 0xfff8) as u16;
            let left = payload - all.taken;
            // The reassembled packet has the headers before this one, and not this one.
            let most = MAX_REASSEMBLED + FRAGMENT_LEN;
            all.fragment = fragment(from, word & 1 != 0, left, all.taken, most)?;
        }
        // Behind a later fragment's header comes payload, whatever it is called.
        if !is_extension(all.proto) || matches!(all.fragment, Fragment::Later { .. }) {
            return Ok(all);
        }
    }
    Err(Reason::Ipv6ExtTooMany)
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        proto::HOP_BY_HOP
            | proto::ROUTING
            | proto::FRAGMENT
            | proto::AUTH
            | proto::DEST_OPTS
            | proto::MOBILITY
    )
}

/// An extension header.
struct Extension {
    /// Type of what follows.
    next: u8,
    /// Where it ends, from the end of the fixed header.
    end: usize,
    /// Offset and flags of a fragment header, host byte order.
    fragment: Option<u32>,
}

#[inline(always)]
fn extension<S: PacketSource + ?Sized>(
    source: &S,
    base: usize,
    taken: usize,
    payload: usize,
    kind: u8,
    first: bool,
) -> Result<Extension, Reason> {
    if kind == proto::HOP_BY_HOP && !first {
        return Err(Reason::Ipv6ExtOrder);
    }
    let [word] = source
        .words::<1>(base + taken)
        .ok_or(Reason::Ipv6ExtTruncated)?;
    let word = u32::from_be(word);
    let len_field = (word >> 16 & 0xff) as usize;
    let len = match kind {
        proto::FRAGMENT => FRAGMENT_LEN,
        proto::AUTH => (len_field + 2) * 4,
        _ => (len_field + 1) * 8,
    };
    let end = taken + len;
    if end > payload {
        return Err(Reason::Ipv6ExtTruncated);
    }
    if kind == proto::ROUTING && word >> 8 & 0xff == 0 {
        return Err(Reason::Ipv6RoutingType0);
    }
    Ok(Extension {
        next: (word >> 24) as u8,
        end,
        fragment: if kind == proto::FRAGMENT {
            Some(word & 0xffff)
        } else {
            None
        },
    })
}

/// Where a fragment stands. `before` are the bytes of its headers, and `most`
/// is what these, the offset and the payload may add up to.
#[inline(always)]
fn fragment(
    start: u16,
    more: bool,
    payload: usize,
    before: usize,
    most: usize,
) -> Result<Fragment, Reason> {
    if start == 0 && !more {
        // Also an IPv6 "atomic fragment" (RFC 6946).
        return Ok(Fragment::Whole);
    }
    if start as usize + payload + before > most || more && !payload.is_multiple_of(8) {
        return Err(Reason::FragmentBeyondEnd);
    }
    Ok(if start == 0 {
        Fragment::First
    } else {
        Fragment::Later { offset: start }
    })
}

/// Reads the transport header at `offset` with `len` bytes of it and its payload.
#[inline(always)]
fn transport<S: PacketSource + ?Sized>(
    source: &S,
    offset: usize,
    len: usize,
    proto: u8,
    fragment: Fragment,
) -> Result<Transport, Reason> {
    match fragment {
        Fragment::Whole => header::<S, false>(source, offset, len, proto),
        Fragment::First => header::<S, true>(source, offset, len, proto),
        Fragment::Later { .. } => Ok(Transport {
            kind: match proto {
                proto::UDP => Kind::Udp,
                proto::ICMP | proto::ICMPV6 => Kind::Icmp,
                _ => Kind::Other,
            },
            offset,
            ..Transport::default()
        }),
    }
}

/// The same where there is a header. In a first fragment (`FIRST`) it may end
/// too early; its own lengths are those of the reassembled packet.
#[inline(always)]
fn header<S: PacketSource + ?Sized, const FIRST: bool>(
    source: &S,
    offset: usize,
    len: usize,
    proto: u8,
) -> Result<Transport, Reason> {
    let none = Transport {
        offset,
        ..Transport::default()
    };
    let short = |kind, reason| {
        if FIRST {
            Ok(Transport {
                kind,
                truncated: true,
                ..none
            })
        } else {
            Err(reason)
        }
    };
    match proto {
        proto::TCP => {
            if len < TCP_LEN {
                return short(Kind::TcpHead, Reason::TcpTruncated);
            }
            let [ports, _, _, control] = source.words::<4>(offset).ok_or(Reason::TcpTruncated)?;
            let control = u32::from_be(control);
            let header = (control >> 26 & 0x3c) as usize;
            if header < TCP_LEN || !FIRST && header > len {
                return Err(Reason::TcpBadOffset);
            }
            let truncated = FIRST && header > len;
            let (source_port, dest_port) = split_ports(ports);
            Ok(Transport {
                kind: if truncated { Kind::TcpHead } else { Kind::Tcp },
                source_port,
                dest_port,
                tcp_flags: (control >> 16) as u8,
                truncated,
                ..none
            })
        }
        proto::UDP => {
            if len < UDP_LEN {
                return short(Kind::Udp, Reason::UdpTruncated);
            }
            let [ports, length] = source.words::<2>(offset).ok_or(Reason::UdpTruncated)?;
            let length = (u32::from_be(length) >> 16) as usize;
            if length < UDP_LEN || !FIRST && length > len {
                return Err(Reason::UdpBadLength);
            }
            let (source_port, dest_port) = split_ports(ports);
            Ok(Transport {
                kind: Kind::Udp,
                source_port,
                dest_port,
                ..none
            })
        }
        proto::ICMP | proto::ICMPV6 => {
            let needed = if proto == proto::ICMP {
                ICMP_LEN
            } else {
                ICMPV6_LEN
            };
            if len < needed {
                return short(Kind::Icmp, Reason::IcmpTruncated);
            }
            let icmp_type = source.byte(offset).ok_or(Reason::IcmpTruncated)?;
            Ok(Transport {
                kind: Kind::Icmp,
                icmp_type,
                ..none
            })
        }
        _ => Ok(none),
    }
}

/// Source and destination port of the first word of TCP and UDP.
#[inline(always)]
const fn split_ports(word: u32) -> (u16, u16) {
    // In memory order the source port comes first, on either endianness.
    let [a, b, c, d] = word.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}
