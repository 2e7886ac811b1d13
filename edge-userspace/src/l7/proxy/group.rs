//! Upstreams and their servers, as all workers see them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use edge_common::hash::Seed;
use tokio::sync::Notify;

use super::{
    keys::Keys,
    stream::Lease,
    tls::{TlsError, Towards},
    view::{NewWeight, Said},
};
use crate::{
    config::proxy::{
        Proxy,
        upstream::{self, Address, Balance, SendProxy},
    },
    health::TlsTo,
    l7::{
        balance::{self, Algorithm, Member, Settings, key, sticky::Signer},
        resilience::{
            self, BreakerSettings, Bulkhead, CircuitBreaker, OutlierSettings, Outliers, Record,
            RetryBudget,
        },
        stats::{self, Requests, Shards},
    },
};

// What the configuration allows is looked back at.
const _: () = assert!(upstream::MAX_WINDOW <= resilience::MAX_WINDOW);

/// A bulkhead, and where those wait who are in its queue.
pub(super) struct Places {
    /// The same as long as the upstream or the route has one at all.
    pub(super) bulkhead: Arc<Bulkhead>,
    pub(super) free: Arc<Notify>,
    pub(super) patience: Duration,
    of: upstream::Concurrency,
}

impl Places {
    /// The places that a configuration wants. Who is under way at those of `before` counts on;
    /// how many there may be changes by [`resize`](Self::resize).
    pub(super) fn new(concurrency: &upstream::Concurrency, before: Option<&Self>) -> Self {
        let (bulkhead, free) = match before {
            Some(before) => (before.bulkhead.clone(), before.free.clone()),
            None => {
                let free = Arc::new(Notify::new());
                let wake = free.clone();
                let wake = move || wake.notify_one();
                let bulkhead = Bulkhead::new(concurrency.requests, concurrency.queue, wake);
                (Arc::new(bulkhead), free)
            }
        };
        Self {
            bulkhead,
            free,
            patience: concurrency.queue_timeout,
            of: *concurrency,
        }
    }

    /// Lets as many be under way and wait as the configuration says. Places are shared with those
    /// of the configuration before, so this waits until that one is no longer in force.
    pub(super) fn resize(&self) {
        self.bulkhead.resize(self.of.requests, self.of.queue);
    }
}

/// A server of an upstream.
pub(super) struct Server {
    /// Which pool its connections are in: the same as long as they can be used for it.
    pub(super) number: usize,
    pub(super) address: Address,
    /// As in the configuration.
    pub(super) name: Box<str>,
    pub(super) tls: Option<TlsTo>,
    /// The same for its checks.
    pub(super) check_tls: Option<TlsTo>,
    pub(super) requests: Arc<Shards<Requests>>,
    resolved: Arc<RwLock<Resolved>>,
}

/// The addresses of a name.
type Resolved = Arc<[(SocketAddr, Arc<Lease>)]>;

