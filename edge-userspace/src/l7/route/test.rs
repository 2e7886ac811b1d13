//! The router against a naive reading of its order, and what it hands out.

use std::{cell::Cell, cmp::Reverse, time::Duration};

use proptest::{prelude::*, sample::select};

use super::{Action, Router, View, write_location};
use crate::config::proxy::{
    Listener, Proxy, Route, Upstream,
    listener::{ClientHeader, Limits, ProxyProtocol},
    pattern::Pattern,
    route::{
        self, Condition, HeaderRules, Host, PathMatch, RetriesOverride, Rewrite, TimeoutsOverride,
        ValueMatch,
    },
    template::{Location, Replacement},
    upstream::{Balance, KeepAlive, Protocol, Retries, SendProxy, Timeouts},
};
use crate::{l7::head::Reject, uri::path::PathError};

fn listener() -> Listener {
    Listener {
        name: "web".to_owned(),
        addresses: Vec::new(),
        tls: None,
        http2: false,
        proxy_protocol: ProxyProtocol::Off,
        trusted_proxies: Vec::new(),
        client_header: ClientHeader::default(),
        redirect_https: false,
        half_close: false,
        limits: Limits::default(),
    }
}

fn upstream() -> Upstream {
    Upstream {
        name: "app".to_owned(),
        balance: Balance::RoundRobin,
        sticky: None,
        protocol: Protocol::Http1,
        tls: None,
        keep_alive: KeepAlive::default(),
        health: None,
        passive: None,
        panic_permille: 0,
        concurrency: None,
        breaker: None,
        retries: Retries::default(),
        timeouts: Timeouts::default(),
        proxy_protocol: SendProxy::Off,
        slow_start: Duration::ZERO,
        servers: Vec::new(),
    }
}

fn route(path: PathMatch) -> Route {
    Route {
        name: "r".to_owned(),
        listeners: vec![0],
        hosts: Vec::new(),
        path,
        methods: Vec::new(),
        headers: Vec::new(),
        query: Vec::new(),
        action: route::Action::Forward(vec![(0, 1)]),
        rewrite: None,
        request_headers: HeaderRules::default(),
        response_headers: HeaderRules::default(),
        timeouts: TimeoutsOverride::default(),
        retries: RetriesOverride::default(),
        mirror: None,
        concurrency: None,
    }
}

fn proxy(routes: Vec<Route>) -> Proxy {
    Proxy {
        listeners: vec![listener(), listener()],
        upstreams: vec![upstream(), upstream(), upstream()],
        routes,
        ..Proxy::default()
    }
}

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(text.to_owned())
}

#[derive(Clone, Debug, Default)]
struct Request {
    host: String,
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    asked: Cell<u32>,
}

impl View for Request {
    fn host(&self) -> &[u8] {
        self.host.as_bytes()
    }
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn query(&self) -> &[u8] {
        self.query.as_bytes()
    }
    fn any_header(&self, name: &str, mut test: impl FnMut(&[u8]) -> bool) -> bool {
        self.asked.set(self.asked.get() + 1);
        let mut fields = self.headers.iter().filter(|(n, _)| n == name);
        fields.any(|(_, value)| test(value.as_bytes()))
    }
}

fn get(host: &str, path: &str) -> Request {
    Request {
        host: host.to_owned(),
        method: "GET".to_owned(),
        path: path.to_owned(),
        ..Request::default()
    }
}

/// How well a host fits: what comes first is less.
fn host_rank(hosts: &[Host], host: &str) -> Option<Reverse<usize>> {
    if hosts.is_empty() {
        return Some(Reverse(0));
    }
    let fits = hosts.iter().filter_map(|h| match h {
        Host::Exact(name) => (name == host).then_some(usize::MAX),
        Host::Below(end) => {
            (host.len() > end.len() && host.ends_with(end.as_str())).then_some(end.len())
        }
    });
    fits.max().map(Reverse)
}

fn path_rank(routes: &[&Route], path: &PathMatch, of: &str) -> Option<(u8, Reverse<usize>, usize)> {
    match path {
        PathMatch::Any => Some((3, Reverse(0), 0)),
        PathMatch::Exact(p) => (p == of).then_some((0, Reverse(0), 0)),
        PathMatch::Prefix(p) => {
            let rest = of.strip_prefix(p.as_str())?;
            let whole = p.ends_with('/') || rest.is_empty() || rest.starts_with('/');
            whole.then_some((1, Reverse(p.len()), 0))
        }
        PathMatch::Regex(pattern) => {
            let first = routes
                .iter()
                .position(|r| matches!(&r.path, PathMatch::Regex(p) if p == pattern));
            pattern
                .regex()
                .is_match(of.as_bytes())
                .then_some((2, Reverse(0), first?))
        }
    }
}

