//! What a request would get, told without sending it.
//!
//! The question becomes the bytes that a client would send, and is read, routed and rewritten by
//! what reads, routes and rewrites requests: the answer is the proxy's own.

use std::{net::IpAddr, time::Duration};

use super::{exchange::Seen, snapshot::head_limits};
use crate::{
    config::proxy::{
        Listener, Proxy,
        route::HeaderRules,
        upstream::{Concurrency, Upstream},
    },
    l7::{
        head::Request,
        http1,
        refusal::Refusal,
        route::{self, Action, CompileError, Route, Router, Split, Target, View as _},
    },
    status::route::{Answer, Copied, Forward, HeaderChanges, Outcome, Places, Question, Share},
    uri,
};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// The URL is none.
    #[error(
        "{0:?} is no URL; write http://host/path, https://host:port/path?query, or a path with \
         --header 'Host: …'"
    )]
    Url(String),
    /// The host is named twice.
    #[error("the host is in the URL and in a header; name it once, a path alone is a URL as well")]
    TwoHosts,
    /// No host is named.
    #[error("a path alone has no host: write a URL, or add --header 'Host: …'")]
    NoHost,
    /// A text would be more than one line.
    #[error("{0:?} has control characters, which end lines of a header")]
    Control(String),
    /// There is no such listener.
    #[error("there is no listener {name:?}; there are: {known}")]
    Listener {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The URL leads to no listener.
    #[error("no listener takes {scheme}; name one with --listener: {known}")]
    Scheme {
        /// `http` or `https`.
        scheme: &'static str,
        /// Those that there are.
        known: String,
    },
    /// There is no proxy.
    #[error("there is no proxy: the configuration has no [[listener]]")]
    NoProxy,
    /// The routes of a file cannot be compiled.
    #[error(transparent)]
    Routes(#[from] CompileError),
}

/// What a request would get from a configuration that is not in force.
///
/// # Errors
/// [`QuestionError`].
pub fn answer_of(proxy: &Proxy, question: &Question) -> Result<Vec<Answer>, QuestionError> {
    answer(proxy, &Router::new(proxy)?, question)
}

/// What a request would get at each listener that it may come to.
pub(super) fn answer(
    proxy: &Proxy,
    router: &Router,
    question: &Question,
) -> Result<Vec<Answer>, QuestionError> {
    let url = Url::read(&question.url)?;
    let head = head(question, &url)?;
    let at = listeners(proxy, question, &url)?;
    let all = at.into_iter();
    Ok(all
        .map(|i| at_listener(proxy, router, i, question.from, &head))
        .collect())
}

/// The parts of a URL, as they are written.
struct Url<'a> {
    /// Whether it is of `https`; `None` for a path alone.
    https: Option<bool>,
    authority: &'a str,
    target: String,
}

impl<'a> Url<'a> {
    fn read(text: &'a str) -> Result<Self, QuestionError> {
        let wrong = || QuestionError::Url(text.to_owned());
        // What stands behind the sign is the client's alone (RFC 9110, section 4.2.5).
        let sent = text.split('#').next().unwrap_or(text);
        let (https, rest) = match (sent.strip_prefix("https://"), sent.strip_prefix("http://")) {
            (Some(rest), _) => (Some(true), rest),
            (_, Some(rest)) => (Some(false), rest),
            _ if sent.starts_with('/') => (None, sent),
            _ => return Err(wrong()),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if https.is_some() && authority.is_empty() {
            return Err(wrong());
        }
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self {
            https,
            authority,
            target: format!("{slash}{target}"),
        })
    }

    /// The port that a client would connect to.
    fn port(&self) -> Option<u16> {
        let mut buffer = Vec::new();
        let named = uri::host::authority(self.authority.as_bytes(), &mut buffer)?.port;
        Some(named.unwrap_or(if self.https? { 443 } else { 80 }))
    }
}

/// The bytes that a client would send.
fn head(question: &Question, url: &Url<'_>) -> Result<Vec<u8>, QuestionError> {
    let texts = question.headers.iter().flat_map(|(n, v)| [n, v]);
    for text in texts.chain([&question.method, &question.url]) {
        if text.chars().any(char::is_control) {
            return Err(QuestionError::Control(text.clone()));
        }
    }
    let is_host = |(name, _): &(String, String)| name.eq_ignore_ascii_case("host");
    match (
        url.authority.is_empty(),
        question.headers.iter().any(is_host),
    ) {
        (true, false) => return Err(QuestionError::NoHost),
        (false, true) => return Err(QuestionError::TwoHosts),
        _ => {}
    }
    let mut head = format!("{} {} HTTP/1.1\r\n", question.method, url.target);
    if !url.authority.is_empty() {
        head += &format!("Host: {}\r\n", url.authority);
    }
    for (name, value) in &question.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    Ok(head.into_bytes())
}