impl Server {
    /// The addresses that its name has now. No request asks for them, but new connections do.
    pub(super) fn resolved(&self) -> Resolved {
        self.resolved
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes the addresses of its name. Connections to those that it has no longer get no more
    /// requests.
    pub(super) fn set_resolved(&self, addresses: &[SocketAddr]) {
        let mut held = self
            .resolved
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let new = addresses.iter().map(|address| {
            let had = held.iter().find(|(had, _)| had == address);
            had.cloned().unwrap_or_else(|| (*address, Arc::default()))
        });
        let new = new.collect();
        for (address, lease) in held.iter() {
            if !addresses.contains(address) {
                lease.end();
            }
        }
        *held = new;
    }
}

/// An upstream.
pub(super) struct Group {
    pub(super) config: upstream::Upstream,
    /// TLS towards its servers.
    pub(super) towards: Option<Towards>,
    /// Who of `servers` is asked; the same positions.
    pub(super) pick: Arc<balance::Group>,
    pub(super) servers: Box<[Server]>,
    pub(super) places: Option<Places>,
    pub(super) breaker: Option<Arc<CircuitBreaker>>,
    pub(super) budget: Arc<RetryBudget>,
    pub(super) outliers: Option<Outliers>,
    pub(super) sticky: Option<(Box<[u8]>, Signer)>,
    pub(super) requests: Arc<Shards<Requests>>,
    pub(super) stats: Arc<Shards<stats::Upstream>>,
    /// Of the hashes by which servers are chosen.
    pub(super) seed: Seed,
}

impl Group {
    /// Gives what it shares with the group of the configuration before, if there was one, what its
    /// own configuration says: weights of servers, and how many requests may be under way. So this
    /// waits until the one before is no longer in force.
    pub(super) fn take_over(&self, before: Option<&Self>, now: u64) {
        for (position, server) in self.config.servers.iter().enumerate() {
            self.pick.set_weight(position, weight(server), now);
        }
        if let Some(places) = &self.places {
            places.resize();
        }
        let Some(before) = before else { return };
        for (position, server) in self.pick.servers().iter().enumerate() {
            let was_there = before.pick.position(server.id()).is_some();
            if !was_there {
                self.pick.begin(position, now);
            }
            // One that has another identity now is the same server.
            let until = (self.outliers.as_ref()).map_or(0, |o| o.ejected_until(position));
            if until > now && server.ejected_until() < until {
                self.pick.eject(position, until);
            }
        }
    }

    /// What was said of its servers while the proxy ran.
    pub(super) fn said(&self) -> Vec<Said> {
        let servers = self.config.servers.iter().zip(self.pick.servers());
        let said = servers.filter_map(|(config, server)| {
            let (of, now) = (weight(config), server.weight());
            let said = Said {
                upstream: self.config.name.clone(),
                server: config.address.to_string(),
                draining: server.is_draining(),
                weight: (of != now).then_some(NewWeight { of, now }),
            };
            (said.draining || said.weight.is_some()).then_some(said)
        });
        said.collect()
    }

    /// Takes what another process was told of a server, unless the configuration says something
    /// else by now.
    pub(super) fn recall(&self, said: &Said, now: u64) {
        let mut servers = self.config.servers.iter();
        let position = servers.position(|server| server.address.to_string() == said.server);
        let Some(position) = position.filter(|_| self.config.name == said.upstream) else {
            return;
        };
        if said.draining {
            self.pick.set_draining(position, true, now);
        }
        let config = self.config.servers.get(position).map(weight);
        if let Some(weight) = said.weight.filter(|weight| config == Some(weight.of)) {
            // It came to its whole share in the other process.
            self.pick.set_weight(position, weight.now, 0);
        }
    }

    /// Whether connections are of one client only, and cannot be used for others.
    pub(super) const fn is_per_client(&self) -> bool {
        !matches!(self.config.proxy_protocol, SendProxy::Off)
    }
}

/// What is counted, by name.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) upstreams: stats::Registry<Requests>,
    pub(super) upstream_stats: stats::Registry<stats::Upstream>,
    pub(super) servers: stats::Registry<Requests>,
    pub(super) routes: stats::Registry<Requests>,
    pub(super) mirrored: stats::Registry<stats::Mirrored>,
    pub(super) listeners: stats::Registry<Requests>,
    pub(super) connections: stats::Registry<stats::Connections>,
    pub(super) refusals: stats::Registry<stats::Refusals>,
}

