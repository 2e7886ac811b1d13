//! Spans of requests, told to a collector (OTLP over HTTP, protobuf).
//!
//! Requests never wait for it: a worker puts what it knows of a request that is recorded into a
//! queue with bounded room, and a thread without privileges makes spans of it and sends them,
//! many at once. What has no room, and what the collector does not take, is counted and lost.

use std::{
    borrow::Cow,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::sync_channel,
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{HeaderMap, Request, Response, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use tracing::warn;

use super::{privileges, tier::TierError, tls::Towards, view::lock};
use crate::{
    config::{
        files,
        proxy::{
            Traces,
            upstream::{self, Protocol as Spoken},
        },
    },
    health::TlsTo,
};

/// Requests that may wait to be told.
const QUEUE: usize = 4096;
/// Requests that are told at once, and how long the first of them waits for others.
const BATCH: usize = 256;
const EVERY: Duration = Duration::from_secs(1);
/// How long a collector may take, and how long when the proxy ends.
const TIMEOUT: Duration = Duration::from_secs(5);
const LAST: Duration = Duration::from_secs(1);
/// How often failures are told.
const TOLD: Duration = Duration::from_secs(60);
/// Bytes of an answer that are read.
const ANSWER: usize = 64 * 1024;

/// What became of spans, since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// That the collector took.
    pub(super) exported: AtomicU64,
    /// That had no room.
    pub(super) dropped: AtomicU64,
    /// That the collector did not take.
    pub(super) failed: AtomicU64,
}

/// What is known of a request that is over. Times are nanoseconds of Unix time.
#[derive(Debug)]
pub(super) struct Record {
    /// Hexadecimal.
    pub(super) trace: [u8; 32],
    /// The span before, if there was one.
    pub(super) parent: u64,
    pub(super) span: u64,
    pub(super) upstream: Option<String>,
    /// The servers that were asked, one after the other.
    pub(super) tries: Vec<Try>,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: String,
    pub(super) scheme: &'static str,
    pub(super) version: &'static str,
    pub(super) client: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) route: Option<String>,
    pub(super) refusal: Option<&'static str>,
    /// 0: the client went before there was one.
    pub(super) status: u16,
}

/// The part of a request that a server has.
#[derive(Debug)]
pub(super) struct Try {
    /// The span that the server hears of.
    pub(super) span: u64,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) server: String,
    /// 0: there was no answer.
    pub(super) status: u16,
    /// Why there was none, or not all of it.
    pub(super) error: Option<&'static str>,
}

impl Record {
    /// How many spans it becomes.
    fn spans(&self) -> u64 {
        1 + self.tries.len() as u64
    }
}

/// Where workers put what is recorded.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    records: mpsc::Sender<Record>,
    counts: Arc<Counts>,
}

impl Queue {
    /// Puts a request there, if there is room.
    pub(super) fn put(&self, record: Record) {
        let spans = record.spans();
        if self.records.try_send(record).is_err() {
            self.counts.dropped.fetch_add(spans, Relaxed);
        }
    }
}

