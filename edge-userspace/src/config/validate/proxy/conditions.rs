//! Which requests a route is for.

use std::{collections::BTreeSet, net::Ipv6Addr};

use super::{is_token, required};
use crate::{
    config::{
        proxy::{
            pattern::Pattern,
            route::{
                CONNECTION_FIELDS, Condition, Host, MAX_PARTS, MAX_TEXT, PathMatch, ValueMatch,
            },
        },
        raw::proxy as raw,
        report::{At, Place, Report},
        validate::health::is_host,
    },
    uri,
};

pub(super) fn too_many(place: &Place, report: &mut Report<'_>) {
    report.problem_without_value(
        place,
        format_args!("more than {MAX_PARTS}; spread them over several routes"),
    );
}

pub(super) fn hosts(raw: &raw::Route, report: &mut Report<'_>) -> Vec<Host> {
    let Some(At { value: list, place }) = &raw.hosts else {
        return Vec::new();
    };
    if list.is_empty() && !report.has_problem_at(&place.key) {
        report.problem_without_value(place, "no host; name some, or leave the key out for any");
    }
    if list.len() > MAX_PARTS {
        too_many(place, report);
        return Vec::new();
    }
    let mut hosts = Vec::new();
    for at in list {
        match host(&at.value) {
            Ok(host) if hosts.contains(&host) => report.warn(&at.place, "named twice"),
            Ok(host) => hosts.push(host),
            Err(why) => report.problem(&at.place, why),
        }
    }
    hosts
}

fn host(text: &str) -> Result<Host, &'static str> {
    if text == "*" {
        return Err("leave the key out for any host");
    }
    if let Some(below) = text.strip_prefix("*.") {
        let is_below = is_host(below);
        return (is_below.then(|| Host::Below(format!(".{}", below.to_ascii_lowercase()))))
            .ok_or("no name of a host behind \"*.\"; write it as in \"*.example.org\"");
    }
    if text.contains('*') {
        return Err(
            "a star stands for whole labels in front, as in \"*.example.org\"; for others use several routes",
        );
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(text).parse::<Ipv6Addr>() {
        return Ok(Host::Exact(format!("[{address}]")));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    is_host(name)
        .then(|| Host::Exact(name.to_ascii_lowercase()))
        .ok_or("no name of a host; write it without scheme and port, and what is not ASCII as \"xn--\"")
}

pub(super) fn path_match(raw: &raw::PathMatch, report: &mut Report<'_>) -> Option<PathMatch> {
    match (&raw.exact, &raw.prefix, &raw.regex) {
        (Some(at), None, None) => path(at, report).map(PathMatch::Exact),
        (None, Some(at), None) => path(at, report).map(PathMatch::Prefix),
        (None, None, Some(at)) => pattern(at, report).map(PathMatch::Regex),
        _ => {
            one_of(
                &raw.place,
                "exact, prefix and regex, such as { prefix = \"/api/\" }",
                report,
            );
            None
        }
    }
}

pub(super) fn one_of(place: &Place, keys: &str, report: &mut Report<'_>) {
    if !report.has_problem_at(&place.key) {
        report.problem_without_value(place, format_args!("name one of {keys}"));
    }
}

/// A path as requests have it.
pub(super) fn path(At { value, place }: &At<String>, report: &mut Report<'_>) -> Option<String> {
    if value.len() > MAX_TEXT {
        too_long(place, value.len(), report);
        return None;
    }
    let mut buffer = Vec::new();
    match uri::path::normalise(value.as_bytes(), &mut buffer) {
        Ok(normal) if normal == value.as_bytes() => return Some(value.clone()),
        Ok(normal) => report.problem(
            place,
            format_args!(
                "no request has this path, for paths are compared in their normal form; write \"{}\"",
                String::from_utf8_lossy(normal)
            ),
        ),
        Err(why) => report.problem(
            place,
            format_args!("no path of a request: {why}; write it from / on and without the query"),
        ),
    }
    None
}

pub(super) fn too_long(place: &Place, len: usize, report: &mut Report<'_>) {
    report.problem_without_value(
        place,
        format_args!("{len} bytes long, at most {MAX_TEXT} are possible; shorten it"),
    );
}

pub(super) fn pattern(at: &At<String>, report: &mut Report<'_>) -> Option<Pattern> {
    match Pattern::new(&at.value) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            report.problem(&at.place, format_args!("{why}; correct or simplify it"));
            None
        }
    }
}

