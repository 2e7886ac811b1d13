//! The keys of what a fleet has to agree on.

use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use edge_common::hash::Seed;

/// What servers are chosen by, and what session cookies are signed with.
#[derive(Clone)]
pub struct Keys {
    /// Of the hashes by which servers are chosen. What it gives of a server's address is in session
    /// cookies, so nothing else has this seed.
    pub seed: Seed,
    /// Signs session cookies.
    pub cookies: [u8; 32],
}

impl Keys {
    /// Those that follow from a secret, each by a purpose of its own (RFC 5869, section 2.3): none
    /// of them tells of another one, nor of the secret.
    pub fn of(secret: &[u8; 32]) -> Self {
        let secret = Key::new(HMAC_SHA256, secret);
        let derived = |purpose: &[u8]| {
            let mut key = [0; 32];
            for (to, from) in key.iter_mut().zip(hmac::sign(&secret, purpose).as_ref()) {
                *to = *from;
            }
            key
        };
        let mut words = [0; 4];
        let bytes = derived(b"edge proxy hash seed 1");
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_be_bytes(*bytes);
        }
        Self {
            seed: Seed::new(words),
            cookies: derived(b"edge proxy session cookies 1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_from_the_secret_and_from_nothing_else() {
        let [one, same, other] = [[1; 32], [1; 32], [2; 32]].map(|secret| Keys::of(&secret));
        assert_eq!((one.seed, one.cookies), (same.seed, same.cookies));
        assert_ne!(one.seed, other.seed);
        assert_ne!(one.cookies, other.cookies);
        assert_ne!(one.cookies, [1; 32]);
        // Edges of another version must find the same.
        let begin = one.cookies.first_chunk::<8>().copied();
        assert_eq!(begin.map(u64::from_be_bytes), Some(0xa7b4_f0f5_b9aa_bff9));
    }
}
