//! Routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
};

use super::{
    is_token, is_within, name, required, shadow,
    upstreams::{base, check_order, concurrency, tries},
};
use crate::{
    config::{
        proxy::{
            Listener, MAX_ROUTES, Route, Upstream,
            pattern::Pattern,
            route::{
                Action, Condition, HeaderRules, Host, MAX_BODY, MAX_PARTS, MAX_TEXT, PathMatch,
                RetriesOverride, Rewrite, TimeoutsOverride, ValueMatch,
            },
            template::{Location, LocationPart, Replacement},
            upstream::{MAX_WEIGHT, Timeouts},
        },
        raw::proxy as raw,
        report::{At, Place, Report},
        validate::{health::is_host, number, span},
    },
    uri,
};

/// Fields that say where a message ends or belong to one connection (RFC 9110, 7.6.1): they are
/// the proxy's.
const OWN_FIELDS: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

pub(super) fn routes(
    list: &[raw::Route],
    (listeners, listener_places): (&[Listener], &[Place]),
    upstreams: &[Upstream],
    report: &mut Report<'_>,
) -> Vec<Route> {
    let places: Vec<Place> = list.iter().map(|r| r.place.clone()).collect();
    if !is_within(&places, MAX_ROUTES, "routes", report) {
        return Vec::new();
    }
    let known = Known {
        listeners: index(listeners.iter().map(|l| &l.name)),
        upstreams: index(upstreams.iter().map(|u| &u.name)),
        all: upstreams,
    };
    let mut names = BTreeMap::new();
    let (mut routes, mut of) = (Vec::new(), Vec::new());
    for (i, raw) in list.iter().enumerate() {
        let name = name(
            raw.name.as_ref(),
            &raw.place,
            ("route", i),
            &mut names,
            report,
        );
        let route = known.route(raw, report);
        if let (Some(name), Some(route)) = (name, route) {
            routes.push(Route { name, ..route });
            of.push(&raw.place);
        }
    }
    if !report.has_problems() {
        shadow::check(&routes, &of, listeners, listener_places, report);
    }
    routes
}

fn index<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<&'a str, usize> {
    names
        .enumerate()
        .map(|(i, name)| (name.as_str(), i))
        .collect()
}

/// What routes may name.
struct Known<'a> {
    listeners: BTreeMap<&'a str, usize>,
    upstreams: BTreeMap<&'a str, usize>,
    all: &'a [Upstream],
}

