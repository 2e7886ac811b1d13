//! `edge blacklist`, `edge allow` and `edge lookup`.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal as _, Write},
    net::IpAddr,
    path::Path,
};

use edge_common::{
    addr::Prefix,
    reason::{Reason, Verdict},
};
use serde::Serialize;

use super::{
    Error,
    args::{ListCommand, Terms},
    ask, import,
    output::Out,
    text::{Column, Table, count, span},
    unexpected,
};
use crate::{
    clock::Now,
    control::{
        client::{Client, ClientError},
        protocol::{Addition, Entry, ImportHeader, Lookup, MAX_PAGE, RangeRole, Request, Response},
    },
    entry::{FeedName, List, Origin, Source},
};

/// Carries out a subcommand on one of the lists.
pub(super) fn execute<W: Write>(
    list: List,
    command: ListCommand,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    match command {
        ListCommand::Add { prefixes, terms } => add(list, prefixes, terms, socket, out),
        ListCommand::Del { prefixes } => del(list, prefixes, socket, out),
        ListCommand::List {
            within,
            feed,
            limit,
        } => {
            let mut shown = Shown::new(Now::read().unix_ms);
            let which = Which {
                list,
                within,
                feed,
                limit,
            };
            each_page(which, socket, |entries| shown.page(entries, out))?;
            shown.end(list, out)
        }
        ListCommand::Export { within, feed } => {
            let which = Which {
                list,
                within,
                feed,
                limit: None,
            };
            each_page(which, socket, |entries| {
                for entry in entries {
                    out.either(entry, || export_line(entry))?;
                }
                Ok(())
            })
        }
        ListCommand::Import {
            file,
            terms,
            lenient,
            feed,
            replace,
        } => {
            let header = ImportHeader {
                feed,
                replace,
                ..header(list, Origin::Feed, terms)
            };
            import::import(&file, lenient, header, socket, out)
        }
        ListCommand::Flush { origin, feed, yes } => flush(list, origin, feed, yes, socket, out),
    }
}

fn header(list: List, origin: Origin, terms: Terms) -> ImportHeader {
    ImportHeader {
        list,
        origin,
        feed: None,
        ttl_s: terms.ttl_s,
        note: terms.note,
        replace: false,
    }
}

/// Tells what an addition or an import did.
pub(super) fn tell_added<W: Write>(
    answer: &Response,
    list: List,
    feed: Option<FeedName>,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Added {
        list: List,
        feed: Option<FeedName>,
        added: u64,
        updated: u64,
        removed: u64,
    }
    let &Response::Added {
        added,
        updated,
        removed,
    } = answer
    else {
        return Err(unexpected(socket, answer));
    };
    let done = Added {
        list,
        feed,
        added,
        updated,
        removed,
    };
    let text = || {
        let mut text = list.name().to_owned();
        // Writing to a string cannot fail.
        if let Some(feed) = &done.feed {
            let _ = write!(text, ", feed {feed}");
        }
        let _ = write!(text, ": {} added", count(added));
        for (n, what) in [(updated, "updated"), (removed, "removed")] {
            if n > 0 {
                let _ = write!(text, ", {} {what}", count(n));
            }
        }
        text.push('\n');
        text
    };
    Ok(out.either(&done, text)?)
}

fn add<W: Write>(
    list: List,
    prefixes: Vec<Prefix>,
    terms: Terms,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    let request = Request::Add(Addition {
        header: header(list, Origin::Cli, terms),
        prefixes,
    });
    tell_added(&ask(socket, request)?, list, None, socket, out)
}

fn del<W: Write>(
    list: List,
    prefixes: Vec<Prefix>,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Removed {
        list: List,
        removed: u64,
        missing: Vec<String>,
    }
    match ask(socket, Request::Remove { list, prefixes })? {
        Response::Removed { removed, missing } => {
            let removed = Removed {
                list,
                removed,
                missing: missing.iter().map(ToString::to_string).collect(),
            };
            if removed.missing.is_empty() {
                let text = || format!("{}: {} removed\n", list.name(), count(removed.removed));
                return Ok(out.either(&removed, text)?);
            }
            if out.json {
                out.object(&removed)?;
                return Err(Error::Told);
            }
            Err(Error::Failed(format!(
                "nothing was removed; not on the {}: {} (`edge lookup` tells what covers an address)",
                list.name(),
                removed.missing.join(", ")
            )))
        }
        other => Err(unexpected(socket, &other)),
    }
}