fn value_fits(value: &ValueMatch, of: &str) -> bool {
    match value {
        ValueMatch::Present => true,
        ValueMatch::Exact(want) => want == of,
        ValueMatch::Prefix(want) => of.starts_with(want.as_str()),
        ValueMatch::Regex(pattern) => pattern.regex().is_match(of.as_bytes()),
    }
}

/// The best of all that fit, each looked at by itself.
fn naive(routes: &[Route], listener: usize, request: &Request) -> Option<usize> {
    let query: Vec<(String, String)> = (request.query.split('&'))
        .filter_map(|p| p.split_once('='))
        .map(|(n, v)| (n.to_owned(), v.replace("%32", "2")))
        .collect();
    let any = |fields: &[(String, String)], c: &Condition| {
        fields
            .iter()
            .any(|(n, v)| *n == c.name && value_fits(&c.value, v))
    };
    let mine: Vec<&Route> = (routes.iter())
        .filter(|r| r.listeners.contains(&listener))
        .collect();
    let mut best = None;
    for (i, r) in routes.iter().enumerate() {
        let Some(host) = host_rank(&r.hosts, &request.host) else {
            continue;
        };
        let Some(path) = path_rank(&mine, &r.path, &request.path) else {
            continue;
        };
        if r.listeners.contains(&listener)
            && (r.methods.is_empty() || r.methods.contains(&request.method))
            && r.headers.iter().all(|c| any(&request.headers, c))
            && r.query.iter().all(|c| any(&query, c))
        {
            let key = (host, path, Reverse(r.conditions()), i);
            if best.as_ref().is_none_or(|b| key < *b) {
                best = Some(key);
            }
        }
    }
    best.map(|b| b.3)
}

const HOSTS: [&str; 7] = ["a", "b.a", "c.b.a", "d.c.b.a", "x", "b.x", ""];
const PATHS: [&str; 12] = [
    "/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/ab", "/a//b", "//", "/b", "/b/a", "/a/",
];
const PATTERNS: [&str; 6] = ["^/a", "b$", "/a/b", "^/$", "c", "^/b/."];

fn values() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        Just(ValueMatch::Present),
        select(vec!["1", "2", "12"]).prop_map(|v| ValueMatch::Exact(v.to_owned())),
        Just(ValueMatch::Prefix("1".to_owned())),
        Just(ValueMatch::Regex(Pattern::new("2$").unwrap())),
    ]
}

fn conditions() -> impl Strategy<Value = Vec<Condition>> {
    let one = (select(vec!["n", "m"]), values()).prop_map(|(name, value)| Condition {
        name: name.to_owned(),
        value,
    });
    proptest::collection::vec(one, 0..3)
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let host = prop_oneof![
        select(&HOSTS[..6]).prop_map(|h| Host::Exact(h.to_owned())),
        select(vec![".a", ".b.a", ".c.b.a", ".x"]).prop_map(|h| Host::Below(h.to_owned())),
    ];
    let path = prop_oneof![
        1 => Just(PathMatch::Any),
        2 => select(&PATHS[..]).prop_map(|p| PathMatch::Exact(p.to_owned())),
        4 => select(&PATHS[..]).prop_map(prefix),
        2 => select(&PATTERNS[..]).prop_map(|p| PathMatch::Regex(Pattern::new(p).unwrap())),
    ];
    let listeners = select(vec![vec![0], vec![1], vec![0, 1]]);
    let methods = proptest::collection::vec(select(vec!["GET", "PUT"]), 0..2);
    let hosts = proptest::collection::vec(host, 0..3);
    let one = (hosts, path, listeners, methods, conditions(), conditions());
    let one = one.prop_map(|(hosts, path, listeners, methods, headers, query)| Route {
        hosts,
        listeners,
        methods: methods.into_iter().map(str::to_owned).collect(),
        headers,
        query,
        ..route(path)
    });
    proptest::collection::vec(one, 0..20)
}