impl Known<'_> {
    /// A route without its name; `None` after a problem has been reported.
    fn route(&self, raw: &raw::Route, report: &mut Report<'_>) -> Option<Route> {
        let listeners = self.listeners_of(raw, report);
        let hosts = hosts(raw, report);
        let path = match &raw.path {
            Some(path) => path_match(path, report),
            None => Some(PathMatch::Any),
        };
        let methods = methods(raw, report);
        let headers = conditions(raw.headers.as_deref(), is_header, report);
        let query = conditions(raw.query.as_deref(), is_parameter, report);
        let action = self.action(raw, report)?;
        let is_forward = matches!(action, Action::Forward(_));
        if !is_forward {
            refuse_without_upstream(raw, report);
        }
        let rewrite = raw.rewrite.as_ref().filter(|_| is_forward);
        let rewrite = rewrite.and_then(|r| self::rewrite(r, raw, report));
        let timeouts = self.timeouts(raw, &action, report);
        let path = path?;
        Some(Route {
            name: String::new(),
            listeners,
            hosts,
            path,
            methods,
            headers,
            query,
            rewrite,
            request_headers: rules(raw.request_headers.as_ref(), true, report),
            response_headers: rules(raw.response_headers.as_ref(), false, report),
            retries: retries(raw.retries.as_ref(), report),
            concurrency: raw.concurrency.as_ref().map(|c| {
                let of = self.effective(&action, timeouts);
                let shortest = of.map(|(_, t)| t.request).min();
                concurrency(c, shortest.unwrap_or(Timeouts::default().request), report)
            }),
            timeouts,
            action,
        })
    }

    fn listeners_of(&self, raw: &raw::Route, report: &mut Report<'_>) -> Vec<usize> {
        let Some(At { value: list, place }) = &raw.listeners else {
            return self
                .listeners
                .values()
                .copied()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
        };
        if list.is_empty() && !report.has_problem_at(&place.key) {
            report.problem_without_value(
                place,
                "no listener; name some, or leave the key out for all",
            );
        }
        let mut found = BTreeSet::new();
        for At { value, place } in list {
            match self.listeners.get(value.as_str()) {
                Some(&i) if !found.insert(i) => report.warn(place, "named twice"),
                Some(_) => {}
                None => report.problem(place, unknown("listener", &self.listeners)),
            }
        }
        found.into_iter().collect()
    }

    fn upstream(&self, at: &At<String>, report: &mut Report<'_>) -> Option<usize> {
        let found = self.upstreams.get(at.value.as_str()).copied();
        if found.is_none() {
            report.problem(&at.place, unknown("upstream", &self.upstreams));
        }
        found
    }

    fn action(&self, raw: &raw::Route, report: &mut Report<'_>) -> Option<Action> {
        let given = [
            ("upstream", raw.upstream.is_some()),
            ("split", raw.split.is_some()),
            ("redirect", raw.redirect.is_some()),
            ("respond", raw.respond.is_some()),
        ];
        let given: Vec<&str> = given.iter().filter(|g| g.1).map(|g| g.0).collect();
        if given.len() > 1 {
            report.problem_without_value(
                &raw.place,
                format_args!(
                    "has {}, of which only one can be done; keep one of them",
                    given.join(" and ")
                ),
            );
            return None;
        }
        if let Some(at) = &raw.upstream {
            return self
                .upstream(at, report)
                .map(|i| Action::Forward(vec![(i, 1)]));
        }
        if let Some(at) = &raw.split {
            return self.split(at, report);
        }
        if let Some(to) = &raw.redirect {
            return redirect(to, report);
        }
        if let Some(answer) = &raw.respond {
            return respond(answer, report);
        }
        let keys = ["upstream", "split", "redirect", "respond"];
        if !keys
            .iter()
            .any(|k| report.has_problem_at(&raw.place.child(k).key))
        {
            report.problem_without_value(
                &raw.place.child("upstream"),
                "missing; say what becomes of a request: upstream, split, redirect or respond",
            );
        }
        None
    }

    fn split(
        &self,
        At { value: list, place }: &At<Vec<raw::SplitPart>>,
        report: &mut Report<'_>,
    ) -> Option<Action> {
        if list.len() > MAX_PARTS {
            too_many(place, report);
            return None;
        }
        let (mut parts, mut seen) = (Vec::new(), BTreeSet::new());
        for raw in list {
            let weight = required(
                raw.weight.as_ref(),
                &raw.place,
                "weight",
                "say its share of the requests, such as weight = 95",
                report,
            );
            let weight = weight.map(|at| number(Some(at), 1, 0, MAX_WEIGHT, report));
            let remedy = "name an [[upstream]]";
            let at = required(
                raw.upstream.as_ref(),
                &raw.place,
                "upstream",
                remedy,
                report,
            )?;
            let upstream = self.upstream(at, report)?;
            if !seen.insert(upstream) {
                report.problem(&at.place, "named twice; add the weights up");
            }
            parts.push((upstream, weight?));
        }
        if parts.iter().all(|p| p.1 == 0) && !report.has_problem_at(&place.key) {
            report.problem_without_value(
                place,
                "the weights add up to nothing; give one of the upstreams a weight",
            );
            return None;
        }
        Some(Action::Forward(parts))
    }

    /// The upstreams of an action, each with what holds for its requests.
    fn effective(
        &self,
        action: &Action,
        own: TimeoutsOverride,
    ) -> impl Iterator<Item = (&Upstream, Timeouts)> {
        let split: &[(usize, u32)] = match action {
            Action::Forward(split) => split,
            _ => &[],
        };
        let mine: Vec<usize> = split.iter().map(|s| s.0).collect();
        (mine.into_iter()).map(move |i| (&self.all[i], own.over(self.all[i].timeouts)))
    }

    fn timeouts(
        &self,
        raw: &raw::Route,
        action: &Action,
        report: &mut Report<'_>,
    ) -> TimeoutsOverride {
        let Some(raw) = &raw.timeouts else {
            return TimeoutsOverride::default();
        };
        let default = Timeouts::default();
        let mut one = |at: &Option<At<_>>, default| {
            let bounds = super::upstreams::TIMEOUT;
            at.as_ref()
                .map(|at| span(Some(at), default, bounds, report))
        };
        let own = TimeoutsOverride {
            connect: one(&raw.connect, default.connect),
            first_byte: one(&raw.first_byte, default.first_byte),
            between_bytes: one(&raw.between_bytes, default.between_bytes),
            request: one(&raw.request, default.request),
        };
        if !report.has_problem_at(&raw.place.key) {
            for (upstream, timeouts) in self.effective(action, own) {
                let of = format!(", with what upstream \"{}\" says", upstream.name);
                check_order(raw, timeouts, &of, report);
                if let Some(queue) = upstream.concurrency
                    && queue.queue_timeout >= timeouts.request
                {
                    report.problem_without_value(
                        &raw.place.child("request"),
                        format_args!(
                            "not longer than concurrency.queue_timeout of upstream \"{}\", so that a request that waited would have no time left; raise it",
                            upstream.name
                        ),
                    );
                }
            }
        }
        own
    }
}

