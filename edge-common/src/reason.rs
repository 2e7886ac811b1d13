//! What can become of a packet: one closed enum, a sentence each.
//!
//! The discriminant is the index into the counter map, the snake-case name is
//! the metric label and what the CLI prints, and the sentence is what
//! `edge events` and the documentation say. All of them come from the one
//! table below.

/// What the XDP program does with a packet that ended with a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Hand the packet to the kernel's network stack (`XDP_PASS`).
    Pass,
    /// Discard the packet (`XDP_DROP`).
    Drop,
    /// Send what the packet was made into back to where it came from (`XDP_TX`).
    Reply,
    /// Send it on, with other headers, to where it is to go (`XDP_TX`, `XDP_REDIRECT`).
    Forward,
}

impl Verdict {
    /// The word for it on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Reply => "reply",
            Self::Forward => "forward",
        }
    }
}

macro_rules! reasons {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal, $verdict:ident, $sentence:literal; )*) => {
        /// Why a packet ended the way it did. Every packet ends with exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $( #[doc = $sentence] $variant, )*
        }

        impl Reason {
            /// Every reason, in the order of its counter index.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The metric label and CLI word, in snake case.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// One sentence for a person.
            pub const fn sentence(self) -> &'static str {
                match self { $( Self::$variant => $sentence, )* }
            }

            /// What is done with a packet that ends with this reason.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $( Self::$variant => Verdict::$verdict, )* }
            }
        }
    };
}

