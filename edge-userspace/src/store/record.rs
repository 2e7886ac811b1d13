//! What is kept of an entry, and how it is written. Pure.

use crate::entry::{FeedName, Origin, Source};
use std::sync::Arc;

use super::eras::{Era, Eras};

/// Version of [`Record`]'s encoding. Version 2, which did not know of eras, and
/// version 1, which knew one claim and no feeds, are read as well.
pub(super) const ENCODING: u8 = 3;

/// The most sources of one entry.
pub const MAX_CLAIMS: usize = 32;

/// What is kept of an entry: who wants it, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The claims, one a source, at most [`MAX_CLAIMS`].
    pub claims: Vec<Claim>,
}

/// What one source says of an entry. Its times are what the wall clock should
/// have shown, by all that is known of it ([`super::eras`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The boot in which it was last said.
    pub era: Era,
    /// Who says it.
    pub source: Source,
    /// When that was first said, Unix time in milliseconds.
    pub created_unix_ms: u64,
    /// When it was last said, likewise.
    pub changed_unix_ms: u64,
    /// When it runs out, likewise; `None` for never.
    pub expires_unix_ms: Option<u64>,
    /// What a person wrote about it.
    pub note: Arc<str>,
}

/// A moment, as what is left of a claim depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The boot.
    pub era: Era,
    /// Milliseconds since it (`CLOCK_BOOTTIME`).
    pub uptime_ms: u64,
    /// What the wall clock shows, Unix time in milliseconds.
    pub unix_ms: u64,
}

impl Claim {
    /// Milliseconds that are left of it; `None` for ever. However far the clock
    /// lies behind, never more than it was given, and less by the time since
    /// the boot when it was said before that.
    pub fn left_ms(&self, at: Moment) -> Option<u64> {
        let expires = self.expires_unix_ms?;
        let given = expires.saturating_sub(self.changed_unix_ms);
        let passed = if self.era.is_before(at.era) {
            at.uptime_ms
        } else {
            0
        };
        let most = given.saturating_sub(passed);
        Some(expires.saturating_sub(at.unix_ms).min(most))
    }

    /// Whether it has run out.
    pub fn has_expired(&self, at: Moment) -> bool {
        self.left_ms(at) == Some(0)
    }

    /// Era; created, changed, expires (0 for never), as the clock showed them
    /// in that era; origin, length and name of the feed (0 for none), length of
    /// the note, note.
    fn encode(&self, eras: &Eras, out: &mut Vec<u8>) {
        let feed = self.source.feed.as_ref().map_or("", FeedName::as_str);
        out.extend(self.era.0.to_le_bytes());
        let expires = self.expires_unix_ms.map_or(0, |at| at.max(1));
        for time in [self.created_unix_ms, self.changed_unix_ms, expires] {
            out.extend(eras.shown(self.era, time).to_le_bytes());
        }
        out.push(match self.source.origin {
            Origin::Cli => 0,
            Origin::File => 1,
            Origin::Feed => 2,
            Origin::L7 => 3,
            Origin::Auto => 4,
        });
        put_text::<1>(out, feed);
        put_text::<2>(out, &self.note);
    }

    fn decode(version: u8, eras: &Eras, bytes: &mut &[u8]) -> Option<Self> {
        let era = match version {
            2 => Era::UNKNOWN,
            _ => Era(u32::from_le_bytes(bytes.split_off(..4)?.try_into().ok()?)),
        };
        let mut time = || Some(eras.right(era, take_u64(bytes)?));
        let (created_unix_ms, changed_unix_ms, expires) = (time()?, time()?, time()?);
        let origin = take_origin(bytes)?;
        let feed = take_text::<1>(bytes)?;
        let feed = (!feed.is_empty()).then(|| feed.parse()).transpose();
        Some(Self {
            era,
            source: Source::new(origin, feed.ok()?),
            created_unix_ms,
            changed_unix_ms,
            expires_unix_ms: Some(expires).filter(|&at| at != 0),
            note: take_text::<2>(bytes)?.into(),
        })
    }

    /// Version 1: created, expires, origin, and the note up to the end. When
    /// it was last said was not kept: after it was made, if the clock was right.
    fn decode_v1(mut bytes: &[u8]) -> Option<Self> {
        let created_unix_ms = take_u64(&mut bytes)?;
        let expires = take_u64(&mut bytes)?;
        // Made while the clock ran ahead, and said again when it was right:
        // then there is no telling how long it was given.
        let is_ahead = created_unix_ms >= expires;
        Some(Self {
            era: Era::UNKNOWN,
            source: Source::new(take_origin(&mut bytes)?, None),
            created_unix_ms,
            changed_unix_ms: if is_ahead { 0 } else { created_unix_ms },
            expires_unix_ms: Some(expires).filter(|&at| at != 0),
            note: std::str::from_utf8(bytes).ok()?.into(),
        })
    }
}

/// Writes a text behind its length in `N` bytes; what is longer is cut, which
/// the bounds of names and notes keep from happening.
fn put_text<const N: usize>(out: &mut Vec<u8>, text: &str) {
    let most = (1usize << (8 * N)) - 1;
    let bytes = text.as_bytes();
    let bytes = bytes.get(..most).unwrap_or(bytes);
    out.extend(&bytes.len().to_le_bytes()[..N]);
    out.extend(bytes);
}

fn take_text<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let length = bytes.split_off(..N)?;
    let length = length.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
    std::str::from_utf8(bytes.split_off(..length)?).ok()
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let word = bytes.split_off(..8)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}

fn take_origin(bytes: &mut &[u8]) -> Option<Origin> {
    Some(match bytes.split_off_first()? {
        0 => Origin::Cli,
        1 => Origin::File,
        2 => Origin::Feed,
        3 => Origin::L7,
        4 => Origin::Auto,
        _ => return None,
    })
}

