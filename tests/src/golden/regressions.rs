//! Packets that once met a bug: the files of `tests/regressions`, a table each.
//!
//! A file is text. Lines that start with `#` say what was wrong. The others:
//!
//! | line | what it says |
//! |---|---|
//! | `checks MODE` | the mode of all checks; `enforce` without it |
//! | `bogon PREFIX`, `blacklist PREFIX` | what is listed |
//! | `limit KIND RATE BURST` | a limit of every source, per second, enforced |
//! | `packet REASON` | a packet that must end with the reason; its bytes follow |
//! | hexadecimal digits | bytes of that packet, with spaces or without |
//!
//! Packets come in their order, and time stands still.

use edge_common::{
    abi::{LimitKind, Mode},
    reason::Reason,
};

use super::{Row, Table, table::row};
use crate::program::Settings;

/// Name and text of each file.
static FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/regressions.rs"));

/// A table a file.
///
/// # Panics
/// When a file is not as it must be; the message has its name and the line.
pub fn tables() -> Vec<Table> {
    FILES
        .iter()
        .map(|(name, text)| match read(name, text) {
            Ok(table) => table,
            Err((number, why)) => panic!("tests/regressions/{name}:{number}: {why}"),
        })
        .collect()
}

/// Reads a file; the error has the number of a line.
fn read(name: &str, text: &str) -> Result<Table, (usize, String)> {
    let mut table = Table::enforced(&format!("regression: {name}"), []);
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first() {
            None => {}
            Some(word) if word.starts_with('#') => {}
            Some(_) => table = read_line(table, &words).map_err(|why| (number, why))?,
        }
    }
    if table.rows.iter().any(|row| row.frame.is_empty()) || table.rows.is_empty() {
        return Err((text.lines().count(), "a packet without bytes".to_owned()));
    }
    Ok(table)
}

fn read_line(mut table: Table, words: &[&str]) -> Result<Table, String> {
    match words {
        ["checks", mode] => {
            let mode = Mode::ALL.into_iter().find(|m| m.name() == *mode);
            let mode = mode.ok_or("the mode is one of off, dry-run, enforce")?;
            table.settings = Settings::checks(mode);
            Ok(table)
        }
        ["bogon", prefix] => Ok(table.bogon(valid(prefix)?)),
        ["blacklist", prefix] => Ok(table.black(valid(prefix)?)),
        ["limit", kind, rate, burst] => {
            let kind = LimitKind::ALL.into_iter().find(|k| k.name() == *kind);
            let kind = kind.ok_or("the limit is one of packets, bytes, syn, udp, icmp")?;
            let number = |text: &str| text.parse().map_err(|e| format!("{text}: {e}"));
            let (rate, burst) = (number(rate)?, number(burst)?);
            let settings = table.settings.limit(0, kind, rate, burst);
            table.settings = settings.limit_mode(kind, Mode::Enforce);
            Ok(table)
        }
        ["packet", reason] => {
            let reason = Reason::from_name(reason)
                .ok_or_else(|| format!("there is no reason {reason} (see `edge reasons`)"))?;
            let what = format!("packet {}", table.rows.len() + 1);
            table.rows.push(row(&what, Vec::new(), reason));
            Ok(table)
        }
        _ => {
            let bytes = bytes(&words.concat())
                .ok_or("neither a line of the format nor whole bytes in hexadecimal")?;
            let row: &mut Row = table.rows.last_mut().ok_or("bytes before a `packet`")?;
            row.frame.extend(bytes);
            Ok(table)
        }
    }
}

fn valid(prefix: &str) -> Result<&str, String> {
    match prefix.parse::<edge_common::addr::Prefix>() {
        Ok(_) => Ok(prefix),
        Err(error) => Err(format!("{prefix}: {error}")),
    }
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let digit = |c: char| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Vec<u8> = digits.chars().map(digit).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read() {
        let text = "# What was wrong.\nchecks off\nlimit syn 1 2\nbogon 100::/64\n\n\
                    packet bogon\n00ff 1\n2\npacket pass\nab\n";
        assert_eq!(read("a", text).unwrap_err().0, 7);
        let table = read("a", &text.replace(" 1\n2\n", " 12\n")).unwrap();
        assert_eq!(table.rows[0].frame, [0, 0xff, 0x12]);
        assert_eq!(table.rows[0].ends, Reason::Bogon);
        assert_eq!(table.rows[1].frame, [0xab]);
        assert_eq!(table.settings.config.land, Mode::Off as u32);
        assert_eq!(table.entries.len(), 1);
        assert_eq!(table.settings.config.limits_enforced, LimitKind::Syn.bit());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line) in [
            ("packet nonsense\n00", 1),
            ("#\n00", 2),
            ("bogon 1.2.3.4/33", 1),
            ("limit syns 1 1", 1),
            ("checks on", 1),
            ("packet pass\nzz", 2),
            ("packet pass", 1),
        ] {
            assert_eq!(read("a", text).unwrap_err().0, line, "{text}");
        }
    }
}
