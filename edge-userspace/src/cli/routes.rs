//! `edge routes`.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Error,
    args::{RoutesCommand, TestArgs},
    ask,
    output::Out,
    text::{Column, Table, count},
    unexpected,
};
use crate::{
    clock,
    config::{self, quantity::spelt},
    control::protocol::{Request, Response},
    l7::proxy::explain,
    status::route::{Answer, Forward, HeaderChanges, Outcome, Places, Question, RouteEntry, Share},
};

pub(super) fn execute<W: Write>(
    command: RoutesCommand,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    match command {
        RoutesCommand::List => list(socket, out),
        RoutesCommand::Test(TestArgs {
            url,
            method,
            headers,
            listener,
            from,
            config,
        }) => {
            let question = Question {
                url,
                method,
                headers,
                listener,
                from,
            };
            test(question, config, socket, out)
        }
    }
}

fn list<W: Write>(socket: &Path, out: &mut Out<W>) -> Result<(), Error> {
    let routes = match ask(socket, Request::Routes {})? {
        Response::Routes(routes) => routes,
        other => return Err(unexpected(socket, &other)),
    };
    if out.json {
        for route in &routes {
            out.object(route)?;
        }
    } else {
        out.text(&table(&routes))?;
    }
    Ok(())
}

fn table(routes: &[RouteEntry]) -> String {
    if routes.is_empty() {
        return "no routes\n".to_owned();
    }
    let mut table = Table::new([
        Column::Left("ROUTE"),
        Column::Left("LISTENERS"),
        Column::Left("HOSTS"),
        Column::Left("PATH"),
        Column::Right("CONDITIONS"),
        Column::Left("LEADS TO"),
        Column::Right("REQUESTS"),
        Column::Right("4XX"),
        Column::Right("5XX"),
    ]);
    for RouteEntry { route, requests } in routes {
        table.row([
            route.route.clone(),
            route.listeners.join(","),
            match route.hosts.is_empty() {
                true => "any".to_owned(),
                false => route.hosts.join(","),
            },
            route.path.clone(),
            route.conditions.to_string(),
            route.action.clone(),
            count(requests.total()),
            count(requests.classes[3]),
            count(requests.classes[4]),
        ]);
    }
    table.text()
}

fn test<W: Write>(
    question: Question,
    file: Option<PathBuf>,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    let answers = match file {
        Some(file) => {
            let (_, checked) = config::load_text(&file, clock::coarse_tick_ns())?;
            let answers = explain::answer_of(&checked.model.proxy, &question);
            answers.map_err(|e| Error::Input(e.to_string()))?
        }
        None => match ask(socket, Request::RouteTest(question))? {
            Response::RouteTest(answers) => answers,
            other => return Err(unexpected(socket, &other)),
        },
    };
    for (at, answer) in answers.iter().enumerate() {
        if out.json {
            out.object(answer)?;
        } else {
            let space = if at > 0 { "\n" } else { "" };
            out.text(&format!("{space}{}", told(answer)))?;
        }
    }
    let is_refused = |a: &Answer| matches!(a.outcome, Outcome::Refused { .. });
    match answers.iter().all(is_refused) {
        true => {
            out.flush()?;
            Err(Error::Told)
        }
        false => Ok(()),
    }
}

/// An answer for people.
fn told(answer: &Answer) -> String {
    let mut t = String::new();
    // Writing to a string cannot fail, here and below.
    let mut line = |what: &str, value: &str| {
        let _ = writeln!(t, "{what:16}{value}");
    };
    line("listener", &answer.listener);
    if answer.trusted {
        line("from", "a trusted proxy");
    }
    if !answer.method.is_empty() {
        let request = format!("{} {}{}", answer.method, answer.host, answer.path);
        line("request", &request);
    }
    line("route", answer.route.as_deref().unwrap_or("none"));
    match &answer.outcome {
        Outcome::Refused {
            status,
            reason,
            sentence,
        } => line("refused", &format!("{status}, {reason}: {sentence}")),
        Outcome::Redirect { status, to } => line("redirect", &format!("{status} to {to}")),
        Outcome::Respond {
            status,
            headers,
            body_bytes,
        } => {
            let size = format!("{status}, {} bytes", count(*body_bytes));
            line("answer", &size);
            for (name, value) in headers {
                line("", &format!("{name}: {value}"));
            }
        }
        Outcome::Forward(forward) => forwarded(forward, line),
    }
    t
}