fn unknown(what: &str, known: &BTreeMap<&str, usize>) -> String {
    let names: Vec<&str> = known.keys().copied().filter(|n| !n.is_empty()).collect();
    match names.len() {
        0 => format!("no such {what}, for there is none; add a [[{what}]]"),
        1..=8 => format!("no such {what}; there is {}", names.join(", ")),
        n => format!("no such {what} among the {n} of the file; correct the name"),
    }
}

fn too_many(place: &Place, report: &mut Report<'_>) {
    report.problem_without_value(
        place,
        format_args!("more than {MAX_PARTS}; spread them over several routes"),
    );
}

/// Keys that change what an upstream gets or gives.
fn refuse_without_upstream(raw: &raw::Route, report: &mut Report<'_>) {
    let sections = [
        raw.rewrite.as_ref().map(|s| &s.place),
        raw.request_headers.as_ref().map(|s| &s.place),
        raw.response_headers.as_ref().map(|s| &s.place),
        raw.timeouts.as_ref().map(|s| &s.place),
        raw.retries.as_ref().map(|s| &s.place),
        raw.concurrency.as_ref().map(|s| &s.place),
    ];
    for place in sections.into_iter().flatten() {
        report.problem_without_value(
            place,
            "only for a route with upstream or split, and this one answers itself; remove it",
        );
    }
}

fn hosts(raw: &raw::Route, report: &mut Report<'_>) -> Vec<Host> {
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

fn path_match(raw: &raw::PathMatch, report: &mut Report<'_>) -> Option<PathMatch> {
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

fn one_of(place: &Place, keys: &str, report: &mut Report<'_>) {
    if !report.has_problem_at(&place.key) {
        report.problem_without_value(place, format_args!("name one of {keys}"));
    }
}

/// A path as requests have it.
fn path(At { value, place }: &At<String>, report: &mut Report<'_>) -> Option<String> {
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

fn too_long(place: &Place, len: usize, report: &mut Report<'_>) {
    report.problem_without_value(
        place,
        format_args!("{len} bytes long, at most {MAX_TEXT} are possible; shorten it"),
    );
}

fn pattern(at: &At<String>, report: &mut Report<'_>) -> Option<Pattern> {
    match Pattern::new(&at.value) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            report.problem(&at.place, format_args!("{why}; correct or simplify it"));
            None
        }
    }
}

fn methods(raw: &raw::Route, report: &mut Report<'_>) -> Vec<String> {
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
fn is_header(name: &str) -> Result<String, &'static str> {
    is_token(name)
        .then(|| name.to_ascii_lowercase())
        .ok_or("no name of a header; write letters, digits and '-'")
}

fn is_parameter(name: &str) -> Result<String, &'static str> {
    (!name.is_empty())
        .then(|| name.to_owned())
        .ok_or("no name of a parameter; write what stands before the '='")
}