impl Record {
    /// Whether all of it has run out.
    pub fn has_expired(&self, at: Moment) -> bool {
        self.claims.iter().all(|c| c.has_expired(at))
    }

    /// Version, number of claims, claims.
    pub(super) fn encode(&self, eras: &Eras, out: &mut Vec<u8>) {
        let claims = &self.claims[..self.claims.len().min(MAX_CLAIMS)];
        out.clear();
        out.extend([ENCODING, claims.len() as u8]);
        for claim in claims {
            claim.encode(eras, out);
        }
    }

    pub(super) fn decode(eras: &Eras, bytes: &[u8]) -> Option<Self> {
        let (&version, mut rest) = bytes.split_first()?;
        let claims = match version {
            1 => vec![Claim::decode_v1(rest)?],
            2 | ENCODING => {
                let count = *rest.split_off_first()?;
                // Of no more than these: a feed that comes again decodes millions.
                let mut claims = Vec::with_capacity(count.into());
                for _ in 0..count {
                    claims.push(Claim::decode(version, eras, &mut rest)?);
                }
                claims
            }
            _ => return None,
        };
        let whole = version == 1 || rest.is_empty();
        (whole && !claims.is_empty()).then_some(Self { claims })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    const fn at(unix_ms: u64) -> Moment {
        Moment {
            era: Era(7),
            uptime_ms: 200,
            unix_ms,
        }
    }

    fn claim(feed: &str, note: &str) -> Claim {
        Claim {
            era: Era(7),
            source: Source::new(Origin::Feed, feed.parse().ok()),
            created_unix_ms: 1,
            changed_unix_ms: 2,
            expires_unix_ms: Some(3),
            note: note.into(),
        }
    }

    fn record(note: &str) -> Record {
        Record {
            claims: vec![claim("drop", note)],
        }
    }

    #[test]
    fn records_of_no_known_form_are_refused() {
        let eras = Eras::default();
        let mut bytes = Vec::new();
        let mut record = record("x");
        record.claims.push(claim("other", &"ü".repeat(128)));
        record.claims.push(Claim {
            source: Source::new(Origin::Cli, None),
            expires_unix_ms: None,
            ..claim("x", "")
        });
        record.encode(&eras, &mut bytes);
        assert_eq!(Record::decode(&eras, &bytes), Some(record));
        let at_zero = Claim {
            expires_unix_ms: Some(0),
            ..claim("x", "")
        };
        let mut finite = Vec::new();
        at_zero.encode(&eras, &mut finite);
        let finite = Claim::decode(ENCODING, &eras, &mut finite.as_slice()).unwrap();
        assert!(finite.has_expired(at(2)), "{finite:?}");
        for cut in 0..bytes.len() {
            assert_eq!(Record::decode(&eras, &bytes[..cut]), None, "{cut}");
        }
        let with = |at: usize, byte: u8| {
            let mut wrong = bytes.clone();
            wrong[at] = byte;
            Record::decode(&eras, &wrong)
        };
        assert_eq!(with(1, 0), None);
        assert_eq!(with(30, 9), None, "no such origin");
        assert_eq!(with(32, b' '), None, "no name of a feed");
        bytes.push(0);
        assert_eq!(Record::decode(&eras, &bytes), None);
    }

    #[test]
    fn nothing_lasts_longer_than_it_was_given() {
        let claim = Claim {
            changed_unix_ms: 1_000,
            expires_unix_ms: Some(1_500),
            ..claim("x", "")
        };
        for (now, left) in [(1_000, 500), (1_200, 300), (1_500, 0), (9_999, 0)] {
            assert_eq!(claim.left_ms(at(now)), Some(left), "{now}");
        }
        // A clock that was not set yet.
        assert_eq!(claim.left_ms(at(7)), Some(500));
        let forever = Claim {
            expires_unix_ms: None,
            ..claim.clone()
        };
        assert_eq!(forever.left_ms(at(7)), None);
        assert!(!forever.has_expired(at(u64::MAX)));
        // It was said before the boot, which is 200 ms ago.
        let booted = |unix_ms| Moment {
            era: Era(8),
            ..at(unix_ms)
        };
        for (now, left) in [(1_200, 300), (1_400, 100), (7, 300), (1_100, 300)] {
            assert_eq!(claim.left_ms(booted(now)), Some(left), "{now}");
        }
        let unknown = Claim {
            era: Era::UNKNOWN,
            ..claim
        };
        assert_eq!(unknown.left_ms(booted(7)), Some(500));
    }

    #[test]
    fn times_are_kept_as_the_clock_of_their_boot_showed_them() {
        let right = Now {
            mono_ns: 0,
            boot_ns: 0,
            unix_ms: 1_000_000,
        };
        let mut eras = Eras::default().entered(Some("a"), right);
        let said = Record {
            claims: vec![Claim {
                era: eras.current(),
                ..claim("x", "")
            }],
        };
        let mut bytes = Vec::new();
        said.encode(&eras, &mut bytes);
        eras = eras.set(Now {
            unix_ms: 1_070_000,
            ..right
        });
        let read = Record::decode(&eras, &bytes).unwrap();
        let Claim {
            created_unix_ms,
            changed_unix_ms,
            expires_unix_ms,
            ..
        } = read.claims[0];
        let times = (created_unix_ms, changed_unix_ms, expires_unix_ms);
        assert_eq!(times, (70_001, 70_002, Some(70_003)));
        let mut again = Vec::new();
        read.encode(&eras, &mut again);
        assert_eq!(again, bytes, "nothing is written anew because of it");
    }
}
