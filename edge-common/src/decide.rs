//! Pure decisions: facts and the clock in, a reason out.

use crate::{
    addr::Family,
    parse::{Fragment, Transport, tcp},
    reason::Reason,
    table::{FLAG_BOGON, FLAG_MANAGEMENT, Meta, Stamp},
};

/// What the policy tables know of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Flags and limit profile.
    pub meta: Meta,
    /// Blacklisted until then.
    pub black: Stamp,
    /// On the allowlist until then.
    pub allow: Stamp,
}

/// What the policy tables say of a source, in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A management address; nothing below applies.
    Management,
    /// On the allowlist; nothing below applies.
    Allowlisted,
    /// On the blacklist.
    Blacklisted,
    /// Not on the blacklist, but in a bogon range.
    Bogon,
    /// Listed nowhere.
    Unlisted,
}

impl Policy {
    /// The policy of two tables together: the later stamps and all flags.
    #[inline(always)]
    pub const fn merge(self, other: Self) -> Self {
        Self {
            meta: Meta {
                flags: self.meta.flags | other.meta.flags,
                profile: self.meta.profile | other.meta.profile,
            },
            black: if self.black > other.black {
                self.black
            } else {
                other.black
            },
            allow: if self.allow > other.allow {
                self.allow
            } else {
                other.allow
            },
        }
    }

    /// The standing at `now`.
    #[inline(always)]
    pub const fn standing(self, now: Stamp) -> Standing {
        if self.meta.flags & FLAG_MANAGEMENT != 0 {
            Standing::Management
        } else if self.allow > now {
            Standing::Allowlisted
        } else if self.black > now {
            Standing::Blacklisted
        } else if self.meta.flags & FLAG_BOGON != 0 {
            Standing::Bogon
        } else {
            Standing::Unlisted
        }
    }
}

/// TCP flags that no stack sends (RFC 9293 knows no segment with them).
#[inline(always)]
pub const fn impossible_tcp_flags(flags: u8) -> Option<Reason> {
    const CONTROL: u8 = tcp::SYN | tcp::FIN | tcp::RST | tcp::ACK | tcp::PSH | tcp::URG;
    if flags & CONTROL == 0 {
        Some(Reason::TcpNoFlags)
    } else if flags & (tcp::SYN | tcp::FIN) == tcp::SYN | tcp::FIN {
        Some(Reason::TcpSynFin)
    } else if flags & (tcp::SYN | tcp::RST) == tcp::SYN | tcp::RST {
        Some(Reason::TcpSynRst)
    } else if flags & (tcp::FIN | tcp::RST) == tcp::FIN | tcp::RST {
        Some(Reason::TcpFinRst)
    } else if flags & (tcp::FIN | tcp::ACK) == tcp::FIN {
        Some(Reason::TcpFinWithoutAck)
    } else {
        None
    }
}

/// What speaks against a fragment that the policy `DropRisky` lets through otherwise.
#[inline(always)]
pub const fn risky_fragment(
    fragment: Fragment,
    transport: &Transport,
    proto: u8,
) -> Option<Reason> {
    match fragment {
        Fragment::Whole => None,
        Fragment::First if transport.truncated => Some(Reason::FragmentTiny),
        Fragment::First => None,
        // The TCP header reaches beyond offset 8 (its flags lie at 13), and UDP's
        // and ICMP's checksums end at 8: only TCP can be rewritten this way.
        Fragment::Later { offset } if offset < 24 && proto == crate::parse::proto::TCP => {
            Some(Reason::FragmentOverlapRisk)
        }
        Fragment::Later { .. } => None,
    }
}

/// Whether a bogon range must not stop this packet: IPv6 neighbour discovery
/// and multicast listener reports legitimately come from the unspecified
/// address (RFC 4861 4.3, RFC 3590).
#[inline(always)]
pub const fn may_be_unspecified(family: Family, proto: u8) -> bool {
    matches!(family, Family::V6) && proto == crate::parse::proto::ICMPV6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_of_standings() {
        let all = Policy {
            meta: Meta {
                flags: FLAG_MANAGEMENT | FLAG_BOGON,
                profile: 0,
            },
            black: 10,
            allow: 20,
        };
        assert_eq!(all.standing(5), Standing::Management);
        let p = Policy {
            meta: Meta {
                flags: FLAG_BOGON,
                profile: 0,
            },
            ..all
        };
        assert_eq!(p.standing(5), Standing::Allowlisted);
        assert_eq!(Policy { allow: 5, ..p }.standing(5), Standing::Blacklisted);
        assert_eq!(p.standing(20), Standing::Bogon);
        assert_eq!(
            Policy {
                black: 10,
                ..Policy::default()
            }
            .standing(10),
            Standing::Unlisted
        );
        assert_eq!(
            Policy {
                black: 10,
                ..Policy::default()
            }
            .standing(9),
            Standing::Blacklisted
        );
    }

    #[test]
    fn flags_that_real_stacks_send_are_possible() {
        for f in [
            tcp::SYN,
            tcp::SYN | tcp::ACK,
            tcp::ACK,
            tcp::ACK | tcp::PSH,
            tcp::FIN | tcp::ACK,
            tcp::FIN | tcp::ACK | tcp::PSH | tcp::URG,
            tcp::RST,
            tcp::RST | tcp::ACK,
            tcp::SYN | tcp::ECE | tcp::CWR,
            tcp::SYN | tcp::ACK | tcp::ECE,
            tcp::SYN | tcp::PSH,
        ] {
            assert_eq!(impossible_tcp_flags(f), None, "{f:#04x}");
        }
    }

    #[test]
    fn flags_of_scans_are_not() {
        let cases = [
            (0, Reason::TcpNoFlags),
            (tcp::ECE, Reason::TcpNoFlags),
            (tcp::SYN | tcp::FIN, Reason::TcpSynFin),
            (tcp::SYN | tcp::RST, Reason::TcpSynRst),
            (tcp::FIN | tcp::RST | tcp::ACK, Reason::TcpFinRst),
            (tcp::FIN, Reason::TcpFinWithoutAck),
            (tcp::FIN | tcp::PSH | tcp::URG, Reason::TcpFinWithoutAck),
            (0xff, Reason::TcpSynFin),
        ];
        for (f, r) in cases {
            assert_eq!(impossible_tcp_flags(f), Some(r), "{f:#04x}");
        }
    }
}
