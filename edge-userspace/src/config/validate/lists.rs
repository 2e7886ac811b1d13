//! The lists of prefixes: bogons, management, allowlist, blacklist.

use std::collections::{BTreeMap, BTreeSet};

use edge_common::addr::{Family, Prefix};

use super::is_vast;
use crate::config::{
    bogons::{cut, default_prefixes},
    model::Model,
    raw,
    report::{At, Place, Report},
};

/// The most exceptions of the bogon list: each can leave 128 prefixes.
const MAX_EXCEPTIONS: usize = 256;

/// A list, sorted, each prefix once.
pub(super) fn list(raw: Option<&[At<Prefix>]>, report: &mut Report<'_>) -> Vec<Prefix> {
    let mut seen = BTreeSet::new();
    for at in raw.unwrap_or(&[]) {
        if !seen.insert(at.value) {
            report.warn(&at.place, "listed twice");
        }
    }
    seen.into_iter().collect()
}

/// The bogon list: the built-in one unless it is off, with the additions, less
/// the exceptions.
pub(super) fn bogons(raw: Option<&raw::Bogons>, report: &mut Report<'_>) -> Vec<Prefix> {
    let none = raw::Bogons::default();
    let raw = raw.unwrap_or(&none);
    let mut all: BTreeSet<Prefix> = match raw.defaults {
        Some(false) => BTreeSet::new(),
        _ => default_prefixes().into_iter().collect(),
    };
    for At { value, place } in raw.extra.as_deref().unwrap_or(&[]) {
        if is_vast(*value) {
            report.warn(place, "makes a large part of the Internet a bogon");
        }
        all.insert(*value);
    }
    let exceptions = raw.except.as_deref().unwrap_or(&[]);
    if let Some(one) = exceptions.get(MAX_EXCEPTIONS) {
        report.problem(
            &one.place,
            format_args!("more than {MAX_EXCEPTIONS} exceptions; write defaults = false and list what you want in extra"),
        );
    }
    for At { value: hole, place } in exceptions.iter().take(MAX_EXCEPTIONS) {
        let touched: Vec<Prefix> = all
            .iter()
            .copied()
            .filter(|range| range.contains(*hole) || hole.contains(*range))
            .collect();
        if touched.is_empty() {
            report.problem(
                place,
                "not inside any bogon range, so there is nothing to except; remove it",
            );
        }
        for range in touched {
            all.remove(&range);
            all.extend(cut(range, *hole));
        }
    }
    all.into_iter().collect()
}

/// Checks that what the file itself lists fits the tables it asks for.
pub(super) fn check_room(model: &Model, raw: &raw::Root, report: &mut Report<'_>) {
    let listed: BTreeSet<Prefix> = model
        .allow
        .iter()
        .chain(&model.blacklist)
        .copied()
        .collect();
    // IPv4 hosts are kept as prefixes where more than list and expiry counts.
    let marked: BTreeSet<Prefix> = (model.management.iter().copied())
        .chain(model.bogon_prefixes.iter().copied())
        .chain(model.limits.overrides.iter().map(|o| o.prefix))
        .collect();
    let is_host = |p: &&Prefix, family| p.is_host() && p.family() == family;
    let hosts_v4 = listed.iter().filter(|p| is_host(p, Family::V4)).count();
    let all: BTreeSet<Prefix> = marked.iter().chain(&listed).copied().collect();
    let hosts_v6 = all.iter().filter(|p| is_host(p, Family::V6)).count();
    let prefixes = all
        .iter()
        .filter(|p| !p.is_host() || (p.family() == Family::V4 && marked.contains(p)))
        .count();
    let tables = raw.tables.as_ref();
    for (key, need, have, at) in [
        (
            "hosts_v4",
            hosts_v4,
            model.capacity.hosts_v4,
            tables.and_then(|t| t.hosts_v4.as_ref()),
        ),
        (
            "hosts_v6",
            hosts_v6,
            model.capacity.hosts_v6,
            tables.and_then(|t| t.hosts_v6.as_ref()),
        ),
        (
            "prefixes",
            prefixes,
            model.capacity.prefixes,
            tables.and_then(|t| t.prefixes.as_ref()),
        ),
    ] {
        if need > have as usize {
            let place = at.map_or_else(
                || Place::default().child(&format!("tables.{key}")),
                |at| at.place.clone(),
            );
            report.problem_without_value(
                &place,
                format_args!(
                    "room for {have}, but this file alone lists {need}, bogons and overrides included; raise it, with room for what `edge blacklist` adds"
                ),
            );
        }
    }
}

/// Warns of entries that another list overrules, and of vast ones.
pub(super) fn check_effect(model: &Model, raw: &raw::Lists, report: &mut Report<'_>) {
    let mut stronger = BTreeMap::new();
    stronger.extend(model.allow.iter().map(|p| (*p, "lists.allow")));
    stronger.extend(model.management.iter().map(|p| (*p, "lists.management")));
    for At { value, place } in raw.blacklist.as_deref().unwrap_or(&[]) {
        let around = std::iter::successors(Some(*value), |p| p.parent());
        let found = around
            .filter_map(|p| stronger.get(&p).map(|list| (p, list)))
            .next();
        if let Some((by, list)) = found {
            report.warn(
                place,
                format_args!("without effect, for {by} in {list} takes precedence"),
            );
        } else if is_vast(*value) {
            report.warn(
                place,
                "blocks a large part of the Internet; only management and allow addresses inside pass",
            );
        }
    }
}
