//! Who may know whom in `edge-userspace`: dependencies point downward only.
//!
//! - Components (the first part of a module's name) form no circle.
//! - Only `main` knows `cli` and `daemon`; `cli`, `l4` and the pure parts of `l7` know of ours
//!   only what the table says.
//! - Pure modules import no module and no library that does I/O, starts threads or reads clocks:
//!   time and facts are arguments. A module is pure unless it is listed here as a rim.
//! - Only `datapath` knows aya; `anyhow` stays where errors meet a person.
//! - The siblings in `l7` know each other only through `l7::proxy`; what all speak of is in `l7::head`
//!   and `l7::refusal`.
//!
//! Code that is compiled only for tests is free.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use super::lexer::{self, Path as UsePath};
use super::{Finding, Source};

/// Where the modules are.
const SOURCE_DIR: &str = "edge-userspace/src";

/// The name by which the binary knows the library.
const LIBRARY: &str = "edge_userspace";

/// Modules that do I/O, each with all below it. Everything else is pure.
const RIMS: [&str; 25] = [
    "main",
    "cli",
    "daemon",
    "datapath",
    "durable",
    "policy",
    "store",
    "config::cpus",
    "config::files",
    "config::load",
    "control::client",
    "control::connection",
    "control::events",
    "control::server",
    "control::socket",
    "health::carrier",
    "health::probe",
    "health::runner",
    "host",
    "l7::listener",
    "l7::proxy",
    "l7::store",
    "l7::upstream",
    "metrics::serve",
    "netlink",
];

/// Modules whose types pure code takes as arguments (an instant, a span of memory), while their
/// constructors touch the system.
const FOUNDATIONS: [&str; 2] = ["clock", "memory"];

/// What pure modules must not name: the path's beginning, and why.
const IMPURE: [(&str, &str); 17] = [
    ("aya", "talks to the kernel"),
    ("h2", "talks to the network"),
    ("hyper", "talks to the network"),
    ("hyper_util", "talks to the network"),
    ("indicatif", "draws on the terminal"),
    ("libc", "calls the system"),
    ("redb", "reads and writes files"),
    ("sd_notify", "talks to systemd"),
    ("socket2", "opens sockets"),
    ("tokio", "runs tasks, sockets and timers"),
    ("tokio_rustls", "talks to the network"),
    ("std::fs", "reads and writes files"),
    ("std::process", "starts and ends processes"),
    ("std::thread", "starts threads and waits"),
    ("std::os::unix::net", "opens sockets"),
    (
        "Instant::now",
        "reads the clock: take the time as an argument",
    ),
    (
        "SystemTime::now",
        "reads the clock: take the time as an argument",
    ),
];

/// Components that may know of ours only what stands here, besides themselves, and why.
const MAY_USE: [(&str, &[&str], &str); 4] = [
    // What it says to the daemon, and what needs no daemon: checking a configuration and putting
    // it in place, reading a feed, telling what a request would get from a configuration, which
    // is the same code that tells it of the one in force.
    (
        "cli",
        &[
            "clock",
            "config",
            "control",
            "durable",
            "entry",
            "feed",
            "l7::proxy::explain",
            "status",
            "tables",
            "wire",
        ],
        "let the daemon do it and answer",
    ),
    (
        "l4",
        &["config::balance", "config::services"],
        "facts are arguments",
    ),
    // The same rings for requests as for flows.
    ("l7::balance", &["l4::maglev"], "facts are arguments"),
    ("l7::resilience", &[], "facts are arguments"),
];

