//! Routes that no request takes, and whatever else is there for nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::config::{
    proxy::{
        Listener, Route, Upstream,
        route::{Action, Host, PathMatch, ValueMatch},
    },
    report::{Place, Report},
};

/// The most regular expressions of paths that one host of a listener may have: all of them are
/// matched at once, in memory that a few hundred fill.
const MAX_PATTERNS: usize = 1000;

/// The most routes with one path that one host of a listener may have: they are tried one by one.
const MAX_ALIKE: usize = 256;

/// Refuses routes that never get a request, and warns of those that get none of some of their hosts.
/// `places` are those of the routes.
pub(super) fn check(
    routes: &[Route],
    places: &[&Place],
    listeners: &[Listener],
    listener_places: &[Place],
    report: &mut Report<'_>,
) {
    let mut taken = Taken::default();
    // In the order in which routes are tried, as far as it is the same for all hosts and paths.
    let mut order: Vec<usize> = (0..routes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(routes[i].conditions()), i));
    taken.note_everything(routes);
    for i in order {
        taken.look(i, routes, places[i], report);
    }
    let own = |i: usize| {
        routes[i]
            .listeners
            .iter()
            .all(|&l| listeners[l].redirect_https)
    };
    for i in (0..routes.len()).filter(|&i| !routes[i].listeners.is_empty() && own(i)) {
        report.problem_without_value(
            places[i],
            "no request takes this route, for its listeners redirect every request; remove redirect_https, or this route",
        );
    }
    let used: BTreeSet<usize> = routes
        .iter()
        .flat_map(|r| r.listeners.iter().copied())
        .collect();
    for (i, (listener, place)) in listeners.iter().zip(listener_places).enumerate() {
        if !listener.redirect_https && !used.contains(&i) {
            report.warn_without_value(
                place,
                "no route takes its requests, so that each is answered with 404; add a [[route]]",
            );
        }
    }
}

/// Warns of upstreams that no route names.
pub(super) fn unused(
    upstreams: &[Upstream],
    places: &[&Place],
    routes: &[Route],
    report: &mut Report<'_>,
) {
    let mut used = BTreeSet::new();
    for route in routes {
        used.extend(route.mirror.map(|mirror| mirror.upstream));
        if let Action::Forward(split) = &route.action {
            used.extend(split.iter().map(|s| s.0));
        }
    }
    for (i, (upstream, place)) in upstreams.iter().zip(places).enumerate() {
        if !used.contains(&i) {
            report.warn_without_value(
                place,
                format_args!(
                    "no route leads to upstream \"{}\"; name it in one, or remove it",
                    upstream.name
                ),
            );
        }
    }
}

/// Where a route lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Slot<'a> {
    listener: usize,
    host: Option<&'a Host>,
    path: (u8, &'a str),
}

/// What was seen up to here.
#[derive(Default)]
struct Taken<'a> {
    /// Routes by where they lie and by conditions other than the method.
    by: HashMap<(Slot<'a>, String), Vec<usize>>,
    /// Listeners and hosts all paths of which an unconditional prefix takes.
    everything: HashMap<(usize, Option<&'a Host>), usize>,
    patterns: BTreeMap<(usize, Option<&'a Host>), BTreeSet<&'a str>>,
    /// How many routes lie where.
    alike: HashMap<Slot<'a>, usize>,
}

fn slots(route: &Route) -> impl Iterator<Item = Slot<'_>> {
    let path = match &route.path {
        PathMatch::Exact(p) => (0, p.as_str()),
        PathMatch::Prefix(p) => (1, p.as_str()),
        PathMatch::Regex(p) => (2, p.as_str()),
        PathMatch::Any => (3, ""),
    };
    let any = route.hosts.is_empty().then_some(None);
    let hosts: Vec<Option<&Host>> = route.hosts.iter().map(Some).chain(any).collect();
    let all = route.listeners.iter();
    all.flat_map(move |&listener| {
        let hosts = hosts.clone();
        hosts.into_iter().map(move |host| Slot {
            listener,
            host,
            path,
        })
    })
}

/// Conditions other than the method, in one order.
fn conditions(route: &Route) -> String {
    let of = |kind: &str, list: &[crate::config::proxy::route::Condition]| {
        let all = list.iter().map(|c| {
            let value = match &c.value {
                ValueMatch::Present => "present".to_owned(),
                ValueMatch::Exact(v) => format!("exact {v:?}"),
                ValueMatch::Prefix(v) => format!("prefix {v:?}"),
                ValueMatch::Regex(v) => format!("regex {:?}", v.as_str()),
            };
            format!("{kind} {:?} {value}\n", c.name)
        });
        all.collect::<BTreeSet<String>>()
            .into_iter()
            .collect::<String>()
    };
    of("header", &route.headers) + &of("query", &route.query)
}

impl<'a> Taken<'a> {
    fn note_everything(&mut self, routes: &'a [Route]) {
        for (i, route) in routes.iter().enumerate() {
            if route.conditions() == 0 && route.path == PathMatch::Prefix("/".to_owned()) {
                for slot in slots(route) {
                    self.everything
                        .entry((slot.listener, slot.host))
                        .or_insert(i);
                }
            }
        }
    }

    /// The route that has everything that one gets in a place.
    fn before(
        &self,
        slot: Slot<'a>,
        conditions: &str,
        i: usize,
        routes: &[Route],
    ) -> Option<usize> {
        // Prefixes come before regular expressions and before any path.
        let everything = self.everything.get(&(slot.listener, slot.host));
        if let (2.., Some(&other)) = (slot.path.0, everything) {
            return Some(other);
        }
        let others = self.by.get(&(slot, conditions.to_owned()))?;
        others.iter().copied().find(|&other| {
            let (theirs, mine) = (&routes[other].methods, &routes[i].methods);
            theirs.is_empty() || (!mine.is_empty() && mine.iter().all(|m| theirs.contains(m)))
        })
    }

    fn look(&mut self, i: usize, routes: &'a [Route], place: &Place, report: &mut Report<'_>) {
        let route = &routes[i];
        let conditions = conditions(route);
        let (mut all, mut hidden, mut by) = (0, 0, None);
        for slot in slots(route) {
            all += 1;
            if let Some(other) = self.before(slot, &conditions, i, routes) {
                hidden += 1;
                by = Some(other);
            }
            self.by
                .entry((slot, conditions.clone()))
                .or_default()
                .push(i);
            let alike = self.alike.entry(slot).or_default();
            *alike += 1;
            if *alike == MAX_ALIKE + 1 {
                report.problem_without_value(
                    place,
                    format_args!("more than {MAX_ALIKE} routes with the same host and path, which would be tried one by one; tell some of them apart by host or path, or let an upstream look at the header"),
                );
            }
            if slot.path.0 == 2 {
                let patterns = self.patterns.entry((slot.listener, slot.host)).or_default();
                if patterns.insert(slot.path.1) && patterns.len() == MAX_PATTERNS + 1 {
                    report.problem_without_value(
                        &place.child("path"),
                        format_args!("more than {MAX_PATTERNS} regular expressions for the paths of one host; use prefixes, or merge some"),
                    );
                }
            }
        }
        let Some(by) = by.map(|by| &routes[by].name) else {
            return;
        };
        if hidden == all {
            report.problem_without_value(
                place,
                format_args!("no request takes this route, for route \"{by}\" comes before it and takes all of them; remove one, or give this one other conditions"),
            );
        } else {
            report.warn_without_value(
                place,
                format_args!("for some of its hosts or listeners no request takes this route, for others such as route \"{by}\" come before it"),
            );
        }
    }
}