pub(super) fn methods(raw: &raw::Route, report: &mut Report<'_>) -> Vec<String> {
    let Some(At { value: list, place }) = &raw.methods else {
        return Vec::new();
    };
    if list.is_empty() && !report.has_problem_at(&place.key) {
        report.problem_without_value(place, "no method; name some, or leave the key out for any");
    }
    if list.len() > MAX_PARTS {
        too_many(place, report);
    }
    for At { value, place } in list {
        if !is_token(value) {
            report.problem(place, "no method; write it as in \"GET\"");
        } else if value == "CONNECT" {
            report.problem(
                place,
                "CONNECT is refused before routes are looked at; remove it",
            );
        } else if value.bytes().any(|b| b.is_ascii_lowercase()) {
            report.problem(
                place,
                format_args!(
                    "methods are told apart by case; write \"{}\"",
                    value.to_ascii_uppercase()
                ),
            );
        }
    }
    list.iter()
        .map(|m| m.value.clone())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The name of a header as requests are asked for it.
pub(super) fn is_header(name: &str) -> Result<String, &'static str> {
    is_token(name)
        .then(|| name.to_ascii_lowercase())
        .ok_or("no name of a header; write letters, digits and '-'")
}

/// The same of one that a condition may ask for.
pub(super) fn is_condition(name: &str) -> Result<String, &'static str> {
    let name = is_header(name)?;
    if CONNECTION_FIELDS.contains(&name.as_str()) {
        return Err(
            "belongs to one connection, which conditions do not see; only \"upgrade\" can be asked for, such as { name = \"upgrade\", value = \"websocket\" }",
        );
    }
    if name.contains('_') {
        return Err(
            "no condition sees this header, for those with '_' in the name do not go on; have it sent with '-', and write that",
        );
    }
    Ok(name)
}

/// Protocols are compared in lower case.
pub(super) fn lower_protocols(headers: &mut [Condition]) {
    for condition in headers.iter_mut().filter(|c| c.name == "upgrade") {
        if let ValueMatch::Exact(text) | ValueMatch::Prefix(text) = &mut condition.value {
            text.make_ascii_lowercase();
        }
    }
}

pub(super) fn is_parameter(name: &str) -> Result<String, &'static str> {
    (!name.is_empty())
        .then(|| name.to_owned())
        .ok_or("no name of a parameter; write what stands before the '='")
}

pub(super) fn conditions(
    list: Option<&[raw::Condition]>,
    name_of: fn(&str) -> Result<String, &'static str>,
    report: &mut Report<'_>,
) -> Vec<Condition> {
    let list = list.unwrap_or(&[]);
    if let Some(first) = list.get(MAX_PARTS) {
        too_many(&first.place, report);
        return Vec::new();
    }
    let mut conditions = Vec::new();
    for raw in list {
        let name = required(
            raw.name.as_ref(),
            &raw.place,
            "name",
            "say what is looked at",
            report,
        );
        let name = name.and_then(|at| match name_of(&at.value) {
            Ok(name) => Some(name),
            Err(why) => {
                report.problem(&at.place, why);
                None
            }
        });
        let value = value_match(raw, report);
        if let (Some(name), Some(value)) = (name, value) {
            conditions.push(Condition { name, value });
        }
    }
    conditions
}

fn value_match(raw: &raw::Condition, report: &mut Report<'_>) -> Option<ValueMatch> {
    let short = |at: &At<String>, report: &mut Report<'_>| {
        let fits = at.value.len() <= MAX_TEXT;
        if !fits {
            too_long(&at.place, at.value.len(), report);
        }
        fits.then(|| at.value.clone())
    };
    match (&raw.value, &raw.prefix, &raw.regex, &raw.present) {
        (Some(at), None, None, None) => short(at, report).map(ValueMatch::Exact),
        (None, Some(at), None, None) => short(at, report).map(ValueMatch::Prefix),
        (None, None, Some(at), None) => pattern(at, report).map(ValueMatch::Regex),
        (None, None, None, Some(At { value: true, .. })) => Some(ValueMatch::Present),
        (None, None, None, Some(At { place, .. })) => {
            report.problem(place, "only true is possible; for requests without it write a route with fewer conditions");
            None
        }
        _ => {
            one_of(
                &raw.place,
                "value, prefix, regex and present, such as { name = \"x-beta\", value = \"1\" }",
                report,
            );
            None
        }
    }
}
