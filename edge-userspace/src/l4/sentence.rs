//! How changes are told to a person.

use std::fmt;

use super::diff::{Change, Edit, Kind, Moves};

/// The most things that are named of a list that is longer.
const MOST_NAMES: usize = 4;

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = &self.service;
        match &self.kind {
            Kind::Added { backends: 1 } => write!(f, "{service}: is new, with one backend")?,
            Kind::Added { backends } => write!(f, "{service}: is new, with {backends} backends")?,
            Kind::Removed => write!(f, "{service}: is removed")?,
            Kind::Changed { edits, moves } => {
                write!(
                    f,
                    "{service}: {} {moves}",
                    joined(&clauses(edits), "more changes")
                )?;
            }
        }
        match self.flows {
            None => Ok(()),
            Some(0) => f.write_str("; no live flow loses its backend"),
            Some(1) => f.write_str("; about 1 live flow loses its backend"),
            Some(n) => write!(f, "; about {n} live flows lose their backends"),
        }
    }
}

impl fmt::Display for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.moved == 0 {
            return f.write_str("moves no slot");
        }
        write!(f, "moves {} of slots, ", per_cent(self.moved, self.slots))?;
        match self.needless {
            0 => f.write_str("none of them needlessly"),
            n => write!(f, "{} of them needlessly", per_cent(n, self.moved)),
        }
    }
}

/// A part with one decimal, which is 0 only for nothing.
fn per_cent(part: u32, whole: u32) -> String {
    let (part, whole) = (u64::from(part), u64::from(whole.max(1)));
    match (part * 1000 + whole / 2) / whole {
        0 if part > 0 => "less than 0.1 %".to_owned(),
        tenths => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// What is done, as clauses that can be the subject of a sentence.
fn clauses(edits: &[Edit]) -> Vec<String> {
    let names = |of: fn(&Edit) -> Option<&String>| -> Vec<String> {
        edits.iter().filter_map(of).cloned().collect()
    };
    let removed = names(|edit| match edit {
        Edit::Remove(name) => Some(name),
        _ => None,
    });
    let added = names(|edit| match edit {
        Edit::Add(name) => Some(name),
        _ => None,
    });
    let lists = [("removing", removed), ("adding", added)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(verb, names)| format!("{verb} {}", joined(&names, "more")));
    lists.chain(edits.iter().filter_map(clause)).collect()
}

/// What is said of each alone.
fn clause(edit: &Edit) -> Option<String> {
    Some(match edit {
        Edit::Remove(_) | Edit::Add(_) => return None,
        Edit::Readdress(name, to) => format!("giving {name} the address {to}"),
        Edit::Rename(from, to) => format!("renaming {from} to {to}"),
        Edit::Weight(name, from, to) => {
            format!("changing the weight of {name} from {from} to {to}")
        }
        Edit::Backup(name, true) => format!("making {name} a backup"),
        Edit::Backup(name, false) => format!("making {name} a backup no longer"),
        Edit::ServerId(name) => format!("changing the server id of {name}"),
        Edit::QuicConfig(from, to) => format!("changing quic_config_id from {from} to {to}"),
        Edit::Reach => "changing the service's addresses, ports or protocol".to_owned(),
        Edit::Forward(from, to) => {
            format!("forwarding by {} instead of {}", to.name(), from.name())
        }
        Edit::Hash(from, to) => format!("choosing by {} instead of {}", to.name(), from.name()),
        Edit::Floor(from, to) => format!("changing the floor from {from} % to {to} %"),
        Edit::SlowStart => "changing the slow start".to_owned(),
        Edit::Health => "changing the health checks".to_owned(),
        Edit::Slots(from, to) => format!("changing the slots from {from} to {to}"),
    })
}

/// `a`, `a and b`, `a, b and c`; of many so few that somebody reads them, and how many
/// `more` there are.
fn joined(parts: &[String], more: &str) -> String {
    let mut shown = parts.to_vec();
    if parts.len() > MOST_NAMES + 1 {
        shown.truncate(MOST_NAMES);
        shown.push(format!("{} {more}", parts.len() - MOST_NAMES));
    }
    match shown.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