fn conditions(
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

fn redirect(raw: &raw::Redirect, report: &mut Report<'_>) -> Option<Action> {
    const STATUS: [u64; 5] = [301, 302, 303, 307, 308];
    if let Some(At { value, place }) = &raw.status
        && !STATUS.contains(&value.0)
    {
        report.problem(
            place,
            "no status of a redirection; choose 301, 302, 303, 307 or 308 (default 308)",
        );
    }
    let remedy = "say where to, such as to = \"https://{host}{path}{query}\"";
    let At { value, place } = required(raw.to.as_ref(), &raw.place, "to", remedy, report)?;
    if value.len() > MAX_TEXT {
        too_long(place, value.len(), report);
        return None;
    }
    let to = match Location::new(value) {
        Ok(to) => to,
        Err(why) => {
            report.problem(place, why);
            return None;
        }
    };
    let begins = match to.parts.first() {
        Some(LocationPart::Text(text)) => ["https://", "http://", "/"]
            .iter()
            .any(|b| text.starts_with(b)),
        Some(LocationPart::Path) => true,
        _ => false,
    };
    if !begins || !value.bytes().all(|b| b.is_ascii_graphic()) {
        report.problem(
            place,
            "no URL; begin with \"https://\", \"http://\" or \"/\", and write blanks and what is not ASCII with %",
        );
        return None;
    }
    Some(Action::Redirect {
        to,
        status: raw.status.as_ref().map_or(308, |s| s.value.0 as u16),
    })
}

fn respond(raw: &raw::Respond, report: &mut Report<'_>) -> Option<Action> {
    let status = number(raw.status.as_ref(), 200, 200, 599, report) as u16;
    let body = raw.body.as_ref().map_or("", |b| &b.value);
    if let Some(At { place, .. }) = &raw.body {
        if body.len() > MAX_BODY {
            report.problem_without_value(
                place,
                format_args!(
                    "{} bytes long, at most {MAX_BODY} are possible; let an upstream answer",
                    body.len()
                ),
            );
        } else if matches!(status, 204 | 205 | 304) && !body.is_empty() {
            report.problem_without_value(
                place,
                format_args!("an answer with status {status} has no body; remove it"),
            );
        }
    }
    let headers = raw
        .headers
        .as_ref()
        .map_or_else(Vec::new, |f| fields(f, &raw.place.child("headers"), report));
    Some(Action::Respond {
        status,
        body: body.to_owned(),
        headers: headers
            .into_iter()
            .map(|(name, value, _)| (name, value))
            .collect(),
    })
}

fn rewrite(raw: &raw::Rewrite, route: &raw::Route, report: &mut Report<'_>) -> Option<Rewrite> {
    match (&raw.prefix, &raw.regex) {
        (Some(prefix), None) => {
            if let Some(At { place, .. }) = &raw.to {
                report.problem(place, "belongs to regex; remove it");
            }
            if route.path.as_ref().is_none_or(|p| p.prefix.is_none()) {
                report.problem(
                    &prefix.place,
                    "replaces the prefix of the route, which has none; add path = { prefix = ... }, or use regex",
                );
                return None;
            }
            path(prefix, report).map(Rewrite::Prefix)
        }
        (None, Some(regex)) => {
            let pattern = pattern(regex, report);
            let remedy = "say what takes the place of what was found, such as to = \"/new/$1\"";
            let At { value, place } = required(raw.to.as_ref(), &raw.place, "to", remedy, report)?;
            let pattern = pattern?;
            if value.len() > MAX_TEXT {
                too_long(place, value.len(), report);
                return None;
            }
            if !value
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"?#\\".contains(&b))
            {
                report.problem(
                    place,
                    "no part of a path; write blanks, '?', '#' and what is not ASCII with %",
                );
                return None;
            }
            match Replacement::new(value, &pattern) {
                Ok(to) => Some(Rewrite::Regex { pattern, to }),
                Err(why) => {
                    report.problem(place, why);
                    None
                }
            }
        }
        _ => {
            one_of(
                &raw.place,
                "prefix and regex, such as { prefix = \"/\" }",
                report,
            );
            None
        }
    }
}