/// The thread that tells a collector. It ends when this is dropped, after a last try.
pub(super) struct Exporter {
    pub(super) queue: Queue,
    collector: Arc<Collector>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Whom it tells, and how.
pub(super) struct Collector {
    /// `http://host:port` or `https://host:port`, and a path without a slash at its end.
    endpoint: String,
    service: String,
    /// With what its files held.
    tls: Option<(TlsTo, u64)>,
    /// What each message has besides; may be secret.
    headers: HeaderMap,
}

impl Collector {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub(super) fn load(config: &Traces) -> Result<Self, TierError> {
        let tls = match config.address() {
            (true, address) => {
                let tls = upstream::Tls {
                    ca: config.ca.clone(),
                    verify: true,
                    sni: None,
                    certificate: None,
                };
                let towards = Towards::load(&tls, Spoken::Http1);
                let loaded =
                    towards.and_then(|towards| Ok((towards.to(&address)?.0, towards.held)));
                Some(loaded.map_err(|source| TierError::Tls {
                    whose: "proxy.traces".to_owned(),
                    source,
                })?)
            }
            (false, _) => None,
        };
        let mut headers = HeaderMap::new();
        if let Some(path) = &config.headers_file {
            let read = files::headers(path).map_err(|why| TierError::Headers {
                path: path.clone(),
                why,
            })?;
            headers.extend(read);
        }
        Ok(Self {
            endpoint: config.endpoint.clone(),
            service: config.service_name.clone(),
            tls,
            headers,
        })
    }
}

impl PartialEq for Collector {
    fn eq(&self, other: &Self) -> bool {
        let held = |of: &Self| of.tls.as_ref().map(|(_, held)| *held);
        self.endpoint == other.endpoint
            && self.service == other.service
            && held(self) == held(other)
            && self.headers == other.headers
    }
}

impl Exporter {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no thread to be had, or it cannot give up its privileges.
    pub(super) fn start(collector: Collector, counts: Arc<Counts>) -> io::Result<Self> {
        let collector = Arc::new(collector);
        let (records, queue) = mpsc::channel(QUEUE);
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let wire = Wire {
            collector: collector.clone(),
            became: Arc::default(),
        };
        let teller = Teller::new(wire, counts.clone()).map_err(io::Error::other)?;
        let (told, safe) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("proxy-spans".into())
            .spawn(move || {
                let unprivileged = privileges::give_up();
                let is_safe = unprivileged.is_ok();
                // There is room for it.
                let _ = told.try_send(unprivileged);
                if is_safe {
                    runtime.block_on(teller.run(queue, stopped));
                    // A look-up of the collector's name may take as long as it likes.
                    runtime.shutdown_background();
                }
            })?;
        safe.recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self {
            queue: Queue { records, counts },
            collector,
            stop,
            thread: Some(thread),
        })
    }

    /// Whether it tells this one.
    pub(super) fn is_of(&self, collector: &Collector) -> bool {
        *self.collector == *collector
    }

    /// Ends it, and waits until it has told what was left.
    pub(super) fn finish(mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// What encodes spans and makes requests of them.
struct Teller {
    otlp: SpanExporter,
    wire: Wire,
    /// What made the spans.
    scope: InstrumentationScope,
    counts: Arc<Counts>,
    /// When a failure was told.
    told: Option<Instant>,
}

impl Teller {
    fn new(
        wire: Wire,
        counts: Arc<Counts>,
    ) -> Result<Self, opentelemetry_otlp::ExporterBuildError> {
        let collector = &wire.collector;
        let mut otlp = SpanExporter::builder()
            .with_http()
            .with_http_client(wire.clone())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&collector.endpoint)
            // Between two tries it would sleep with the whole thread, so that no time-out ends it.
            .with_retry_policy(RetryPolicy::disabled())
            .build()?;
        let service = collector.service.clone();
        let resource = Resource::builder_empty().with_service_name(service);
        otlp.set_resource(&resource.build());
        let scope = InstrumentationScope::builder("edge").with_version(env!("CARGO_PKG_VERSION"));
        Ok(Self {
            otlp,
            wire,
            scope: scope.build(),
            counts,
            told: None,
        })
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Record>, mut stop: watch::Receiver<bool>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                first = queue.recv() => match first {
                    Some(first) => batch.push(first),
                    None => return,
                },
            }
            let until = Instant::now() + EVERY;
            let is_stopped = loop {
                if batch.len() >= BATCH {
                    break false;
                }
                tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => break true,
                    next = timeout_at(until, queue.recv()) => match next {
                        Ok(Some(next)) => batch.push(next),
                        Ok(None) | Err(_) => break false,
                    },
                }
            };
            if is_stopped {
                break;
            }
            let ends = async {
                // Nobody is left to say so when it fails.
                let _ = stop.wait_for(|stop| *stop).await;
                tokio::time::sleep(LAST).await;
            };
            self.send(&mut batch, ends).await;
        }
        queue.close();
        let until = Instant::now() + LAST;
        loop {
            while batch.len() < BATCH
                && let Ok(next) = queue.try_recv()
            {
                batch.push(next);
            }
            if batch.is_empty() {
                return;
            }
            self.send(&mut batch, tokio::time::sleep_until(until)).await;
        }
    }

    /// Sends what is there, until `ends` does, and counts what became of it.
    async fn send(&mut self, batch: &mut Vec<Record>, ends: impl Future<Output = ()>) {
        let all: Vec<SpanData> = batch
            .drain(..)
            .flat_map(|of| spans(&of, &self.scope))
            .collect();
        let spans = all.len() as u64;
        let sent = tokio::select! {
            sent = timeout(TIMEOUT, self.otlp.export(all)) => match sent {
                // Of a failure, the wire knows more.
                Ok(sent) => lock(&self.wire.became).take().unwrap_or_else(|| {
                    sent.map(|()| 0).map_err(|e| e.to_string())
                }),
                Err(_) => Err("it took too long".to_owned()),
            },
            () = ends => Err("there was no time left".to_owned()),
        };
        let rejected = match sent {
            Ok(rejected) => rejected.min(spans),
            Err(why) => {
                let now = Instant::now();
                if self.told.is_none_or(|told| now - told >= TOLD) {
                    self.told = Some(now);
                    warn!(
                        "proxy.traces.endpoint {}: {why}; {spans} spans are lost, and what \
                         follows of it is counted only for a minute",
                        self.wire.collector.endpoint
                    );
                }
                spans
            }
        };
        self.counts.failed.fetch_add(rejected, Relaxed);
        self.counts.exported.fetch_add(spans - rejected, Relaxed);
    }
}