impl Counted {
    /// Forgets what a configuration no longer has.
    pub(super) fn retain(&self, proxy: &Proxy) {
        let named = |name: &str| proxy.listeners.iter().any(|l| l.name == name);
        self.listeners.retain(named);
        self.connections.retain(named);
        self.refusals.retain(named);
        self.routes
            .retain(|name| proxy.routes.iter().any(|r| r.name == name));
        self.mirrored.retain(|name| {
            let mut all = proxy.routes.iter();
            all.any(|r| r.name == name && r.mirror.is_some())
        });
        let named = |name: &str| proxy.upstreams.iter().any(|u| u.name == name);
        self.upstreams.retain(named);
        self.upstream_stats.retain(named);
        self.servers.retain(|key| {
            let mut all = proxy.upstreams.iter();
            all.any(|u| {
                key.strip_prefix(u.name.as_str())
                    .and_then(|rest| rest.strip_prefix(' '))
                    .is_some_and(|name| u.servers.iter().any(|s| s.address.to_string() == name))
            })
        });
    }
}

/// What outlives configurations: what is known of servers, and the numbers of their pools.
#[derive(Clone)]
pub(super) struct Memory {
    keys: Keys,
    /// By upstream and address.
    known: HashMap<(String, Address), Known>,
    next_number: usize,
}

/// What connections to a server are like: TLS and what its files held, and what is spoken.
type Transport = (
    Option<upstream::Tls>,
    Option<u64>,
    upstream::Protocol,
    SendProxy,
);

#[derive(Clone)]
struct Known {
    number: usize,
    /// What connections to it are like.
    transport: Transport,
    balance: Arc<balance::Server>,
    record: Arc<Record>,
    resolved: Arc<RwLock<Resolved>>,
}

