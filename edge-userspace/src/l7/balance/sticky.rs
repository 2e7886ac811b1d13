//! Sessions that stay with a server: a cookie names it, signed, so that a client can
//! neither choose a server nor learn from the cookie what it is.
//!
//! The value is the server's identity, the time at which the session ends, and an
//! HMAC-SHA-256 (RFC 2104, truncated to 128 bits as in its section 5) of both and the
//! group's name, all in hexadecimal.

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    hmac::{Context, HMAC_SHA256, Key},
};

/// Bytes of a cookie's value.
pub const LENGTH: usize = 2 * BYTES;

/// Bytes of identity and of time, and of the signature.
const WORD: usize = 8;
const TAG: usize = 16;
const BYTES: usize = 2 * WORD + TAG;

/// What keeps this signature apart from others of the same key.
const PURPOSE: &[u8] = b"edge sticky session 1";

/// Why a cookie says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no cookie of ours.
    #[error("not a session cookie")]
    Malformed,
    /// It was not signed with this key for this group.
    #[error("the signature of the session cookie is wrong")]
    Forged,
    /// Its time is over.
    #[error("the session has expired")]
    Expired,
}

/// Signs and reads the cookies of a group.
#[derive(Debug)]
pub struct Signer {
    key: Key,
    group: Box<[u8]>,
}

impl Signer {
    /// For the group of this name, with a secret of the installation.
    pub fn new(secret: &[u8; 32], group: &str) -> Self {
        Self {
            key: Key::new(HMAC_SHA256, secret),
            group: group.as_bytes().into(),
        }
    }

    /// The cookie's value for a session with a server that ends at a Unix time, seconds:
    /// ASCII.
    pub fn mint(&self, id: u64, ends: u64) -> [u8; LENGTH] {
        let tag = self.tag(id, ends);
        let bytes = (id.to_be_bytes().into_iter())
            .chain(ends.to_be_bytes())
            .chain(tag);
        let mut text = [0; LENGTH];
        for (pair, byte) in text.as_chunks_mut().0.iter_mut().zip(bytes) {
            *pair = [byte >> 4, byte & 15].map(|digit| match digit {
                0..=9 => b'0' + digit,
                _ => b'a' + digit - 10,
            });
        }
        text
    }

    /// The server that a cookie's value names, at a Unix time, seconds.
    ///
    /// # Errors
    /// Any value but one of [`mint`](Self::mint) whose time is not over.
    pub fn parse(&self, value: &[u8], now: u64) -> Result<u64, Refused> {
        let bytes = bytes(value).ok_or(Refused::Malformed)?;
        let (words, tag) = bytes.split_at(2 * WORD);
        let &[id, ends] = words.as_chunks::<WORD>().0 else {
            return Err(Refused::Malformed);
        };
        let (id, ends) = (u64::from_be_bytes(id), u64::from_be_bytes(ends));
        verify_slices_are_equal(&self.tag(id, ends), tag).map_err(|_| Refused::Forged)?;
        if ends <= now {
            return Err(Refused::Expired);
        }
        Ok(id)
    }

    fn tag(&self, id: u64, ends: u64) -> [u8; TAG] {
        let mut context = Context::with_key(&self.key);
        context.update(PURPOSE);
        // Of fixed length, so that where the name begins is certain.
        context.update(&id.to_be_bytes());
        context.update(&ends.to_be_bytes());
        context.update(&self.group);
        let whole = context.sign();
        let mut tag = [0; TAG];
        for (to, from) in tag.iter_mut().zip(whole.as_ref()) {
            *to = *from;
        }
        tag
    }
}

/// The bytes that a text in lower hexadecimal says.
fn bytes(text: &[u8]) -> Option<[u8; BYTES]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let text: &[u8; LENGTH] = text.try_into().ok()?;
    let mut bytes = [0; BYTES];
    for (byte, &[high, low]) in bytes.iter_mut().zip(text.as_chunks().0) {
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}