fn flush<W: Write>(
    list: List,
    origin: Option<Origin>,
    feed: Option<FeedName>,
    yes: bool,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Flushed {
        list: List,
        removed: u64,
    }
    // First of all, so that nobody is asked in vain.
    let mut client = Client::connect(socket)?;
    if !yes && !confirmed(list, origin, feed.as_ref())? {
        return Err(Error::Failed("nothing was removed".to_owned()));
    }
    match client.call(Request::Flush { list, origin, feed })? {
        Response::Flushed { removed } => Ok(out.either(&Flushed { list, removed }, || {
            format!("{}: {} removed\n", list.name(), count(removed))
        })?),
        other => Err(unexpected(socket, &other)),
    }
}

fn confirmed(list: List, origin: Option<Origin>, feed: Option<&FeedName>) -> Result<bool, Error> {
    if !io::stdin().is_terminal() {
        return Err(Error::Input(
            "a flush is not undone, and nobody is here to confirm it; give --yes".to_owned(),
        ));
    }
    let which = match (origin, feed) {
        (_, Some(feed)) => format!(" of the feed {feed}"),
        (Some(origin), None) => format!(" of origin {}", origin.name()),
        (None, None) => String::new(),
    };
    write!(
        io::stderr(),
        "Remove all entries{which} from the {}? [y/N] ",
        list.name()
    )?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Which entries are asked for.
struct Which {
    list: List,
    within: Option<Prefix>,
    feed: Option<FeedName>,
    limit: Option<u64>,
}

/// Fetches a list page by page.
fn each_page(
    which: Which,
    socket: &Path,
    mut each: impl FnMut(&[Entry]) -> Result<(), Error>,
) -> Result<(), Error> {
    let Which {
        list,
        within,
        feed,
        limit,
    } = which;
    let mut client = Client::connect(socket)?;
    let mut left = limit.unwrap_or(u64::MAX);
    let mut after = None;
    while left > 0 {
        // Of a feed, nobody knows how many of a page are left.
        let limit = match feed {
            None => u32::try_from(left).unwrap_or(MAX_PAGE).min(MAX_PAGE),
            Some(_) => MAX_PAGE,
        };
        let request = Request::List {
            list,
            within,
            after,
            limit,
        };
        let answer = match client.call(request.clone()) {
            // Somebody who reads with a pager takes longer than the daemon
            // waits. A page depends on nothing that came before.
            Err(ClientError::Lost { .. }) => {
                client = Client::connect(socket)?;
                client.call(request)
            }
            answer => answer,
        };
        match answer? {
            Response::Page { mut entries, next } => {
                if feed.is_some() {
                    entries.retain(|e| e.feed == feed);
                }
                entries.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left = left.saturating_sub(entries.len() as u64);
                each(&entries)?;
                // A daemon that does not get ahead must not keep us for ever.
                if next.is_none() || next <= after {
                    return Ok(());
                }
                after = next;
            }
            other => return Err(unexpected(socket, &other)),
        }
    }
    Ok(())
}

/// A line that `import` reads again.
fn export_line(entry: &Entry) -> String {
    let mut line = entry.prefix.to_string();
    // Writing to a string cannot fail.
    if let Some(feed) = &entry.feed {
        let _ = write!(line, " ; feed {feed}");
    }
    if !entry.note.is_empty() {
        let _ = write!(line, " ; {}", entry.note);
    }
    line.push('\n');
    line
}

/// A list as a table that is printed while it comes in.
struct Shown {
    now_unix_ms: u64,
    widths: [usize; 5],
    entries: u64,
}

const COLUMNS: [Column; 5] = [
    Column::Left("PREFIX"),
    Column::Left("ORIGIN"),
    Column::Left("EXPIRES"),
    Column::Right("HITS"),
    Column::Left("NOTE"),
];

impl Shown {
    const fn new(now_unix_ms: u64) -> Self {
        Self {
            now_unix_ms,
            widths: [0; 5],
            entries: 0,
        }
    }

    fn page<W: Write>(&mut self, entries: &[Entry], out: &mut Out<W>) -> Result<(), Error> {
        if out.json {
            for entry in entries {
                out.object(entry)?;
            }
            return Ok(());
        }
        if entries.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(COLUMNS);
        for entry in entries {
            table.row(row(entry, self.now_unix_ms));
        }
        out.text(&table.render(&mut self.widths, self.entries == 0))?;
        self.entries += entries.len() as u64;
        Ok(())
    }

    fn end<W: Write>(&self, list: List, out: &mut Out<W>) -> Result<(), Error> {
        if !out.json && self.entries == 0 {
            out.text(&format!("{}: no entries\n", list.name()))?;
        }
        Ok(())
    }
}

fn row(entry: &Entry, now_unix_ms: u64) -> [String; 5] {
    [
        entry.prefix.to_string(),
        Source::new(entry.origin, entry.feed.clone()).to_string(),
        expiry(entry.expires_unix_ms, now_unix_ms),
        count(u64::from(entry.hits)),
        entry.note.clone(),
    ]
}

fn expiry(expires_unix_ms: Option<u64>, now_unix_ms: u64) -> String {
    match expires_unix_ms {
        None => "never".to_owned(),
        Some(at) if at <= now_unix_ms => "expired".to_owned(),
        Some(at) => format!("in {}", span(at - now_unix_ms)),
    }
}

/// `edge lookup`.
pub(super) fn lookup<W: Write>(
    address: IpAddr,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    match ask(socket, Request::Lookup { address })? {
        Response::Lookup(lookup) => {
            Ok(out.either(&lookup, || lookup_text(&lookup, Now::read().unix_ms))?)
        }
        other => Err(unexpected(socket, &other)),
    }
}

fn lookup_text(lookup: &Lookup, now_unix_ms: u64) -> String {
    let outcome = &lookup.outcome;
    let what = match (outcome.reason, outcome.reason.verdict()) {
        (Reason::Pass, _) if outcome.limited => "passes, within the limits".to_owned(),
        (Reason::Pass, _) => "passes".to_owned(),
        (reason, Verdict::Pass) => format!("passes, {}", reason.name()),
        (reason, Verdict::Drop) => format!("dropped, {}", reason.name()),
        (reason, Verdict::Reply) => format!("answered, {}", reason.name()),
        (reason, Verdict::Forward) => format!("forwarded, {}", reason.name()),
    };
    // Writing to a string cannot fail, here and below.
    let mut text = format!("{}: {what}\n", lookup.address);
    if outcome.reason != Reason::Pass {
        let _ = writeln!(text, "{}", outcome.reason.sentence());
    }
    if let Some(reason) = outcome.would_drop {
        let _ = writeln!(
            text,
            "In dry run, would be dropped, {}: {}",
            reason.name(),
            reason.sentence()
        );
    }
    if !lookup.entries.is_empty() || !lookup.ranges.is_empty() {
        let mut table = Table::new([
            Column::Left("COVERED BY"),
            COLUMNS[0],
            COLUMNS[1],
            COLUMNS[2],
            COLUMNS[3],
            COLUMNS[4],
        ]);
        for range in &lookup.ranges {
            let role = match range.role {
                RangeRole::Management => "management",
                RangeRole::Bogon => "bogon",
                RangeRole::Limits => "limits",
            };
            let [none, prefix] = [String::new(), range.prefix.to_string()];
            table.row([
                role.to_owned(),
                prefix,
                Origin::File.name().to_owned(),
                expiry(None, now_unix_ms),
                none.clone(),
                none,
            ]);
        }
        for entry in &lookup.entries {
            let [prefix, origin, expires, hits, note] = row(entry, now_unix_ms);
            let list = entry.list.name().to_owned();
            table.row([list, prefix, origin, expires, hits, note]);
        }
        let _ = write!(text, "\n{}", table.text());
    }
    text
}

#[cfg(test)]
mod tests {
    use edge_common::decide::Standing;

    use super::*;
    use crate::control::protocol::{Outcome, Range};

    const NOW: u64 = 1_795_325_503_000;

    fn entry(prefix: &str, note: &str, expires: Option<u64>) -> Entry {
        Entry {
            prefix: prefix.parse().unwrap(),
            list: List::Black,
            origin: Origin::Cli,
            feed: None,
            created_unix_ms: NOW - 1000,
            expires_unix_ms: expires,
            note: note.to_owned(),
            hits: 1234,
        }
    }

    fn shown(json: bool, pages: &[&[Entry]]) -> String {
        let mut text = Vec::new();
        let mut out = Out::new(&mut text, json);
        let mut shown = Shown::new(NOW);
        for page in pages {
            shown.page(page, &mut out).unwrap();
        }
        shown.end(List::Black, &mut out).unwrap();
        out.flush().unwrap();
        drop(out);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_list_as_people_see_it() {
        let first = [
            entry("192.0.2.7", "port scan", Some(NOW + 5_400_000)),
            entry("198.51.100.0/24", "", None),
        ];
        let second = [entry("2001:db8::/32", "x", Some(NOW))];
        assert_eq!(
            shown(false, &[&first, &second]),
            "\
PREFIX           ORIGIN  EXPIRES     HITS  NOTE
192.0.2.7        cli     in 1h 30m  1,234  port scan
198.51.100.0/24  cli     never      1,234
2001:db8::/32    cli     expired    1,234  x
"
        );
        assert_eq!(shown(false, &[&[]]), "blacklist: no entries\n");
        assert_eq!(shown(true, &[&[]]), "");
    }

    #[test]
    fn a_list_as_programs_see_it() {
        let page = [entry("192.0.2.7", "a\"b", None)];
        assert_eq!(
            shown(true, &[&page]),
            "{\"prefix\":\"192.0.2.7\",\"list\":\"blacklist\",\"origin\":\"cli\",\"feed\":null,\"created_unix_ms\":1795325502000,\"expires_unix_ms\":null,\"note\":\"a\\\"b\",\"hits\":1234}\n"
        );
    }

    #[test]
    fn an_export_has_a_prefix_a_line() {
        assert_eq!(export_line(&entry("::1", "", None)), "::1\n");
        let mut entry = entry("10.0.0.0/8", "SBL1 ; more", None);
        assert_eq!(export_line(&entry), "10.0.0.0/8 ; SBL1 ; more\n");
        entry.feed = "drop".parse().ok();
        assert_eq!(
            export_line(&entry),
            "10.0.0.0/8 ; feed drop ; SBL1 ; more\n"
        );
    }

    #[test]
    fn a_lookup_tells_what_happens_and_why() {
        let mut lookup = Lookup {
            address: "192.0.2.7".parse().unwrap(),
            standing: Standing::Blacklisted,
            entries: vec![entry("192.0.2.0/24", "scan", None)],
            ranges: vec![Range {
                prefix: "192.0.2.0/24".parse().unwrap(),
                role: RangeRole::Bogon,
            }],
            outcome: Outcome {
                reason: Reason::Blacklisted,
                would_drop: None,
                limited: false,
            },
        };
        assert_eq!(
            lookup_text(&lookup, NOW),
            "\
192.0.2.7: dropped, blacklisted
The source is on the blacklist.

COVERED BY  PREFIX        ORIGIN  EXPIRES   HITS  NOTE
bogon       192.0.2.0/24  file    never
blacklist   192.0.2.0/24  cli     never    1,234  scan
"
        );
        lookup.entries.clear();
        lookup.ranges.clear();
        lookup.standing = Standing::Unlisted;
        lookup.outcome = Outcome {
            reason: Reason::Pass,
            would_drop: Some(Reason::Bogon),
            limited: true,
        };
        assert_eq!(
            lookup_text(&lookup, NOW),
            "\
192.0.2.7: passes, within the limits
In dry run, would be dropped, bogon: The source is an address that cannot be a sender on this network.
"
        );
        assert_eq!(
            serde_json::to_string(&lookup).unwrap(),
            r#"{"address":"192.0.2.7","standing":"unlisted","entries":[],"ranges":[],"outcome":{"reason":"pass","would_drop":"bogon","limited":true}}"#
        );
    }
}
