//! `edge status` and `edge reload`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal as _, Write},
    path::Path,
    time::Duration,
};

use edge_common::{
    defence::{ServiceCounter, When},
    reason::{Reason, Verdict},
};
use serde::Serialize;

use super::{
    Error, ask, attacks,
    output::Out,
    proxy,
    text::{Column, Table, count, date_time, scaled, span},
    unexpected,
};
use crate::{
    control::{
        client::{Client, ClientError},
        protocol::{Request, Response},
    },
    status::{
        AttachMode, InterfaceStatus, ServiceStatus, Status, Traffic,
        attack::{Attack, KindCount},
    },
};

/// Reasons that are shown; the rest is in the JSON form and the metrics.
const TOP_REASONS: usize = 10;

/// What is said of a service that is to be defended and cannot be.
const NOT_DEFENDED: &str = "NOT DEFENDED (no listener is ready)";

/// `edge status`.
pub(super) fn status<W: Write>(socket: &Path, out: &mut Out<W>) -> Result<(), Error> {
    match ask(socket, Request::Status {})? {
        Response::Status(status) => Ok(out.either(&status, || render(&status))?),
        other => Err(unexpected(socket, &other)),
    }
}

/// `edge status --watch`.
pub(super) fn watch<W: Write>(
    every: Duration,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    let in_place = !out.json && std::io::stdout().is_terminal();
    let mut client = Client::connect(socket)?;
    let gone = |e| match e {
        ClientError::Lost { path, .. } => Error::Gone(path),
        e => e.into(),
    };
    for turn in 0u64.. {
        let status = match client.call(Request::Status {}).map_err(gone)? {
            Response::Status(status) => status,
            other => return Err(unexpected(socket, &other)),
        };
        out.either(&status, || {
            let text = render(&status);
            match in_place.then(screen) {
                Some((rows, columns)) => drawn(fitting(&text, rows, columns), turn == 0),
                None if turn == 0 => text,
                None => format!("\n{text}"),
            }
        })?;
        out.flush()?;
        client.pause(every).map_err(gone)?;
    }
    Ok(())
}

/// Rows and columns of the terminal.
fn screen() -> (usize, usize) {
    // SAFETY: all zeros is a valid value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live value of the type that this request writes.
    let known = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) } == 0;
    match (known, size.ws_row, size.ws_col) {
        (true, rows @ 1.., columns @ 1..) => (rows.into(), columns.into()),
        _ => (24, 80),
    }
}

/// The first lines of a text, as many as a screen holds with the cursor below them:
/// attacks stand above everything else and must not scroll away.
fn fitting(text: &str, rows: usize, columns: usize) -> &str {
    let (mut used, mut end) = (0, 0);
    for line in text.split_inclusive('\n') {
        used += line.trim_end().chars().count().div_ceil(columns).max(1);
        if used >= rows {
            break;
        }
        end += line.len();
    }
    text.get(..end).unwrap_or(text)
}

