//! The engine: the one thread that owns lists and datapath, and changes them.
//!
//! Requests are answered one after the other, except that those that change
//! nothing overtake what takes long ([`Inbox`]). Whatever takes long is told on
//! the way; whatever fails leaves things as they were.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use edge_common::{
    abi::{MAX_PROFILES, Profile},
    hash::Seed,
};
use tokio::sync::mpsc::Sender;
use tracing::{error, info, warn};

use super::{
    backoff::Backoff,
    balance::{
        self,
        seed::{Secret, SeedError},
    },
    bans,
    compare::InForce,
    defence::{
        Defence, FillError, Unmet,
        follow::{Follower, Handle},
    },
    facts::{Command, Shared},
    inbox::Inbox,
    limits::Changes,
    notify::{News, Notifier},
    plan::{Plan, plan},
    requests,
};
use crate::{
    clock::{Now, coarse_tick_ns},
    config::{
        self, Model,
        model::OnExit,
        reload::{self, changes},
    },
    control::protocol::{Failure, FailureKind},
    datapath::{Datapath, DatapathError, EventRing},
    health::runner::{Changes as HealthChanges, Runner},
    l7::proxy::{Keys, Tier, TierError},
    policy::{ClockJump, Policy, PolicyError, SystemEntries},
    tables::{Capacity, Geometry, Regions},
};

/// How often what has expired is collected and the interfaces are looked after.
const TICK: Duration = Duration::from_secs(1);

/// Key of the run-time limits among the store's settings.
pub(super) const LIMITS_SETTING: &str = "limits";

/// The engine.
pub(super) struct Engine {
    pub(super) path: PathBuf,
    pub(super) seed: Seed,
    /// What the file says.
    pub(super) file: Model,
    /// What was changed on top of it.
    pub(super) changes: Changes,
    /// What is in force: the file with the changes.
    pub(super) model: Model,
    pub(super) geometry: Geometry,
    pub(super) system: SystemEntries,
    pub(super) profiles: Box<[Profile; MAX_PROFILES]>,
    pub(super) policy: Policy,
    pub(super) datapath: Datapath,
    pub(super) defence: Handle,
    pub(super) balancer: balance::follow::Handle,
    pub(super) proxy: Tier,
    /// Of which the keys of the proxy are made where no fleet shares one.
    pub(super) session_secret: [u8; 32],
    /// What the balancer's thread starts with.
    pub(super) checks: Option<(Runner, HealthChanges)>,
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Inbox,
    /// Where a new ring buffer of events goes.
    pub(super) rings: Sender<EventRing>,
    pub(super) notifier: Notifier,
    /// How often to give a sign of life at least.
    pub(super) beat: Duration,
    /// When the programs may be loaded anew for the host's TCP.
    pub(super) replans: Backoff,
    /// Set when the lists have more of the file than is in force.
    pub(super) behind: bool,
    /// Set when sources may be banned that the configuration spares.
    pub(super) unpardoned: bool,
    /// Set when a change failed and could not be undone.
    pub(super) broken: bool,
}

/// What an engine leaves that hands over: what only this process can have.
pub(super) struct Kept {
    /// Goes on as it was.
    pub(super) proxy: Tier,
    /// Of what waits in it, nothing is lost.
    pub(super) inbox: Inbox,
    /// What the file said.
    pub(super) file: Model,
}

impl Kept {
    /// Ends what goes on, and does what the file wants of an end. There is no engine, and none is
    /// needed for that.
    ///
    /// # Errors
    /// When detaching fails.
    pub(super) fn stop(self) -> Result<()> {
        let Self {
            mut proxy,
            inbox,
            file,
        } = self;
        drop(inbox);
        proxy.stop();
        leave(file.on_exit, || {
            Datapath::open(&file.bpffs_dir)?.detach()?;
            Defence::new(&file.state_dir).detached();
            Ok(())
        })
    }
}

/// Leaves the programs in the kernel or has them detached.
fn leave(on_exit: OnExit, detach: impl FnOnce() -> Result<()>) -> Result<()> {
    match on_exit {
        OnExit::Leave => {
            info!("the programs stay in the kernel and go on dropping (on_exit = \"leave\")");
        }
        OnExit::Detach => {
            detach().context("detaching")?;
            info!("detached from all interfaces");
        }
    }
    Ok(())
}