reasons! {
    Pass = "pass", Pass, "No check matched; the packet goes to the kernel.";
    PassManagement = "pass_management", Pass, "The source is a management address, which nothing may lock out.";
    PassAllowlisted = "pass_allowlisted", Pass, "The source is on the allowlist.";
    PassArp = "pass_arp", Pass, "An ARP packet that the ARP guard has nothing against.";
    PassNotIp = "pass_not_ip", Pass, "Neither IPv4, IPv6 nor ARP; left to the kernel.";
    PassUnparsed = "pass_unparsed", Pass, "The headers are malformed, and that check is off or in dry run.";

    EthTruncated = "eth_truncated", Drop, "The frame is shorter than its Ethernet or VLAN header.";
    VlanTooDeep = "vlan_too_deep", Drop, "The frame carries more than two VLAN tags.";
    ArpMalformed = "arp_malformed", Drop, "The ARP packet is truncated or not Ethernet/IPv4 ARP.";
    Ipv4Truncated = "ipv4_truncated", Drop, "The frame ends inside the IPv4 header.";
    Ipv4BadVersion = "ipv4_bad_version", Drop, "The version field of an IPv4 packet is not 4.";
    Ipv4BadIhl = "ipv4_bad_ihl", Drop, "The IPv4 header length is below 20 bytes or beyond the total length.";
    Ipv4BadLength = "ipv4_bad_length", Drop, "The IPv4 total length is beyond the end of the frame.";
    Ipv6Truncated = "ipv6_truncated", Drop, "The frame ends inside the IPv6 header.";
    Ipv6BadVersion = "ipv6_bad_version", Drop, "The version field of an IPv6 packet is not 6.";
    Ipv6BadLength = "ipv6_bad_length", Drop, "The IPv6 payload length is beyond the end of the frame.";
    Ipv6ExtTruncated = "ipv6_ext_truncated", Drop, "An IPv6 extension header ends beyond the packet.";
    Ipv6ExtTooMany = "ipv6_ext_too_many", Drop, "The packet has more IPv6 extension headers than any sane sender makes.";
    Ipv6ExtOrder = "ipv6_ext_order", Drop, "A hop-by-hop header is not the first, or another fragment header follows that of a fragment.";
    Ipv6RoutingType0 = "ipv6_routing_type0", Drop, "The deprecated routing header type 0 (RFC 5095) is present.";
    FragmentBeyondEnd = "fragment_beyond_end", Drop, "The fragment would reach beyond the largest possible packet (ping of death), or is not a multiple of 8 bytes.";
    TcpTruncated = "tcp_truncated", Drop, "The packet ends inside the TCP header.";
    TcpBadOffset = "tcp_bad_offset", Drop, "The TCP data offset is below 20 bytes or beyond the segment.";
    UdpTruncated = "udp_truncated", Drop, "The packet ends inside the UDP header.";
    UdpBadLength = "udp_bad_length", Drop, "The UDP length is below 8 or beyond the packet.";
    IcmpTruncated = "icmp_truncated", Drop, "The packet ends inside the ICMP or ICMPv6 header.";

    TcpNoFlags = "tcp_no_flags", Drop, "The TCP segment carries no flag at all (null scan).";
    TcpSynFin = "tcp_syn_fin", Drop, "SYN and FIN together.";
    TcpSynRst = "tcp_syn_rst", Drop, "SYN and RST together.";
    TcpFinWithoutAck = "tcp_fin_without_ack", Drop, "FIN without ACK (FIN and Xmas scans).";
    TcpFinRst = "tcp_fin_rst", Drop, "FIN and RST together.";
    Land = "land", Drop, "Source and destination address are the same (LAND).";
    Bogon = "bogon", Drop, "The source is an address that cannot be a sender on this network.";
    Fragment = "fragment", Drop, "The packet is a fragment, and the policy drops fragments.";
    FragmentTiny = "fragment_tiny", Drop, "The first fragment is too short for the transport header (RFC 1858).";
    FragmentOverlapRisk = "fragment_overlap_risk", Drop, "The fragment starts inside the transport header (RFC 3128).";
    ArpSpoof = "arp_spoof", Drop, "An ARP packet claims a protected address from another MAC address.";
    Blacklisted = "blacklisted", Drop, "The source is on the blacklist.";
    LimitPackets = "limit_packets", Drop, "The source is over its limit of packets per second.";
    LimitBytes = "limit_bytes", Drop, "The source is over its limit of bytes per second.";
    LimitSyn = "limit_syn", Drop, "The source is over its limit of SYNs per second.";
    LimitUdp = "limit_udp", Drop, "The source is over its limit of UDP packets per second.";
    LimitIcmp = "limit_icmp", Drop, "The source is over its limit of ICMP packets per second.";

    ReplySynCookie = "reply_syn_cookie", Reply, "A SYN for a service under attack is answered with a SYN cookie.";
    ReplyChallenge = "reply_challenge", Reply, "A SYN from a source that is not verified is answered with a challenge.";
    ReplyReset = "reply_reset", Reply, "A connection that only served to verify its source is reset; the next one passes.";
    ChallengeAnswered = "challenge_answered", Drop, "The answer to a challenge, which has verified its source and is not for the service.";
    SynClosed = "syn_closed", Drop, "A SYN for a port of a service under attack on which nothing listens.";
    SynBadChecksum = "syn_bad_checksum", Drop, "The TCP checksum of a SYN for a service under attack is wrong.";
    CookieInvalid = "cookie_invalid", Drop, "A segment for a service under attack belongs to no connection and carries no valid SYN cookie.";
    TcpOutOfState = "tcp_out_of_state", Drop, "A segment for a service under attack belongs to no connection.";
    UdpReflection = "udp_reflection", Drop, "A UDP packet from a port that reflectors answer from, over the service's limit of such.";
    FloodIcmp = "flood_icmp", Drop, "An ICMP message over the host's limit of its kind, which is no error of a live connection.";
    FloodSource = "flood_source", Drop, "The source lies in a prefix that sends more than any prefix may.";
    FloodDest = "flood_dest", Drop, "The destination, or its prefix, gets more than any may.";

    Forwarded = "forwarded", Forward, "The packet went on to a backend of its service.";
    ReplyEcho = "reply_echo", Reply, "A ping of a service's address is answered.";
    ReplyTooBig = "reply_too_big", Reply, "A packet that is too big for the way to its backend is answered with the size that fits.";
    BackendNone = "backend_none", Drop, "The service has no backend that takes packets.";
    BackendNoHop = "backend_no_hop", Drop, "There is no way to the backend: no route, or its neighbour does not answer.";
    ForwardTtl = "forward_ttl", Drop, "The TTL or hop limit of a packet for a backend is used up.";
    ForwardTooBig = "forward_too_big", Drop, "A packet is too big for the way to its backend, and must not be answered.";
    ForwardFragment = "forward_fragment", Drop, "A fragment for a balanced service, and the policy or NAT drops them.";
    ForwardNoRoom = "forward_no_room", Drop, "The frame has no room for the headers that lead to the backend.";
    NatNoPort = "nat_no_port", Drop, "A new flow finds no free port at a source address of the backend's family.";
    NatNoFlow = "nat_no_flow", Drop, "The end of a flow, or an error about one, that is not in the table of NAT.";
    NatFamily = "nat_family", Drop, "An ICMP error would have to be translated from one IP version into the other.";
    NatChecksum = "nat_checksum", Drop, "A UDP packet has no checksum, which IPv6 demands, and is too long to be given one.";
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The counter index.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The reason with this counter index, or `None` when there is none.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }

    /// The reason with this name, or `None` when there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.name() == name)
    }

    /// Whether the reason is a header that could not be parsed: the `malformed` check.
    #[inline(always)]
    pub const fn is_malformed(self) -> bool {
        self as u8 >= Self::EthTruncated as u8 && self as u8 <= Self::IcmpTruncated as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_and_names_are_dense_and_unique() {
        for (i, r) in Reason::ALL.iter().enumerate() {
            assert_eq!(r.index() as usize, i);
            assert_eq!(Reason::from_index(r.index()), Some(*r));
            assert_eq!(Reason::from_name(r.name()), Some(*r));
            assert!(
                r.name()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
            assert!(r.sentence().ends_with('.'));
        }
        assert_eq!(Reason::from_index(Reason::COUNT as u32), None);
        assert_eq!(Reason::from_name("nonsense"), None);
    }

    #[test]
    fn names_tell_the_verdict() {
        for r in Reason::ALL {
            assert_eq!(
                r.name().starts_with("pass"),
                r.verdict() == Verdict::Pass,
                "{r:?}"
            );
            assert_eq!(
                r.name().starts_with("reply"),
                r.verdict() == Verdict::Reply,
                "{r:?}"
            );
            assert_eq!(
                r.name().starts_with("forwarded"),
                r.verdict() == Verdict::Forward,
                "{r:?}"
            );
        }
    }
}