fn retries(raw: Option<&raw::RouteRetries>, report: &mut Report<'_>) -> RetriesOverride {
    raw.map_or_else(RetriesOverride::default, |raw| RetriesOverride {
        tries: tries(raw.tries.as_ref(), report),
        base: base(raw.base.as_ref(), report),
    })
}

/// Fields with their places; what cannot be one is reported.
fn fields<'a>(
    raw::Fields(list): &'a raw::Fields,
    section: &Place,
    report: &mut Report<'_>,
) -> Vec<(String, String, &'a Place)> {
    if list.len() > MAX_PARTS {
        too_many(section, report);
        return Vec::new();
    }
    let mut fields: Vec<(String, String, &Place)> = Vec::new();
    for (name, At { value, place }) in list {
        let Some(name) = field_name(name, place, report) else {
            continue;
        };
        let is_text = |b: u8| b == b'\t' || (b >= b' ' && b != 0x7f);
        if value.len() > MAX_TEXT {
            too_long(place, value.len(), report);
        } else if !value.bytes().all(is_text) || value.trim_matches([' ', '\t']) != value {
            report.problem(place, "no value of a header; leave out line ends, control characters, and blanks around it");
        } else if fields.iter().any(|(n, ..)| *n == name) {
            report.problem(
                place,
                "named twice, for names of headers know no case; remove one",
            );
        } else {
            fields.push((name, value.clone(), place));
        }
    }
    fields
}

fn field_name(name: &str, place: &Place, report: &mut Report<'_>) -> Option<String> {
    match is_header(name) {
        Err(why) => report.problem(place, why),
        Ok(name) if OWN_FIELDS.contains(&name.as_str()) => report.problem(
            place,
            "says where a message ends or belongs to one connection, and is the proxy's; remove it",
        ),
        Ok(name) => return Some(name),
    }
    None
}

fn rules(raw: Option<&raw::HeaderRules>, is_request: bool, report: &mut Report<'_>) -> HeaderRules {
    let Some(raw) = raw else {
        return HeaderRules::default();
    };
    let mut of = |at: &Option<raw::Fields>, key| {
        at.as_ref().map_or_else(Vec::new, |f| {
            let fields = fields(f, &raw.place.child(key), report);
            fields
                .into_iter()
                .map(|(n, v, p)| (n, v, p.clone()))
                .collect()
        })
    };
    let (set, add): (Vec<(String, String, Place)>, Vec<_>) =
        (of(&raw.set, "set"), of(&raw.add, "add"));
    let mut remove = Vec::new();
    let list = raw.remove.as_deref().unwrap_or(&[]);
    if list.len() > MAX_PARTS {
        too_many(&raw.place.child("remove"), report);
    }
    for At { value, place } in list.iter().take(MAX_PARTS) {
        let Some(name) = field_name(value, place, report) else {
            continue;
        };
        if set.iter().any(|(n, ..)| *n == name) {
            report.problem(place, "set as well, which replaces it; remove one of them");
        } else if is_request && name == "host" {
            report.problem(
                place,
                "every request has one host; set it, or leave it alone",
            );
        } else if remove.contains(&name) {
            report.warn(place, "named twice");
        } else {
            remove.push(name);
        }
    }
    for (name, _, place) in &add {
        if set.iter().any(|(n, ..)| n == name) {
            report.problem(place, "set as well; keep one of them");
        } else if is_request && name == "host" {
            report.problem(place, "every request has one host; set it instead");
        }
    }
    if let Some((_, value, place)) = set.iter().find(|(n, ..)| is_request && n == "host") {
        let mut buffer = Vec::new();
        if uri::host::authority(value.as_bytes(), &mut buffer).is_none() {
            report.problem(
                place,
                "no host; write it as in \"app.example.org\" or \"app.example.org:8080\"",
            );
        }
    }
    let plain =
        |fields: Vec<(String, String, Place)>| fields.into_iter().map(|(n, v, _)| (n, v)).collect();
    HeaderRules {
        set: plain(set),
        add: plain(add),
        remove,
    }
}
