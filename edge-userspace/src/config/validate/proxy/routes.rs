//! Routes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    conditions::{
        conditions, hosts, is_condition, is_parameter, lower_protocols, methods, one_of, path,
        path_match, pattern, too_long, too_many,
    },
    headers::{fields, rules},
    is_within, name, required, shadow, share,
    upstreams::{base, check_order, concurrency, tries},
};
use crate::config::{
    proxy::{
        Listener, MAX_ROUTES, Route, Upstream,
        route::{
            Action, MAX_BODY, MAX_PARTS, MAX_TEXT, Mirror, PathMatch, RetriesOverride, Rewrite,
            TimeoutsOverride,
        },
        template::{Location, Replacement},
        upstream::{MAX_WEIGHT, Protocol, Timeouts},
    },
    raw::proxy as raw,
    report::{At, Place, Report},
    validate::{number, span},
};

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
        let mut headers = conditions(raw.headers.as_deref(), is_condition, report);
        lower_protocols(&mut headers);
        let query = conditions(raw.query.as_deref(), is_parameter, report);
        let action = self.action(raw, report)?;
        let is_forward = matches!(action, Action::Forward(_));
        if !is_forward {
            refuse_without_upstream(raw, report);
        }
        let rewrite = raw.rewrite.as_ref().filter(|_| is_forward);
        let rewrite = rewrite.and_then(|r| self::rewrite(r, raw, report));
        let mirror = raw.mirror.as_ref().filter(|_| is_forward);
        let mirror = mirror.and_then(|m| self.mirror(m, &action, report));
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
            mirror,
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

    /// The upstream that has to be named in a table, and where it is.
    fn named<'r>(
        &self,
        at: Option<&'r At<String>>,
        table: &Place,
        remedy: &str,
        report: &mut Report<'_>,
    ) -> Option<(&'r At<String>, usize)> {
        let at = required(at, table, "upstream", remedy, report)?;
        Some((at, self.upstream(at, report)?))
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
            let (at, upstream) = self.named(raw.upstream.as_ref(), &raw.place, remedy, report)?;
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

    fn mirror(
        &self,
        raw: &raw::Mirror,
        action: &Action,
        report: &mut Report<'_>,
    ) -> Option<Mirror> {
        let permille = share(raw.fraction.as_ref(), 1000, 1, report);
        let remedy = "name the [[upstream]] that gets the copies";
        let (at, upstream) = self.named(raw.upstream.as_ref(), &raw.place, remedy, report)?;
        if let Action::Forward(split) = action
            && split.iter().any(|part| part.0 == upstream)
        {
            report.problem(
                &at.place,
                "answers this route, and would get its requests twice; name another one",
            );
        }
        if self.all[upstream].protocol != Protocol::Http1 {
            report.problem(
                &at.place,
                "copies are sent by HTTP/1.1, which this upstream does not speak; name another one, or set its protocol to \"http1\"",
            );
        }
        Some(Mirror { upstream, permille })
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

/// Keys that change what an upstream gets or gives.
fn refuse_without_upstream(raw: &raw::Route, report: &mut Report<'_>) {
    let sections = [
        raw.mirror.as_ref().map(|s| &s.place),
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
    if !to.is_whole() || !value.bytes().all(|b| b.is_ascii_graphic()) {
        report.problem(
            place,
            "no URL; begin with \"https://\" or \"http://\" and a host, or with \"/\" or {path}, and write blanks and what is not ASCII with %",
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
        non_idempotent: raw.non_idempotent,
    })
}
