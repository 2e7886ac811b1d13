//! From the model to tables.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use regex::bytes::Regex;
use regex_automata::{
    MatchKind, PatternSet,
    meta::{self, BuildError},
    nfa::thompson::WhichCaptures,
    util::syntax,
};

use super::{
    Action, Engines, Rewrite, Route, Router, Single, Split, Tables, Target,
    condition::{Conditions, Test},
    headers::{self, HeaderRules},
    table::{Hosts, List, PathTable},
};
use crate::config::proxy::{
    Proxy,
    pattern::Pattern,
    route::{self, Condition, Host, PathMatch, ValueMatch},
};

/// Why there is no router.
#[derive(Debug, thiserror::Error)]
#[error("the regular expressions of paths cannot be matched together: {0}; simplify some of them")]
pub struct CompileError(#[from] Box<BuildError>);

impl Router {
    /// Compiles the routes of a configuration.
    ///
    /// # Errors
    /// [`CompileError`].
    pub fn new(proxy: &Proxy) -> Result<Self, CompileError> {
        let mut singles = Singles::default();
        let routes = proxy.routes.iter().enumerate();
        let routes = routes.map(|(i, raw)| compile(i, raw, proxy, &mut singles));
        let routes: Box<[Route]> = routes.collect();
        let mut sets = Vec::new();
        // Listeners with the same routes share their tables.
        let (mut hosts, mut known) = (Vec::new(), HashMap::new());
        let mut listeners = Vec::new();
        for listener in 0..proxy.listeners.len() {
            let all = proxy.routes.iter().enumerate();
            let mine = all.filter(|(_, r)| r.listeners.binary_search(&listener).is_ok());
            let mine: Vec<usize> = mine.map(|(i, _)| i).collect();
            let at = match known.get(&mine) {
                Some(&at) => at,
                None => {
                    hosts.push(by_host(&mine, &proxy.routes, &mut sets)?);
                    known.insert(mine, hosts.len() - 1);
                    hosts.len() - 1
                }
            };
            listeners.push(at);
        }
        let most = sets.iter().map(meta::Regex::pattern_len).max();
        Ok(Self {
            tables: Arc::new(Tables {
                routes,
                listeners: listeners.into(),
                hosts: hosts.into(),
            }),
            engines: Engines {
                single: singles.all.into_iter().map(Single::new).collect(),
                sets,
                found: PatternSet::new(most.unwrap_or(0)).into(),
                decoded: Vec::new().into(),
            },
        })
    }
}

/// Regular expressions that are matched alone, each once.
#[derive(Default)]
struct Singles {
    all: Vec<Regex>,
    by_text: HashMap<String, usize>,
}

impl Singles {
    fn index(&mut self, pattern: &Pattern) -> usize {
        let next = self.all.len();
        let i = *self
            .by_text
            .entry(pattern.as_str().to_owned())
            .or_insert(next);
        if i == next {
            self.all.push(pattern.regex().clone());
        }
        i
    }

    fn test(&mut self, value: &ValueMatch) -> Test {
        match value {
            ValueMatch::Present => Test::Present,
            ValueMatch::Exact(text) => Test::Exact(text.as_bytes().into()),
            ValueMatch::Prefix(text) => Test::Prefix(text.as_bytes().into()),
            ValueMatch::Regex(pattern) => Test::Regex(self.index(pattern)),
        }
    }
}

fn compile(index: usize, raw: &route::Route, proxy: &Proxy, singles: &mut Singles) -> Route {
    let header =
        |c: &Condition, singles: &mut Singles| (c.name.as_str().into(), singles.test(&c.value));
    let query =
        |c: &Condition, singles: &mut Singles| (c.name.as_bytes().into(), singles.test(&c.value));
    let conditions = Conditions {
        methods: raw.methods.iter().map(|m| m.as_bytes().into()).collect(),
        headers: raw.headers.iter().map(|c| header(c, singles)).collect(),
        query: raw.query.iter().map(|c| query(c, singles)).collect(),
    };
    let rewrite = raw.rewrite.as_ref().map(|rewrite| match rewrite {
        route::Rewrite::Prefix(to) => Rewrite::Prefix {
            from: match &raw.path {
                PathMatch::Prefix(prefix) => prefix.len(),
                _ => 0,
            },
            to: to.as_bytes().into(),
        },
        route::Rewrite::Regex { pattern, to } => Rewrite::Regex {
            single: singles.index(pattern),
            to: to.parts.clone().into(),
        },
    });
    Route {
        index,
        name: raw.name.as_str().into(),
        action: action(raw, proxy),
        request_headers: HeaderRules::new(&raw.request_headers),
        response_headers: HeaderRules::new(&raw.response_headers),
        mirror: raw.mirror,
        concurrency: raw.concurrency,
        conditions,
        rewrite,
    }
}

fn action(raw: &route::Route, proxy: &Proxy) -> Action {
    match &raw.action {
        route::Action::Forward(split) => {
            let mut weight = 0;
            let targets = split.iter().map(|&(upstream, share)| {
                weight += u64::from(share);
                let of = &proxy.upstreams[upstream];
                Target {
                    upstream,
                    timeouts: raw.timeouts.over(of.timeouts),
                    retries: raw.retries.over(of.retries),
                    upto: weight,
                }
            });
            let targets = targets.collect();
            Action::Forward(Split { targets, weight })
        }
        route::Action::Redirect { to, status } => Action::Redirect {
            status: *status,
            to: to.clone(),
        },
        route::Action::Respond {
            status,
            body,
            headers,
        } => Action::Respond {
            status: *status,
            body: body.as_bytes().into(),
            headers: headers::fields(headers.iter()),
        },
    }
}

/// Which path, in order of precedence. Expressions are told apart by their first index in the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum PathKey<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Regex(usize, &'a str),
    Any,
}

