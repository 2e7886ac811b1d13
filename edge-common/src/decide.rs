//! Pure decisions: facts and the clock in, a reason out.

use crate::{
    parse::{Fragment, tcp},
    reason::Reason,
    table::{FLAG_BOGON, FLAG_MANAGEMENT, Meta, Stamp},
};

/// What the policy tables know of a source at some time: one word, so that it
/// crosses function boundaries in a register and two of them merge by OR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy(u32);

const BLACK: u32 = 1;
const ALLOW: u32 = 2;
const FLAGS_SHIFT: u32 = 16;
const PROFILE_SHIFT: u32 = 24;

/// What the policy tables say of a source, in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A management address; nothing below applies.
    Management,
    /// On the allowlist; nothing below applies.
    Allowlisted,
    /// On the blacklist.
    Blacklisted,
    /// On no list.
    Unlisted,
}

impl Policy {
    /// Nothing known.
    pub const NONE: Self = Self(0);

    /// The policy of an entry at `now`.
    #[inline(always)]
    pub const fn of(meta: Meta, black: Stamp, allow: Stamp, now: Stamp) -> Self {
        Self(
            ((black > now) as u32 * BLACK)
                | ((allow > now) as u32 * ALLOW)
                | (meta.flags as u32) << FLAGS_SHIFT
                | (meta.profile as u32) << PROFILE_SHIFT,
        )
    }

    /// As a word, and back.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The policy in a word.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// What two entries know together; `self` is the more specific one, whose
    /// profile counts when both have one.
    #[inline(always)]
    pub const fn merge(self, other: Self) -> Self {
        const PROFILE: u32 = 0xff << PROFILE_SHIFT;
        let other = if self.0 & PROFILE != 0 {
            other.0 & !PROFILE
        } else {
            other.0
        };
        Self(self.0 | other)
    }

    /// Whether a list has the source: the entry's hit counter counts.
    #[inline(always)]
    pub const fn is_listed(self) -> bool {
        self.0 & (BLACK | ALLOW) != 0
    }

    /// Whether its standing is [`Standing::Blacklisted`], in one comparison.
    #[inline(always)]
    pub const fn is_only_blacklisted(self) -> bool {
        const MANAGEMENT: u32 = (FLAG_MANAGEMENT as u32) << FLAGS_SHIFT;
        self.0 & (MANAGEMENT | ALLOW | BLACK) == BLACK
    }

    /// Index of the limit profile.
    #[inline(always)]
    pub const fn profile(self) -> u8 {
        (self.0 >> PROFILE_SHIFT) as u8
    }

    /// Whether the source lies in a bogon range. The lists come first: an
    /// allowlisted bogon passes.
    #[inline(always)]
    pub const fn is_bogon(self) -> bool {
        self.0 & (FLAG_BOGON as u32) << FLAGS_SHIFT != 0
    }

    /// The standing of the source.
    #[inline(always)]
    pub const fn standing(self) -> Standing {
        if self.0 & (FLAG_MANAGEMENT as u32) << FLAGS_SHIFT != 0 {
            Standing::Management
        } else if self.0 & ALLOW != 0 {
            Standing::Allowlisted
        } else if self.0 & BLACK != 0 {
            Standing::Blacklisted
        } else {
            Standing::Unlisted
        }
    }
}

/// Whether [`impossible_tcp_flags`] has something to say, in one look.
#[inline(always)]
pub const fn are_impossible_tcp_flags(flags: u8) -> bool {
    /// A bit for each combination of the six control flags.
    const IMPOSSIBLE: u64 = {
        let (mut bits, mut flags) = (0, 0);
        while flags < 64 {
            if impossible_tcp_flags(flags).is_some() {
                bits |= 1 << flags;
            }
            flags += 1;
        }
        bits
    };
    IMPOSSIBLE >> (flags & 63) & 1 != 0
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

/// What speaks against a fragment that the policy `DropRisky` lets through
/// otherwise. `truncated`: it ends inside the transport header.
#[inline(always)]
pub const fn risky_fragment(fragment: Fragment, truncated: bool, proto: u8) -> Option<Reason> {
    match fragment {
        Fragment::Whole => None,
        Fragment::First if truncated => Some(Reason::FragmentTiny),
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
/// address (RFC 4861 4.3, RFC 3590). `unspecified` tells that the source is `::`.
#[inline(always)]
pub const fn may_be_unspecified(unspecified: bool, proto: u8) -> bool {
    unspecified && proto == crate::parse::proto::ICMPV6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_of_standings() {
        let meta = |flags| Meta { flags, profile: 3 };
        let at = |flags, now| Policy::of(meta(flags), 10, 20, now);
        assert_eq!(
            at(FLAG_MANAGEMENT | FLAG_BOGON, 5).standing(),
            Standing::Management
        );
        assert_eq!(at(FLAG_BOGON, 5).standing(), Standing::Allowlisted);
        assert_eq!(at(FLAG_BOGON, 20).standing(), Standing::Unlisted);
        assert!(at(FLAG_BOGON, 20).is_bogon() && !at(FLAG_MANAGEMENT, 20).is_bogon());
        let black = |now| Policy::of(Meta::default(), 10, 0, now);
        assert_eq!(black(9).standing(), Standing::Blacklisted);
        assert_eq!(black(10).standing(), Standing::Unlisted);
        assert!(black(9).is_listed() && !black(10).is_listed());
        let merged = black(9).merge(at(FLAG_BOGON, 30));
        assert_eq!(
            (merged.standing(), merged.profile()),
            (Standing::Blacklisted, 3)
        );
        assert!(merged.is_bogon());
        let specific = Policy::of(
            Meta {
                flags: 0,
                profile: 5,
            },
            0,
            0,
            0,
        );
        assert_eq!(specific.merge(merged).profile(), 5);
        assert_eq!(merged.merge(specific).profile(), 3);
        assert_eq!(Policy::from_word(merged.word()), merged);
    }

    #[test]
    fn only_blacklisted_is_what_the_standing_says() {
        for flags in 0..4 {
            for (black, allow) in [(0, 0), (9, 0), (0, 9), (9, 9)] {
                let policy = Policy::of(Meta { flags, profile: 7 }, black, allow, 5);
                assert_eq!(
                    policy.is_only_blacklisted(),
                    policy.standing() == Standing::Blacklisted,
                    "{flags} {black} {allow}"
                );
            }
        }
    }

    #[test]
    fn only_icmpv6_has_an_excuse_and_only_without_an_address() {
        use crate::parse::proto::{ICMP, ICMPV6, UDP};
        assert!(may_be_unspecified(true, ICMPV6));
        assert!(!may_be_unspecified(false, ICMPV6));
        assert!(!may_be_unspecified(true, UDP) && !may_be_unspecified(true, ICMP));
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
    fn the_table_of_flags_is_that_of_the_reasons() {
        for flags in 0..=u8::MAX {
            assert_eq!(
                are_impossible_tcp_flags(flags),
                impossible_tcp_flags(flags).is_some(),
                "{flags:#04x}"
            );
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