/// Where errors meet a person and may be of any type.
const ANYHOW_HOMES: [&str; 3] = ["main", "cli", "daemon"];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let modules: Vec<Module> = sources.iter().filter_map(Module::read).collect();
    let names: BTreeSet<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    let mut findings = Vec::new();
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for module in &modules {
        for path in &module.paths {
            let message = match resolve(module, path, &names) {
                Target::Module(name) => {
                    // Files of one component may know each other; components may not.
                    let (from, to) = (component(&module.name), component(name));
                    if from != to && from != "lib" {
                        graph.entry(from).or_default().insert(to);
                    }
                    forbidden_module(&module.name, name)
                }
                Target::Foreign => forbidden_crate(&module.name, &path.segments),
            };
            if let Some(message) = message {
                findings.push(Finding::new(&module.source, path.line, message));
            }
        }
    }
    if let Some(cycle) = find_cycle(&graph) {
        let source = modules
            .iter()
            .find(|module| component(&module.name) == cycle[0])
            .map_or(Path::new(SOURCE_DIR), |module| &module.source);
        findings.push(Finding::new(
            source,
            0,
            format!(
                "components use each other in a circle: {}",
                cycle.join(" -> ")
            ),
        ));
    }
    findings
}

/// One source file as a module.
struct Module {
    /// `control::protocol`; `main`; the library's root is `lib`.
    name: String,
    source: std::path::PathBuf,
    paths: Vec<UsePath>,
}

impl Module {
    fn read(source: &Source) -> Option<Self> {
        let inner = source.path.strip_prefix(SOURCE_DIR).ok()?;
        if inner.extension()? != "rs" {
            return None;
        }
        let mut parts: Vec<String> = inner
            .with_extension("")
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_string_lossy().into_owned(),
                _ => String::new(),
            })
            .collect();
        if parts.len() > 1 && parts.last().is_some_and(|last| last == "mod") {
            parts.pop();
        }
        // Files of tests beside the module they test are as free as tests within it.
        if parts.iter().any(|part| part == "tests" || part == "test") {
            return None;
        }
        Some(Self {
            name: parts.join("::"),
            source: source.path.clone(),
            paths: lexer::paths(&lexer::without_tests(&lexer::lex(&source.text))),
        })
    }
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    /// A module of ours.
    Module(&'a str),
    /// Another crate, or a name that was imported before.
    Foreign,
}

fn resolve<'a>(module: &Module, path: &UsePath, names: &BTreeSet<&'a str>) -> Target<'a> {
    let own: Vec<&str> = match module.name.as_str() {
        "lib" | "main" => Vec::new(),
        name => name.split("::").collect(),
    };
    let mut rest = path.segments.iter().map(String::as_str).peekable();
    let mut full: Vec<&str> = match rest.peek() {
        Some(&"crate") => {
            rest.next();
            Vec::new()
        }
        Some(&LIBRARY) => {
            rest.next();
            Vec::new()
        }
        Some(&("self" | "super")) => {
            let mut at = own.clone();
            while let Some(step) = rest.next_if(|step| matches!(*step, "self" | "super")) {
                if step == "super" {
                    at.pop();
                }
            }
            at
        }
        // A child module by its bare name.
        Some(first) => {
            let mut child = own.clone();
            child.push(first);
            if !names.contains(child.join("::").as_str()) {
                return Target::Foreign;
            }
            own.clone()
        }
        None => return Target::Foreign,
    };
    full.extend(rest);
    while !full.is_empty() {
        if let Some(name) = names.get(full.join("::").as_str()) {
            return Target::Module(name);
        }
        full.pop();
    }
    names
        .get("lib")
        .map_or(Target::Foreign, |name| Target::Module(name))
}

