//! Lists as feeds publish them: one address or prefix a line.
//!
//! Behind `#` or `;` comes a comment, on a line of its own or trailing (Spamhaus
//! DROP: `1.10.16.0/20 ; SBL256894`; FireHOL: `# …`). Blank lines, CRLF and a
//! byte-order mark are accepted. A line that is no prefix makes the whole feed
//! bad: nothing of it is returned, and the first bad lines are named.

use edge_common::addr::{Prefix, PrefixError};
use std::{
    fmt,
    io::{self, BufRead, Read},
};
use thiserror::Error;

/// The longest line that is read, in bytes, with its comment.
const MAX_LINE: usize = 4096;
/// The most bad lines that are named; the others are only counted.
const MAX_NAMED: usize = 20;
/// Bytes of a bad line that its error quotes.
const MAX_QUOTED: usize = 60;

/// How a feed is read.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether bits behind a prefix's length are cleared instead of refused.
    pub lenient: bool,
    /// The most entries that are accepted.
    pub max_entries: usize,
}

/// One line that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub line: u64,
    /// What stands there, shortened and made printable.
    pub text: String,
    /// What is wrong with it.
    pub error: LineError,
}

/// What can be wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// It is neither an address nor a prefix.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// It is longer than any line of a feed.
    #[error("longer than {MAX_LINE} bytes")]
    TooLong,
    /// It is no text.
    #[error("not UTF-8 text")]
    NotText,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {:?}: {}", self.line, self.text, self.error)
    }
}

/// Why a feed was refused.
#[derive(Debug, Error)]
pub enum FeedError {
    /// It cannot be read.
    #[error("the list cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It has lines that are wrong; nothing of it was taken.
    #[error("{}", bad_lines(.named, *.total))]
    BadLines {
        /// The first of them.
        named: Vec<BadLine>,
        /// How many there are.
        total: u64,
    },
    /// It has more entries than are accepted.
    #[error("the list has more than {max} entries; split it, or raise the capacity in [tables]")]
    TooMany {
        /// The most that are accepted.
        max: usize,
    },
}

fn bad_lines(named: &[BadLine], total: u64) -> String {
    use fmt::Write as _;
    let mut text = format!("{total} bad line(s), nothing was taken:");
    for bad in named {
        let _ = write!(text, "\n  {bad}");
    }
    let rest = total - named.len() as u64;
    if rest > 0 {
        let _ = write!(text, "\n  and {rest} more");
    }
    let host_bits =
        |bad: &BadLine| matches!(bad.error, LineError::Prefix(PrefixError::HostBits(_)));
    if named.iter().any(host_bits) {
        text.push_str("\nto clear bits behind prefix lengths instead, import with --lenient");
    }
    text
}

/// Reads a feed.
///
/// # Errors
/// [`FeedError`]; then nothing of the feed is returned.
pub fn parse(reader: impl BufRead, options: Options) -> Result<Vec<Prefix>, FeedError> {
    let mut reader = reader;
    let (mut prefixes, mut named, mut total) = (Vec::new(), Vec::new(), 0u64);
    let mut line = Vec::with_capacity(128);
    for number in 1.. {
        line.clear();
        let limit = MAX_LINE as u64 + 1;
        if reader.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let found = if line.len() > MAX_LINE {
            skip_line(&mut reader)?;
            Err(LineError::TooLong)
        } else {
            let bytes = if number == 1 {
                line.strip_prefix(b"\xef\xbb\xbf")
            } else {
                None
            };
            entry(bytes.unwrap_or(&line), options.lenient)
        };
        match found {
            Ok(None) => {}
            Ok(Some(prefix)) if prefixes.len() < options.max_entries => prefixes.push(prefix),
            Ok(Some(_)) => {
                return Err(FeedError::TooMany {
                    max: options.max_entries,
                });
            }
            Err(error) => {
                total += 1;
                if named.len() < MAX_NAMED {
                    named.push(BadLine {
                        line: number,
                        text: quoted(&line),
                        error,
                    });
                }
            }
        }
    }
    if total > 0 {
        return Err(FeedError::BadLines { named, total });
    }
    Ok(prefixes)
}

/// What stands on a line, `None` when it is blank or a comment.
fn entry(line: &[u8], lenient: bool) -> Result<Option<Prefix>, LineError> {
    let end = line
        .iter()
        .position(|b| matches!(b, b'#' | b';'))
        .unwrap_or(line.len());
    let word = line.get(..end).unwrap_or(line).trim_ascii();
    if word.is_empty() {
        return Ok(None);
    }
    let word = std::str::from_utf8(word).map_err(|_| LineError::NotText)?;
    match word.parse() {
        Ok(prefix) => Ok(Some(prefix)),
        Err(PrefixError::HostBits(prefix)) if lenient => Ok(Some(prefix)),
        Err(error) => Err(error.into()),
    }
}