fn forwarded(forward: &Forward, mut line: impl FnMut(&str, &str)) {
    line("server sees", &forward.target);
    changes("request header", &forward.request_headers, &mut line);
    changes("answer header", &forward.response_headers, &mut line);
    if let Some(places) = &forward.concurrency {
        line("concurrency", &bounded(places));
    }
    for share in &forward.upstreams {
        let of = match forward.upstreams.len() {
            1 => String::new(),
            _ => format!(", {:.1} % of such requests", share.share * 100.0),
        };
        line("upstream", &format!("{}{of}", share.upstream));
        for policy in policies(share) {
            line("", &policy);
        }
    }
    if let Some(copied) = &forward.mirror {
        let share = format!(
            "{}, {:.1} % of such requests",
            copied.upstream,
            copied.share * 100.0
        );
        line("copies to", &share);
    }
}

fn changes(what: &str, of: &HeaderChanges, line: &mut impl FnMut(&str, &str)) {
    for name in &of.remove {
        line(what, &format!("without {name}"));
    }
    for (name, value) in &of.set {
        line(what, &format!("{name}: {value}"));
    }
    for (name, value) in &of.add {
        line(what, &format!("also {name}: {value}"));
    }
}

fn policies(share: &Share) -> Vec<String> {
    let ms = |ms| spelt(Duration::from_millis(ms));
    let tls = if share.tls { " over TLS" } else { "" };
    let sticky = share.sticky.as_ref();
    let sticky = sticky.map_or_else(String::new, |cookie| {
        format!(", clients return by the cookie {cookie}")
    });
    let retries = match share.tries {
        1 => "never tried again".to_owned(),
        n => format!(
            "at most {n} tries{}, the second after {} at most",
            match share.retry_non_idempotent {
                true => ", also of what may have been carried out and is not idempotent",
                false => "",
            },
            ms(share.retry_base_ms)
        ),
    };
    let mut all = vec![
        format!("{}{tls}, {}{sticky}", share.protocol, share.balance),
        retries,
        format!(
            "time for a connection {}, the first byte {}, each next {}, all {}",
            ms(share.connect_ms),
            ms(share.first_byte_ms),
            ms(share.between_bytes_ms),
            ms(share.request_ms)
        ),
    ];
    all.extend(share.concurrency.as_ref().map(bounded));
    if share.breaker {
        all.push("a circuit breaker".to_owned());
    }
    all
}

fn bounded(places: &Places) -> String {
    format!(
        "at most {} at one time, {} wait up to {}",
        count(places.requests.into()),
        count(places.queue.into()),
        spelt(Duration::from_millis(places.queue_timeout_ms))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::route::Copied;

    #[test]
    fn an_answer_says_all_that_holds() {
        let answer = Answer {
            listener: "web".to_owned(),
            trusted: true,
            method: "GET".to_owned(),
            host: "example.com".to_owned(),
            path: "/api/a".to_owned(),
            route: Some("api".to_owned()),
            outcome: Outcome::Forward(Box::new(Forward {
                target: "/a?b=1".to_owned(),
                request_headers: HeaderChanges {
                    remove: vec!["x-old".to_owned()],
                    set: vec![("x-a".to_owned(), "1".to_owned())],
                    add: vec![("x-b".to_owned(), "2".to_owned())],
                },
                response_headers: HeaderChanges::default(),
                mirror: Some(Copied {
                    upstream: "shadow".to_owned(),
                    share: 0.1,
                }),
                concurrency: None,
                upstreams: vec![Share {
                    upstream: "app".to_owned(),
                    share: 1.0,
                    balance: "round-robin".to_owned(),
                    sticky: Some("edge".to_owned()),
                    protocol: "http1".to_owned(),
                    tls: true,
                    concurrency: Some(Places {
                        requests: 1024,
                        queue: 256,
                        queue_timeout_ms: 1000,
                    }),
                    breaker: true,
                    tries: 3,
                    retry_non_idempotent: true,
                    retry_base_ms: 25,
                    connect_ms: 1000,
                    first_byte_ms: 15_000,
                    between_bytes_ms: 30_000,
                    request_ms: 60_000,
                }],
            })),
        };
        assert_eq!(
            told(&answer),
            "\
listener        web
from            a trusted proxy
request         GET example.com/api/a
route           api
server sees     /a?b=1
request header  without x-old
request header  x-a: 1
request header  also x-b: 2
upstream        app
                http1 over TLS, round-robin, clients return by the cookie edge
                at most 3 tries, also of what may have been carried out and is not idempotent, the second after 25ms at most
                time for a connection 1s, the first byte 15s, each next 30s, all 1m
                at most 1,024 at one time, 256 wait up to 1s
                a circuit breaker
copies to       shadow, 10.0 % of such requests
"
        );
    }
}
