//! Which route a request takes.
//!
//! Of all routes whose conditions a request meets, the first in this order has it:
//!
//! 1. by host: the exact one, then names below the longest, then any;
//! 2. by path: the exact one, then the longest prefix, then regular expressions in the order in
//!    which they first stand in the file, then any;
//! 3. more conditions on method, header and query before fewer;
//! 4. the order of the file.
//!
//! A request that no route with its exact host takes may be taken by one with another host that
//! fits, and so on: the order says who comes first, not who else is left out.
//!
//! Finding it costs a look-up of the host and one for each label of it, one walk along the path
//! and one run of all regular expressions of a host at once, however many routes there are
//! ([`table`]). Only routes with the same host and path are tried one by one.
//!
//! What is matched is what the upstream sees: a [`View`] has host and path in the form that
//! [`crate::uri`] gives them.

mod compile;
mod condition;
pub mod headers;
mod table;
#[cfg(test)]
mod test;

use std::{cell::RefCell, sync::Arc};

use regex::bytes::{CaptureLocations, Regex};
use regex_automata::{PatternSet, meta};

pub use compile::CompileError;
pub use condition::parameter;

use self::{
    condition::Conditions,
    headers::HeaderRules,
    table::{Hosts, PathTable},
};
pub use crate::config::proxy::route::Mirror;
use crate::{
    config::proxy::{
        template::{Location, LocationPart, ReplacementPart},
        upstream::{Concurrency, Retries, Timeouts},
    },
    l7::head::Reject,
    uri::path::{self, PathError},
};

/// What of a request chooses its route.
pub trait View {
    /// The host as [`crate::uri::host::authority`] gives it; empty: none.
    fn host(&self) -> &[u8];
    /// The method.
    fn method(&self) -> &[u8];
    /// The path as [`crate::uri::path::normalise`] gives it.
    fn path(&self) -> &[u8];
    /// The query without its question mark; empty: none.
    fn query(&self) -> &[u8];
    /// Whether a test holds for the value of any header field of a name, which is in lower case.
    fn any_header(&self, name: &str, test: impl FnMut(&[u8]) -> bool) -> bool;
}

/// All routes, compiled. Each worker has a clone of its own: tables are shared and never change,
/// while what the regular expressions need to run is each clone's, so that no two cores meet.
pub struct Router {
    tables: Arc<Tables>,
    engines: Engines,
}

/// What all clones of a router share.
struct Tables {
    /// In the order of the file.
    routes: Box<[Route]>,
    /// Which of `hosts` each listener has.
    listeners: Box<[usize]>,
    hosts: Box<[Hosts]>,
}

/// What regular expressions need to run.
struct Engines {
    /// Those of headers, queries and rewrites.
    single: Vec<Single>,
    /// Those of paths, all of a host at once.
    sets: Vec<meta::Regex>,
    found: RefCell<PatternSet>,
    decoded: RefCell<Vec<u8>>,
}

struct Single {
    regex: Regex,
    groups: RefCell<CaptureLocations>,
}

impl Single {
    fn new(regex: Regex) -> Self {
        let groups = RefCell::new(regex.capture_locations());
        Self { regex, groups }
    }
}

impl Clone for Router {
    fn clone(&self) -> Self {
        let single = self.engines.single.iter();
        Self {
            tables: Arc::clone(&self.tables),
            engines: Engines {
                // A clone of an expression shares its program, and has memory of its own.
                single: single.map(|s| Single::new(s.regex.clone())).collect(),
                sets: self.engines.sets.clone(),
                found: self.engines.found.clone(),
                decoded: RefCell::default(),
            },
        }
    }
}

/// A route, compiled.
#[derive(Debug)]
pub struct Route {
    /// Its index in [`crate::config::proxy::Proxy::routes`].
    pub index: usize,
    /// Its name.
    pub name: Box<str>,
    /// What becomes of a request.
    pub action: Action,
    /// Changes to the header of the request.
    pub request_headers: HeaderRules,
    /// Changes to the header of the answer.
    pub response_headers: HeaderRules,
    /// Who gets copies of requests; `None`: nobody.
    pub mirror: Option<Mirror>,
    /// Requests of this route at one time; `None`: any number.
    pub concurrency: Option<Concurrency>,
    conditions: Conditions,
    rewrite: Option<Rewrite>,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Action {
    /// An upstream answers.
    Forward(Split),
    /// It is sent elsewhere.
    Redirect {
        /// The status.
        status: u16,
        /// Where to; [`write_location`] writes it for a request.
        to: Location,
    },
    /// It is answered.
    Respond {
        /// The status.
        status: u16,
        /// The body.
        body: Box<[u8]>,
        /// Names, in lower case, and values.
        headers: Box<[headers::Field]>,
    },
}

/// Upstreams that share the requests of a route.
#[derive(Debug)]
pub struct Split {
    targets: Box<[Target]>,
    weight: u64,
}

/// An upstream of a route, with what holds for requests that it gets.
#[derive(Debug)]
pub struct Target {
    /// Its index in [`crate::config::proxy::Proxy::upstreams`].
    pub upstream: usize,
    /// The route's, or else the upstream's.
    pub timeouts: Timeouts,
    /// Likewise.
    pub retries: Retries,
    /// The weights of this and all before it.
    upto: u64,
}

impl Split {
    /// All upstreams.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// All upstreams with their shares of the requests, 0 to 1.
    pub fn shares(&self) -> impl Iterator<Item = (&Target, f64)> {
        let mut before = 0;
        self.targets.iter().map(move |target| {
            let weight = target.upto - std::mem::replace(&mut before, target.upto);
            (target, weight as f64 / self.weight as f64)
        })
    }

