//! Spans of requests, as a collector gets them.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use edge_userspace::status::proxy::SpanCounts;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, Status, span::SpanKind, status::StatusCode},
};
use prost::Message as _;

use super::{edges::Authority, rig::*};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SAMPLED: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";

/// Spans, each with the name of its service.
type Spans = Arc<Mutex<Vec<(String, Span)>>>;

/// A collector, and the spans that it got.
fn collector() -> (Server, Spans) {
    let spans = Spans::default();
    (Server::start(collect(spans.clone())), spans)
}

/// What a collector does with a connection.
fn collect(got: Spans) -> impl Fn(Peer) + Send + Sync + 'static {
    move |mut peer| {
        while let Some((head, body)) = peer.request() {
            assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
            for (name, value) in [
                ("content-type", Some("application/x-protobuf")),
                ("content-encoding", None),
                ("x-of-environment", None),
            ] {
                assert_eq!(header(&head, name), value, "{name}");
            }
            let message = ExportTraceServiceRequest::decode(&*body).unwrap();
            for of in message.resource_spans {
                let service = of.resource.unwrap().attributes;
                assert_eq!(service.len(), 1, "{service:?}");
                let service = text(&service, "service.name").unwrap();
                for scope in of.scope_spans.iter().map(|of| of.scope.as_ref().unwrap()) {
                    let told = (&*scope.name, &*scope.version);
                    assert_eq!(told, ("edge", env!("CARGO_PKG_VERSION")));
                }
                let all = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
                lock(&got).extend(all.map(|span| (service.clone(), span)));
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|a| a.key == key)?;
    found.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text.clone()),
        other => panic!("{other:?}"),
    }
}

fn int(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        Value::IntValue(n) => Some(*n),
        other => panic!("{other:?}"),
    }
}

