//! Addresses and prefixes of both families in one 128-bit space.
//!
//! IPv4 stands in it as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), so that one type
//! is the key of every list, store and table; the family is never lost.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Bits of a prefix length that the mapping of IPv4 into the 128-bit space adds.
const V4_OFFSET: u8 = 96;
const V4_MAPPED: u128 = 0xffff << 32;

/// An IPv4 or IPv6 prefix with no bit set behind its length.
///
/// Ordered by address, then by length: a prefix comes before everything it
/// contains, so that a range scan finds what lies below it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

/// Why a text or a pair of address and length is not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// The part before the `/` is neither an IPv4 nor an IPv6 address.
    Address,
    /// The part behind the `/` is no number, or more than 32 (IPv4) or 128 (IPv6).
    Length,
    /// Bits are set behind the length; the prefix that was probably meant is inside.
    HostBits(Prefix),
    /// An IPv4-mapped IPv6 address; write it as IPv4.
    Mapped,
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str(
                "not an IPv4 or IPv6 address (expected 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32)",
            ),
            Self::Length => f.write_str("bad prefix length (IPv4 takes 0 to 32, IPv6 0 to 128)"),
            Self::HostBits(p) => write!(
                f,
                "bits are set behind the prefix length; did you mean {p}?"
            ),
            Self::Mapped => f.write_str("an IPv4-mapped IPv6 address; write it as plain IPv4"),
        }
    }
}

impl core::error::Error for PrefixError {}

impl Prefix {
    /// A prefix of `addr` and `len` (0 to 32 for IPv4, 0 to 128 for IPv6).
    ///
    /// # Errors
    /// [`PrefixError`] when the length is out of range, bits are set behind it,
    /// or the address is an IPv4-mapped IPv6 one.
    pub fn new(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let (bits, len) = match addr {
            IpAddr::V4(a) if len <= 32 => (V4_MAPPED | u128::from(a.to_bits()), len + V4_OFFSET),
            IpAddr::V6(a) if len <= 128 => {
                if a.to_ipv4_mapped().is_some() && len >= V4_OFFSET {
                    return Err(PrefixError::Mapped);
                }
                (a.to_bits(), len)
            }
            _ => return Err(PrefixError::Length),
        };
        let masked = bits & mask128(len);
        if masked != bits {
            return Err(PrefixError::HostBits(Self { bits: masked, len }));
        }
        Ok(Self { bits, len })
    }

    /// The /32 or /128 of an address. IPv4-mapped IPv6 becomes IPv4.
    pub fn host(addr: IpAddr) -> Self {
        let bits = match addr.to_canonical() {
            IpAddr::V4(a) => V4_MAPPED | u128::from(a.to_bits()),
            IpAddr::V6(a) => a.to_bits(),
        };
        Self { bits, len: 128 }
    }

    /// The prefix back from [`Prefix::key`], or `None` when the bytes are no key.
    pub fn from_key(key: &[u8; 17]) -> Option<Self> {
        let (addr, len) = key.split_at(16);
        let bits = u128::from_be_bytes(addr.try_into().ok()?);
        let len = *len.first()?;
        (len <= 128 && bits & mask128(len) == bits).then_some(Self { bits, len })
    }

    /// 17 bytes that sort as the prefix does: the 128-bit address, then the length.
    pub fn key(self) -> [u8; 17] {
        let mut key = [0; 17];
        let (addr, len) = key.split_at_mut(16);
        addr.copy_from_slice(&self.bits.to_be_bytes());
        len.copy_from_slice(&[self.len]);
        key
    }

    /// The family.
    pub const fn family(self) -> Family {
        if self.len >= V4_OFFSET && self.bits >> 32 == 0xffff {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// The length as written: 0 to 32 for IPv4, 0 to 128 for IPv6.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length is not a size")]
    pub const fn len(self) -> u8 {
        match self.family() {
            Family::V4 => self.len - V4_OFFSET,
            Family::V6 => self.len,
        }
    }

    /// The address, in the 128-bit space.
    pub const fn bits(self) -> u128 {
        self.bits
    }

    /// The first address.
    pub const fn addr(self) -> IpAddr {
        match self.family() {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(self.bits as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(self.bits)),
        }
    }

    /// The last address, in the 128-bit space.
    pub const fn last_bits(self) -> u128 {
        self.bits | !mask128(self.len)
    }

    /// All its addresses, in order.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let family = self.family();
        (self.bits..=self.last_bits()).map(move |bits| match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        })
    }

    /// Whether this is a single address.
    pub const fn is_host(self) -> bool {
        self.len == 128
    }

    /// Whether `other` lies inside this prefix, or is the same.
    pub fn contains(self, other: Self) -> bool {
        // ::/0 does not contain IPv4, though the mapping lies inside it.
        self.family() == other.family()
            && self.len <= other.len
            && other.bits & mask128(self.len) == self.bits
    }

    /// The host that is the last address: nothing inside the prefix sorts behind it.
    pub const fn last(self) -> Self {
        Self {
            bits: self.last_bits(),
            len: 128,
        }
    }

    /// The longest prefix that contains both; `None` when their families differ.
    pub fn common(self, other: Self) -> Option<Self> {
        if self.family() != other.family() {
            return None;
        }
        let same = (self.bits ^ other.bits).leading_zeros() as u8;
        let len = same.min(self.len).min(other.len);
        Some(Self {
            bits: self.bits & mask128(len),
            len,
        })
    }

