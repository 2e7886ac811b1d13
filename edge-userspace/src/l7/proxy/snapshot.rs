//! What holds for requests: made whole from a configuration, and exchanged as a whole.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use edge_common::addr::Prefix;
use tokio_rustls::rustls::ServerConfig;

use super::{
    certificates::{Loaded, Stamps},
    group::{Group, Places},
    log_writer::LogWriter,
    spans,
};
use crate::{
    config::proxy::{Proxy, listener},
    l7::{
        access_log,
        bans::{self, Offences, Rule},
        head,
        refusal::Refusal,
        stats::{Connections, Mirrored, Refusals, Requests, Shards},
    },
};

/// What holds for requests.
pub(super) struct Snapshot {
    /// What it was made from.
    pub(super) config: Arc<Proxy>,
    /// As in the configuration.
    pub(super) listeners: Box<[Arc<Listener>]>,
    /// Likewise.
    pub(super) groups: Box<[Arc<Group>]>,
    /// Likewise.
    pub(super) routes: Box<[Route]>,
    pub(super) log: Option<(LogWriter, access_log::Format)>,
    /// Where it is told what is recorded, and of a thousand requests how many are.
    pub(super) traces: Option<(spans::Queue, u32)>,
    /// Who judges clients that offend; `None` where nobody is banned.
    pub(super) bans: Option<(Arc<Judge>, Rule, Duration)>,
    /// Whose listener an address is.
    pub(super) addresses: HashMap<SocketAddr, usize>,
}

impl Snapshot {
    /// The listener of an address.
    pub(super) fn listener_at(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        self.listeners.get(*self.addresses.get(&address)?)
    }

    /// The listener with a name, and its position.
    pub(super) fn listener_named(&self, name: &str) -> Option<(usize, &Arc<Listener>)> {
        let mut all = self.listeners.iter().enumerate();
        all.find(|(_, listener)| listener.config.name == name)
    }

    /// The upstream with a name.
    pub(super) fn group_named(&self, name: &str) -> Option<&Arc<Group>> {
        self.groups.iter().find(|group| group.config.name == name)
    }
}

/// A source that is to be banned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The source.
    pub source: Prefix,
    /// Who offended last.
    pub address: IpAddr,
    /// For how long.
    pub ttl: Duration,
    /// Why, and by which request.
    pub note: String,
}

/// Counts offences, and tells who is to be banned.
pub(super) struct Judge {
    offences: Mutex<Offences>,
    banned: AtomicU64,
    tell: Box<dyn Fn(Ban) -> bool + Send + Sync>,
}

impl Judge {
    /// `tell` says whether it took the ban; if not, it is told again with the next offence.
    pub(super) fn new(tell: impl Fn(Ban) -> bool + Send + Sync + 'static) -> Self {
        Self {
            offences: Mutex::default(),
            banned: AtomicU64::new(0),
            tell: Box::new(tell),
        }
    }

    /// All workers write here: nothing is waited for with it.
    fn offences(&self) -> MutexGuard<'_, Offences> {
        self.offences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ban is in force.
    pub(super) fn count(&self) {
        self.banned.fetch_add(1, Relaxed);
    }

    /// How many bans were put into force.
    pub(super) fn banned(&self) -> u64 {
        self.banned.load(Relaxed)
    }
}

impl Snapshot {
    /// Notes an offence of a source, whose packets come from there: no proxy that is trusted.
    pub(super) fn offend(&self, source: IpAddr, refusal: Refusal, request_id: &[u8], now: u64) {
        let Some((judge, rule, ttl)) = &self.bans else {
            return;
        };
        if !bans::is_offence(refusal) {
            return;
        }
        let address = source;
        let source = bans::prefix(source);
        // No proxy that anybody trusts, nor a network that one is in.
        let is_trusted = |listener: &Arc<Listener>| {
            let all = listener.config.trusted_proxies.iter();
            all.copied()
                .any(|p| p.contains(source) || source.contains(p))
        };
        if self.listeners.iter().any(is_trusted) {
            return;
        }
        if !judge.offences().note(*rule, source, now) {
            return;
        }
        let mut note = format!(
            "{}, more than {} in {} s",
            refusal.name(),
            rule.offences,
            rule.window / 1_000_000_000,
        );
        // What a connection does is no request, and all digits of its id are zeros.
        if request_id.iter().any(|byte| *byte != b'0') {
            note.push_str("; request ");
            note.push_str(&String::from_utf8_lossy(request_id));
        }
        let ban = Ban {
            source,
            address,
            ttl: *ttl,
            note,
        };
        if (judge.tell)(ban) {
            judge.offences().forget(source);
        }
    }
}

