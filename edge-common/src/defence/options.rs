//! The options of a SYN (RFC 9293, 3.1; RFC 7323; RFC 2018).

use crate::parse::tcp;

/// Room for options in words, rounded up so that a mask bounds the index.
pub const OPTION_WORDS: usize = 16;

/// The most options that 40 bytes can hold.
pub const MAX_OPTIONS: u32 = 40;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const TIMESTAMPS: u8 = 8;

/// The largest shift of a window scale (RFC 7323, 2.3).
const MAX_WSCALE: u8 = 14;

/// What a SYN offers. Plain numbers, for what is not there must be defined as
/// well: the verifier allows no copy of anything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The sender's timestamp; 0 without one.
    pub timestamp: u32,
    /// Maximum segment size; 0 when it names none.
    pub mss: u16,
    /// Window scale, 0 to 14; 0 without one.
    pub wscale: u8,
    /// `HAS_*`.
    pub has: u8,
}

/// It has a window scale.
pub const HAS_WSCALE: u8 = 1;
/// Selective acknowledgements are permitted.
pub const HAS_SACK: u8 = 2;
/// It has a timestamp.
pub const HAS_TIMESTAMP: u8 = 4;
/// It asks for ECN (RFC 3168, 6.1.1).
pub const HAS_ECN: u8 = 8;

impl Offer {
    /// Whether it has one of these.
    #[inline(always)]
    pub const fn has(&self, what: u8) -> bool {
        self.has & what != 0
    }
}

/// Whether the flags of a SYN ask for ECN.
#[inline(always)]
pub const fn asks_for_ecn(flags: u8) -> bool {
    flags & (tcp::ECE | tcp::CWR) == tcp::ECE | tcp::CWR
}

/// Options in the order in which Linux sends them, which is what most SYNs look
/// like: the five words behind the fixed header, byte order of the wire.
#[inline(always)]
pub const fn of_linux([mss, sack_ts, ts, _, scale]: [u32; 5]) -> Option<Offer> {
    let (mss, scale) = (u32::from_be(mss), u32::from_be(scale));
    if mss >> 16 != 0x0204 || u32::from_be(sack_ts) != 0x0402_080a || scale >> 8 != 0x01_0303 {
        return None;
    }
    Some(Offer {
        timestamp: u32::from_be(ts),
        mss: mss as u16,
        wscale: clamp_scale(scale as u8),
        has: HAS_WSCALE | HAS_SACK | HAS_TIMESTAMP,
    })
}

#[inline(always)]
const fn clamp_scale(scale: u8) -> u8 {
    if scale > MAX_WSCALE {
        MAX_WSCALE
    } else {
        scale
    }
}

/// A walk over options, one [`Walk::step`] each. It ends at what is malformed,
/// and keeps what came before, as Linux does (`tcp_parse_options`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Walk {
    /// The options as read from the wire; zero, the end of the list, behind them.
    pub words: [u32; OPTION_WORDS],
    /// Where the next one starts.
    pub at: u32,
    /// How many bytes there are: at most 40.
    pub len: u32,
    /// What was found so far.
    pub offer: Offer,
    /// Where the number of the last MSS stands among the options; 0: there is none.
    pub mss_at: u32,
}

impl Walk {
    /// Before the first of `len` bytes of options, all of them zero so far.
    #[inline(always)]
    pub const fn new(len: u32) -> Self {
        Self {
            words: [0; OPTION_WORDS],
            at: 0,
            len,
            offer: Offer {
                timestamp: 0,
                mss: 0,
                wscale: 0,
                has: 0,
            },
            mss_at: 0,
        }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        let word = self.words[(at >> 2) as usize & (OPTION_WORDS - 1)];
        (u32::from_le(word) >> ((at & 3) * 8)) as u8
    }

