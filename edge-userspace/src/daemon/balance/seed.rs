//! The secret that a fleet shares, from its file.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use edge_common::hash::Seed;

/// Digits of a seed.
const DIGITS: usize = 64;

/// Why a file gives no seed. Nothing of what is in it is told.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum SeedError {
    /// It cannot be read.
    #[error("balance.seed_file {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// Others can read it.
    #[error(
        "balance.seed_file {}: others than its owner may read it; `chmod 600` it, and make a \
         new seed for the fleet", path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error(
        "balance.seed_file {}: not {DIGITS} hexadecimal digits; make them with `openssl rand -hex \
         32`", path.display()
    )]
    Digits {
        /// The file.
        path: PathBuf,
    },
}

/// What is in the file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Secret([u64; 4]);

impl Secret {
    /// The seed of the rings of services.
    pub(in crate::daemon) fn seed(&self) -> Seed {
        Seed::new(self.0)
    }

    /// All of it, for what other keys follow from.
    pub(in crate::daemon) fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
            *to = word.to_be_bytes();
        }
        bytes
    }
}

/// Reads a secret.
///
/// # Errors
/// When the file cannot be read, others may read it, or it holds no seed.
pub(in crate::daemon) fn read(path: &Path) -> Result<Secret, SeedError> {
    let failed = |error| SeedError::Io {
        path: path.into(),
        error,
    };
    let file = File::open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if facts.mode() & 0o077 != 0 {
        return Err(SeedError::Open { path: path.into() });
    }
    let mut text = String::new();
    // A line break behind the digits, and what makes more of it too long.
    let mut bounded = file.take(DIGITS as u64 + 3);
    bounded.read_to_string(&mut text).map_err(failed)?;
    parse(text.trim_end()).ok_or_else(|| SeedError::Digits { path: path.into() })
}

fn parse(text: &str) -> Option<Secret> {
    if text.len() != DIGITS || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut words = [0; 4];
    for (word, digits) in words.iter_mut().zip(text.as_bytes().chunks(16)) {
        *word = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Secret(words))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn only_a_private_file_of_64_digits_is_a_seed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed");
        let digits = "00000000000000010000000000000003000000000000000500000000000000f7";
        let try_with = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        let secret = try_with(&format!("{digits}\n"), 0o600).unwrap();
        assert_eq!(secret.seed(), Seed::new([1, 3, 5, 0xf7]));
        let bytes = secret.bytes();
        let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(written, digits);
        assert!(matches!(
            try_with(digits, 0o640),
            Err(SeedError::Open { .. })
        ));
        for wrong in ["", "12", &format!("{digits}0"), &digits.replace('f', "g")] {
            assert!(
                matches!(try_with(wrong, 0o600), Err(SeedError::Digits { .. })),
                "{wrong}"
            );
        }
        let missing = read(Path::new("/nonexistent/seed"))
            .unwrap_err()
            .to_string();
        assert!(missing.contains("seed_file"), "{missing}");
    }
}
