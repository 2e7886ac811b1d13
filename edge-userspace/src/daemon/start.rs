//! From nothing to everything in force, in the order that leaves no gap: the
//! programs of a former daemon go on until the tables are right and the new
//! programs take their place.

use std::{io, mem::take, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use edge_common::{
    abi::{MAX_PROFILES, Profile},
    hash::Seed,
};
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::{
    backoff::Backoff,
    balance::{self, Balancer},
    defence::{Defence, follow::Handle},
    engine::{Engine, LIMITS_SETTING, fleet_secret, proxy_keys},
    facts::Shared,
    inbox::Inbox,
    limits::Changes,
    notify::Notifier,
    plan::{Plan, plan},
};
use crate::{
    clock::{Now, coarse_tick_ns},
    config::{self, Model},
    datapath::{Datapath, EventRing, InterfaceState},
    health::runner::{CONCURRENT, runner},
    l7::proxy::{Given, Keys, Said, Tier},
    policy::Policy,
    status::AttachMode,
    store::Store,
    tables::{Geometry, Regions},
};

/// Key of the seed among the store's settings.
const SEED_SETTING: &str = "seed";

/// Key of the secret of which the keys of the proxy are made.
const SESSION_SETTING: &str = "session_secret";

/// Reads the configuration and says what it means.
///
/// # Errors
/// When it cannot be read or is wrong.
pub(super) fn configuration(path: &Path) -> Result<Model> {
    let checked = config::load(path, coarse_tick_ns())?;
    for warning in &checked.warnings {
        warn!("{warning}");
    }
    let model = checked.model;
    let geometry = Geometry::for_capacity(&model.capacity);
    let description = config::describe(&model, &geometry, config::possible_cpus()).to_string();
    for line in description.lines().filter(|l| !l.is_empty()) {
        info!("{line}");
    }
    Ok(model)
}

/// What there is before an engine.
pub(super) struct Before {
    /// What the file says.
    pub(super) file: Model,
    /// Sockets that another process has opened.
    pub(super) given: Vec<Given>,
    /// What it was told of servers of the proxy.
    pub(super) said: Vec<Said>,
    /// The engine takes it when nothing can fail any more.
    pub(super) inbox: Option<Inbox>,
    /// Likewise: that of an engine that was about to hand over, which has gone on.
    pub(super) proxy: Option<Tier>,
}

/// Opens the store and puts everything into force.
///
/// # Errors
/// When anything of it fails. What was in force before is then in force still, and so is a proxy
/// that was there.
pub(super) fn engine(
    path: &Path,
    before: &mut Before,
    shared: Arc<Shared>,
    rings: Sender<EventRing>,
    notifier: Notifier,
    beat: Duration,
) -> Result<Engine> {
    // First, because its lock tells two daemons with the same state apart.
    let file = before.file.clone();
    let store = Store::open(&file.state_dir)?;
    shared.attacks.open(&file.state_dir);
    let defence = Handle::new(Defence::new(&file.state_dir));
    let undo = GiveUp(Some(defence.clone()));
    let (asks, checks, changed) = runner(CONCURRENT);
    let balancer = balance::follow::Handle::new(Balancer::new(&file.state_dir, checks));
    let mut datapath = Datapath::open(&file.bpffs_dir)?;
    let seed = seed(&store)?;
    let (changes, model) = limits(&store, &file);
    let fleet = fleet_secret(&model)?;
    let session_secret = session_secret(&store)?;
    let mut listening = None;
    if before.proxy.is_none() {
        let keys = proxy_keys(fleet.as_ref(), &session_secret);
        let mut proxy = proxy(&keys, &shared);
        proxy.take(take(&mut before.given), take(&mut before.said));
        listening = Some(proxy.prepare(&model.proxy)?);
        before.proxy = Some(proxy);
    }
    let none = [Profile::default(); MAX_PROFILES];
    let told = defence.lock().prepare(&model)?;
    let Plan {
        geometry,
        settings,
        system,
    } = plan(
        &model,
        seed,
        coarse_tick_ns(),
        told,
        fleet.map(|secret| secret.seed()),
        &none,
    )?;
    let balance_seed = settings.program.config.balance_seed;
    let profiles = settings.program.profiles.clone();
    let prepared = datapath.prepare(settings)?;
    for note in prepared.notes() {
        warn!("{note}");
    }
    let boot = boot_id();
    let now = Now::read();
    let (policy, filled) = Policy::open(
        store,
        boot.as_deref(),
        Regions::new(|name| prepared.region(name))?,
        geometry,
        seed,
        system.clone(),
        now,
    )?;
    info!(
        entries = filled.refilled.entries,
        removed = filled.refilled.removed,
        adopted = !prepared.tables_are_new(),
        "the tables hold what the store and the configuration say"
    );
    if filled.expired > 0 {
        info!(
            entries = filled.expired,
            "have run out since, if the clock is right; they are removed when it has gone on \
             steadily for a while"
        );
    }
    if filled.from_the_future > 0 {
        warn!(
            entries = filled.from_the_future,
            "were changed at a time that the clock has not reached: it is wrong, or it was. They \
             last from the boot on as long as they were given, at most, and are brought in line \
             when the clock is set"
        );
    }
    let mut filling = defence.lock();
    let services = || prepared.services();
    filling.fill(&model, seed, services, || prepared.sources())?;
    let (places, tables) = ((filling.slots(), filling.sources()), || prepared.balance());
    balancer
        .lock()
        .fill(&model, places, balance_seed, tables, now)?;
    drop(filling);
    datapath.commit(prepared)?;
    let (Some(proxy), Some(inbox)) = (before.proxy.take(), before.inbox.take()) else {
        bail!("there is an engine already");
    };
    let mut engine = Engine {
        path: path.to_path_buf(),
        seed,
        file,
        changes,
        model,
        geometry,
        system,
        profiles,
        policy,
        datapath,
        defence,
        balancer,
        proxy,
        session_secret,
        checks: Some((asks, changed)),
        shared,
        inbox,
        rings,
        notifier,
        beat,
        replans: Backoff::default(),
        behind: false,
        unpardoned: true,
        broken: false,
    };
    let is_new = listening.is_some();
    if let Some(listening) = listening {
        engine.proxy.commit(listening);
    }
    undo.disarm();
    engine.defence.lock().keep(&engine.shared);
    engine.balancer.lock().keep();
    engine.pardon();
    engine.send_ring();
    if is_new {
        engine.publish_generation(now);
    } else {
        engine.publish();
    }
    if let Some(view) = engine.datapath.view() {
        view.interfaces().iter().for_each(announce);
    }
    Ok(engine)
}

/// Puts back what was set for the defence, unless it comes to run.
struct GiveUp(Option<Handle>);

impl GiveUp {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if let Some(defence) = &self.0 {
            defence.lock().give_up();
        }
    }
}

