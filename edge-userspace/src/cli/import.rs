//! `edge blacklist import` and `edge allow import`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

use edge_common::addr::Prefix;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Error, lists::Added, output::Out, unexpected};
use crate::{
    control::{
        client::{Client, ImportStage},
        protocol::{ImportHeader, Response},
    },
    feed::{self, FeedError},
};

/// The most entries read from a feed, so that an endless one ends: more than
/// the largest tables hold.
const MAX_ENTRIES: usize = 32_000_000;

/// Reads the feed `file` (`-`: standard input) and imports all of it or nothing.
pub(super) fn import<W: Write>(
    file: &Path,
    lenient: bool,
    header: ImportHeader,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    let prefixes = if file == Path::new("-") {
        read(io::stdin().lock(), "standard input", lenient)?
    } else {
        let name = file.display().to_string();
        let opened = File::open(file).map_err(|e| Error::Input(format!("{name}: {e}")))?;
        read(BufReader::with_capacity(1 << 20, opened), &name, lenient)?
    };
    let list = header.list;
    if header.replace && prefixes.is_empty() {
        return Err(Error::Input(format!(
            "{}: no entries in it, and --replace would remove those of all former imports; if that is meant, use flush --origin feed",
            file.display()
        )));
    }
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
    match answer? {
        Response::Added {
            added,
            updated,
            removed,
        } => {
            let added = Added {
                list,
                added,
                updated,
                removed,
            };
            Ok(out.either(&added, || added.text())?)
        }
        other => Err(unexpected(socket, &other)),
    }
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
