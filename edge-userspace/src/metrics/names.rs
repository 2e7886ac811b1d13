//! Every metric: name, meaning and labels. The only place with such strings.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size; its samples end in `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// A metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name, for a counter without `_total`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    /// Label names, in the order of their values.
    pub labels: &'static [&'static str],
}

impl Metric {
    /// The name as a query writes it; for a histogram without the endings.
    pub fn sample_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }
}

/// Name of a service.
pub const SERVICE: &str = "service";
/// What is limited of the host as a whole, by [`crate::status::attack::Found::name`].
pub const FLOOD: &str = "flood";
/// [`edge_common::defence::ServiceCounter::name`].
pub const EVENT: &str = "event";
/// Name of an interface.
pub const INTERFACE: &str = "interface";
/// [`edge_common::reason::Reason::name`], [`edge_common::decap::Outcome::name`] or
/// [`crate::l7::refusal::Refusal::name`].
pub const REASON: &str = "reason";
/// Key of a table under `[tables]` in the configuration.
pub const TABLE: &str = "table";
/// [`crate::control::protocol::List::name`].
pub const LIST: &str = "list";
/// [`crate::status::FamilyName::name`].
pub const FAMILY: &str = "family";
/// [`crate::status::EntryKind::name`].
pub const KIND: &str = "kind";
/// [`SUCCESS`] or [`FAILURE`].
pub const RESULT: &str = "result";
/// [`crate::control::protocol::Command::name`].
pub const COMMAND: &str = "command";
/// [`crate::status::AttachMode::name`].
pub const MODE: &str = "mode";
/// Where events are lost: [`RING_BUFFER`] or [`FOLLOWER`].
pub const PLACE: &str = "place";
/// Version of the daemon.
pub const VERSION: &str = "version";
/// Version of the table layouts.
pub const ABI_VERSION: &str = "abi_version";

/// Source addresses of NAT that share their ports, with commas between them.
pub const SOURCE: &str = "source";
/// Name of a backend within its service.
pub const BACKEND: &str = "backend";
/// Name of a listener of the proxy.
pub const LISTENER: &str = "listener";
/// Name of a route of the proxy.
pub const ROUTE: &str = "route";
/// Name of an upstream of the proxy.
pub const UPSTREAM: &str = "upstream";
/// Address of a server within its upstream.
pub const SERVER: &str = "server";
/// [`crate::status::proxy::CLASSES`].
pub const CLASS: &str = "class";
/// State of a circuit breaker: `closed`, `open` or `half_open`.
pub const STATE: &str = "state";

/// Value of [`RESULT`].
pub const SUCCESS: &str = "success";
/// Value of [`RESULT`].
pub const FAILURE: &str = "failure";
/// Value of [`PLACE`]: between kernel and daemon.
pub const RING_BUFFER: &str = "ring_buffer";
/// Value of [`PLACE`]: between daemon and `edge events`.
pub const FOLLOWER: &str = "follower";