/// Reads on to the end of the line, keeping nothing.
fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let newline = buffer.iter().position(|&b| b == b'\n');
        let used = newline.map_or(buffer.len(), |at| at + 1);
        reader.consume(used);
        if newline.is_some() {
            return Ok(());
        }
    }
}

fn quoted(line: &[u8]) -> String {
    let line = line.trim_ascii_end();
    let head = line.get(..MAX_QUOTED).unwrap_or(line);
    let mut text = String::from_utf8_lossy(head).into_owned();
    if head.len() < line.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPTIONS: Options = Options {
        lenient: false,
        max_entries: 1000,
    };

    fn read(text: &[u8]) -> Result<Vec<String>, FeedError> {
        Ok(parse(text, OPTIONS)?
            .iter()
            .map(ToString::to_string)
            .collect())
    }

    #[test]
    fn reads_what_feeds_publish() {
        let feed = "\u{feff}; Spamhaus DROP List\r\n1.10.16.0/20 ; SBL256894\r\n\r\n\
                    # FireHOL\n192.0.2.7\t# host\n  2001:db8::/32\n2001:db8::1#x";
        assert_eq!(
            read(feed.as_bytes()).unwrap(),
            ["1.10.16.0/20", "192.0.2.7", "2001:db8::/32", "2001:db8::1"]
        );
        assert!(read(b"").unwrap().is_empty());
    }

    #[test]
    fn names_bad_lines_and_takes_nothing() {
        let error = read(b"10.0.0.1\nhello\n10.0.0.1/8\n\xff\xfe\n10.0.0.0/33\n").unwrap_err();
        let FeedError::BadLines { named, total } = &error else {
            panic!("{error}");
        };
        let lines: Vec<u64> = named.iter().map(|b| b.line).collect();
        assert_eq!((lines, *total), (vec![2, 3, 4, 5], 4));
        let text = error.to_string();
        assert!(
            text.contains("line 3: \"10.0.0.1/8\"") && text.contains("10.0.0.0/8"),
            "{text}"
        );
        assert!(text.contains("--lenient"), "{text}");
    }

    #[test]
    fn names_only_the_first_of_many() {
        let error = read("x\n".repeat(100).as_bytes()).unwrap_err().to_string();
        assert_eq!(error.matches("line ").count(), MAX_NAMED, "{error}");
        assert!(
            error.contains("100 bad line(s)") && error.contains("and 80 more"),
            "{error}"
        );
    }

    #[test]
    fn lenient_clears_host_bits_and_nothing_else() {
        let lenient = Options {
            lenient: true,
            ..OPTIONS
        };
        let prefixes = parse(&b"10.1.2.3/8\n"[..], lenient).unwrap();
        assert_eq!(prefixes, ["10.0.0.0/8".parse().unwrap()]);
        assert!(parse(&b"10.1.2.3/33\n"[..], lenient).is_err());
    }

    #[test]
    fn long_lines_are_skipped_whole() {
        let mut feed = vec![b'1'; 3 * MAX_LINE];
        feed.extend(b"\n10.0.0.1\nx\n");
        let FeedError::BadLines { named, .. } = read(&feed).unwrap_err() else {
            panic!("accepted");
        };
        assert_eq!((named[0].line, named[0].error), (1, LineError::TooLong));
        assert_eq!(named[1].line, 3);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let options = Options {
            max_entries: 2,
            ..OPTIONS
        };
        assert!(matches!(
            parse(&b"10.0.0.1\n10.0.0.2\n10.0.0.3\n"[..], options),
            Err(FeedError::TooMany { max: 2 })
        ));
    }

    proptest! {
        #[test]
        fn survives_anything(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = parse(&bytes[..], OPTIONS);
        }

        #[test]
        fn reads_back_what_is_written(addrs in proptest::collection::vec(any::<u32>(), 0..50)) {
            let prefixes: Vec<Prefix> =
                addrs.iter().map(|a| Prefix::host(std::net::Ipv4Addr::from(*a).into())).collect();
            let text: String = prefixes.iter().map(|p| format!("{p} ; note\r\n")).collect();
            prop_assert_eq!(parse(text.as_bytes(), OPTIONS).unwrap(), prefixes);
        }
    }
}
