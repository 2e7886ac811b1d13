//! Checksums of headers that programs write (RFC 1071), over words in the byte order of
//! the wire.

/// A sum of 16-bit words in the making, one's complement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Of nothing.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds words.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds the two words of each half of an address.
    #[inline(always)]
    #[must_use]
    pub const fn double(self, word: u64) -> Self {
        Self(self.0 + (word >> 32) + (word & 0xffff_ffff))
    }

    /// Adds that one word was replaced by another, to a sum of such changes (RFC 1624).
    #[inline(always)]
    #[must_use]
    pub const fn replace(self, old: u32, new: u32) -> Self {
        self.word(!old).word(new)
    }

    /// The same of a whole address. Families may differ: the mapped form of an IPv4
    /// address adds up to the address alone.
    #[inline(always)]
    #[must_use]
    pub const fn readdress(self, old: [u64; 2], new: [u64; 2]) -> Self {
        self.double(!old[0])
            .double(!old[1])
            .double(new[0])
            .double(new[1])
    }

    /// The checksum that a sum of changes makes of another one.
    #[inline(always)]
    pub const fn amend(self, check: u16) -> u16 {
        self.word(!check as u32).checksum()
    }

    /// Adds another sum.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The pseudo header (RFC 9293, 3.1; RFC 8200, 8.1) of so many bytes of a
    /// protocol. An IPv4 address takes the lower half of its second word: the
    /// mapped form's ones add up to nothing.
    #[inline(always)]
    pub const fn pseudo(source: [u64; 2], dest: [u64; 2], len: u32, proto: u8) -> Self {
        Self(0)
            .double(source[0])
            .double(source[1])
            .double(dest[0])
            .double(dest[1])
            .word(len.to_be())
            .word((proto as u32).to_be())
    }

    /// Folded to 16 bits, byte order of the wire.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Whether the TCP checksum of a packet is right. `sum` is over the pseudo header
/// and the whole segment, `pseudo` over the pseudo header alone, `field` is the
/// checksum. A sender on this host that leaves the checksum to its network card
/// has put in the sum of the pseudo header (`CHECKSUM_PARTIAL`), which is right
/// as well: no wire can have changed it.
#[inline(always)]
pub const fn is_checksum_right(sum: Sum, pseudo: Sum, field: u16) -> bool {
    sum.fold() == 0xffff || field == pseudo.fold()
}

/// Puts a checksum where its word has a zero half: the lower 16 bits in network
/// order are the second half in memory.
#[inline(always)]
pub const fn with_low_half(word: u32, half: u16) -> u32 {
    let [a, b, _, _] = word.to_ne_bytes();
    let [c, d] = half.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Puts one where its word has a zero half: the upper 16 bits in network order.
#[inline(always)]
pub const fn with_high_half(word: u32, half: u16) -> u32 {
    let [_, _, c, d] = word.to_ne_bytes();
    let [a, b] = half.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// A checksum after one 16-bit word under it was replaced by another (RFC 1624, eqn. 3).
/// All three as read from the wire.
#[inline(always)]
pub const fn replaced(check: u16, old: u16, new: u16) -> u16 {
    let sum = (!check as u32) + (!old as u32) + new as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_replaced_word_gives_the_checksum_of_the_new_ones(
            words in proptest::collection::vec(any::<u32>(), 1..20),
            at in any::<prop::sample::Index>(),
            new: u16,
        ) {
            let sum = |words: &[u32]| {
                words.iter().fold(Sum::default(), |sum, w| sum.word(*w)).checksum()
            };
            let before = sum(&words);
            let mut after = words;
            let word = at.get_mut(&mut after);
            let [a, b, c, d] = word.to_ne_bytes();
            let [x, y] = new.to_ne_bytes();
            *word = u32::from_ne_bytes([x, y, c, d]);
            let check = replaced(before, u16::from_ne_bytes([a, b]), new);
            let full = sum(&after);
            // Zero has two forms.
            prop_assert!(check == full || check ^ full == 0xffff && (check == 0 || full == 0));
        }
    }
}