    /// The next shorter prefix that contains this one; `None` for a /0.
    pub fn parent(self) -> Option<Self> {
        let floor = match self.family() {
            Family::V4 => V4_OFFSET,
            Family::V6 => 0,
        };
        (self.len > floor).then(|| {
            let len = self.len - 1;
            Self {
                bits: self.bits & mask128(len),
                len,
            }
        })
    }
}

/// The `len` highest bits of 128 set.
const fn mask128(len: u8) -> u128 {
    if len == 0 {
        0
    } else {
        u128::MAX << (128 - len)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// An address (then it is a host) or `address/length`.
    fn from_str(s: &str) -> Result<Self, PrefixError> {
        let (addr, len) = match s.split_once('/') {
            Some((a, l)) => (a, Some(l)),
            None => (s, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| PrefixError::Address)?;
        let len = match len {
            None if addr.is_ipv4() => 32,
            None => 128,
            // Only digits: "+8" parses as a number but is no prefix length.
            Some(l) if !l.is_empty() && l.len() <= 3 && l.bytes().all(|b| b.is_ascii_digit()) => {
                l.parse().map_err(|_| PrefixError::Length)?
            }
            Some(_) => return Err(PrefixError::Length),
        };
        Self::new(addr, len)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            write!(f, "{}", self.addr())
        } else {
            write!(f, "{}/{}", self.addr(), self.len())
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    #[test]
    fn reads_and_writes_both_families() {
        for s in [
            "192.0.2.7",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "2001:db8::1",
            "2001:db8::/32",
            "::/0",
        ] {
            assert_eq!(p(s).to_string(), s);
            assert_eq!(Prefix::from_key(&p(s).key()), Some(p(s)));
        }
        assert_eq!(p("192.0.2.7/32"), p("192.0.2.7"));
        assert_eq!(p("0.0.0.0/0").len(), 0);
        assert_eq!(p("0.0.0.0/0").family(), Family::V4);
        assert_eq!(p("::/0").family(), Family::V6);
        assert_eq!(p("::/96").family(), Family::V6);
    }

    #[test]
    fn says_what_is_wrong() {
        let e = |s: &str| s.parse::<Prefix>().unwrap_err();
        assert_eq!(e("hello"), PrefixError::Address);
        assert_eq!(e("10.0.0.0/33"), PrefixError::Length);
        assert_eq!(e("10.0.0.0/"), PrefixError::Length);
        assert_eq!(e("10.0.0.0/+8"), PrefixError::Length);
        assert_eq!(e("::/129"), PrefixError::Length);
        assert_eq!(e("10.0.0.1/8"), PrefixError::HostBits(p("10.0.0.0/8")));
        assert_eq!(e("::ffff:10.0.0.1"), PrefixError::Mapped);
        assert_eq!(e("::ffff:0:0/96"), PrefixError::Mapped);
    }

    #[test]
    fn containment_keeps_families_apart() {
        assert!(p("10.0.0.0/8").contains(p("10.1.0.0/16")));
        assert!(p("10.0.0.0/8").contains(p("10.0.0.0/8")));
        assert!(!p("10.1.0.0/16").contains(p("10.0.0.0/8")));
        assert!(!p("::/0").contains(p("10.0.0.1")));
        assert!(p("0.0.0.0/0").contains(p("10.0.0.1")));
    }

    #[test]
    fn the_common_prefix_contains_both() {
        let c = |a, b| p(a).common(p(b));
        assert_eq!(c("10.0.0.0/8", "10.1.0.0/16"), Some(p("10.0.0.0/8")));
        assert_eq!(c("10.2.0.0/16", "10.3.0.0/16"), Some(p("10.2.0.0/15")));
        assert_eq!(c("10.0.0.0/8", "138.0.0.0/8"), Some(p("0.0.0.0/0")));
        assert_eq!(c("2001:db8::1", "2001:db8::1"), Some(p("2001:db8::1")));
        assert_eq!(c("::/0", "10.0.0.0/8"), None);
        assert_eq!(p("10.0.0.0/8").last(), p("10.255.255.255"));
    }

    #[test]
    fn parents_end_at_zero() {
        let mut n = 0;
        let mut at = p("10.0.0.1");
        while let Some(up) = at.parent() {
            assert!(up.contains(at));
            at = up;
            n += 1;
        }
        assert_eq!((n, at), (32, p("0.0.0.0/0")));
    }

    #[test]
    fn addresses_are_all_inside() {
        let all =
            |s: &str| -> std::vec::Vec<_> { p(s).addresses().map(|a| a.to_string()).collect() };
        assert_eq!(all("192.0.2.6/31"), ["192.0.2.6", "192.0.2.7"]);
        assert_eq!(all("2001:db8::"), ["2001:db8::"]);
        assert_eq!(p("255.255.252.0/22").addresses().count(), 1024);
        let last = p("2001:db8::/112").addresses().last();
        assert_eq!(last, "2001:db8::ffff".parse().ok());
    }

    #[test]
    fn a_prefix_sorts_before_what_it_contains() {
        assert!(p("10.0.0.0/8") < p("10.0.0.0/16"));
        assert!(p("10.0.0.0/16") < p("10.0.0.0"));
        assert!(p("10.0.0.0/8").last_bits() >= p("10.255.255.255").bits());
    }
}