/// A text over the last one, with the rest of each line and of the screen cleared
/// (ECMA-48: CUP, EL, ED).
fn drawn(text: &str, is_first: bool) -> String {
    let start = if is_first { "\x1b[2J\x1b[H" } else { "\x1b[H" };
    format!("{start}{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// `edge reload`.
pub(super) fn reload<W: Write>(socket: &Path, out: &mut Out<W>) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Reloaded {
        generation: u64,
        notes: Vec<String>,
    }
    let (generation, notes) = reload_request(socket)?;
    let reloaded = Reloaded { generation, notes };
    out.either(&reloaded, || {
        let mut text = format!("Generation {generation} is in force.\n");
        for note in &reloaded.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    })?;
    Ok(())
}

/// Has the daemon reload: the generation, and what there is to say of it.
pub(super) fn reload_request(socket: &Path) -> Result<(u64, Vec<String>), Error> {
    match ask(socket, Request::Reload {})? {
        Response::Reloaded { generation, notes } => Ok((generation, notes)),
        other => Err(unexpected(socket, &other)),
    }
}

fn render(s: &Status) -> String {
    let mut t = format!(
        "edge {}, up {} (since {}), process {}\n",
        s.version,
        span(s.uptime_ms),
        date_time(s.started_unix_ms),
        s.pid
    );
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        t,
        "configuration {}, generation {} since {}",
        s.config.file,
        s.config.generation,
        date_time(s.config.since_unix_ms)
    );
    if let (Some(error), Some(when)) = (&s.reloads.last_error, s.reloads.last_failure_unix_ms) {
        let _ = writeln!(t, "LAST RELOAD REFUSED at {}: {error}", date_time(when));
    }
    for i in &s.interfaces {
        let _ = match i.mode {
            Some(AttachMode::Native) => Ok(()),
            Some(AttachMode::Generic) => {
                writeln!(t, "{}: GENERIC MODE, many times slower than native", i.name)
            }
            None => writeln!(
                t,
                "{}: NOT PROTECTED: {}",
                i.name,
                i.problem
                    .as_deref()
                    .unwrap_or("the program is not attached")
            ),
        };
    }
    for x in s.services.iter().filter(|x| x.under_attack) {
        let since = x.attack_since_unix_ms;
        let since = since.map_or_else(String::new, |at| format!(" since {}", date_time(at)));
        let _ = write!(t, "{}: UNDER ATTACK{since}", x.name);
        let _ = match &x.attack {
            Some(attack) => {
                let lacks = x.lacks_listeners();
                writeln!(t, ": {}", told(attack, lacks.then_some(NOT_DEFENDED)))
            }
            None if x.lacks_listeners() => writeln!(t, ": {NOT_DEFENDED}"),
            None => writeln!(t),
        };
    }
    for attack in s.host_floods.iter().filter_map(|x| x.attack.as_ref()) {
        let since = date_time(attack.began_unix_ms);
        let name = &attack.service;
        let _ = writeln!(
            t,
            "{name}: UNDER ATTACK since {since}: {}",
            told(attack, None)
        );
    }
    // One that is always defended is so only where something listens.
    let always = |x: &&ServiceStatus| x.syn == When::Always.name() && !x.under_attack;
    for x in s.services.iter().filter(always) {
        if x.lacks_listeners() {
            let _ = writeln!(t, "{}: {NOT_DEFENDED}", x.name);
        }
    }
    t.push('\n');
    t.push_str(&interfaces(s));
    services(&mut t, s);
    if let Some(proxy) = &s.proxy {
        let _ = write!(t, "\n{}", proxy::section(proxy));
    }
    reasons(&mut t, s);
    tables(&mut t, s);
    t
}

/// Sums over the reasons of one verdict.
fn sum(interface: &InterfaceStatus, verdict: Verdict) -> Traffic {
    interface
        .reasons
        .iter()
        .filter(|c| c.reason.verdict() == verdict)
        .fold(Traffic::default(), |sum, c| add(sum, c.ended))
}

fn add(a: Traffic, b: Traffic) -> Traffic {
    Traffic {
        packets: a.packets.saturating_add(b.packets),
        bytes: a.bytes.saturating_add(b.bytes),
    }
}

fn interfaces(s: &Status) -> String {
    let mut table = Table::new([
        Column::Left("INTERFACE"),
        Column::Left("MODE"),
        Column::Left(""),
        Column::Right("PACKETS"),
        Column::Right("BYTES"),
        Column::Right("PACKETS/S"),
        Column::Right("BITS/S"),
    ]);
    for i in &s.interfaces {
        let would_drop = i
            .reasons
            .iter()
            .fold(Traffic::default(), |sum, c| add(sum, c.would_drop));
        let (passed, dropped) = (sum(i, Verdict::Pass), sum(i, Verdict::Drop));
        let replied = sum(i, Verdict::Reply);
        let mode = match i.mode {
            Some(AttachMode::Native) => "native",
            Some(AttachMode::Generic) => "GENERIC",
            None => "NONE",
        };
        let mut row = |head: [&str; 3], total: Traffic, at_start: Option<Traffic>| {
            let [packets_s, bits_s] = rates(total, at_start, s.uptime_ms);
            let [a, b, c] = head.map(str::to_owned);
            let bytes = scaled(total.bytes as f64, "B");
            table.row([a, b, c, count(total.packets), bytes, packets_s, bits_s]);
        };
        row([&i.name, mode, "passed"], passed, Some(i.passed_at_start));
        row(["", "", "dropped"], dropped, Some(i.dropped_at_start));
        if replied.packets > 0 {
            row(["", "", "answered"], replied, None);
        }
        if would_drop.packets > 0 {
            row(["", "", "would drop"], would_drop, None);
        }
    }
    table.text()
}