/// Whether a span is of an error. That one is well nobody says but who wrote the application.
fn is_error(span: &Span) -> bool {
    match span.status.as_ref().map(Status::code) {
        None | Some(StatusCode::Unset) => false,
        Some(StatusCode::Error) => true,
        Some(StatusCode::Ok) => panic!("{span:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn traces(collector: &str, sample: &str) -> String {
    format!(
        "workers = 1\ntraces = {{ endpoint = 'http://{collector}/', sample = {sample}, service_name = 'gate' }}"
    )
}

fn counts(rig: &Rig) -> SpanCounts {
    rig.tier.view().status().unwrap().spans
}

#[test]
fn a_collector_is_told_of_requests() {
    let ((collector, spans), server) = (collector(), Server::echo());
    let setup = Setup::new(&[&server]).proxy(traces(&collector.address, "1"));
    let setup = setup.routes(ALL.replace("upstream", "hosts = ['a.example']\nupstream"));
    let rig = Rig::new(&setup);
    let head = rig.get("/a?b=1");
    let parent = header(head.text(), "traceparent").unwrap().to_owned();
    until("both spans", || lock(&spans).len() == 2);
    let (whole, part) = {
        let all = lock(&spans);
        assert!(all.iter().all(|(service, _)| service == "gate"));
        (all[0].1.clone(), all[1].1.clone())
    };
    let heard = format!("00-{}-{}-01", hex(&part.trace_id), hex(&part.span_id));
    assert_eq!(parent, heard);
    assert_eq!(rig.logged("/a?b=1")["trace_id"], hex(&whole.trace_id));
    assert_eq!(part.trace_id, whole.trace_id);
    assert_eq!(part.parent_span_id, whole.span_id);
    assert_eq!((whole.parent_span_id.len(), whole.span_id.len()), (0, 8));
    assert_eq!(whole.kind(), SpanKind::Server);
    assert_eq!(part.kind(), SpanKind::Client);
    assert_eq!(whole.name, "GET all");
    assert!(
        whole.start_time_unix_nano <= part.start_time_unix_nano
            && part.start_time_unix_nano <= part.end_time_unix_nano
            && part.end_time_unix_nano <= whole.end_time_unix_nano
    );
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_nanos() as u64;
    assert!(now.abs_diff(whole.start_time_unix_nano) < 3600 * 1_000_000_000);
    for (key, wanted) in [
        ("http.request.method", "GET"),
        ("url.path", "/a"),
        ("url.scheme", "http"),
        ("server.address", "a.example"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("http.route", "all"),
        ("edge.upstream", "app"),
        ("edge.server", &*server.address),
    ] {
        assert_eq!(
            text(&whole.attributes, key).as_deref(),
            Some(wanted),
            "{key}"
        );
    }
    assert_eq!(
        int(&whole.attributes, "http.response.status_code"),
        Some(200)
    );
    assert_eq!(int(&whole.attributes, "edge.retries"), Some(0));
    assert!(!is_error(&whole) && !is_error(&part));
    // What no server gets.
    let mut client = rig.client();
    client.send("GET /b HTTP/1.1\r\nHost: b.example\r\n\r\n");
    assert_eq!(client.answer().status, 404);
    until("its span", || lock(&spans).len() == 3);
    let refused = lock(&spans)[2].1.clone();
    assert_eq!(
        text(&refused.attributes, "edge.refusal").as_deref(),
        Some("no_route")
    );
    assert_eq!(
        int(&refused.attributes, "http.response.status_code"),
        Some(404)
    );
    assert!(!is_error(&refused));
    until("they are counted", || counts(&rig).exported == 3);
}

#[test]
fn the_environment_has_no_say() {
    let this = std::env::current_exe().unwrap();
    let ended = std::process::Command::new(this)
        .args(["--exact", "traces::a_collector_is_told_of_requests"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .env(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x-of-environment=1,content-type=text/plain",
        )
        .env("OTEL_SERVICE_NAME", "another")
        .env("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=another")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success() && told.contains("1 passed"),
        "{told}"
    );
}

#[test]
fn what_fails_is_an_error_and_the_end_waits_for_what_is_left() {
    let (collector, spans) = collector();
    let failing = Server::start(|peer| say(peer, "503 Service Unavailable", "no"));
    let upstream = "retries = { tries = 2, base = '1ms', budget = 1.0 }";
    let setup = Setup::new(&[&failing]).upstream(upstream);
    let mut rig = Rig::new(&setup.proxy(traces(&collector.address, "1")));
    assert_eq!(rig.get("/").status, 503);
    rig.tier.stop();
    let all = lock(&spans);
    assert_eq!(all.len(), 3);
    for (_, span) in &*all {
        assert!(is_error(span));
        assert_eq!(
            int(&span.attributes, "http.response.status_code"),
            Some(503)
        );
    }
    assert_eq!(int(&all[0].1.attributes, "edge.retries"), Some(1));
}

#[test]
fn each_server_that_is_asked_has_a_span_of_its_own() {
    let (collector, spans) = collector();
    let failing = Server::start(|peer| say(peer, "503 Service Unavailable", "no"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let well = Server::saying("well");
    let mut setup = Setup::new(&[&failing]).proxy(traces(&collector.address, "1"));
    setup.servers.push(gone.clone());
    // Only when all others have failed.
    let upstream = "retries = { tries = 3, base = '1ms', budget = 1.0 }\npanic_threshold = 0.0";
    let mut rig = Rig::with(|at, log| {
        let text = setup.upstream(upstream).text(at, log);
        let backup = format!("[[upstream.server]]\naddress = '{}'\n{ALL}", well.address);
        text.replace(ALL, &backup)
    });
    until("all are asked by one request", || {
        rig.get("/");
        let mut lines = rig.lines().into_iter();
        lines.any(|line| line["tries"] == 3 && line["status"] == 200)
    });
    rig.tier.stop();
    let all: Vec<Span> = lock(&spans).iter().map(|(_, span)| span.clone()).collect();
    let whole = all
        .iter()
        .find(|s| {
            let is_well = int(&s.attributes, "http.response.status_code") == Some(200);
            is_well && int(&s.attributes, "edge.retries") == Some(2)
        })
        .unwrap();
    let mut tries: Vec<&Span> = all
        .iter()
        .filter(|s| s.parent_span_id == whole.span_id)
        .collect();
    assert_eq!(tries.len(), 3);
    assert!(tries.is_sorted_by_key(|span| span.start_time_unix_nano));
    assert!(
        tries
            .windows(2)
            .all(|two| two[0].end_time_unix_nano <= two[1].start_time_unix_nano)
    );
    let nth: Vec<_> = { tries.iter() }
        .map(|span| int(&span.attributes, "http.request.resend_count"))
        .collect();
    assert_eq!(nth, [None, Some(1), Some(2)]);
    tries
        .sort_by_key(|span| text(&span.attributes, "edge.server") != Some(failing.address.clone()));
    for (span, server, status, error) in [
        (tries[0], &failing, Some(503), Some("503")),
        (tries[2], &well, Some(200), None),
    ] {
        assert_eq!(
            text(&span.attributes, "edge.server").as_ref(),
            Some(&server.address)
        );
        assert_eq!(int(&span.attributes, "http.response.status_code"), status);
        assert_eq!(text(&span.attributes, "error.type").as_deref(), error);
        assert_eq!(is_error(span), error.is_some());
        // It has heard of this one, and of no other.
        let heard = format!(
            "traceparent: 00-{}-{}-01\r\n",
            hex(&span.trace_id),
            hex(&span.span_id)
        );
        let seen = server.seen().concat();
        assert!(seen.contains(&heard), "{heard} in {seen}");
    }
    let refused = tries[1];
    assert_eq!(text(&refused.attributes, "edge.server"), Some(gone));
    assert_eq!(int(&refused.attributes, "http.response.status_code"), None);
    assert_eq!(
        text(&refused.attributes, "error.type").as_deref(),
        Some("connect_failed")
    );
    assert!(!is_error(whole));
    assert_eq!(int(&whole.attributes, "edge.retries"), Some(2));
}

#[test]
fn what_a_collector_does_not_want_is_counted_and_not_sent_again() {
    let partly = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 1,
            error_message: "too old".to_owned(),
        }),
    };
    let partly = String::from_utf8(partly.encode_to_vec()).unwrap();
    let asked = AtomicU32::new(0);
    let collector = Server::start(move |peer| match asked.fetch_add(1, Relaxed) {
        0 => say(peer, "503 Service Unavailable\r\nRetry-After: 0", "later"),
        _ => say(peer, "200 OK", &partly),
    });
    let server = Server::saying("ok");
    let setup = Setup::new(&[&server]).proxy(traces(&collector.address, "1"));
    let rig = Rig::new(&setup);
    for (failed, exported) in [(2, 0), (3, 1)] {
        assert_eq!(rig.get("/").status, 200);
        until("its two spans are counted", || {
            let counts = counts(&rig);
            (counts.failed, counts.exported) == (failed, exported)
        });
    }
    assert_eq!(collector.requests(), 2);
}

#[test]
fn a_collector_behind_tls_hears_the_headers_of_a_file() {
    const SECRET: &str = "Bearer 0123456789";
    let (authority, spans) = (Authority::new(), Spans::default());
    let collector = authority.serving("127.0.0.1", false, collect(spans.clone()));
    let server = Server::saying("ok");
    let directory = tempfile::tempdir().unwrap();
    let headers = directory.path().join("headers");
    let write = |text: &str, mode| {
        std::fs::write(&headers, text).unwrap();
        std::fs::set_permissions(&headers, Permissions::from_mode(mode)).unwrap();
    };
    write(
        &format!("# ours\nAuthorization: {SECRET}\n\nX-Tenant: a\n"),
        0o600,
    );
    let with = |more: &str| {
        let endpoint = collector.address.replace("127.0.0.1", "https://127.0.0.1");
        let traces = format!("traces = {{ endpoint = '{endpoint}', sample = 1{more} }}");
        Setup::new(&[&server]).proxy(format!("workers = 1\n{traces}"))
    };
    let file = format!(", headers_file = '{}'", headers.display());
    let ca = format!(", ca = '{}'", authority.ca().display());
    let mut rig = Rig::new(&with(&format!("{file}{ca}")));
    rig.get("/");
    until("both spans", || lock(&spans).len() == 2);
    let heard = || collector.seen().concat().to_lowercase();
    let lines = format!("authorization: {SECRET}\r\nx-tenant: a\r\n").to_lowercase();
    assert!(heard().contains(&lines), "{}", heard());
    // What the file says then is what is sent.
    write("Authorization: other\n", 0o600);
    rig.change(&with(&format!("{file}{ca}")));
    until("the other header", || {
        rig.get("/");
        heard().contains("authorization: other\r\n")
    });
    rig.tier.stop();
    // Whom another authority has signed is told nothing.
    let told = collector.seen().len();
    let other = Authority::new();
    let ca_of_other = format!("{file}, ca = '{}'", other.ca().display());
    let mut rig = Rig::new(&with(&ca_of_other));
    rig.get("/");
    until("they are lost", || counts(&rig).failed == 2);
    let got = collector.seen()[told..].concat();
    assert!(!got.contains("POST"), "{got}");
    // A file that is wrong is told of without what is in it.
    let (many, large) = ("A: Bearer 1\n".repeat(65), "A: Bearer 1\n".repeat(2000));
    for (text, mode, why) in [
        (&*many, 0o600, "more than 64 headers"),
        (&*large, 0o600, "no file of at most 16384 bytes"),
        ("Authorization: Bearer 1\n", 0o640, "chmod 600"),
        ("Bearer 1\n", 0o600, "line 1 is no header"),
        (
            "A: Bearer 1\nHost: Bearer 1\n",
            0o600,
            "line 2: host is what edge says itself",
        ),
    ] {
        write(text, mode);
        let text = with(&format!("{file}{ca}")).text(rig.port.at, &rig.log());
        let problem = rig.tier.prepare(&proxy_of(&text)).map(|_| ()).unwrap_err();
        let problem = problem.to_string();
        assert!(
            problem.contains(why) && !problem.contains("Bearer 1"),
            "{problem}"
        );
    }
}

#[test]
fn ids_and_traces_of_others_go_on_as_far_as_they_are_right() {
    const UUID: &str = "01234567-89ab-cdef-0123-456789ABCDEF";
    let server = Server::echo();
    let trusting = Setup::new(&[&server]).listener("trusted_proxies = ['127.0.0.0/8']");
    let rig = Rig::new(&trusting);
    let mut client = rig.client();
    let line = format!("X-Request-Id: {UUID}\r\n");
    let head = client.get_with("/uuid", &line);
    assert_eq!(header(head.text(), "x-request-id"), Some(UUID));
    assert_eq!(rig.logged("/uuid")["request_id"], UUID);
    let stranger = Rig::new(&Setup::new(&[&server]));
    let head = stranger.client().get_with("/uuid", &line);
    let id = header(head.text(), "x-request-id").unwrap();
    assert!(id.len() == 32 && id != UUID, "{id}");

    let trace = |client: &mut Peer, lines: &str| {
        let head = client.get_with("/", &format!("{lines}tracestate: a=1\r\n"));
        let has_state = header(head.text(), "tracestate").is_some();
        let parent = header(head.text(), "traceparent").unwrap().to_owned();
        assert_eq!(parent.contains(TRACE), has_state, "{parent}");
        parent
    };
    // Of flags nobody knows what the others mean.
    for (sent, goes_on) in [("01", "01"), ("02", "02"), ("ff", "03"), ("f8", "00")] {
        let parent = trace(
            &mut client,
            &SAMPLED.replace("-01\r", &format!("-{sent}\r")),
        );
        let is_right = parent.contains(TRACE) && parent.ends_with(&format!("-{goes_on}"));
        assert!(is_right, "{sent}: {parent}");
    }
    let parent = trace(&mut client, &SAMPLED.repeat(2));
    assert!(!parent.contains(TRACE), "{parent}");
}

#[test]
fn chance_and_trusted_proxies_say_what_is_recorded() {
    let ((collector, spans), server) = (collector(), Server::echo());
    let setup = Setup::new(&[&server]).proxy(traces(&collector.address, "0"));
    // Nobody's word is taken.
    let mut rig = Rig::new(&setup);
    for _ in 0..20 {
        let head = rig.client().get_with("/", SAMPLED);
        let parent = header(head.text(), "traceparent").unwrap();
        assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-01"));
        let head = rig.get("/");
        assert!(header(head.text(), "traceparent").unwrap().ends_with("-00"));
    }
    rig.tier.stop();
    assert!(lock(&spans).is_empty());
    let trusting = "trusted_proxies = ['127.0.0.0/8']";
    let mut rig = Rig::new(&setup.clone().listener(trusting));
    rig.client().get_with("/", SAMPLED);
    rig.client()
        .get_with("/", &SAMPLED.replace("-01\r", "-00\r"));
    rig.get("/");
    rig.tier.stop();
    {
        let all = lock(&spans);
        assert_eq!(all.len(), 2);
        assert_eq!(hex(&all[0].1.trace_id), TRACE);
        assert_eq!(hex(&all[0].1.parent_span_id), "b7ad6b7169203331");
        // Whether a parent is of another process is known, and it is, or it is not.
        let remote = [all[0].1.flags, all[1].1.flags].map(|flags| flags & 0x300);
        assert_eq!(remote, [0x300, 0x100]);
    }
    // And one that records nothing is not overruled.
    let all = setup
        .proxy(traces(&collector.address, "1"))
        .listener(trusting);
    let mut rig = Rig::new(&all);
    rig.client()
        .get_with("/", &SAMPLED.replace("-01\r", "-00\r"));
    rig.tier.stop();
    assert_eq!(lock(&spans).len(), 2);
}

#[test]
fn requests_do_not_wait_for_a_collector() {
    let server = Server::saying("well");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let setup = Setup::new(&[&server]).listener("limits = { requests_per_connection = 0 }");
    let mut rig = Rig::new(&setup.clone().proxy(traces(&address, "1")));
    assert_eq!(rig.get("/").text(), "well");
    until("both are lost", || counts(&rig).failed == 2);
    // One that takes what comes and never answers: the room runs out.
    let silent = Server::start(|mut peer| {
        peer.rest();
    });
    rig.change(&setup.clone().proxy(traces(&silent.address, "1")));
    let mut client = rig.client();
    until("there is no room", || {
        (0..100).for_each(|_| assert_eq!(client.get("/").text(), "well"));
        counts(&rig).dropped > 0
    });
    // Another one is told from then on.
    let (collector, spans) = collector();
    rig.change(&setup.clone().proxy(traces(&collector.address, "1")));
    until("it is told", || {
        client.get("/");
        !lock(&spans).is_empty()
    });
    rig.change(&setup);
    until("nobody is told", || {
        let before = counts(&rig);
        (0..20).for_each(|_| drop(client.get("/")));
        counts(&rig) == before
    });
}
