//! Times to live as people write them: `90s`, `1h30m`, `7d`.

use crate::{config::quantity::seconds, control::protocol::MAX_TTL_S};

/// The seconds that a text stands for: numbers with units, the larger first.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "write it as 90s, 1h30m or 7d (w, d, h, m, s, the larger first), at most {} days",
            MAX_TTL_S / 86_400
        )
    };
    let total = seconds(text).ok_or_else(wrong)?;
    if (1..=MAX_TTL_S).contains(&total) {
        Ok(total)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, seconds) in [
            ("90s", 90),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("2w3d4h5m6s", 1_483_506),
            ("0h1s", 1),
            ("3650d", MAX_TTL_S),
        ] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_with_the_remedy() {
        for text in [
            "",
            "90",
            "s",
            "1h30",
            "30m1h",
            "1h1h",
            "-1s",
            "1.5h",
            "1 h",
            "0s",
            "1y",
            "3651d",
            "99999999999999999999s",
            "18446744073709551615w",
            "1ħ",
            "é",
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains("1h30m"), "{text}");
        }
    }
}