/// Packets and bits a second since the daemon started.
fn rates(total: Traffic, at_start: Option<Traffic>, uptime_ms: u64) -> [String; 2] {
    let Some(at_start) = at_start.filter(|_| uptime_ms > 0) else {
        return ["-".to_owned(), "-".to_owned()];
    };
    let rate = |now: u64, then: u64, unit: f64| {
        let value = now.saturating_sub(then) as f64 * unit * 1000.0 / uptime_ms as f64;
        // Two digits behind the point say enough of a slow rate.
        scaled((value * 100.0).round() / 100.0, "")
    };
    [
        rate(total.packets, at_start.packets, 1.0),
        rate(total.bytes, at_start.bytes, 8.0),
    ]
}

/// An attack that is on, and what is done about it, or `instead` of that.
fn told(attack: &Attack, instead: Option<&str>) -> String {
    let remedy = instead.unwrap_or(attack.remedied());
    format!(
        "{}, {remedy}{} (attack {})",
        floods(attack),
        attacks::got_through(attack),
        attack.id
    )
}

/// What an attack consists of now.
fn floods(attack: &Attack) -> String {
    let one = |k: &KindCount| format!("{} of {}/s", k.kind.flood(), scaled(k.per_second, ""));
    attack
        .kinds
        .iter()
        .map(one)
        .collect::<Vec<_>>()
        .join(" and ")
}

fn services(t: &mut String, s: &Status) {
    let mut how = Table::new([
        Column::Left("SERVICE"),
        Column::Left("MODE"),
        Column::Left("STATE"),
        Column::Right("PRESSURE"),
        Column::Right("SYNS/S"),
        Column::Right("TARGETS"),
        Column::Right("READY"),
    ]);
    let mut what = Table::new([
        Column::Left("SERVICE"),
        Column::Right("SYNS"),
        Column::Right("COOKIES"),
        Column::Right("VALID"),
        Column::Right("INVALID"),
        Column::Right("CHALLENGES"),
        Column::Right("VERIFIED"),
        Column::Right("CLOSED"),
        Column::Right("OUT OF STATE"),
        Column::Right("REFLECTED"),
    ]);
    for x in &s.services {
        let dry = if x.dry_run { ", dry run" } else { "" };
        let state = match (x.under_attack, x.defended) {
            (true, _) => "ATTACKED",
            (false, true) => "defended",
            (false, false) => "quiet",
        };
        how.row([
            x.name.clone(),
            format!("{}{dry}", x.syn),
            state.to_owned(),
            format!("{:.0} %", x.pressure * 100.0),
            scaled(x.syn_per_second, ""),
            count(x.targets.total),
            count(x.targets.ready),
        ]);
        let of = |c: ServiceCounter| count(x.counters.get(c.name()).copied().unwrap_or_default());
        what.row([
            x.name.clone(),
            of(ServiceCounter::Syns),
            of(ServiceCounter::CookiesSent),
            of(ServiceCounter::CookiesValid),
            of(ServiceCounter::CookiesInvalid),
            of(ServiceCounter::Challenges),
            of(ServiceCounter::Verified),
            of(ServiceCounter::Closed),
            of(ServiceCounter::OutOfState),
            of(ServiceCounter::Reflected),
        ]);
    }
    if !how.is_empty() {
        let _ = write!(t, "\n{}\n{}", how.text(), what.text());
    }
}