impl Memory {
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            keys,
            known: HashMap::new(),
            next_number: 0,
        }
    }

    /// Has servers chosen by other keys from now on, if they are others. Groups that there are
    /// keep theirs.
    pub(super) fn set_keys(&mut self, keys: &Keys) {
        if self.keys.seed == keys.seed && self.keys.cookies == keys.cookies {
            return;
        }
        self.keys = keys.clone();
        for ((_, address), known) in &mut self.known {
            known.balance = Arc::new(identified(&self.keys.seed, address, known.balance.weight()));
        }
    }

    /// Whether a group's servers are chosen by the keys of this.
    pub(super) fn has_keys_of(&self, group: &Group) -> bool {
        self.keys.seed == group.seed
    }

    /// The upstream of a configuration, whose servers are spoken to by this TLS. What is known of
    /// the one of that name `before` goes on: requests under way, and a breaker and a retry budget
    /// whose own keys are the same.
    ///
    /// # Errors
    /// When no certificate can have the name of a server.
    pub(super) fn group(
        &mut self,
        config: &upstream::Upstream,
        counted: &Counted,
        towards: Option<Towards>,
        before: Option<&Group>,
    ) -> Result<Group, TlsError> {
        let transport = (
            config.tls.clone(),
            towards.as_ref().map(|towards| towards.held),
            config.protocol,
            config.proxy_protocol,
        );
        let mut known = Vec::new();
        for server in &config.servers {
            let id = (config.name.clone(), server.address.clone());
            let next = self.next_number;
            let seed = &self.keys.seed;
            let entry = self.known.entry(id).or_insert_with(|| Known {
                number: next,
                transport: transport.clone(),
                balance: Arc::new(identified(seed, &server.address, weight(server))),
                record: Arc::default(),
                resolved: Arc::new(RwLock::new(Arc::new([]))),
            });
            if entry.transport != transport {
                // Connections of before are not like those from now on.
                entry.transport = transport.clone();
                entry.number = next;
            }
            if entry.number == next {
                self.next_number += 1;
            }
            known.push(entry.clone());
        }
        let settings = Settings {
            algorithm: match config.balance {
                Balance::RoundRobin => Algorithm::RoundRobin,
                Balance::WeightedRoundRobin => Algorithm::WeightedRoundRobin,
                Balance::LeastConnections => Algorithm::LeastConnections,
                Balance::IpHash | Balance::ConsistentHash(_) => Algorithm::Hash,
                Balance::RandomOfTwo => Algorithm::RandomOfTwo,
            },
            panic_threshold: share(config.panic_permille),
            slow_start: nanoseconds(config.slow_start),
        };
        let members = config.servers.iter().zip(&known);
        let members = members.map(|(server, known)| Member {
            server: known.balance.clone(),
            weight: weight(server),
            backup: server.backup,
        });
        let mut pick = balance::Group::new(settings, self.keys.seed, members.collect());
        if let Some(before) = before {
            pick = pick.following(&before.pick);
        }
        let servers = config.servers.iter().zip(&known).map(|(server, known)| {
            let name = server.address.to_string();
            let tls = towards.as_ref().map(|towards| towards.to(&server.address));
            let (tls, check_tls) = tls.transpose()?.unzip();
            Ok(Server {
                number: known.number,
                tls,
                check_tls,
                requests: counted.servers.get(&server_key(&config.name, &name)),
                name: name.into(),
                address: server.address.clone(),
                resolved: known.resolved.clone(),
            })
        });
        let servers: Result<_, TlsError> = servers.collect();
        let records = known.iter().map(|known| known.record.clone());
        Ok(Group {
            towards,
            pick: Arc::new(pick),
            servers: servers?,
            places: config.concurrency.as_ref().map(|wanted| {
                Places::new(wanted, before.and_then(|before| before.places.as_ref()))
            }),
            breaker: config.breaker.map(|wanted| {
                let had = before.filter(|before| before.config.breaker == Some(wanted));
                had.and_then(|had| had.breaker.clone())
                    .unwrap_or_else(|| Arc::new(breaker(wanted)))
            }),
            budget: {
                let wanted = config.retries.budget_permille;
                let had = before.filter(|had| had.config.retries.budget_permille == wanted);
                had.map(|had| had.budget.clone())
                    .unwrap_or_else(|| Arc::new(RetryBudget::new(share(wanted))))
            },
            outliers: config.passive.map(|passive| {
                let settings = OutlierSettings {
                    consecutive_errors: passive.consecutive_errors,
                    error_rate: passive.errors.map_or(0.0, |e| share(e.permille)),
                    window: passive.errors.map_or(1, |e| e.window),
                    latency: (passive.errors)
                        .and_then(|e| e.latency)
                        .map_or(0, nanoseconds),
                    eject: nanoseconds(passive.eject),
                    max_ejected: share(passive.max_ejected_permille),
                };
                Outliers::new(settings, records.collect())
            }),
            sticky: config.sticky.as_ref().map(|sticky| {
                let signer = Signer::new(&self.keys.cookies, &config.name);
                (sticky.cookie.as_bytes().into(), signer)
            }),
            requests: counted.upstreams.get(&config.name),
            stats: counted.upstream_stats.get(&config.name),
            config: config.clone(),
            seed: self.keys.seed,
        })
    }

    /// Forgets the servers that a configuration no longer has.
    pub(super) fn retain(&mut self, groups: &[Arc<Group>]) {
        self.known.retain(|(upstream, address), _| {
            groups.iter().any(|group| {
                group.config.name == *upstream
                    && group
                        .servers
                        .iter()
                        .any(|server| server.address == *address)
            })
        });
    }
}

/// The name under which a server's counters are kept.
pub(super) fn server_key(upstream: &str, server: &str) -> String {
    format!("{upstream} {server}")
}

/// A server with the identity that its address has.
fn identified(seed: &Seed, address: &Address, weight: u16) -> balance::Server {
    balance::Server::new(key(seed, address.to_string().as_bytes()), weight)
}

fn breaker(of: upstream::Breaker) -> CircuitBreaker {
    CircuitBreaker::new(&BreakerSettings {
        failure_rate: share(of.failure_permille),
        window: of.window,
        open: nanoseconds(of.open),
        probes: of.probes,
    })
}

fn weight(server: &upstream::Server) -> u16 {
    u16::try_from(server.weight).unwrap_or(u16::MAX)
}

fn share(permille: u32) -> f64 {
    f64::from(permille) / 1000.0
}

/// A time as the pure parts have it.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