    /// Chooses one by weight, by a number that is evenly spread over all of its 64 bits.
    pub fn pick(&self, random: u64) -> &Target {
        let at = (u128::from(random) * u128::from(self.weight)) >> 64;
        let i = self.targets.partition_point(|t| u128::from(t.upto) <= at);
        // Weights add up to something, and `at` is below their sum.
        &self.targets[i.min(self.targets.len() - 1)]
    }
}

#[derive(Debug)]
enum Rewrite {
    /// So many bytes make place for others.
    Prefix { from: usize, to: Box<[u8]> },
    /// What one of [`Engines::single`] finds makes place for these.
    Regex {
        single: usize,
        to: Box<[ReplacementPart]>,
    },
}

impl Router {
    /// The route with an index.
    ///
    /// # Panics
    /// When there is none: indexes come from [`Router::find`].
    pub fn route(&self, index: usize) -> &Route {
        &self.tables.routes[index]
    }

    /// All routes, in the order of the file.
    pub fn routes(&self) -> &[Route] {
        &self.tables.routes
    }

    /// The route of a request that came to a listener, which is named by its index in
    /// [`crate::config::proxy::Proxy::listeners`].
    pub fn find(&self, listener: usize, request: &impl View) -> Option<&Route> {
        let hosts = &self.tables.hosts[*self.tables.listeners.get(listener)?];
        hosts
            .of(request.host())
            .find_map(|paths| self.find_path(paths, request))
    }

    fn find_path(&self, paths: &PathTable, request: &impl View) -> Option<&Route> {
        let path = request.path();
        let meets = |&i: &u32| {
            let route = &self.tables.routes[i as usize];
            (route.conditions.hold(request, &self.engines)).then_some(route)
        };
        let mut plain = paths.exact(path).iter().chain(paths.prefixes(path));
        plain
            .find_map(meets)
            .or_else(|| {
                let set = paths.set?;
                let mut found = self.engines.found.borrow_mut();
                found.clear();
                let input = regex_automata::Input::new(path);
                self.engines.sets[set].which_overlapping_matches(&input, &mut found);
                let mut lists = found
                    .iter()
                    .map(|pattern| &paths.by_pattern[pattern.as_usize()]);
                lists.find_map(|list| list.iter().find_map(meets))
            })
            .or_else(|| paths.any.iter().find_map(meets))
    }

    /// The path that an upstream sees; `path` is that by which the route was found. It is the path
    /// itself where nothing changes; else it is written into `buffer`, whose content is lost.
    ///
    /// # Errors
    /// [`PathError`]: what an expression made of it is no path.
    pub fn rewrite<'a>(
        &self,
        route: &Route,
        path: &'a [u8],
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], PathError> {
        match &route.rewrite {
            None => return Ok(path),
            Some(Rewrite::Prefix { from, to }) => {
                let rest = path.get(*from..).unwrap_or_default();
                buffer.clear();
                buffer.extend_from_slice(to);
                // One slash between them, wherever it comes from.
                match (to.ends_with(b"/"), rest) {
                    (true, [b'/', rest @ ..]) => buffer.extend_from_slice(rest),
                    (false, [first, ..]) if *first != b'/' => {
                        buffer.push(b'/');
                        buffer.extend_from_slice(rest);
                    }
                    _ => buffer.extend_from_slice(rest),
                }
            }
            Some(Rewrite::Regex { single, to }) => {
                let Single { regex, groups } = &self.engines.single[*single];
                let mut groups = groups.borrow_mut();
                let Some(found) = regex.captures_read(&mut groups, path) else {
                    return Ok(path);
                };
                buffer.clear();
                buffer.extend_from_slice(&path[..found.start()]);
                for part in to {
                    match part {
                        ReplacementPart::Text(text) => buffer.extend_from_slice(text.as_bytes()),
                        ReplacementPart::Group(group) => {
                            let (start, end) = groups.get(*group).unwrap_or((0, 0));
                            buffer.extend_from_slice(&path[start..end]);
                        }
                    }
                }
                buffer.extend_from_slice(&path[found.end()..]);
                if buffer.first() != Some(&b'/') {
                    buffer.insert(0, b'/');
                }
                path::normalise_in_place(buffer)?;
            }
        }
        Ok(buffer)
    }
}

/// Writes where a redirection leads for a request, behind what the buffer holds.
///
/// # Errors
/// [`Reject::HostMissing`] where it leads to the host of a request that has none.
pub fn write_location(
    to: &Location,
    request: &impl View,
    buffer: &mut Vec<u8>,
) -> Result<(), Reject> {
    let start = buffer.len();
    for part in &to.parts {
        match part {
            LocationPart::Text(text) => buffer.extend_from_slice(text.as_bytes()),
            LocationPart::Host if request.host().is_empty() => return Err(Reject::HostMissing),
            LocationPart::Host => buffer.extend_from_slice(request.host()),
            // `OPTIONS *` is about the server as a whole.
            LocationPart::Path if request.path() == b"*" => {}
            LocationPart::Path => buffer.extend_from_slice(request.path()),
            LocationPart::Query if request.query().is_empty() => {}
            LocationPart::Query => {
                buffer.push(b'?');
                buffer.extend_from_slice(request.query());
            }
        }
    }
    if to.is_path() {
        // Behind two slashes clients look for a host, which is not for the request to name.
        let written = buffer.get(start..).unwrap_or_default();
        let slashes = written.iter().take_while(|b| **b == b'/').count();
        match slashes {
            0 => buffer.insert(start, b'/'),
            n => drop(buffer.drain(start..start + n - 1)),
        }
    }
    Ok(())
}