/// What is kept of a route besides what the router knows.
pub(super) struct Route {
    pub(super) name: String,
    pub(super) requests: Arc<Shards<Requests>>,
    pub(super) places: Option<Arc<Places>>,
    /// Where its requests are copied.
    pub(super) mirrored: Option<Arc<Shards<Mirrored>>>,
}

/// Where clients connect.
pub(super) struct Listener {
    pub(super) config: listener::Listener,
    /// The part of its limits that heads are read with.
    pub(super) limits: head::Limits,
    /// Changed when the files of certificates do.
    tls: Option<RwLock<Loaded>>,
    pub(super) requests: Arc<Shards<Requests>>,
    pub(super) connections: Arc<Shards<Connections>>,
    pub(super) refusals: Arc<Shards<Refusals>>,
    open: Arc<Open>,
}

/// The part of a listener's limits that heads are read with.
pub(super) const fn head_limits(limits: &listener::Limits) -> head::Limits {
    head::Limits {
        head_bytes: limits.header_bytes as usize,
        fields: limits.headers as usize,
        uri_bytes: limits.uri_bytes as usize,
        body_bytes: match limits.body_bytes {
            0 => u64::MAX,
            most => most,
        },
    }
}

/// The connections of a listener, which live on through changes of its configuration.
#[derive(Debug, Default)]
pub(super) struct Open {
    all: AtomicU32,
    /// By source, where those are limited.
    sources: Mutex<HashMap<IpAddr, u32>>,
}

impl Listener {
    pub(super) fn new(
        config: listener::Listener,
        tls: Option<Loaded>,
        requests: Arc<Shards<Requests>>,
        connections: Arc<Shards<Connections>>,
        refusals: Arc<Shards<Refusals>>,
        open: Arc<Open>,
    ) -> Self {
        Self {
            limits: head_limits(&config.limits),
            tls: tls.map(RwLock::new),
            config,
            requests,
            connections,
            refusals,
            open,
        }
    }

    /// What is known of its connections.
    pub(super) const fn open(&self) -> &Arc<Open> {
        &self.open
    }

    /// Connections that are open.
    pub(super) fn count(&self) -> u32 {
        self.open.all.load(Relaxed)
    }

    /// The TLS of connections that begin now.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let tls = self.tls.as_ref()?;
        let tls = tls.read().unwrap_or_else(PoisonError::into_inner);
        Some(tls.config.clone())
    }

    /// How the files of that TLS were when they were read.
    pub(super) fn files(&self) -> Option<Stamps> {
        let tls = self.tls.as_ref()?;
        let tls = tls.read().unwrap_or_else(PoisonError::into_inner);
        Some(tls.files.clone())
    }

    /// Connections that begin from now on have this TLS.
    pub(super) fn set_tls(&self, loaded: Loaded) {
        if let Some(tls) = &self.tls {
            *tls.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        }
    }

    /// Whether an address is a trusted proxy's.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.config.trusts(address)
    }

    /// A place for one more connection from a source.
    ///
    /// # Errors
    /// Which limit there is none for.
    pub(super) fn admit(listener: &Arc<Self>, source: IpAddr) -> Result<Place, Refusal> {
        let limits = &listener.config.limits;
        let open = &listener.open;
        let (before, most) = (open.all.fetch_add(1, Relaxed), limits.connections);
        let mut place = Place {
            open: open.clone(),
            source: None,
        };
        if before >= most {
            return Err(Refusal::Connections);
        }
        if limits.connections_per_source > 0 && !listener.trusts(source) {
            let key = source_key(source);
            let mut sources = open.sources.lock().unwrap_or_else(PoisonError::into_inner);
            let count = sources.entry(key).or_default();
            if *count >= limits.connections_per_source {
                return Err(Refusal::SourceConnections);
            }
            *count += 1;
            place.source = Some(key);
        }
        Ok(place)
    }
}

/// The source that connections are counted by: an IPv4 address, an IPv6 /64.
fn source_key(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// The place of a connection among those of its listener, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    open: Arc<Open>,
    source: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.all.fetch_sub(1, Relaxed);
        let Some(key) = self.source else {
            return;
        };
        let mut sources = self.open.sources.lock();
        if let Ok(sources) = &mut sources
            && let Some(count) = sources.get_mut(&key)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                sources.remove(&key);
            }
        }
    }
}