/// What brings the bodies of requests to a collector, and nothing else: their heads may be what
/// the environment wants (`OTEL_EXPORTER_OTLP_*`), which has no say in what one file configures.
#[derive(Clone)]
struct Wire {
    collector: Arc<Collector>,
    /// How many spans of the last request the collector did not want, or why it took none.
    became: Arc<Mutex<Option<Result<u64, String>>>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is in the heads may be secret.
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Wire {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        *lock(&self.became) = None;
        let answer = post(&self.collector, request.into_body()).await;
        *lock(&self.became) = Some(match &answer {
            Ok(answer) if answer.status().is_success() => {
                let said = ExportTraceServiceResponse::decode(answer.body().clone());
                let rejected = said.unwrap_or_default().partial_success;
                let rejected = rejected.map_or(0, |partial| partial.rejected_spans);
                Ok(u64::try_from(rejected).unwrap_or(0))
            }
            Ok(answer) => Err(format!("it answers with {}", answer.status())),
            Err(why) => Err(why.clone()),
        });
        answer.map_err(Into::into)
    }
}

/// Posts a message.
async fn post(collector: &Collector, body: Bytes) -> Result<Response<Bytes>, String> {
    let (_, rest) = collector.endpoint.split_once("://").unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let mut request = Request::post(format!("{path}/v1/traces"))
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/x-protobuf")
        .header(
            header::USER_AGENT,
            concat!("edge/", env!("CARGO_PKG_VERSION")),
        )
        .body(Full::new(body))
        .map_err(|e| e.to_string())?;
    request.headers_mut().extend(collector.headers.clone());
    let tcp = TcpStream::connect(authority).await;
    let tcp = tcp.map_err(|e| e.to_string())?;
    match &collector.tls {
        None => ask(tcp, request).await,
        Some((tls, _)) => {
            let connector = TlsConnector::from(tls.config.clone());
            let session = connector.connect(tls.name.clone(), tcp).await;
            ask(session.map_err(|e| e.to_string())?, request).await
        }
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    let text = |e: &dyn fmt::Display| e.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| text(&e))?;
    let talk = async {
        let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER).collect().await;
        let body = body.map_err(|e| text(&e))?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    tokio::pin!(talk);
    tokio::select! {
        biased;
        done = &mut talk => done,
        _ = connection => match timeout(LAST, talk).await {
            Ok(done) => done,
            Err(_) => Err("it hung up".to_owned()),
        },
    }
}

