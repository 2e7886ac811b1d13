//! `edge blacklist import` and `edge allow import`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

use edge_common::addr::Prefix;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Error, lists::tell_added, output::Out};
use crate::{
    control::{
        client::{Client, ImportStage},
        protocol::{FeedName, ImportHeader},
    },
    entry::MAX_FEED_NAME,
    feed::{self, FeedError},
};

/// The most entries read from a feed, so that an endless one ends: more than
/// the largest tables hold.
const MAX_ENTRIES: usize = 32_000_000;

/// Reads the feed `file` (`-`: standard input) and imports all of it or nothing.
/// Without a name, which the command line asks for where it replaces, the feed
/// has that of the file.
pub(super) fn import<W: Write>(
    file: &Path,
    lenient: bool,
    header: ImportHeader,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    let (prefixes, named) = if file == Path::new("-") {
        let prefixes = read(io::stdin().lock(), "standard input", lenient)?;
        (prefixes, FeedName::default())
    } else {
        let name = file.display().to_string();
        let opened = File::open(file).map_err(|e| Error::Input(format!("{name}: {e}")))?;
        // The name of a pipe says nothing of what comes through it.
        let named = match opened.metadata() {
            Ok(facts) if facts.is_file() => feed_of(file),
            _ => FeedName::default(),
        };
        let opened = BufReader::with_capacity(1 << 20, opened);
        (read(opened, &name, lenient)?, named)
    };
    let feed = header.feed.unwrap_or(named);
    if header.replace && prefixes.is_empty() {
        return Err(Error::Input(format!(
            "{}: no entries in it, and --replace would remove all those of the feed {feed}; if that is meant, use flush --feed {feed}",
            file.display()
        )));
    }
    let (list, feed) = (header.list, Some(feed));
    let header = ImportHeader {
        feed: feed.clone(),
        ..header
    };
    let bar = bar(prefixes.len() as u64);
    let answer = Client::connect(socket)?.import(header, &prefixes, &mut |stage, done, total| {
        bar.set_message(match stage {
            ImportStage::Sent => "sending",
            ImportStage::Applied => "putting into force",
        });
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    tell_added(&answer?, list, feed, socket, out)
}

/// The name of a feed after its file: without the extension, and with `-` for
/// what cannot stand in such a name.
fn feed_of(file: &Path) -> FeedName {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let sound = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name: String = stem
        .chars()
        .map(|c| if sound(c) { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(MAX_FEED_NAME)
        .collect();
    name.parse().unwrap_or_default()
}

fn read(feed: impl BufRead, name: &str, lenient: bool) -> Result<Vec<Prefix>, Error> {
    let options = feed::Options {
        lenient,
        max_entries: MAX_ENTRIES,
    };
    feed::parse(feed, options).map_err(|e| match e {
        FeedError::Read(_) => Error::Failed(format!("{name}: {e}")),
        e => Error::Input(format!("{name}: {e}")),
    })
}

/// A bar on stderr, which is not drawn where that is no terminal.
fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    // The template is our own; without it the bar only looks different.
    if let Ok(style) =
        ProgressStyle::with_template("{msg:>18} {wide_bar} {human_pos} of {human_len} {eta:>4}")
    {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feeds_are_named_after_their_files() {
        for (file, name) in [
            ("/var/lib/feeds/drop.txt", "drop"),
            ("firehol_level1.netset", "firehol_level1"),
            ("drop-v6.2.txt", "drop-v6.2"),
            ("my list (1).txt", "my-list--1-"),
            (".hidden", "hidden"),
            ("é", "default"),
            ("..", "default"),
        ] {
            assert_eq!(feed_of(Path::new(file)).as_str(), name, "{file}");
        }
        let long = format!("{}.txt", "x".repeat(200));
        assert_eq!(feed_of(Path::new(&long)).as_str().len(), MAX_FEED_NAME);
    }
}