fn requests() -> impl Strategy<Value = Request> {
    let header = (select(vec!["n", "m"]), select(vec!["1", "2", "12", ""]));
    let headers = proptest::collection::vec(header, 0..3);
    let query = select(vec!["", "n=1", "m=12&n=2", "n=%32", "n=1&n=2", "n=1%32&m="]);
    let method = select(vec!["GET", "PUT", "POST"]);
    (
        select(&HOSTS[..]),
        select(&PATHS[..]),
        method,
        query,
        headers,
    )
        .prop_map(|(host, path, method, query, headers)| Request {
            method: method.to_owned(),
            query: query.to_owned(),
            headers: headers
                .into_iter()
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .collect(),
            ..get(host, path)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn it_finds_what_a_naive_reading_finds(
        routes in routes(),
        requests in proptest::collection::vec((0..2usize, requests()), 1..20),
    ) {
        let proxy = proxy(routes);
        let router = Router::new(&proxy).unwrap();
        for router in [&router, &router.clone()] {
            for (listener, request) in &requests {
                let found = router.find(*listener, request).map(|r| r.index);
                prop_assert_eq!(found, naive(&proxy.routes, *listener, request), "{:?}", request);
            }
        }
    }
}

#[test]
fn a_prefix_is_whole_segments() {
    let router = Router::new(&proxy(vec![route(prefix("/a/b")), route(prefix("/a/"))])).unwrap();
    let index = |path| router.find(0, &get("x", path)).map(|r| r.index);
    for (path, want) in [
        ("/a/b", Some(0)),
        ("/a/b/", Some(0)),
        ("/a/b/c", Some(0)),
        ("/a/bc", Some(1)),
        ("/a/", Some(1)),
        ("/a", None),
        ("/", None),
        ("*", None),
        ("", None),
    ] {
        assert_eq!(index(path), want, "{path}");
    }
    assert!(
        router.find(2, &get("x", "/a/b")).is_none(),
        "no such listener"
    );
}

#[test]
fn more_routes_are_no_more_work() {
    // Each of them has a condition that is asked for only when host and path fit.
    let many = |n: usize| {
        let condition = Condition {
            name: "n".to_owned(),
            value: ValueMatch::Exact("1".to_owned()),
        };
        let of = |i: usize| {
            let path = match i % 3 {
                0 => PathMatch::Exact(format!("/x/{i}")),
                1 => prefix(&format!("/x/{i}")),
                _ => PathMatch::Regex(Pattern::new(&format!("^/x/{i}$")).unwrap()),
            };
            Route {
                hosts: vec![match i % 2 {
                    0 => Host::Exact(format!("h{}.a", i % 200)),
                    _ => Host::Below(format!(".h{}.a", i % 200)),
                }],
                headers: vec![condition.clone()],
                ..route(path)
            }
        };
        Router::new(&proxy((0..n).map(of).collect())).unwrap()
    };
    for i in 0..6 {
        let asked = [10, 600].map(|n| {
            let router = many(n);
            let host = format!("{}h{i}.a", if i % 2 == 0 { "" } else { "x." });
            let mut request = get(&host, &format!("/x/{i}"));
            request.headers = vec![("n".to_owned(), "1".to_owned())];
            assert_eq!(router.find(0, &request).map(|r| r.index), Some(i));
            request.asked.get()
        });
        assert_eq!(asked, [1, 1], "{i}");
    }
}

#[test]
fn a_split_gives_each_its_share() {
    let split = |weights: &[u32]| {
        let split = weights.iter().enumerate().map(|(i, &w)| (i, w)).collect();
        let route = Route {
            action: route::Action::Forward(split),
            timeouts: TimeoutsOverride {
                connect: Some(Duration::from_millis(7)),
                ..TimeoutsOverride::default()
            },
            ..route(PathMatch::Any)
        };
        Router::new(&proxy(vec![route])).unwrap()
    };
    let counts = |weights: &[u32]| {
        let router = split(weights);
        let Action::Forward(split) = &router.route(0).action else {
            panic!("{:?}", router.route(0));
        };
        let mut counts = vec![0; weights.len()];
        let step = u64::MAX / 999;
        for i in 0..1000 {
            counts[split.pick(step * i).upstream] += 1;
        }
        assert_eq!(split.targets().len(), weights.len());
        let timeouts = split.targets()[0].timeouts;
        assert_eq!(timeouts.connect, Duration::from_millis(7));
        assert_eq!(timeouts.request, Timeouts::default().request);
        counts
    };
    assert_eq!(counts(&[1]), [1000]);
    assert_eq!(counts(&[95, 5, 0]), [950, 50, 0]);
    assert_eq!(counts(&[0, 1, 0]), [0, 1000, 0]);
    assert_eq!(counts(&[u32::MAX, u32::MAX]), [500, 500]);
}

#[test]
fn paths_are_rewritten() {
    let rewritten = |from: PathMatch, rewrite: Rewrite, path: &str| {
        let route = Route {
            rewrite: Some(rewrite),
            ..route(from)
        };
        let router = Router::new(&proxy(vec![route])).unwrap();
        let found = router.find(0, &get("x", path)).expect(path);
        let mut buffer = Vec::new();
        let got = router.rewrite(found, path.as_bytes(), &mut buffer)?;
        Ok(String::from_utf8(got.to_vec()).unwrap())
    };
    for (from, to, path, want) in [
        ("/api/", "/", "/api/x/y", "/x/y"),
        ("/api", "/", "/api/x", "/x"),
        ("/api", "/", "/api", "/"),
        ("/api", "/", "/api/", "/"),
        ("/api/", "/v2", "/api/x", "/v2/x"),
        ("/api/", "/v2", "/api/", "/v2"),
        ("/api", "/v2", "/api/x", "/v2/x"),
        ("/api", "/v2/", "/api", "/v2/"),
        ("/api", "/v2/", "/api/x", "/v2/x"),
        ("/", "/v2", "/x", "/v2/x"),
        ("/", "/v2/", "/", "/v2/"),
    ] {
        let got = rewritten(prefix(from), Rewrite::Prefix(to.to_owned()), path);
        assert_eq!(got.as_deref(), Ok(want), "{from} -> {to}: {path}");
    }
    for (from, to, path, want) in [
        ("^/old/(.*)$", "/new/$1", "/old/a/b", Ok("/new/a/b")),
        (
            "^/(?<a>[^/]+)/(?<b>[^/]+)",
            "/${b}/${a}",
            "/1/2/3",
            Ok("/2/1/3"),
        ),
        ("^/(a)?(b)", "$1$2", "/b", Ok("/b")),
        ("x", "y", "/a", Ok("/a")),
        // What comes out is a path, whatever it was made of.
        ("^/a(.*)$", "/x/$1", "/a../b", Ok("/b")),
        ("^/a(.*)b$", "/$1", "/a..b", Err(PathError::AboveRoot)),
        ("^/a", "", "/ab", Ok("/b")),
    ] {
        let pattern = Pattern::new(from).unwrap();
        let to = Replacement::new(to, &pattern).unwrap();
        let got = rewritten(PathMatch::Any, Rewrite::Regex { pattern, to }, path);
        assert_eq!(got.as_deref(), want.as_ref().copied(), "{from}: {path}");
    }
}

#[test]
fn redirections_lead_to_parts_of_the_request() {
    let mut request = get("example.com", "/a");
    let of = |to: &str, request: &Request| {
        let mut buffer = b"location: ".to_vec();
        let to = Location::new(to).unwrap();
        write_location(&to, request, &mut buffer)?;
        Ok(String::from_utf8(buffer).unwrap())
    };
    const WHOLE: &str = "https://www.{host}{path}{query}";
    let told = |text: &str| Ok(format!("location: {text}"));
    assert_eq!(of(WHOLE, &request), told("https://www.example.com/a"));
    request.query = "b=1".to_owned();
    assert_eq!(of(WHOLE, &request), told("https://www.example.com/a?b=1"));
    // Who asks does not say at which host a path is, however many slashes it begins with.
    for (to, path, want) in [
        ("{path}", "//evil.example/x", "/evil.example/x"),
        ("{path}/", "///evil.example", "/evil.example/"),
        ("{path}/more", "/", "/more"),
        ("/{path}", "/a//b", "/a//b"),
        ("/{path}", "//evil.example/x", "/evil.example/x"),
        ("/{host}{path}", "//a", "/example.com//a"),
        ("//b.example{path}", "//a", "//b.example//a"),
        ("{path}", "*", "/"),
        ("https://b.example{path}", "*", "https://b.example"),
    ] {
        let asked = get("example.com", path);
        assert_eq!(of(to, &asked), told(want), "{to}: {path}");
    }
    let nowhere = get("", "/a");
    assert_eq!(of(WHOLE, &nowhere), Err(Reject::HostMissing));
    assert_eq!(of("{path}", &nowhere), told("/a"));
}
