//! What a new configuration changes, and what it cannot change while the
//! daemon runs.

use std::collections::BTreeSet;

use super::model::Model;

/// A key that a running daemon cannot change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Immutable {
    /// The key.
    pub key: &'static str,
    /// What is in force.
    pub old: String,
    /// What the file says now.
    pub new: String,
}

/// The new configuration changes keys that only a restart can change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.sentences())]
pub struct RestartNeeded {
    /// At least one.
    pub keys: Vec<Immutable>,
}

impl RestartNeeded {
    fn sentences(&self) -> String {
        let sentence = |k: &Immutable| {
            format!(
                "{} cannot change while the daemon runs ({} is in force, the file says {}): restart needed, or change it back",
                k.key, k.old, k.new
            )
        };
        self.keys
            .iter()
            .map(sentence)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// What has to be done to get from one configuration to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces to attach to.
    pub added: Vec<String>,
    /// Interfaces to detach from.
    pub removed: Vec<String>,
    /// Keys that need new tables, filled before they replace the old ones.
    pub new_tables: Vec<&'static str>,
    /// Services that are new.
    pub services_added: Vec<String>,
    /// Services that are gone.
    pub services_removed: Vec<String>,
    /// For how many services there is room now, if there was room for another number:
    /// their table is made anew, and state and counters of all of them begin at zero.
    pub service_room: Option<u32>,
    /// Whether anything changes at all.
    pub any: bool,
}

/// Compares the configuration in force with the next one.
///
/// # Errors
/// [`RestartNeeded`] names the keys that cannot change.
pub fn changes(old: &Model, new: &Model) -> Result<Changes, RestartNeeded> {
    let path = |p: &std::path::Path| p.display().to_string();
    let listen = |m: &Model| {
        m.metrics_listen
            .map_or_else(|| "none".into(), |l| l.to_string())
    };
    // Without balanced services there is no table of flows, and no ring.
    let balanced = old.has_balanced() && new.has_balanced();
    let size = |n: u32| {
        if balanced {
            n.to_string()
        } else {
            String::new()
        }
    };
    let (balancing, next) = (&old.balancing, &new.balancing);
    // With another number of them there is another table of ports, and no flow is found in it.
    let (had, has) = (old.nat_sources(), new.nat_sources());
    let sources = |n: u32| {
        if had != 0 && has != 0 {
            n.to_string()
        } else {
            String::new()
        }
    };
    let fixed = [
        (
            "paths.state_dir",
            path(&old.state_dir),
            path(&new.state_dir),
        ),
        ("paths.socket", path(&old.socket), path(&new.socket)),
        (
            "paths.bpffs_dir",
            path(&old.bpffs_dir),
            path(&new.bpffs_dir),
        ),
        ("metrics.listen", listen(old), listen(new)),
        (
            "events.buffer",
            old.events_buffer.to_string(),
            new.events_buffer.to_string(),
        ),
        ("balance.flows", size(balancing.flows), size(next.flows)),
        ("balance.slots", size(balancing.slots), size(next.slots)),
        ("the number of balance.snat", sources(had), sources(has)),
    ];
    let keys: Vec<Immutable> = fixed
        .into_iter()
        .filter(|(_, old, new)| old != new)
        .map(|(key, old, new)| Immutable { key, old, new })
        .collect();
    if !keys.is_empty() {
        return Err(RestartNeeded { keys });
    }
    let (was, is) = (&old.capacity, &new.capacity);
    let sizes = [
        ("tables.hosts_v4", was.hosts_v4 != is.hosts_v4),
        ("tables.hosts_v6", was.hosts_v6 != is.hosts_v6),
        ("tables.prefixes", was.prefixes != is.prefixes),
        (
            "tables.limiter_sources",
            was.limiter_sources != is.limiter_sources,
        ),
    ];
    let flood = [
        (
            "tables.service_targets",
            old.flood.targets != new.flood.targets,
        ),
        (
            "tables.verified_sources",
            old.flood.verified_sources != new.flood.verified_sources,
        ),
    ];
    // Without services they have no room either way.
    let flood = flood
        .into_iter()
        .filter(|_| !old.services.is_empty() && !new.services.is_empty());
    let without = |a: &Model, b: &Model| {
        let other = &b.interfaces;
        a.interfaces
            .iter()
            .filter(|i| !other.contains(i))
            .cloned()
            .collect()
    };
    let services = |a: &Model, b: &Model| {
        let other: BTreeSet<&str> = b.services.iter().map(|s| s.name.as_str()).collect();
        let names = a.services.iter().map(|s| s.name.as_str());
        names
            .filter(|n| !other.contains(n))
            .map(str::to_owned)
            .collect()
    };
    let (had, has) = (old.service_slots(), new.service_slots());
    Ok(Changes {
        service_room: (had != has && had > 0 && has > 0).then_some(has),
        services_added: services(new, old),
        services_removed: services(old, new),
        added: without(new, old),
        removed: without(old, new),
        new_tables: (sizes.into_iter().chain(flood))
            .filter(|s| s.1)
            .map(|s| s.0)
            .collect(),
        any: old != new,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test::{model, model_of};

    #[test]
    fn the_same_file_changes_nothing() {
        assert_eq!(changes(&model(), &model()), Ok(Changes::default()));
    }

    #[test]
    fn fixed_keys_are_all_named() {
        let new = model_of(
            "paths.state_dir = '/srv/a'\npaths.socket = '/run/b'\npaths.bpffs_dir = '/sys/fs/bpf/c'\nmetrics.listen = '127.0.0.1:1'\nevents.buffer = 65536",
        );
        let error = changes(&model(), &new).unwrap_err();
        let text = error.to_string();
        for key in [
            "paths.state_dir",
            "paths.socket",
            "paths.bpffs_dir",
            "metrics.listen",
            "events.buffer",
        ] {
            assert!(error.keys.iter().any(|k| k.key == key), "{key}");
            assert!(text.contains(key) && text.contains("restart needed"));
        }
        assert!(
            text.contains("/var/lib/edge is in force, the file says /srv/a"),
            "{text}"
        );
    }

    #[test]
    fn sizes_of_balancing_are_fixed_once_there_is_some() {
        let service = "[[service]]\nname = 'a'\naddresses = ['203.0.113.1']\nports = [1]\nforward = 'l2'\n[[service.backend]]\nname = 'a'\naddress = '10.0.0.1'\n";
        let of = |sizes: &str, service: &str| model_of(&format!("{sizes}\n{service}"));
        let sizes = "balance.flows = 2000\nbalance.slots = 251";
        let error = changes(&of("", service), &of(sizes, service)).unwrap_err();
        let keys: Vec<&str> = error.keys.iter().map(|k| k.key).collect();
        assert_eq!(keys, ["balance.flows", "balance.slots"]);
        let told = error.to_string();
        assert!(
            told.contains("1000000 is in force, the file says 2000"),
            "{told}"
        );
        assert!(changes(&of("", ""), &of(sizes, service)).is_ok());
        assert!(changes(&of("", service), &of(sizes, "")).is_ok());
        let idle = "balance.tcp_idle = '1h'\nbalance.seed_file = '/a'";
        assert!(changes(&of("", service), &of(idle, service)).unwrap().any);
    }

    #[test]
    fn the_number_of_sources_is_fixed_once_there_are_some() {
        let of = |forward: &str, snat: &str| {
            model_of(&format!(
                "[[service]]\nname = 'a'\naddresses = ['203.0.113.1']\nports = [1]\nforward = '{forward}'\n\
                 [[service.backend]]\nname = 'a'\naddress = '10.0.0.1'\n[balance]\nsnat = [{snat}]"
            ))
        };
        let (one, other) = (of("nat", "'192.0.2.1'"), of("nat", "'192.0.2.2'"));
        let two = of("nat", "'192.0.2.1', '192.0.2.2'");
        assert!(changes(&one, &other).unwrap().any);
        let told = changes(&one, &two).unwrap_err().to_string();
        assert!(
            told.contains("the number of balance.snat cannot change"),
            "{told}"
        );
        let none = of("l2", "'192.0.2.1'");
        assert!(changes(&none, &two).is_ok() && changes(&two, &none).is_ok());
    }

    #[test]
    fn services_may_change() {
        let service =
            |name: &str, port: u16| format!("[[service]]\nname = '{name}'\nports = [{port}]\n");
        let old = model_of(&format!(
            "tables.verified_sources = 8\n{}{}",
            service("a", 1),
            service("b", 2)
        ));
        let new = model_of(&format!(
            "tables.service_targets = 9\n{}{}",
            service("b", 3),
            service("c", 2)
        ));
        let got = changes(&old, &new).unwrap();
        assert_eq!(
            (got.services_added, got.services_removed),
            (vec!["c".into()], vec!["a".into()])
        );
        assert_eq!(
            got.new_tables,
            ["tables.service_targets", "tables.verified_sources"]
        );
        // What has no room yet is not resized.
        assert_eq!(changes(&model(), &new).unwrap().new_tables, [""; 0]);
    }

    #[test]
    fn it_is_told_when_states_of_services_are_lost() {
        let with = |n: usize| {
            let one = |i| format!("[[service]]\nname = 's{i}'\nports = [{i}]\n");
            model_of(&(1..=n).map(one).collect::<String>())
        };
        let room = |old, new| changes(&with(old), &with(new)).unwrap().service_room;
        assert_eq!((room(1, 15), room(0, 20), room(20, 0)), (None, None, None));
        assert_eq!((room(15, 16), room(16, 15)), (Some(32), Some(16)));
    }

    #[test]
    fn interfaces_and_sizes_may_change() {
        let mut old = model_of("tables.hosts_v4 = 10");
        old.interfaces = vec!["a".into(), "b".into()];
        let mut new = model_of("checks.land = 'off'\ntables.limiter_sources = 10");
        new.interfaces = vec!["b".into(), "c".into()];
        let got = changes(&old, &new).unwrap();
        assert_eq!(
            (got.added, got.removed),
            (vec!["c".into()], vec!["a".into()])
        );
        assert_eq!(
            got.new_tables,
            ["tables.hosts_v4", "tables.limiter_sources"]
        );
        assert!(got.any);
    }
}