macro_rules! metrics {
    ($(#[$doc:meta])* $list:ident: $( $const:ident = $kind:ident, $name:literal, [$($label:ident),*], $help:literal; )*) => {
        $(
            #[doc = $help]
            pub const $const: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                help: $help,
                labels: &[$($label),*],
            };
        )*

        $(#[$doc])*
        pub const $list: &[&Metric] = &[$(&$const),*];
    };
}

metrics! {
    /// Those of the daemon, in the order in which they are rendered.
    ALL:
    BUILD_INFO = Gauge, "edge_build_info", [VERSION, ABI_VERSION],
        "Always 1; the labels say which daemon runs.";
    START_TIME = Gauge, "edge_start_time_seconds", [],
        "When the daemon started, in seconds since the Unix epoch.";
    UPTIME = Gauge, "edge_uptime_seconds", [],
        "How long the daemon has been running.";
    CONFIG_GENERATION = Gauge, "edge_config_generation", [],
        "Generation of the configuration in force: 1 at the start, one more at each change.";
    CONFIG_TIMESTAMP = Gauge, "edge_config_timestamp_seconds", [],
        "When the configuration in force came into force, in seconds since the Unix epoch.";
    RELOADS = Counter, "edge_config_reloads", [RESULT],
        "Reloads of the configuration since the daemon started.";
    LAST_RELOAD_SUCCESSFUL = Gauge, "edge_config_last_reload_successful", [],
        "1 if the last reload came into force or there was none yet, 0 if it was refused.";
    LAST_RELOAD_TIMESTAMP = Gauge, "edge_config_last_reload_timestamp_seconds", [RESULT],
        "When a reload last ended this way, in seconds since the Unix epoch; 0 if none has.";
    INTERFACE_INFO = Gauge, "edge_interface_info", [INTERFACE, MODE],
        "Always 1; the mode says whether XDP runs in the driver (native) or in the stack (generic, slow).";
    INTERFACE_ATTACHED = Gauge, "edge_interface_attached", [INTERFACE],
        "1 while the XDP program is on the interface, 0 while it is not, for instance because the interface is gone.";
    PACKETS = Counter, "edge_packets", [INTERFACE, REASON],
        "Packets by the reason they ended with. Reasons that begin with pass went to the kernel, those with reply were answered, those with forwarded went to a backend; all others were dropped.";
    BYTES = Counter, "edge_bytes", [INTERFACE, REASON],
        "Bytes of whole frames by the reason they ended with.";
    WOULD_DROP_PACKETS = Counter, "edge_would_drop_packets", [INTERFACE, REASON],
        "Packets that a check in dry run would have dropped.";
    WOULD_DROP_BYTES = Counter, "edge_would_drop_bytes", [INTERFACE, REASON],
        "Bytes of whole frames that a check in dry run would have dropped.";
    SERVICE_UNDER_ATTACK = Gauge, "edge_service_under_attack", [SERVICE],
        "1 while the service is under attack.";
    ATTACKS = Counter, "edge_attacks", [SERVICE],
        "Attacks on the service that began since the daemon started.";
    HOST_UNDER_ATTACK = Gauge, "edge_host_under_attack", [FLOOD],
        "1 while 100 packets a second or more of a flood are over the limits of the host as a whole, and flood.hold longer.";
    HOST_ATTACKS = Counter, "edge_host_attacks", [FLOOD],
        "Attacks on the host as a whole that began since the daemon started.";
    SERVICE_DEFENDED = Gauge, "edge_service_defended", [SERVICE],
        "1 while the program answers SYNs in the place of the service.";
    SERVICE_PRESSURE = Gauge, "edge_service_pressure_ratio", [SERVICE],
        "Incomplete handshakes as a share of those that are tolerated; above 1 an attack is found.";
    SERVICE_TARGETS = Gauge, "edge_service_targets", [SERVICE],
        "Addresses and ports of the service, each port of each address.";
    SERVICE_READY_TARGETS = Gauge, "edge_service_ready_targets", [SERVICE],
        "Those of them whose SYNs the program can answer: ports of this host need a listener.";
    SERVICE_EVENTS = Counter, "edge_service_events", [SERVICE, EVENT],
        "What the flood defence saw and did for the service.";
    TABLE_ENTRIES = Gauge, "edge_table_entries", [TABLE],
        "Entries in a table.";
    TABLE_CAPACITY = Gauge, "edge_table_capacity_entries", [TABLE],
        "Entries that a table has room for: its key in the section tables of the configuration.";
    LIST_ENTRIES = Gauge, "edge_list_entries", [LIST, FAMILY, KIND],
        "Entries of a list.";
    LIMITER_CLAIMED = Counter, "edge_limiter_claimed", [],
        "Entries of the limiter that were taken for the first time.";
    LIMITER_RECYCLED = Counter, "edge_limiter_recycled", [],
        "Entries of the limiter taken over from a source that had gone quiet.";
    LIMITER_EVICTED = Counter, "edge_limiter_evicted", [],
        "Entries of the limiter taken from a source that was still active; its limit began anew.";
    LIMITER_CONTENDED = Counter, "edge_limiter_contended_packets", [],
        "Packets denied because other CPUs were updating the same source.";
    BACKEND_UP = Gauge, "edge_backend_up", [SERVICE, BACKEND],
        "1 while the backend gets new flows, 0 while it does not.";
    BACKEND_WEIGHT = Gauge, "edge_backend_weight", [SERVICE, BACKEND],
        "Weight of the backend in force; 0 when it gets no new flows.";
    BACKEND_HEALTH_CHANGES = Counter, "edge_backend_health_changes", [SERVICE, BACKEND],
        "Changes of what is known of the backend's health.";
    BACKEND_REACHABLE = Gauge, "edge_backend_reachable", [SERVICE, BACKEND],
        "1 while there is a way to the backend (a route and a neighbour), 0 while there is none.";
    BACKEND_FLOWS = Gauge, "edge_backend_flows", [SERVICE, BACKEND],
        "Established flows of the backend.";
    BACKEND_PACKETS = Counter, "edge_backend_packets", [SERVICE, BACKEND],
        "Packets that went to the backend.";
    BACKEND_BYTES = Counter, "edge_backend_bytes", [SERVICE, BACKEND],
        "Bytes of frames that went to the backend, as they came.";
    BACKEND_SYNS = Counter, "edge_backend_syns", [SERVICE, BACKEND],
        "SYNs that went to the backend by NAT.";
    BACKEND_SYN_ACKS = Counter, "edge_backend_syn_acks", [SERVICE, BACKEND],
        "SYN-ACKs that came from the backend through NAT.";
    BACKEND_REFUSALS = Counter, "edge_backend_refusals", [SERVICE, BACKEND],
        "Resets that came from the backend through NAT in answer to SYNs.";
    NAT_PORTS = Gauge, "edge_nat_ports", [SOURCE],
        "Ports with a flow, by the source addresses of NAT that share them.";
    NAT_PORTS_CAPACITY = Gauge, "edge_nat_ports_capacity", [SOURCE],
        "Ports that flows may have, by the source addresses of NAT that share them.";
    SERVICE_FAILED_OPEN = Gauge, "edge_service_failed_open", [SERVICE],
        "1 while too few backends are healthy, so that all are used as if they were.";
    FLOWS = Gauge, "edge_flows", [],
        "Flows in the balancer's table.";
    FLOWS_CAPACITY = Gauge, "edge_flows_capacity", [],
        "Flows that the balancer's table has room for.";
    FLOW_HITS = Counter, "edge_flow_hits", [],
        "Packets of balanced services whose flow was in the table.";
    FLOW_MISSES = Counter, "edge_flow_misses", [],
        "Packets of balanced services whose flow was not in the table.";
    FLOWS_INSERTED = Counter, "edge_flows_inserted", [],
        "Flows that took a free place in the table.";
    FLOWS_REPLACED = Counter, "edge_flows_replaced", [],
        "Flows that took the place of one that was not established.";
    FLOWS_REFUSED = Counter, "edge_flows_refused", [],
        "Flows that found no place in the table, and are chosen for by the ring alone; with NAT those that found no port, whose packets are dropped.";
    QUIC_ROUTED = Counter, "edge_quic_routed_packets", [],
        "Packets of QUIC that went to the backend that their connection id names.";
    QUIC_UNKNOWN_ID = Counter, "edge_quic_unknown_id_packets", [],
        "Packets of QUIC whose connection id names a server that is none of the service's.";
    STAGE_MISSING = Counter, "edge_stage_missing_packets", [],
        "Packets that went on without the flood defence because its program was missing.";
    EVENTS = Counter, "edge_events", [],
        "Sampled events read from the kernel.";
    EVENTS_LOST = Counter, "edge_events_lost", [PLACE],
        "Sampled events lost because a reader was too slow.";
    CONTROL_REQUESTS = Counter, "edge_control_requests", [COMMAND, RESULT],
        "Requests on the control socket.";
}

metrics! {
    /// Those of the proxy, likewise.
    PROXY:
    HTTP_REQUESTS = Counter, "edge_http_requests", [LISTENER, CLASS],
        "Requests of the listener by the class of their answer's status; none: the client went away before.";
    HTTP_DURATION = Histogram, "edge_http_request_duration_seconds", [LISTENER],
        "How long requests of the listener took, from their first byte to the last of the answer.";
    HTTP_RECEIVED = Counter, "edge_http_received_bytes", [LISTENER],
        "Bytes of bodies that came from clients of the listener.";
    HTTP_SENT = Counter, "edge_http_sent_bytes", [LISTENER],
        "Bytes of bodies that went to clients of the listener.";
    HTTP_CONNECTIONS = Gauge, "edge_http_connections", [LISTENER],
        "Connections that are open.";
    HTTP_ACCEPTED = Counter, "edge_http_connections_accepted", [LISTENER],
        "Connections that were accepted.";
    HTTP_REFUSED = Counter, "edge_http_connections_refused", [LISTENER],
        "Connections that were closed at once because there were too many.";
    HTTP_TLS_FAILURES = Counter, "edge_http_tls_handshake_failures", [LISTENER],
        "TLS handshakes that failed.";
    HTTP_IDLE_TIMEOUTS = Counter, "edge_http_idle_timeouts", [LISTENER],
        "Connections that were ended because they had no request for too long.";
    HTTP_REFUSALS = Counter, "edge_http_refusals", [LISTENER, REASON],
        "Requests that got no answer from an upstream, and connections that were refused or ended, by reason.";
    HTTP_ROUTE_REQUESTS = Counter, "edge_http_route_requests", [ROUTE, CLASS],
        "Requests of the route by the class of their answer's status.";
    HTTP_ROUTE_DURATION = Histogram, "edge_http_route_request_duration_seconds", [ROUTE],
        "How long requests of the route took.";
    HTTP_ROUTE_RECEIVED = Counter, "edge_http_route_received_bytes", [ROUTE],
        "Bytes of bodies of requests of the route.";
    HTTP_ROUTE_SENT = Counter, "edge_http_route_sent_bytes", [ROUTE],
        "Bytes of bodies of answers of the route.";
    HTTP_ROUTE_MIRRORED = Counter, "edge_http_route_mirrored_requests", [ROUTE, RESULT],
        "Copies of requests of the route for another upstream, by what became of them.";
    HTTP_UPSTREAM_REQUESTS = Counter, "edge_http_upstream_requests", [UPSTREAM, CLASS],
        "Requests for the upstream by the class of the status that the client got.";
    HTTP_UPSTREAM_DURATION = Histogram, "edge_http_upstream_request_duration_seconds", [UPSTREAM],
        "How long requests for the upstream took, with waiting and all tries.";
    HTTP_UPSTREAM_RECEIVED = Counter, "edge_http_upstream_received_bytes", [UPSTREAM],
        "Bytes of bodies of requests for the upstream.";
    HTTP_UPSTREAM_SENT = Counter, "edge_http_upstream_sent_bytes", [UPSTREAM],
        "Bytes of bodies of answers of the upstream.";
    HTTP_UPSTREAM_ACTIVE = Gauge, "edge_http_upstream_active_requests", [UPSTREAM],
        "Requests under way at the servers of the upstream.";
    HTTP_UPSTREAM_WAITING = Gauge, "edge_http_upstream_waiting_requests", [UPSTREAM],
        "Requests that wait for a place of the upstream.";
    HTTP_UPSTREAM_QUEUED = Counter, "edge_http_upstream_queued_requests", [UPSTREAM],
        "Requests that had to wait for their turn.";
    HTTP_UPSTREAM_OVERFLOWS = Counter, "edge_http_upstream_overflows", [UPSTREAM],
        "Requests refused because too many waited, or one had waited too long.";
    HTTP_UPSTREAM_BREAKER = Gauge, "edge_http_upstream_breaker_state", [UPSTREAM, STATE],
        "1 for the state that the circuit breaker is in, 0 for the others.";
    HTTP_UPSTREAM_BROKEN = Counter, "edge_http_upstream_breaker_refusals", [UPSTREAM],
        "Requests that the circuit breaker refused.";
    HTTP_UPSTREAM_CONNECTS = Counter, "edge_http_upstream_connects", [UPSTREAM],
        "Connections to servers that were made.";
    HTTP_UPSTREAM_CONNECT_FAILURES = Counter, "edge_http_upstream_connect_failures", [UPSTREAM],
        "Connections to servers that could not be made.";
    HTTP_UPSTREAM_RETRIES = Counter, "edge_http_upstream_retries", [UPSTREAM],
        "Requests that were tried again.";
    HTTP_UPSTREAM_RETRIES_DENIED = Counter, "edge_http_upstream_retries_denied", [UPSTREAM],
        "Retries that the budget did not allow.";
    HTTP_SERVER_REQUESTS = Counter, "edge_http_server_requests", [UPSTREAM, SERVER, CLASS],
        "Requests whose last try was at the server, by the class of the status that the client got.";
    HTTP_SERVER_DURATION = Histogram, "edge_http_server_request_duration_seconds", [UPSTREAM, SERVER],
        "How long requests took whose last try was at the server.";
    HTTP_SERVER_UP = Gauge, "edge_http_server_up", [UPSTREAM, SERVER],
        "1 while the checks of the server find it well, or there are none.";
    HTTP_SERVER_DRAINING = Gauge, "edge_http_server_draining", [UPSTREAM, SERVER],
        "1 while the server gets no new requests because somebody said so.";
    HTTP_SERVER_EJECTED = Gauge, "edge_http_server_ejected", [UPSTREAM, SERVER],
        "1 while the server is left alone because of its answers.";
    HTTP_SERVER_WEIGHT = Gauge, "edge_http_server_weight", [UPSTREAM, SERVER],
        "Weight of the server in force.";
    HTTP_SERVER_ACTIVE = Gauge, "edge_http_server_active_requests", [UPSTREAM, SERVER],
        "Requests under way at the server.";
    HTTP_WORKERS = Gauge, "edge_http_workers", [],
        "Threads that serve requests.";
    HTTP_LOG_LOST = Counter, "edge_http_access_log_lost_lines", [],
        "Lines of the access log that were lost because the disk was too slow.";
    HTTP_SPANS = Counter, "edge_http_spans", [RESULT],
        "Spans of requests for a collector, by what became of them.";
    HTTP_BANS = Counter, "edge_http_bans", [],
        "Bans of sources for what they sent that were put into force.";
    HTTP_PANICS = Counter, "edge_http_panics", [],
        "Connections of HTTP/1, streams of HTTP/2, copies of requests and shared connections to servers that were ended by a panic.";
    HTTP_WORKER_RESTARTS = Counter, "edge_http_worker_restarts", [],
        "Workers that were started anew after a panic that was no request's.";
}

metrics! {
    /// Those of `edge decap`, likewise.
    DECAP:
    DECAP_PACKETS = Counter, "edge_decap_packets", [REASON],
        "Packets by what became of them. Reasons that begin with pass or decap went to the kernel, all others were dropped.";
    DECAP_INTERFACE_ATTACHED = Gauge, "edge_decap_interface_attached", [INTERFACE],
        "1 while the decapsulator is on the interface, 0 while it is not, for instance because the interface is gone.";
}

/// All that there are.
fn every() -> impl Iterator<Item = &'static Metric> {
    ALL.iter().chain(PROXY).chain(DECAP).copied()
}