/// Whether `name` is `ancestor` or below it.
fn is_within(name: &str, ancestor: &str) -> bool {
    name.strip_prefix(ancestor)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The first part of a module's name.
fn component(name: &str) -> &str {
    name.split("::").next().unwrap_or(name)
}

fn is_rim(name: &str) -> bool {
    RIMS.iter().any(|rim| is_within(name, rim))
}

/// Whether `name` must keep its hands off the system.
fn is_pure(name: &str) -> bool {
    name != "lib" && !is_rim(name) && !FOUNDATIONS.iter().any(|base| is_within(name, base))
}

/// Why `from` must not use `to`, if so.
fn forbidden_module(from: &str, to: &str) -> Option<String> {
    let top = |name: &str| is_within(name, "cli") || is_within(name, "daemon");
    if top(to) && from != "main" && from != "lib" && !is_within(from, to.split("::").next()?) {
        return Some(format!("only main may use {to}"));
    }
    let sibling = |name: &str| {
        name.strip_prefix("l7::")
            .map(|rest| rest.split("::").next().unwrap_or(rest).to_owned())
    };
    if let (Some(a), Some(b)) = (sibling(from), sibling(to))
        && a != b
        && a != "proxy"
        && !matches!(b.as_str(), "head" | "refusal")
    {
        return Some(format!(
            "siblings in l7 meet only in l7::proxy; {from} must not use {to}"
        ));
    }
    // A pure parent may re-export what its rim child offers.
    if is_rim(to) && is_pure(from) && !is_within(to, from) {
        return Some(format!(
            "{from} is pure and must not use {to}, which does I/O"
        ));
    }
    for (component, may_use, remedy) in MAY_USE {
        let may = |to| is_within(to, component) || may_use.iter().any(|may| is_within(to, may));
        if is_within(from, component) && to != "lib" && !may(to) {
            return Some(format!(
                "{component} may use only {} of ours, not {to}: {remedy}",
                may_use.join(", ")
            ));
        }
    }
    None
}

/// Why `from` must not use the crate or item `segments`, if so.
fn forbidden_crate(from: &str, segments: &[String]) -> Option<String> {
    let starts_with = |start: &str| is_within(&segments.join("::"), start);
    if (starts_with("aya") || starts_with("aya_log")) && !is_within(from, "datapath") {
        return Some("only datapath may know aya".to_owned());
    }
    if starts_with("anyhow") && !ANYHOW_HOMES.iter().any(|home| is_within(from, home)) {
        return Some(format!(
            "anyhow stays in {}; give {from} an error type",
            ANYHOW_HOMES.join(", ")
        ));
    }
    if is_pure(from) {
        for (start, why) in IMPURE {
            if starts_with(start) || starts_with(&format!("std::time::{start}")) {
                return Some(format!("{from} is pure, and {start} {why}"));
            }
        }
    }
    None
}

/// A circle in the graph, its first module repeated at the end.
fn find_cycle(graph: &BTreeMap<&str, BTreeSet<&str>>) -> Option<Vec<String>> {
    fn visit<'a>(
        node: &'a str,
        graph: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        trail: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(at) = trail.iter().position(|seen| *seen == node) {
            let mut cycle: Vec<String> =
                trail[at..].iter().map(|name| (*name).to_owned()).collect();
            cycle.push(node.to_owned());
            return Some(cycle);
        }
        if !done.insert(node) {
            return None;
        }
        trail.push(node);
        for next in graph.get(node).into_iter().flatten() {
            if let Some(cycle) = visit(next, graph, trail, done) {
                return Some(cycle);
            }
        }
        trail.pop();
        None
    }
    let mut done = BTreeSet::new();
    graph
        .keys()
        .find_map(|node| visit(node, graph, &mut Vec::new(), &mut done))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn messages(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source {
                path: PathBuf::from(SOURCE_DIR).join(path),
                text: (*text).to_owned(),
            })
            .collect();
        check(&sources)
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn a_tree_in_order_has_no_findings() {
        let found = messages(&[
            (
                "lib.rs",
                "pub mod cli; pub mod config; pub mod daemon; pub mod datapath; pub mod control;",
            ),
            (
                "main.rs",
                "use edge_userspace::{cli, daemon}; fn main() { anyhow::bail!(1); cli::run(); }",
            ),
            (
                "cli/mod.rs",
                "use crate::control::protocol::Request; mod text; use text::show;",
            ),
            ("cli/text.rs", "use super::Args; use anyhow::Result;"),
            (
                "config/mod.rs",
                "pub use {load::load, model::Model}; mod load; mod model;",
            ),
            ("config/load.rs", "use std::fs; use super::Model;"),
            ("config/tests/slow.rs", "use std::thread;"),
            (
                "config/model.rs",
                "use super::Limits; use std::net::IpAddr;\n#[cfg(test)] mod tests { use std::fs; }",
            ),
            ("control/mod.rs", ""),
            ("control/protocol.rs", "use serde::Serialize;"),
            (
                "daemon.rs",
                "use crate::{config::Model, datapath::{load, Apply}}; use tokio::select;",
            ),
            (
                "datapath/mod.rs",
                "use aya::Ebpf; use crate::config::Model;",
            ),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn only_datapath_knows_aya() {
        assert_eq!(
            messages(&[("daemon.rs", "fn f(e: &aya::Ebpf) {}")]),
            ["only datapath may know aya"]
        );
        assert_eq!(
            messages(&[("config/mod.rs", "use aya;")]),
            ["only datapath may know aya"]
        );
    }

    #[test]
    fn anyhow_stays_at_the_top() {
        let found = messages(&[("datapath/load.rs", "use anyhow::Context as _;")]);
        assert!(found[0].starts_with("anyhow stays"), "{found:?}");
    }

    #[test]
    fn pure_modules_do_no_io() {
        for text in [
            "use std::{fmt, fs};",
            "use tokio::sync::watch;",
            "fn f() { let t = std::time::Instant::now(); }",
            "fn f() { let t = SystemTime::now(); }",
            "use crate::datapath::load;",
        ] {
            let found = messages(&[("l4/plan.rs", text), ("datapath/load.rs", "")]);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains("pure"), "{found:?}");
        }
        assert_eq!(
            messages(&[("metrics/serve.rs", "use tokio::net::TcpListener;")]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn the_top_is_used_by_main_only_and_cli_knows_the_protocol_only() {
        let found = messages(&[
            ("cli/mod.rs", "use crate::datapath::load;"),
            ("daemon/mod.rs", "mod start; use start::go;"),
            ("daemon/start.rs", "use super::Daemon; use crate::cli;"),
            ("datapath/load.rs", ""),
            ("store.rs", "use crate::daemon::Daemon;"),
        ]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("cli may use only"));
        assert_eq!(found[1], "only main may use cli");
        assert_eq!(found[2], "only main may use daemon");
    }

    #[test]
    fn the_balancers_choices_know_their_configuration_only() {
        assert_eq!(
            messages(&[
                (
                    "l4/plan.rs",
                    "use crate::{clock::Now, config::balance::Balance}; use super::maglev::ring;"
                ),
                ("l4/maglev.rs", ""),
                ("clock.rs", ""),
                ("config/balance.rs", ""),
            ]),
            [
                "l4 may use only config::balance, config::services of ours, not clock: facts are arguments"
            ]
        );
    }

    #[test]
    fn circles_are_shown() {
        let found = messages(&[
            ("a/one.rs", "use super::two::T; use crate::b::X;"),
            ("a/two.rs", "use super::one::O;"),
            ("b.rs", "use crate::c::Y;"),
            ("c.rs", "fn f() { crate::a::two::z() }"),
        ]);
        assert_eq!(
            found,
            ["components use each other in a circle: a -> b -> c -> a"]
        );
    }

    #[test]
    fn siblings_in_l7_meet_in_the_proxy() {
        let found = messages(&[
            ("l7/router.rs", "use super::waf::Verdict;"),
            ("l7/waf.rs", ""),
            ("l7/proxy.rs", "use super::{router::Route, waf::Verdict};"),
            ("l7/http1/request.rs", "use super::super::head::Span;"),
            ("l7/head/mod.rs", ""),
        ]);
        assert_eq!(
            found,
            ["siblings in l7 meet only in l7::proxy; l7::router must not use l7::waf"]
        );
    }
}