/// The kernel's id of this boot (random(4)).
fn boot_id() -> Option<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    match std::fs::read_to_string(PATH) {
        Ok(id) => Some(id.trim().to_owned()),
        Err(e) => {
            warn!(
                "{PATH}: {e}; what the lists got since the boot is not corrected when the clock is set"
            );
            None
        }
    }
}

fn announce(state: &InterfaceState) {
    let InterfaceState {
        name,
        ifindex,
        adopted,
        ..
    } = state;
    match state.mode {
        Some(AttachMode::Native) => {
            info!(ifindex, adopted, "{name}: attached in NATIVE mode");
        }
        Some(AttachMode::Generic) => {
            warn!(
                ifindex,
                adopted, "{name}: attached in GENERIC mode, which is slow"
            );
        }
        None => {}
    }
}

/// The secret of the hashes: one an installation, so that tables in the kernel
/// fit the next daemon.
fn seed(store: &Store) -> Result<Seed> {
    if let Some(bytes) = store.setting(SEED_SETTING)? {
        let (words, rest) = bytes.as_chunks::<8>();
        let words = words.iter().map(|w| u64::from_le_bytes(*w));
        if let Ok(words) = words.collect::<Vec<_>>().try_into()
            && rest.is_empty()
        {
            return Ok(Seed::new(words));
        }
        bail!("the store holds a seed of {} bytes, not 32", bytes.len());
    }
    let mut bytes = [0; 32];
    fill_random(&mut bytes).context("no random numbers for the seed")?;
    store.set_setting(SEED_SETTING, &bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    let mut seed = [0; 4];
    for (to, from) in seed.iter_mut().zip(words) {
        *to = u64::from_le_bytes(*from);
    }
    Ok(Seed::new(seed))
}

/// The secret of this installation of which the keys of the proxy are made.
fn session_secret(store: &Store) -> Result<[u8; 32]> {
    if let Some(bytes) = store.setting(SESSION_SETTING)? {
        let had = bytes.len();
        return bytes.try_into().map_err(|_| {
            anyhow!("the store holds a secret of {had} bytes for session cookies, not 32")
        });
    }
    let mut secret = [0; 32];
    fill_random(&mut secret).context("no random numbers for session cookies")?;
    store.set_setting(SESSION_SETTING, &secret)?;
    Ok(secret)
}

/// The proxy, without anything to do yet.
fn proxy(keys: &Keys, shared: &Arc<Shared>) -> Tier {
    let ban = shared.clone();
    let tier = Tier::new(keys.seed, keys.cookies, move |who| ban.ban(who));
    // There is one engine in a daemon.
    let _ = shared.proxy.set(tier.view());
    tier
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a live, writable buffer.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got) == Ok(bytes.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The limits set at run time, and the configuration with them. What no longer
/// fits the file is left out: a firewall that does not start is worse.
fn limits(store: &Store, file: &Model) -> (Changes, Model) {
    let read = || -> Result<Option<(Changes, Model)>> {
        let Some(bytes) = store.setting(LIMITS_SETTING)? else {
            return Ok(None);
        };
        let changes: Changes = serde_json::from_slice(&bytes)?;
        let limits = changes.on(&file.limits, coarse_tick_ns())?;
        let model = file.with_limits(limits);
        // Fails here and not later when the overrides differ too much.
        model.profiles()?;
        Ok(Some((changes, model)))
    };
    match read() {
        Ok(Some((changes, model))) => {
            if !changes.is_empty() {
                info!("limits that were set at run time are in force, see `edge limits show`");
            }
            (changes, model)
        }
        Ok(None) => (Changes::default(), file.clone()),
        Err(e) => {
            warn!("limits that were set at run time are NOT in force, only those of the file: {e}");
            (Changes::default(), file.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::config::test::model_of;

    #[test]
    fn a_fleet_shares_the_keys_of_the_proxy() {
        const UPSTREAM: &str = "[[upstream]]\nname = 'app'\n[[upstream.server]]\naddress = '10.0.0.1:80'\n[upstream.sticky]\ncookie = 'edge'\n";
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("fleet.seed");
        fs::write(&file, "0123456789abcdef".repeat(4)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let shared = format!("balance.seed_file = '{}'\n", file.display());
        let keys = |state: &str, text: &str| {
            let store = Store::open(&directory.path().join(state)).unwrap();
            let fleet = fleet_secret(&model_of(text)).unwrap();
            let own = session_secret(&store).unwrap();
            let keys = proxy_keys(fleet.as_ref(), &own);
            (keys.seed, keys.cookies)
        };
        let fleet = shared.clone() + UPSTREAM;
        assert_eq!(keys("a", &fleet), keys("b", &fleet));
        let own = keys("a", UPSTREAM);
        assert_eq!(own, keys("a", UPSTREAM));
        assert_ne!(own.0, keys("b", UPSTREAM).0);
        assert_ne!(own.1, keys("b", UPSTREAM).1);
        assert_ne!(own.1, keys("a", &fleet).1);
        // Who needs no key needs no file.
        fs::remove_file(&file).unwrap();
        assert!(fleet_secret(&model_of(&fleet)).is_err());
        let none = shared + &UPSTREAM.replace("[upstream.sticky]\ncookie = 'edge'\n", "");
        assert!(fleet_secret(&model_of(&none)).unwrap().is_none());
    }
}
