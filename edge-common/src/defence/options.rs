//! The options of a SYN (RFC 9293, 3.1; RFC 7323; RFC 2018).

use crate::parse::tcp;

/// Room for options, rounded up so that a mask bounds the index.
pub const OPTION_BYTES: usize = 64;

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

/// What a SYN offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Maximum segment size, 0 when it names none.
    pub mss: u16,
    /// Window scale; `None` without one.
    pub wscale: Option<u8>,
    /// Whether selective acknowledgements are permitted.
    pub sack: bool,
    /// The sender's timestamp.
    pub timestamp: Option<u32>,
    /// Whether it asks for ECN (RFC 3168, 6.1.1).
    pub ecn: bool,
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
        mss: mss as u16,
        wscale: Some(clamp_scale(scale as u8)),
        sack: true,
        timestamp: Some(u32::from_be(ts)),
        ecn: false,
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
    /// The options; zero, the end of the list, behind them.
    pub bytes: [u8; OPTION_BYTES],
    /// Where the next one starts.
    pub at: u32,
    /// How many bytes there are: at most 40.
    pub len: u32,
    /// What was found: the timestamp.
    pub timestamp: u32,
    /// The maximum segment size.
    pub mss: u16,
    /// The window scale.
    pub wscale: u8,
    /// What was found: `HAS_*`.
    pub has: u8,
}

const HAS_WSCALE: u8 = 1;
const HAS_SACK: u8 = 2;
const HAS_TIMESTAMP: u8 = 4;

impl Walk {
    /// Before the first option.
    #[inline(always)]
    pub const fn new(bytes: [u8; OPTION_BYTES], len: u32) -> Self {
        Self {
            bytes,
            at: 0,
            len,
            timestamp: 0,
            mss: 0,
            wscale: 0,
            has: 0,
        }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        self.bytes[at as usize & (OPTION_BYTES - 1)]
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
                self.mss = mss;
            }
        } else if kind == WINDOW_SCALE && len == 3 {
            self.wscale = clamp_scale(self.byte(at + 2));
            self.has |= HAS_WSCALE;
        } else if kind == SACK_PERMITTED && len == 2 {
            self.has |= HAS_SACK;
        } else if kind == TIMESTAMPS && len == 10 {
            let byte = |i| self.byte(at + 2 + i);
            self.timestamp = u32::from_be_bytes([byte(0), byte(1), byte(2), byte(3)]);
            self.has |= HAS_TIMESTAMP;
        }
        self.at = at + len;
        true
    }

    /// What was found.
    #[inline(always)]
    pub const fn offer(&self) -> Offer {
        Offer {
            mss: self.mss,
            wscale: if self.has & HAS_WSCALE != 0 {
                Some(self.wscale)
            } else {
                None
            },
            sack: self.has & HAS_SACK != 0,
            timestamp: if self.has & HAS_TIMESTAMP != 0 {
                Some(self.timestamp)
            } else {
                None
            },
            ecn: false,
        }
    }
}

/// The offer of options in a slice, at most 40 bytes of it.
pub fn parse(options: &[u8]) -> Offer {
    let mut bytes = [0; OPTION_BYTES];
    let len = options.len().min(MAX_OPTIONS as usize);
    for (to, from) in bytes.iter_mut().zip(options.iter().take(len)) {
        *to = *from;
    }
    let mut walk = Walk::new(bytes, len as u32);
    while walk.step() {}
    walk.offer()
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
            mss: 1460,
            wscale: Some(7),
            sack: true,
            timestamp: Some(7),
            ecn: false,
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
        for (what, options, offer) in [
            ("none", &[][..], Offer::default()),
            ("a length of 0", &[2, 4, 5, 0xb4, 3, 0, 7], mss),
            ("a length of 1", &[2, 4, 5, 0xb4, 3, 1, 7], mss),
            ("beyond the end", &[2, 4, 5, 0xb4, 8, 10, 0, 0], mss),
            ("a kind alone", &[2, 4, 5, 0xb4, 3], mss),
            ("an end in between", &[2, 4, 5, 0xb4, 0, 4, 2, 0], mss),
            (
                "an MSS of 3 bytes",
                &[2, 3, 5, 4, 2],
                Offer {
                    sack: true,
                    ..Offer::default()
                },
            ),
            ("an MSS of 0", &[2, 4, 0, 0], Offer::default()),
            (
                "a scale that is too large",
                &[3, 3, 200],
                Offer {
                    wscale: Some(14),
                    ..Offer::default()
                },
            ),
            (
                "an unknown one",
                &[254, 6, 1, 2, 3, 4, 4, 2],
                Offer {
                    sack: true,
                    ..Offer::default()
                },
            ),
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
            let mut bytes = [0; OPTION_BYTES];
            let len = options.len().min(40);
            bytes[..len].copy_from_slice(&options[..len]);
            let mut walk = Walk::new(bytes, len as u32);
            let steps = (0..).take_while(|_| walk.step()).count();
            prop_assert!(steps <= MAX_OPTIONS as usize);
            prop_assert!(walk.at <= 40);
            prop_assert!(walk.wscale <= 14);
        }
    }
}