/// Indexes of the listeners that a request may come to: the one that is named, else those of the
/// URL's scheme and port, else (somebody in front may change the port) those of its scheme.
fn listeners(
    proxy: &Proxy,
    question: &Question,
    url: &Url<'_>,
) -> Result<Vec<usize>, QuestionError> {
    let known = || {
        let names = proxy.listeners.iter().map(|l| l.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    if proxy.listeners.is_empty() {
        return Err(QuestionError::NoProxy);
    }
    let fitting = |fits: &dyn Fn(&Listener) -> bool| {
        let all = proxy.listeners.iter().enumerate();
        let all = all.filter(|(_, listener)| fits(listener)).map(|(i, _)| i);
        all.collect::<Vec<usize>>()
    };
    if let Some(name) = &question.listener {
        let named = fitting(&|listener| listener.name == *name);
        return match named.is_empty() {
            false => Ok(named),
            true => Err(QuestionError::Listener {
                name: name.clone(),
                known: known(),
            }),
        };
    }
    let Some(https) = url.https else {
        return Ok(fitting(&|_| true));
    };
    let of_scheme = |listener: &Listener| listener.tls.is_some() == https;
    let port = url.port();
    let has_port = |l: &Listener| l.addresses.iter().any(|a| Some(a.port()) == port);
    let exact = fitting(&|listener| of_scheme(listener) && has_port(listener));
    let all = match exact.is_empty() {
        true => fitting(&of_scheme),
        false => exact,
    };
    if all.is_empty() {
        return Err(QuestionError::Scheme {
            scheme: if https { "https" } else { "http" },
            known: known(),
        });
    }
    Ok(all)
}

fn at_listener(
    proxy: &Proxy,
    router: &Router,
    listener: usize,
    from: Option<IpAddr>,
    head: &[u8],
) -> Answer {
    let config = &proxy.listeners[listener];
    let mut answer = Answer {
        listener: config.name.clone(),
        trusted: from.is_some_and(|from| config.trusts(from)),
        method: String::new(),
        host: String::new(),
        path: String::new(),
        route: None,
        outcome: Outcome::Redirect {
            status: 308,
            to: String::new(),
        },
    };
    answer.outcome = outcome(proxy, router, listener, head, &mut answer).unwrap_or_else(refused);
    answer
}

/// The order in which requests are answered: see [`super::exchange`].
fn outcome(
    proxy: &Proxy,
    router: &Router,
    listener: usize,
    head: &[u8],
    answer: &mut Answer,
) -> Result<Outcome, Refusal> {
    let config = &proxy.listeners[listener];
    let mut request = Request::default();
    http1::parse_request(head, &head_limits(&config.limits), &mut request)?;
    let (mut host, mut path, mut rewritten) = (Vec::new(), Vec::new(), Vec::new());
    let believed = answer.trusted.then_some(config.client_header);
    let seen = Seen::new((&request, believed), head, &mut host, &mut path)?;
    answer.method = text(seen.method());
    answer.host = text(seen.host());
    answer.path = text(seen.path());
    if config.redirect_https {
        let mut to = Vec::new();
        seen.write_https(&mut to);
        return Ok(Outcome::Redirect {
            status: 308,
            to: text(&to),
        });
    }
    let route = router.find(listener, &seen).ok_or(Refusal::NoRoute)?;
    answer.route = Some(route.name.to_string());
    Ok(match &route.action {
        Action::Forward(_) if seen.ends_here()? => Outcome::Respond {
            status: 200,
            headers: Vec::new(),
            body_bytes: 0,
        },
        Action::Forward(split) => {
            let path = router.rewrite(route, seen.path(), &mut rewritten);
            let mut target = text(path.map_err(|_| Refusal::Path)?);
            if let Some(query) = request.query(head) {
                target.push('?');
                target += &text(query);
            }
            Outcome::Forward(Box::new(forward(proxy, route, split, target)))
        }
        Action::Redirect { status, to } => {
            let mut location = Vec::new();
            route::write_location(to, &seen, &mut location)?;
            Outcome::Redirect {
                status: *status,
                to: text(&location),
            }
        }
        Action::Respond {
            status,
            body,
            headers,
        } => Outcome::Respond {
            status: *status,
            headers: headers.iter().map(|(n, v)| (text(n), text(v))).collect(),
            body_bytes: body.len() as u64,
        },
    })
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused {
        status: refusal.status(),
        reason: refusal.name().to_owned(),
        sentence: refusal.sentence().to_owned(),
    }
}

fn forward(proxy: &Proxy, route: &Route, split: &Split, target: String) -> Forward {
    let config = &proxy.routes[route.index];
    let shares = split.shares();
    Forward {
        target,
        request_headers: changes(&config.request_headers),
        response_headers: changes(&config.response_headers),
        concurrency: route.concurrency.map(places),
        upstreams: shares
            .map(|(target, of)| share(&proxy.upstreams[target.upstream], target, of))
            .collect(),
        mirror: route.mirror.map(|mirror| Copied {
            upstream: proxy.upstreams[mirror.upstream].name.clone(),
            share: f64::from(mirror.permille) / 1000.0,
        }),
    }
}

fn share(upstream: &Upstream, target: &Target, share: f64) -> Share {
    let Target {
        timeouts, retries, ..
    } = target;
    Share {
        upstream: upstream.name.clone(),
        share,
        balance: upstream.balance.name().to_owned(),
        sticky: upstream.sticky.as_ref().map(|s| s.cookie.clone()),
        protocol: upstream.protocol.name().to_owned(),
        tls: upstream.tls.is_some(),
        concurrency: upstream.concurrency.map(places),
        breaker: upstream.breaker.is_some(),
        tries: retries.tries,
        retry_base_ms: milliseconds(retries.base),
        retry_non_idempotent: retries.non_idempotent,
        connect_ms: milliseconds(timeouts.connect),
        first_byte_ms: milliseconds(timeouts.first_byte),
        between_bytes_ms: milliseconds(timeouts.between_bytes),
        request_ms: milliseconds(timeouts.request),
    }
}

fn places(of: Concurrency) -> Places {
    Places {
        requests: of.requests,
        queue: of.queue,
        queue_timeout_ms: milliseconds(of.queue_timeout),
    }
}

fn changes(of: &HeaderRules) -> HeaderChanges {
    HeaderChanges {
        remove: of.remove.clone(),
        set: of.set.clone(),
        add: of.add.clone(),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test::model_of;

    fn proxy() -> Proxy {
        model_of(
            "
            [[listener]]
            name = 'web'
            addresses = ['127.0.0.1:80']
            [[listener]]
            name = 'inside'
            addresses = ['127.0.0.1:8080']
            trusted_proxies = ['10.0.0.0/8']
            [[listener]]
            name = 'moved'
            addresses = ['127.0.0.1:8081']
            redirect_https = true
            [[upstream]]
            name = 'app'
            concurrency = { requests = 5 }
            [[upstream.server]]
            address = '10.0.0.1:80'
            [[upstream]]
            name = 'canary'
            [[upstream.server]]
            address = '10.0.0.2:80'
            [[upstream]]
            name = 'shadow'
            [[upstream.server]]
            address = '10.0.0.3:80'
            [[route]]
            name = 'api'
            listeners = ['web']
            hosts = ['example.com']
            path = { prefix = '/api/' }
            methods = ['GET', 'OPTIONS', 'TRACE']
            split = [{ upstream = 'app', weight = 3 }, { upstream = 'canary', weight = 1 }]
            rewrite = { prefix = '/' }
            request_headers = { set = { x-a = '1' }, remove = ['x-b'] }
            timeouts = { request = '40s' }
            mirror = { upstream = 'shadow', fraction = 0.25 }
            [[route]]
            name = 'beta'
            headers = [{ name = 'x-beta', value = '1' }]
            redirect = { to = 'https://{host}{path}{query}', status = 302 }
            [[route]]
            name = 'secure'
            headers = [{ name = 'x-forwarded-proto', value = 'https' }]
            respond = { status = 204 }
            [[route]]
            name = 'health'
            path = { exact = '/health' }
            respond = { status = 200, body = 'ok', headers = { x-c = '2' } }
            ",
        )
        .proxy
    }

    fn question(url: &str) -> Question {
        Question {
            url: url.to_owned(),
            method: "GET".to_owned(),
            headers: Vec::new(),
            listener: None,
            from: None,
        }
    }

    fn only(question: &Question) -> Answer {
        let mut answers = answer_of(&proxy(), question).unwrap();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    #[test]
    fn the_whole_way_of_a_request_is_told() {
        let answer = only(&question("http://Example.COM/x/../api//a%41?b=1#c"));
        assert_eq!(answer.listener, "web");
        assert_eq!(
            (answer.host.as_str(), answer.route.as_deref()),
            ("example.com", Some("api"))
        );
        let Outcome::Forward(forward) = answer.outcome else {
            panic!("{answer:?}");
        };
        assert!(forward.target.ends_with("aA?b=1"), "{}", forward.target);
        assert!(!forward.target.contains("api"), "{}", forward.target);
        let set = ("x-a".to_owned(), "1".to_owned());
        assert_eq!(forward.request_headers.set, [set]);
        assert_eq!(forward.request_headers.remove, ["x-b"]);
        let shares = forward.upstreams.iter();
        let shares: Vec<_> = shares
            .map(|s| (s.upstream.as_str(), s.share, s.request_ms))
            .collect();
        assert_eq!(shares, [("app", 0.75, 40_000), ("canary", 0.25, 40_000)]);
        let copied = forward.mirror.unwrap();
        assert_eq!((copied.upstream.as_str(), copied.share), ("shadow", 0.25));
        let places = forward.upstreams[0].concurrency.unwrap();
        assert_eq!(places.requests, 5);
    }

    #[test]
    fn conditions_are_asked_as_for_a_request() {
        let mut asked = question("http://other.example/?q=1");
        let refused = |a: &Answer, with: &str| match &a.outcome {
            Outcome::Refused { reason, .. } => assert_eq!(reason, with),
            other => panic!("{other:?}"),
        };
        refused(&only(&asked), "no_route");
        asked.headers = vec![("X-Beta".to_owned(), "1".to_owned())];
        let to = "https://other.example/?q=1".to_owned();
        assert_eq!(only(&asked).outcome, Outcome::Redirect { status: 302, to });
        asked.method = "CONNECT".to_owned();
        refused(&only(&asked), "method_connect");
        let mut post = question("http://example.com/api/a");
        post.method = "POST".to_owned();
        refused(&only(&post), "no_route");
        refused(&only(&question("http://example.com/%zz")), "path");
        // What is to come no further does not.
        let mut last = question("http://example.com/api/a");
        last.headers = vec![("Max-Forwards".to_owned(), "0".to_owned())];
        last.method = "TRACE".to_owned();
        refused(&only(&last), "trace");
        last.method = "OPTIONS".to_owned();
        let empty = Outcome::Respond {
            status: 200,
            headers: Vec::new(),
            body_bytes: 0,
        };
        assert_eq!(only(&last).outcome, empty);
    }

    #[test]
    fn the_word_of_who_connects_counts_where_it_is_trusted() {
        let mut asked = question("http://a:8080/x");
        asked.headers = vec![("X-Forwarded-Proto".to_owned(), "https".to_owned())];
        for (from, route) in [
            (None, None),
            (Some("192.0.2.1"), None),
            (Some("10.1.2.3"), Some("secure")),
            (Some("::ffff:10.1.2.3"), Some("secure")),
        ] {
            asked.from = from.map(|from| from.parse().unwrap());
            let answer = only(&asked);
            assert_eq!(answer.route.as_deref(), route, "{from:?}");
            assert_eq!(answer.trusted, route.is_some());
        }
        // Another listener trusts nobody.
        asked.url = "http://a/x".to_owned();
        assert!(!only(&asked).trusted);
    }

    #[test]
    fn listeners_are_those_that_the_url_leads_to() {
        let at = |asked: &Question| -> Vec<String> {
            let answers = answer_of(&proxy(), asked).unwrap();
            answers.into_iter().map(|a| a.listener).collect()
        };
        let mut asked = question("http://a/health");
        assert_eq!(at(&asked), ["web"]);
        assert_eq!(at(&question("http://a:8080/health")), ["inside"]);
        // Somebody in front has another port.
        assert_eq!(at(&question("http://a:9/")), ["web", "inside", "moved"]);
        asked.listener = Some("inside".to_owned());
        let answer = only(&asked);
        assert_eq!(answer.listener, "inside");
        assert_eq!(
            answer.outcome,
            Outcome::Respond {
                status: 200,
                headers: vec![("x-c".to_owned(), "2".to_owned())],
                body_bytes: 2
            }
        );
        let moved = only(&question("http://a:8081/x?y"));
        let to = "https://a/x?y".to_owned();
        assert_eq!(moved.outcome, Outcome::Redirect { status: 308, to });
        assert_eq!(moved.route, None);
    }

    #[test]
    fn what_is_no_question_is_told_with_its_remedy() {
        let wrong = |change: fn(&mut Question), word: &str| {
            let mut asked = question("http://a/");
            change(&mut asked);
            let error = answer_of(&proxy(), &asked).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        wrong(|q| q.url = "example.com/".to_owned(), "http://host/path");
        wrong(|q| q.url = "http:///x".to_owned(), "http://host/path");
        wrong(|q| q.url = "/x".to_owned(), "--header 'Host: …'");
        wrong(
            |q| q.headers = vec![("HOST".to_owned(), "b".to_owned())],
            "name it once",
        );
        wrong(
            |q| q.headers = vec![("x".to_owned(), "a\r\nb: c".to_owned())],
            "control characters",
        );
        wrong(|q| q.listener = Some("x".to_owned()), "web, inside, moved");
        wrong(
            |q| q.url = "https://a/".to_owned(),
            "no listener takes https",
        );
        let error = answer_of(&Proxy::default(), &question("http://a/")).unwrap_err();
        assert!(error.to_string().contains("[[listener]]"), "{error}");
    }
}