    /// Takes an option in; `false` when there are no more.
    #[inline(always)]
    pub fn step(&mut self) -> bool {
        let at = self.at;
        if at >= self.len {
            return false;
        }
        let kind = self.byte(at);
        if kind == END {
            return false;
        }
        if kind == NOP {
            self.at = at + 1;
            return true;
        }
        if at + 1 >= self.len {
            return false;
        }
        let len = u32::from(self.byte(at + 1));
        if len < 2 || at + len > self.len {
            return false;
        }
        if kind == MSS && len == 4 {
            let mss = u16::from_be_bytes([self.byte(at + 2), self.byte(at + 3)]);
            // A size of 0 is none.
            if mss != 0 {
                self.offer.mss = mss;
                self.mss_at = at + 2;
            }
        } else if kind == WINDOW_SCALE && len == 3 {
            self.offer.wscale = clamp_scale(self.byte(at + 2));
            self.offer.has |= HAS_WSCALE;
        } else if kind == SACK_PERMITTED && len == 2 {
            self.offer.has |= HAS_SACK;
        } else if kind == TIMESTAMPS && len == 10 {
            let byte = |i| self.byte(at + 2 + i);
            self.offer.timestamp = u32::from_be_bytes([byte(0), byte(1), byte(2), byte(3)]);
            self.offer.has |= HAS_TIMESTAMP;
        }
        self.at = at + len;
        true
    }
}

/// The offer of options in a slice, at most 40 bytes of it.
pub fn parse(options: &[u8]) -> Offer {
    let mut walk = Walk::of(options);
    while walk.step() {}
    walk.offer
}

impl Walk {
    fn of(options: &[u8]) -> Self {
        let len = options.len().min(MAX_OPTIONS as usize);
        let mut walk = Self::new(len as u32);
        for (word, chunk) in walk.words.iter_mut().zip(options.chunks(4).take(10)) {
            let mut bytes = [0; 4];
            for (to, from) in bytes.iter_mut().zip(chunk) {
                *to = *from;
            }
            *word = u32::from_ne_bytes(bytes);
        }
        walk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINUX: [u8; 20] = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7,
    ];

    #[test]
    fn the_order_of_linux_is_read_either_way() {
        let offer = Offer {
            timestamp: 7,
            mss: 1460,
            wscale: 7,
            has: HAS_WSCALE | HAS_SACK | HAS_TIMESTAMP,
        };
        let mut words = [0; 5];
        for (word, chunk) in words.iter_mut().zip(LINUX.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        assert_eq!(of_linux(words), Some(offer));
        assert_eq!(parse(&LINUX), offer);
        for at in [0, 1, 4, 5, 6, 7, 16, 17, 18] {
            let mut other = LINUX;
            other[at] ^= 0x40;
            for (word, chunk) in words.iter_mut().zip(other.as_chunks::<4>().0) {
                *word = u32::from_ne_bytes(*chunk);
            }
            assert_eq!(of_linux(words), None, "{at}");
        }
    }

    #[test]
    fn what_comes_before_the_fault_counts() {
        let mss = Offer {
            mss: 1460,
            ..Offer::default()
        };
        let sack = Offer {
            has: HAS_SACK,
            ..Offer::default()
        };
        for (what, options, offer) in [
            ("none", &[][..], Offer::default()),
            ("a length of 0", &[2, 4, 5, 0xb4, 3, 0, 7], mss),
            ("a length of 1", &[2, 4, 5, 0xb4, 3, 1, 7], mss),
            ("beyond the end", &[2, 4, 5, 0xb4, 8, 10, 0, 0], mss),
            ("a kind alone", &[2, 4, 5, 0xb4, 3], mss),
            ("an end in between", &[2, 4, 5, 0xb4, 0, 4, 2, 0], mss),
            ("an MSS of 3 bytes", &[2, 3, 5, 4, 2], sack),
            ("an MSS of 0", &[2, 4, 0, 0], Offer::default()),
            (
                "a scale that is too large",
                &[3, 3, 200],
                Offer {
                    wscale: 14,
                    has: HAS_WSCALE,
                    ..Offer::default()
                },
            ),
            ("an unknown one", &[254, 6, 1, 2, 3, 4, 4, 2], sack),
            (
                "timestamps of 9 bytes",
                &[8, 9, 1, 2, 3, 4, 5, 6, 7],
                Offer::default(),
            ),
            ("the last MSS", &[2, 4, 1, 0, 2, 4, 5, 0xb4], mss),
        ] {
            assert_eq!(parse(options), offer, "{what}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_within_40_steps(options in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut walk = Walk::of(&options);
            let steps = (0..).take_while(|_| walk.step()).count();
            prop_assert!(steps <= MAX_OPTIONS as usize);
            prop_assert!(walk.at <= 40);
            prop_assert!(walk.offer.wscale <= 14);
        }
    }
}