fn reasons(t: &mut String, s: &Status) {
    let mut by_reason: BTreeMap<Reason, [Traffic; 2]> = BTreeMap::new();
    for c in s.interfaces.iter().flat_map(|i| &i.reasons) {
        let [ended, would_drop] = by_reason.entry(c.reason).or_default();
        *ended = add(*ended, c.ended);
        *would_drop = add(*would_drop, c.would_drop);
    }
    for (title, which) in [("DROPPED FOR", 0), ("WOULD DROP FOR", 1)] {
        let mut top: Vec<(Reason, Traffic)> = by_reason
            .iter()
            .filter(|(reason, _)| match which {
                0 => reason.verdict() == Verdict::Drop,
                _ => reason.verdict() != Verdict::Pass,
            })
            .map(|(reason, both)| (*reason, both[which]))
            .filter(|(_, traffic)| traffic.packets > 0)
            .collect();
        top.sort_by_key(|(_, traffic)| std::cmp::Reverse(traffic.packets));
        let all: u64 = top
            .iter()
            .fold(0, |n, (_, traffic)| n.saturating_add(traffic.packets));
        let mut table = Table::new([
            Column::Left(title),
            Column::Right("PACKETS"),
            Column::Right("BYTES"),
            Column::Right("SHARE"),
        ]);
        for (reason, traffic) in top.iter().take(TOP_REASONS) {
            table.row([
                reason.name().to_owned(),
                count(traffic.packets),
                scaled(traffic.bytes as f64, "B"),
                percent(traffic.packets, all),
            ]);
        }
        if !table.is_empty() {
            let _ = write!(t, "\n{}", table.text());
        }
        if top.len() > TOP_REASONS {
            let _ = writeln!(t, "and {} more reasons", top.len() - TOP_REASONS);
        }
    }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

fn tables(t: &mut String, s: &Status) {
    let mut table = Table::new([
        Column::Left("TABLE"),
        Column::Right("ENTRIES"),
        Column::Right("CAPACITY"),
        Column::Right("FILL"),
    ]);
    for x in &s.tables {
        table.row([
            x.table.clone(),
            count(x.entries),
            count(x.capacity),
            percent(x.entries, x.capacity),
        ]);
    }
    let mut lists = Table::new([
        Column::Left("LIST"),
        Column::Left("FAMILY"),
        Column::Left("KIND"),
        Column::Right("ENTRIES"),
    ]);
    for l in &s.lists {
        let [list, family, kind] =
            [l.list.name(), l.family.name(), l.kind.name()].map(str::to_owned);
        lists.row([list, family, kind, count(l.entries)]);
    }
    let _ = write!(t, "\n{}\n{}", table.text(), lists.text());
    let l = &s.limiter;
    let _ = writeln!(
        t,
        "\nlimiter: {} sources seen, {} recycled, {} evicted while active{}",
        count(l.claimed),
        count(l.recycled),
        count(l.evicted),
        if l.evicted > 0 {
            " (raise tables.limiter_sources if this grows)"
        } else {
            ""
        }
    );
    if let Some(balance) = &s.balance {
        let f = &balance.flows;
        let _ = write!(
            t,
            "\nbackends\n{}flows: {} of {}; {} packets of known flows, {} of others; {} refused\n",
            super::backends::text(balance),
            count(f.live),
            count(f.capacity),
            count(f.hits),
            count(f.misses),
            count(f.refused)
        );
        for source in &balance.sources {
            let _ = writeln!(
                t,
                "nat: {}: {} of {} ports",
                source.name(),
                count(source.ports.into()),
                count(source.capacity.into())
            );
        }
        if f.quic_routed + f.quic_unknown_id > 0 {
            let _ = writeln!(
                t,
                "QUIC: {} packets went where their connection id says; {} with an unknown one",
                count(f.quic_routed),
                count(f.quic_unknown_id)
            );
        }
    }
    if s.stage_missing > 0 {
        let _ = writeln!(
            t,
            "UNDEFENDED: {} packets met no flood defence, for its program was missing; restart the \
             daemon",
            count(s.stage_missing)
        );
    }
    let e = &s.events;
    let _ = writeln!(
        t,
        "events: {} sampled, {} lost in the kernel, {} lost by followers",
        count(e.read),
        count(e.lost_in_kernel),
        count(e.lost_by_followers)
    );
}

#[cfg(test)]
mod tests;
