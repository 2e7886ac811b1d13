//! Bans of clients of the proxy. Whoever has the verdict may be another process, or have another
//! configuration: what holds is that of the engine.

use edge_common::addr::{Family, Prefix};
use tracing::{error, info, warn};

use super::engine::Engine;
use crate::{
    clock::Now,
    config::Model,
    entry::{List, Origin, Source},
    l7::{self, proxy::Ban},
    policy::{EntryView, Policy, Terms},
};

/// The sources of which a configuration says that no ban of the proxy holds: its trusted proxies,
/// the networks of IPv6 that they are banned by, the allowlist and management addresses.
fn sparing(model: &Model) -> impl Iterator<Item = Prefix> {
    let listeners = model.proxy.listeners.iter();
    let trusted = listeners.flat_map(|listener| &listener.trusted_proxies);
    trusted
        .map(|&prefix| {
            let counted_by = l7::bans::prefix(prefix.addr());
            if prefix.family() == Family::V6 && counted_by.contains(prefix) {
                counted_by
            } else {
                prefix
            }
        })
        .chain(model.allow.iter().copied())
        .chain(model.management.iter().copied())
}

/// The same, sorted, none twice.
pub(super) fn spared(model: &Model) -> Vec<Prefix> {
    let mut all: Vec<Prefix> = sparing(model).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Engine {
    /// Bans a client of the proxy, unless it is one that is never dropped.
    pub(super) fn ban(&mut self, ban: &Ban) {
        let now = Now::read();
        if let Some(why) = self.spares(ban, now) {
            info!(source = %ban.source, "not banned, {why}: {}", ban.note);
            return;
        }
        let ttl_ms = u64::try_from(ban.ttl.as_millis()).unwrap_or(u64::MAX);
        let terms = Terms {
            source: Source::new(Origin::L7, None),
            expires_unix_ms: Some(now.unix_ms.saturating_add(ttl_ms)),
            note: ban.note.as_str().into(),
        };
        let mut meanwhile = |_: &Policy, _, _| {};
        let prefixes = vec![ban.source];
        match self
            .policy
            .add(List::Black, terms, prefixes, now, &mut meanwhile)
        {
            // One of two orders, of which the other has come before.
            Ok(done) if done.added == 0 => {}
            Ok(_) => {
                self.proxy.count_ban();
                self.publish_counts();
                warn!(source = %ban.source, "banned by the proxy: {}", ban.note);
            }
            Err(e) => error!("{} is not banned: {e}", ban.source),
        }
    }

    /// Why a source is not banned, if it is not.
    fn spares(&self, ban: &Ban, now: Now) -> Option<&'static str> {
        if self.model.proxy.bans.is_none() {
            return Some("for the configuration has no proxy.bans any more");
        }
        let host = Prefix::host(ban.address);
        let covers = |prefix: &Prefix| prefix.contains(ban.source) || prefix.contains(host);
        if sparing(&self.model).any(|prefix| covers(&prefix)) {
            return Some("for the configuration spares it");
        }
        let is_spared = |entry: &EntryView| entry.list != List::Black;
        match self.policy.lookup(ban.address, now) {
            Ok(entries) if entries.iter().any(is_spared) => Some("for it is on the allowlist"),
            Ok(_) => None,
            Err(e) => {
                error!("cannot look up {}: {e}", ban.source);
                Some("for it may be on the allowlist")
            }
        }
    }

    /// Lifts bans of sources that the configuration spares, if there may be some.
    pub(super) fn pardon(&mut self) {
        if !self.unpardoned {
            return;
        }
        let within = spared(&self.model);
        let shared = &self.shared;
        let mut meanwhile = |_: &Policy, _, _| shared.beat();
        let lifted = self.policy.flush_within(
            List::Black,
            Origin::L7,
            &within,
            Now::read(),
            &mut meanwhile,
        );
        match lifted {
            Ok(lifted) => {
                self.unpardoned = false;
                for source in &lifted {
                    info!(%source, "no longer banned by the proxy, for the configuration spares it");
                }
                if !lifted.is_empty() {
                    self.publish_counts();
                }
            }
            Err(e) => error!("bans of sources that the configuration spares are not lifted: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_trusted_proxies_are_spared_as_they_are_banned() {
        let text = "interfaces = ['lo']\n\
            lists.allow = ['192.0.2.7']\nlists.management = ['198.51.100.0/24']\n\
            [[listener]]\nname = 'web'\naddresses = ['127.0.0.1:80']\n\
            trusted_proxies = ['2001:db8::7', '2001:db8:1::/48', '203.0.113.0/24']\n\
            [[route]]\nname = 'all'\nrespond = { status = 204 }\n";
        let checked = crate::config::parse(text, "edge.toml".as_ref(), 1).unwrap();
        let all: Vec<String> = spared(&checked.model)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            all,
            [
                "192.0.2.7",
                "198.51.100.0/24",
                "203.0.113.0/24",
                "2001:db8::/64",
                "2001:db8:1::/48"
            ]
        );
    }
}