/// The metric with this name (without `_total`), or `None` when there is none.
pub fn find(name: &str) -> Option<&'static Metric> {
    every().find(|m| m.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_keep_the_conventions_of_prometheus() {
        let mut seen = HashSet::new();
        for m in every() {
            assert!(seen.insert(m.sample_name()), "{} twice", m.name);
            assert!(m.name.starts_with("edge_"), "{}", m.name);
            let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
            assert!(m.name.bytes().all(plain), "{}", m.name);
            assert!(!m.name.ends_with("_total"), "{}", m.name);
            assert!(m.help.ends_with('.'), "{}", m.name);
            for label in m.labels {
                assert!(label.bytes().all(plain), "{label}");
            }
        }
    }

    #[test]
    fn the_documentation_has_every_metric_with_its_labels_and_no_other() {
        let text = include_str!("../../../docs/METRICS.md");
        let mut rows = 0;
        for line in text.lines().filter(|line| line.starts_with("| `edge_")) {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let name = cells.next().unwrap().trim_matches('`');
            let metric = every().find(|m| m.sample_name() == name);
            let metric = metric.unwrap_or_else(|| panic!("{name} does not exist"));
            let kind = cells.next().unwrap();
            assert_eq!(kind, format!("{:?}", metric.kind).to_lowercase(), "{name}");
            let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
            assert_eq!(cells.next().unwrap(), labels.join(", "), "{name}");
            rows += 1;
        }
        assert_eq!(rows, every().count());
    }
}