/// Spans of a request, named and described as OpenTelemetry's semantic conventions for HTTP have
/// it.
fn spans(of: &Record, scope: &InstrumentationScope) -> Vec<SpanData> {
    let trace = std::str::from_utf8(&of.trace).unwrap_or_default();
    let trace = TraceId::from_hex(trace).unwrap_or(TraceId::INVALID);
    let id = |id: u64| SpanId::from_bytes(id.to_be_bytes());
    let at = |unix: u64| SystemTime::UNIX_EPOCH + Duration::from_nanos(unix);
    // How it ended, with what the conventions have of that.
    let ended = |status: u16, error: Option<&'static str>, least: u16| {
        let mut attributes = vec![KeyValue::new("http.request.method", of.method.clone())];
        if status != 0 {
            attributes.push(number("http.response.status_code", status));
        }
        if status != 0 && status < least {
            return (attributes, Status::Unset);
        }
        let kind = error.map_or_else(|| status.to_string().into(), Cow::Borrowed);
        attributes.push(KeyValue::new("error.type", kind));
        let description = error.unwrap_or_default().into();
        (attributes, Status::Error { description })
    };
    let span =
        |own: u64, parent: u64, kind, name: &str, (begin, end), (attributes, status)| SpanData {
            span_context: SpanContext::new(
                trace,
                id(own),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: id(parent),
            parent_span_is_remote: matches!(kind, SpanKind::Server) && parent != 0,
            span_kind: kind,
            name: name.to_owned().into(),
            start_time: at(begin),
            end_time: at(end),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: scope.clone(),
        };
    let (mut attributes, status) = ended(of.status, of.refusal, 500);
    attributes.extend([
        KeyValue::new("url.path", of.path.clone()),
        KeyValue::new("url.scheme", of.scheme),
        KeyValue::new("server.address", of.host.clone()),
        number("server.port", of.local.port()),
        KeyValue::new("client.address", of.client.ip().to_canonical().to_string()),
        KeyValue::new("network.protocol.version", of.version),
    ]);
    let route = of.route.clone();
    attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
    let refusal = of.refusal;
    attributes.extend(refusal.map(|refusal| KeyValue::new("edge.refusal", refusal)));
    let upstream = of.upstream.clone();
    let upstream = upstream.map(|upstream| KeyValue::new("edge.upstream", upstream));
    if let Some(last) = of.tries.last() {
        let retries = i64::try_from(of.tries.len() - 1).unwrap_or(i64::MAX);
        attributes.extend(upstream.clone());
        attributes.extend([
            KeyValue::new("edge.server", last.server.clone()),
            number("edge.retries", retries),
        ]);
    }
    let name = match &of.route {
        Some(route) => format!("{} {route}", of.method),
        None => of.method.clone(),
    };
    let times = (of.begin, of.end);
    let whole = span(
        of.span,
        of.parent,
        SpanKind::Server,
        &name,
        times,
        (attributes, status),
    );
    let of_servers = (0_i64..).zip(&of.tries).map(|(nth, asked)| {
        // A client's request has failed with any status of an error.
        let (mut attributes, status) = ended(asked.status, asked.error, 400);
        attributes.extend(upstream.clone());
        attributes.push(KeyValue::new("edge.server", asked.server.clone()));
        if nth > 0 {
            attributes.push(number("http.request.resend_count", nth));
        }
        let times = (asked.begin, asked.end);
        let ended = (attributes, status);
        span(
            asked.span,
            of.span,
            SpanKind::Client,
            &of.method,
            times,
            ended,
        )
    });
    std::iter::once(whole).chain(of_servers).collect()
}

fn number(key: &'static str, value: impl Into<i64>) -> KeyValue {
    KeyValue::new(key, value.into())
}