fn by_host(
    mine: &[usize],
    routes: &[route::Route],
    sets: &mut Vec<meta::Regex>,
) -> Result<Hosts, CompileError> {
    let mut first = HashMap::new();
    let mut grouped: HashMap<Option<&Host>, HashMap<PathKey<'_>, Vec<usize>>> = HashMap::new();
    for &i in mine {
        let route = &routes[i];
        let key = match &route.path {
            PathMatch::Any => PathKey::Any,
            PathMatch::Exact(path) => PathKey::Exact(path),
            PathMatch::Prefix(prefix) => PathKey::Prefix(prefix),
            PathMatch::Regex(pattern) => {
                let text = pattern.as_str();
                PathKey::Regex(*first.entry(text).or_insert(i), text)
            }
        };
        let hosts = route.hosts.iter().map(Some);
        for host in hosts.chain(route.hosts.is_empty().then_some(None)) {
            grouped
                .entry(host)
                .or_default()
                .entry(key)
                .or_default()
                .push(i);
        }
    }
    let (mut exact, mut below, mut any) = (HashMap::new(), HashMap::new(), PathTable::default());
    for (host, paths) in grouped {
        let table = by_path(paths, routes, sets)?;
        match host {
            Some(Host::Exact(name)) => drop(exact.insert(name.as_bytes().into(), table)),
            Some(Host::Below(name)) => drop(below.insert(name.as_bytes().into(), table)),
            None => any = table,
        }
    }
    Ok(Hosts::new(exact, below, any))
}

fn by_path(
    paths: HashMap<PathKey<'_>, Vec<usize>>,
    routes: &[route::Route],
    sets: &mut Vec<meta::Regex>,
) -> Result<PathTable, CompileError> {
    let mut table = PathTable::default();
    let mut patterns = Vec::new();
    for (key, mut list) in paths {
        list.sort_by_key(|&i| (Reverse(routes[i].conditions()), i));
        let list: List = list.into_iter().map(|i| i as u32).collect();
        match key {
            PathKey::Exact(path) => table.add_exact(path, list),
            PathKey::Prefix(prefix) => table.add_prefix(prefix, list),
            PathKey::Regex(first, text) => patterns.push((first, text, list)),
            PathKey::Any => table.any = list,
        }
    }
    table.finish();
    if !patterns.is_empty() {
        patterns.sort_by_key(|p| p.0);
        let texts: Vec<&str> = patterns.iter().map(|p| p.1).collect();
        // As each of them was compiled alone.
        let syntax = syntax::Config::new().unicode(false).utf8(false);
        let config = meta::Config::new()
            .utf8_empty(false)
            .nfa_size_limit(None)
            // All that match are wanted, and only which they are.
            .match_kind(MatchKind::All)
            .which_captures(WhichCaptures::None);
        let set = meta::Builder::new()
            .syntax(syntax)
            .configure(config)
            .build_many(&texts);
        table.set = Some(sets.len());
        sets.push(set.map_err(Box::new)?);
        table.by_pattern = patterns.into_iter().map(|p| p.2).collect();
    }
    Ok(table)
}
