//! `edge attacks`.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Error,
    args::AttacksCommand,
    ask,
    output::Out,
    pcap,
    text::{Column, Table, count, date_time, scaled, span},
    unexpected,
};
use crate::{
    control::protocol::{Event, Request, Response},
    status::attack::{Attack, Share},
};

pub(super) fn execute<W: Write>(
    command: AttacksCommand,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    match command {
        AttacksCommand::List { service } => list(service.as_deref(), socket, out),
        AttacksCommand::Show { id, pcap, force } => show(id, pcap.as_deref(), force, socket, out),
    }
}

fn list<W: Write>(service: Option<&str>, socket: &Path, out: &mut Out<W>) -> Result<(), Error> {
    let mut attacks = match ask(socket, Request::Attacks {})? {
        Response::Attacks(attacks) => attacks,
        other => return Err(unexpected(socket, &other)),
    };
    attacks.retain(|a| service.is_none_or(|name| a.service == name));
    if out.json {
        for attack in &attacks {
            out.object(attack)?;
        }
    } else {
        out.text(&table(&attacks))?;
    }
    Ok(())
}

fn table(attacks: &[Attack]) -> String {
    let mut table = Table::new([
        Column::Right("ID"),
        Column::Left("SERVICE"),
        Column::Left("BEGAN"),
        Column::Right("LASTED"),
        Column::Left("KINDS"),
        Column::Right("PEAK/S"),
        Column::Left("REMEDY"),
        Column::Right("CLIENTS"),
    ]);
    for a in attacks {
        let kinds: Vec<&str> = a.kinds.iter().map(|k| k.kind.name()).collect();
        let peak = { a.kinds.iter() }
            .map(|k| k.peak_per_second)
            .fold(0.0, f64::max);
        table.row([
            a.id.to_string(),
            a.service.clone(),
            date_time(a.began_unix_ms),
            lasted(a).unwrap_or_else(|| "goes on".to_owned()),
            kinds.join(", "),
            scaled(peak, ""),
            a.remedy.name().to_owned(),
            match a.knows_clients() {
                true => count(a.clients),
                false => "-".to_owned(),
            },
        ]);
    }
    if table.is_empty() {
        return "no attacks\n".to_owned();
    }
    table.text()
}

/// How many clients got through, behind what is done, where that is known.
pub(super) fn got_through(attack: &Attack) -> String {
    match attack.knows_clients() {
        true => format!(", {} clients got through", count(attack.clients)),
        false => String::new(),
    }
}

/// How long an attack lasted that is over.
fn lasted(attack: &Attack) -> Option<String> {
    let ended = attack.ended_unix_ms?;
    Some(span(ended.saturating_sub(attack.began_unix_ms)))
}

fn show<W: Write>(
    id: u64,
    file: Option<&Path>,
    force: bool,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Shown<'a> {
        attack: &'a Attack,
        samples: &'a [Event],
        pcap: Option<&'a Path>,
    }
    let (attack, samples) = match ask(socket, Request::Attack { id })? {
        Response::Attack { attack, samples } => (attack, samples),
        other => return Err(unexpected(socket, &other)),
    };
    if let Some(file) = file {
        let packets: Option<Vec<pcap::Packet>> = samples.iter().map(packet).collect();
        let packets = packets.ok_or_else(|| {
            Error::Failed("a sampled packet of the daemon is not in hexadecimal".to_owned())
        })?;
        write(file, &pcap::file(&packets), force)?;
    }
    let shown = Shown {
        attack: &attack,
        samples: &samples,
        pcap: file,
    };
    out.either(&shown, || {
        let mut t = render(&attack, samples.len());
        if let Some(file) = file {
            // Writing to a string cannot fail.
            let _ = writeln!(
                t,
                "\n{} packets are in {}",
                count(samples.len() as u64),
                file.display()
            );
        }
        t
    })?;
    Ok(())
}

fn render(a: &Attack, samples: usize) -> String {
    let mut t = format!(
        "attack {} on {}: {}\nbegan {}, ",
        a.id,
        a.service,
        a.floods(),
        date_time(a.began_unix_ms)
    );
    // Writing to a string cannot fail, here and below.
    let _ = match (a.ended_unix_ms, lasted(a)) {
        (Some(ended), Some(lasted)) => {
            writeln!(t, "ended {}, lasted {lasted}", date_time(ended))
        }
        _ => writeln!(t, "goes on"),
    };
    let _ = writeln!(t, "{}{}\n", a.remedied(), got_through(a));
    let mut kinds = Table::new([
        Column::Left("KIND"),
        Column::Right("PACKETS"),
        Column::Right("NOW/S"),
        Column::Right("PEAK/S"),
    ]);
    for k in &a.kinds {
        kinds.row([
            k.kind.name().to_owned(),
            count(k.packets),
            scaled(k.per_second, ""),
            scaled(k.peak_per_second, ""),
        ]);
    }
    let mut counters = Table::new([Column::Left("COUNTED"), Column::Right("TIMES")]);
    for (name, &n) in a.counters.iter().filter(|(_, n)| **n > 0) {
        counters.row([name.clone(), count(n)]);
    }
    t.push_str(&kinds.text());
    for table in [
        (!counters.is_empty()).then(|| counters.text()),
        shares("FROM", &a.sources, |s| s.0.to_string()),
        shares("TO PORT", &a.ports, u16::to_string),
    ]
    .into_iter()
    .flatten()
    {
        let _ = write!(t, "\n{table}");
    }
    let _ = writeln!(
        t,
        "\n{} packets were sampled, {} of them are kept",
        count(a.sampled),
        count(samples as u64)
    );
    t
}

/// What was most frequent among the samples.
fn shares<K>(
    title: &'static str,
    shares: &[Share<K>],
    name: impl Fn(&K) -> String,
) -> Option<String> {
    let mut table = Table::new([Column::Left(title), Column::Right("SAMPLES")]);
    for share in shares {
        let least = share.samples.saturating_sub(share.error);
        let samples = match share.error {
            0 => count(share.samples),
            _ => format!("{} to {}", count(least), count(share.samples)),
        };
        table.row([name(&share.of), samples]);
    }
    (!table.is_empty()).then(|| table.text())
}

/// A sampled packet; `None` when its bytes are not written as they should be.
fn packet(event: &Event) -> Option<pcap::Packet> {
    let (pairs, rest) = event.data.as_bytes().as_chunks::<2>();
    let digit = |c: u8| {
        char::from(c)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let byte = |&[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
    Some(pcap::Packet {
        unix_ms: event.unix_ms,
        length: event.frame_len,
        bytes: pairs
            .iter()
            .map(byte)
            .collect::<Option<_>>()
            .filter(|_| rest.is_empty())?,
    })
}

/// Writes a file that only its owner may read. One that is there is left alone, or with
/// `force` replaced as a whole.
fn write(path: &Path, bytes: &[u8], force: bool) -> Result<(), Error> {
    let failed = |e: io::Error| Error::Failed(format!("{}: {e}", path.display()));
    let there = match fs::symlink_metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(e)),
    };
    if there.is_none() || !force {
        return create(path, bytes).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::Input(format!(
                "{}: there is such a file; name another one, or replace it with --force",
                path.display()
            )),
            _ => failed(e),
        });
    }
    if !there.is_some_and(|m| m.is_file()) {
        return Err(Error::Input(format!(
            "{}: not a file that could be replaced",
            path.display()
        )));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let replaced = create(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    replaced.map_err(|e| {
        let _ = fs::remove_file(&beside);
        failed(e)
    })
}

/// Makes a new file; none is left when that fails.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

#[cfg(test)]
pub(super) mod tests;