/// Why a configuration was not put into force.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForceError {
    /// It makes no sense.
    #[error(transparent)]
    Profiles(#[from] config::limits::TooManyProfiles),
    /// The lists do not take it.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The host's TCP is not as services need it.
    #[error(transparent)]
    Defence(#[from] Unmet),
    /// The tables of services cannot be filled.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The tables of the balancer cannot be filled.
    #[error(transparent)]
    Balance(#[from] balance::FillError),
    /// The seed of the fleet is not there.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The proxy cannot do as it says.
    #[error(transparent)]
    Proxy(#[from] TierError),
    /// The kernel does not take it.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

impl Engine {
    /// Works until it is told to stop, or everybody who could tell is gone; then there is nothing
    /// left, unless it was to hand over.
    ///
    /// # Errors
    /// When a failed change could not be undone: a new daemon, which builds
    /// everything from the store, is then the remedy.
    pub(super) fn run(mut self) -> Result<Option<Box<Kept>>> {
        let follower = Follower::start(self.defence.clone(), self.shared.clone());
        let follower = follower.context("cannot start a thread")?;
        let (runner, changes) = self.checks.take().context("started twice")?;
        let balancing = balance::follow::Follower::start(
            self.balancer.clone(),
            self.shared.clone(),
            runner,
            changes,
        );
        let balancing = balancing.context("cannot start the thread of the balancer")?;
        let mut next = Instant::now() + TICK;
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            match self.inbox.next(wait.min(self.beat)) {
                Ok(Command::Request(request, reply)) => {
                    self.mind_clock();
                    self.answer(request, reply);
                    self.publish_counts();
                }
                Ok(Command::Replan) => {
                    self.shared.replan_is_taken();
                    self.replan();
                }
                Ok(Command::Ban(ban)) => self.ban(&ban),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    // Requests end while everything else is as it was.
                    self.proxy.stop();
                    drop((follower, balancing));
                    self.balancer.lock().end();
                    return self.stop().map(|()| None);
                }
                Ok(Command::HandOver) => {
                    drop((follower, balancing));
                    self.balancer.lock().end();
                    let Self {
                        proxy, inbox, file, ..
                    } = self;
                    return Ok(Some(Box::new(Kept { proxy, inbox, file })));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.shared.beat();
            if self.broken || self.policy.is_torn() {
                bail!(
                    "a change failed and could not be undone (see above); the programs in the \
                     kernel go on, and a restart puts everything right, with larger `tables` \
                     if there was no room"
                );
            }
            if follower.is_dead() {
                bail!(
                    "the thread that follows services has panicked (see above); the programs in \
                     the kernel go on, and a restart follows services again"
                );
            }
            if balancing.is_dead() {
                bail!(
                    "the thread of the balancer has panicked (see above); the programs in the \
                     kernel go on, and a restart checks backends again"
                );
            }
            if Instant::now() >= next {
                self.tick();
                next = Instant::now() + TICK;
            }
        }
    }

    fn tick(&mut self) {
        self.mind_clock();
        if self.behind {
            match self.policy.set_system(self.system.clone(), Now::read()) {
                Ok(()) => {
                    self.behind = false;
                    self.publish_counts();
                    info!("what was taken out of the file is no longer listed");
                }
                Err(e) => error!("what was taken out of the file is listed still: {e}"),
            }
        }
        self.pardon();
        match self.policy.expire(Now::read()) {
            Ok(0) => {}
            Ok(_) => self.publish_counts(),
            Err(e) => error!("cannot collect what has expired (it no longer matches): {e}"),
        }
        match self.policy.readmit(Now::read()) {
            Ok(0) => {}
            Ok(entries) => {
                self.publish_counts();
                info!(
                    entries,
                    "for which there was no room have found some, and are in force again"
                );
            }
            Err(e) => error!("cannot look for what had no room in the tables: {e}"),
        }
        if self.datapath.watch() {
            self.shared.publish_view(self.datapath.view());
        }
    }

    /// Brings the lists in line when somebody has set the wall clock, or the
    /// machine was suspended.
    fn mind_clock(&mut self) {
        let Self { policy, inbox, .. } = self;
        let (shared, model, changes) = (&self.shared, &self.model, &self.changes);
        let mut meanwhile = |policy: &Policy, _, _| {
            shared.beat();
            inbox.answer(|request| requests::read(request, policy, model, changes));
        };
        match policy.mind_clock(Now::read(), &mut meanwhile) {
            Ok(None) => {}
            Ok(Some(ClockJump {
                set_by_ms,
                suspended_ms,
                entries,
                left_out,
            })) => {
                self.publish_counts();
                if set_by_ms != 0 {
                    warn!(
                        by_ms = set_by_ms,
                        entries, "the clock was set: expiries are worked out anew"
                    );
                } else {
                    info!(
                        for_ms = suspended_ms,
                        entries, "the machine was suspended: expiries are worked out anew"
                    );
                }
                if left_out > 0 {
                    error!(
                        entries = left_out,
                        "are in force again by the new time, but there is no room for them until \
                         others go: raise the keys under `tables` in the configuration and reload"
                    );
                }
            }
            Err(e) => error!(
                "the clock was set, and the store has expiries by the former time still: {e}"
            ),
        }
    }

    /// Loads the programs anew for a host whose TCP grants something else now, or whose
    /// interfaces have another MTU.
    fn replan(&mut self) {
        let now_ns = Now::read().mono_ns;
        if !self.replans.is_due(now_ns) || self.defence.lock().is_up_to_date() {
            return;
        }
        match self.force(self.model.clone()) {
            Ok(_) => {
                self.replans.succeeded();
                self.publish_generation(Now::read());
                info!("sysctls of TCP or an MTU have changed: the programs were loaded anew");
            }
            Err(e) => {
                self.replans.failed(now_ns);
                error!(
                    "sysctls of TCP or an MTU have changed, and the programs know the old ones: {e}"
                );
            }
        }
    }

    fn stop(self) -> Result<()> {
        // Closes the store: everything acknowledged is in it already.
        drop(self.policy);
        leave(self.model.on_exit, || {
            self.datapath.detach()?;
            self.defence.lock().detached();
            Ok(())
        })
    }

    pub(super) fn publish_counts(&self) {
        let mut facts = self.shared.facts();
        facts.counts = self.policy.counts();
        facts.capacity = self.geometry.capacity;
    }

    /// Everything that is in force.
    pub(super) fn publish(&self) {
        self.shared.publish_view(self.datapath.view());
        self.publish_counts();
        self.shared.publish_services(&mut self.defence.lock());
    }

    /// Another configuration is in force.
    pub(super) fn publish_generation(&self, now: Now) {
        self.publish();
        let mut facts = self.shared.facts();
        facts.config.generation += 1;
        facts.config.since_unix_ms = now.unix_ms;
        facts.config.file = self.path.display().to_string();
    }

    /// Reads the file again and puts it into force.
    ///
    /// # Errors
    /// The old configuration is then in force as before.
    pub(super) fn reload(&mut self) -> Result<(u64, Vec<String>), Failure> {
        self.notifier.tell(News::Reloading);
        let outcome = self.try_reload();
        self.notifier.tell(News::Ready);
        let now = Now::read().unix_ms;
        let mut facts = self.shared.facts();
        match &outcome {
            Ok(notes) => {
                facts.reloads.succeeded += 1;
                facts.reloads.last_success_unix_ms = Some(now);
                facts.reloads.last_error = None;
                info!(generation = facts.config.generation, "reloaded");
                for note in notes {
                    info!("{note}");
                }
            }
            Err(failure) => {
                facts.reloads.failed += 1;
                facts.reloads.last_failure_unix_ms = Some(now);
                facts.reloads.last_error = Some(failure.message.clone());
                error!("not reloaded, the old configuration is in force: {failure}");
            }
        }
        outcome.map(|notes| (facts.config.generation, notes))
    }

    fn try_reload(&mut self) -> Result<Vec<String>, Failure> {
        let refused = |e: &dyn std::error::Error| Failure::new(FailureKind::Config, e.to_string());
        let tick_ns = coarse_tick_ns();
        let checked = config::load(&self.path, tick_ns).map_err(|e| refused(&e))?;
        let difference = changes(&self.file, &checked.model).map_err(|e| refused(&e))?;
        let limits = self
            .changes
            .on(&checked.model.limits, tick_ns)
            .map_err(|e| {
                let text = format!(
                    "with the limits that were set at run time: {e}; or `edge limits reset`"
                );
                Failure::new(FailureKind::Config, text)
            })?;
        let mut notes: Vec<String> = checked.warnings.iter().map(ToString::to_string).collect();
        notes.extend(sentences(&difference));
        notes.extend(self.in_force(Now::read()).notes(&checked.model));
        let model = checked.model.with_limits(limits);
        notes.extend(self.force(model).map_err(failure)?);
        self.file = checked.model;
        self.publish_generation(Now::read());
        Ok(notes)
    }

    /// What another configuration would be compared with.
    pub(super) fn in_force(&self, now: Now) -> InForce {
        let balancer = self.balancer.lock();
        InForce {
            model: self.file.clone(),
            seed: balancer.seed().unwrap_or(Seed::new([0; 4])),
            situation: balancer.situation(now),
            tick_ns: coarse_tick_ns(),
        }
    }

    /// Puts a configuration into force: lists first, then the programs.
    ///
    /// # Errors
    /// Everything is then as it was, except when `broken` is set.
    pub(super) fn force(&mut self, model: Model) -> Result<Vec<String>, ForceError> {
        let defence = self.defence.clone();
        // The tables of services must not be written meanwhile by anybody else.
        let mut defence = defence.lock();
        let forced = self.force_with(model, &mut defence);
        if forced.is_ok() {
            defence.keep(&self.shared);
            self.shared.publish_services(&mut defence);
            self.balancer.lock().keep();
            drop(defence);
            self.pardon();
        } else {
            if let Err(e) = defence.restore() {
                error!("cannot undo a failed change of services: {e}");
                self.broken = true;
            }
            self.balancer.lock().restore(Now::read());
        }
        forced
    }

    fn force_with(
        &mut self,
        model: Model,
        defence: &mut Defence,
    ) -> Result<Vec<String>, ForceError> {
        let fleet = fleet_secret(&model)?;
        self.proxy
            .set_keys(proxy_keys(fleet.as_ref(), &self.session_secret));
        let proxy = self.proxy.prepare(&model.proxy)?;
        let told = defence.prepare(&model)?;
        let Plan {
            geometry,
            settings,
            system,
        } = plan(
            &model,
            self.seed,
            coarse_tick_ns(),
            told,
            fleet.map(|secret| secret.seed()),
            &self.profiles,
        )?;
        let balance_seed = settings.program.config.balance_seed;
        let now = Now::read();
        let profiles = settings.program.profiles.clone();
        let prepared = self.datapath.prepare(settings)?;
        let mut notes = prepared.notes().to_vec();
        if prepared.limiter_is_new() {
            notes.push("the limiter starts empty: every source has its whole burst again".into());
        }
        let new_ring = prepared.events_are_new();
        let resize = prepared.tables_are_new() || lists(&geometry) != lists(&self.geometry);
        let filled = if resize {
            let regions = Regions::new(|name| prepared.region(name))?;
            let mut alive = || self.shared.beat();
            self.policy
                .replace_tables(regions, geometry, system.clone(), now, &mut alive)
                .map(|_| ())
        } else {
            self.extend_system(&system, now)
        };
        let filled = filled.map_err(ForceError::from).and_then(|()| {
            let services = || prepared.services();
            defence.fill(&model, self.seed, services, || prepared.sources())?;
            let tables = || prepared.balance();
            let mut balancer = self.balancer.lock();
            let places = (defence.slots(), defence.sources());
            balancer.fill(&model, places, balance_seed, tables, now)?;
            Ok(())
        });
        let done = match filled {
            Ok(()) => self.datapath.commit(prepared).map_err(ForceError::from),
            Err(e) => {
                drop(prepared);
                Err(e)
            }
        };
        if let Err(e) = done {
            self.restore(resize);
            return Err(e);
        }
        self.proxy.commit(proxy);
        self.behind = false;
        if !resize && let Err(e) = self.policy.set_system(system.clone(), now) {
            // More than the file says is listed. It is tried again every second.
            self.behind = true;
            let note = format!("what was taken out of the file is listed still, for now: {e}");
            warn!("{note}");
            notes.push(note);
        }
        self.unpardoned |= bans::spared(&self.model) != bans::spared(&model);
        self.model = model;
        self.geometry = geometry;
        self.system = system;
        self.profiles = profiles;
        if new_ring {
            self.send_ring();
        }
        Ok(notes)
    }

    /// Lets the lists hold what the old and the new file say, until it is clear
    /// which is in force: should the change fail, nothing that the old one
    /// lists has been missing for a moment.
    fn extend_system(&mut self, new: &SystemEntries, now: Now) -> Result<(), PolicyError> {
        match self.policy.set_system(both(&self.system, new), now) {
            // Both together may not fit where the new one alone does.
            Err(PolicyError::Table(_) | PolicyError::Overlap(_)) => {
                self.policy.set_system(new.clone(), now)
            }
            done => done,
        }
    }

    /// Makes the lists what they were before a change that failed.
    fn restore(&mut self, resized: bool) {
        let now = Now::read();
        let system = self.system.clone();
        let restored = if resized {
            Regions::new(|name| self.datapath.region(name))
                .map_err(ForceError::from)
                .and_then(|regions| {
                    let mut alive = || self.shared.beat();
                    self.policy
                        .replace_tables(regions, self.geometry, system, now, &mut alive)
                        .map(|_| ())
                        .map_err(ForceError::from)
                })
        } else {
            self.policy
                .set_system(system, now)
                .map_err(ForceError::from)
        };
        if let Err(e) = restored {
            error!("cannot undo a failed change: {e}");
            self.broken = true;
        }
    }

    /// Hands the ring buffer in force to whoever reads it.
    pub(super) fn send_ring(&self) {
        match self.datapath.events() {
            Ok(None) => {}
            Ok(Some(ring)) => {
                if self.rings.try_send(ring).is_err() {
                    warn!("no sampled events: nobody reads them");
                }
            }
            Err(e) => warn!("no sampled events: {e}"),
        }
    }
}

/// The secret that a fleet shares, if there is one.
///
/// # Errors
/// When its file cannot be read, or holds none.
pub(super) fn fleet_secret(model: &Model) -> Result<Option<Secret>, SeedError> {
    let file = model.balancing.seed_file.as_deref();
    let file = file.filter(|_| model.has_balanced() || model.proxy.has_keys());
    file.map(balance::seed::read).transpose()
}

/// The keys of the proxy: of the fleet, or else of this installation.
pub(super) fn proxy_keys(fleet: Option<&Secret>, own: &[u8; 32]) -> Keys {
    match fleet {
        Some(fleet) => Keys::of(&fleet.bytes()),
        None => Keys::of(own),
    }
}

/// What two files say together; of two limits for a prefix, the new one.
fn both(old: &SystemEntries, new: &SystemEntries) -> SystemEntries {
    SystemEntries {
        management: [&old.management[..], &new.management].concat(),
        bogons: [&old.bogons[..], &new.bogons].concat(),
        // Of several for one prefix the last counts.
        profiles: [&old.profiles[..], &new.profiles].concat(),
        allow: [&old.allow[..], &new.allow].concat(),
        black: [&old.black[..], &new.black].concat(),
    }
}

/// The part of a geometry that the lists depend on.
fn lists(geometry: &Geometry) -> Geometry {
    Geometry {
        limiter_buckets: 0,
        capacity: Capacity {
            limiter_sources: 0,
            ..geometry.capacity
        },
        ..*geometry
    }
}

/// A failure for the one who asked.
pub(super) fn failure(error: ForceError) -> Failure {
    let text = error.to_string();
    match error {
        ForceError::Profiles(_) => Failure::new(FailureKind::Config, text),
        ForceError::Policy(e) => super::requests::policy_failure(&e),
        ForceError::Defence(Unmet::Wrong { .. })
        | ForceError::Seed(_)
        | ForceError::Proxy(_)
        | ForceError::Balance(balance::FillError::TooMany(_)) => {
            Failure::new(FailureKind::Config, text)
        }
        ForceError::Defence(_)
        | ForceError::Fill(_)
        | ForceError::Balance(_)
        | ForceError::Datapath(_) => Failure::new(FailureKind::Kernel, text),
    }
}

/// What a reload changes, a sentence each.
pub(super) fn sentences(changes: &reload::Changes) -> Vec<String> {
    if !changes.any {
        return vec!["nothing in the file has changed".into()];
    }
    let mut sentences = Vec::new();
    let mut list = |what: &str, names: &[String]| {
        if !names.is_empty() {
            sentences.push(format!("{what} {}", names.join(", ")));
        }
    };
    list("attaches to", &changes.added);
    list("detaches from", &changes.removed);
    list("protects the services", &changes.services_added);
    list("no longer protects the services", &changes.services_removed);
    let keys: Vec<String> = changes.new_tables.iter().map(|&k| k.to_owned()).collect();
    list("makes anew, with another size:", &keys);
    if let Some(room) = changes.service_room {
        sentences.push(format!(
            "the table of services is made anew, with room for {room}: states and counters of \
             all services begin at zero"
        ));
    }
    sentences
}
