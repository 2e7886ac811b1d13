//! What is known, what is to be asked, and what follows: everything but the asking.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{
    Answer, Change, NoNextHop,
    schedule::{Schedule, Task},
    way::{Device, Path, join},
};
use crate::host::neighbours::{Neighbour, Resolution};

/// Nanoseconds.
pub(super) const SECOND: u64 = 1_000_000_000;

/// How often is asked for what nothing was heard of. Of routes the kernel does not tell
/// every change: what a gateway redirects, and that an MTU is smaller on the way.
pub(super) const ROUTE_PERIOD: u64 = 30 * SECOND;
const DEVICE_PERIOD: u64 = 30 * SECOND;
pub(super) const NEIGHBOUR_PERIOD: u64 = 10 * SECOND;

/// When what was asked in vain is asked again.
const RETRY: u64 = SECOND;

/// The longest pause between two attempts at what keeps failing.
const LONGEST_PAUSE: u64 = 16 * SECOND;

/// How long a next hop stays in force while there is none. The kernel takes three seconds
/// to find that a neighbour does not answer, in which one that was only forgotten is back.
pub(super) const HOLD: u64 = 5 * SECOND;

/// The pause after so many failures.
fn pause(failures: u32) -> u64 {
    let doubled = SECOND.saturating_mul(1 << failures.min(10));
    doubled.min(LONGEST_PAUSE)
}

/// An address whose next hop is wanted.
#[derive(Debug, Default)]
struct Wanted {
    /// The way to it, once it is known.
    path: Option<Result<Path, NoNextHop>>,
    failures: u32,
    /// When the lack of a next hop is told.
    give_up_ns: Option<u64>,
    told: Option<Answer>,
}

impl Wanted {
    fn via(&self) -> Option<Neighbour> {
        Some(self.path.as_ref()?.as_ref().ok()?.via)
    }
}

/// A neighbour that packets for some addresses go to.
#[derive(Debug, Default)]
struct Known {
    resolution: Option<Resolution>,
    users: BTreeSet<IpAddr>,
    /// It is not provoked again before.
    quiet_until_ns: u64,
    /// Times that it was provoked in vain, one after the other.
    failures: u32,
    /// The error number with which the kernel refuses to look for it.
    refused: Option<i32>,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct State {
    wanted: BTreeMap<IpAddr, Wanted>,
    neighbours: BTreeMap<Neighbour, Known>,
    devices: BTreeMap<u32, Option<Result<Device, NoNextHop>>>,
    schedule: Schedule,
    /// Addresses whose answer may have changed.
    suspects: BTreeSet<IpAddr>,
}

impl State {
    /// Sets the addresses that are wanted.
    pub(super) fn want(&mut self, addresses: BTreeSet<IpAddr>) {
        let gone: Vec<IpAddr> = self.wanted.keys().copied().collect();
        for address in gone.into_iter().filter(|a| !addresses.contains(a)) {
            if let Some(via) = self.wanted.remove(&address).and_then(|w| w.via()) {
                self.release(via, address);
            }
            self.schedule.remove(Task::Route(address));
            self.schedule.remove(Task::Verdict(address));
            self.suspects.remove(&address);
        }
        for address in addresses {
            let schedule = &mut self.schedule;
            self.wanted.entry(address).or_insert_with(|| {
                schedule.set(Task::Route(address), 0);
                Wanted::default()
            });
        }
    }

    /// The time of the first task.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.schedule.first().map(|(time, _)| time)
    }

    /// The next task that is due. It is put off until its answer comes, should none come.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<Task> {
        let (_, task) = self.schedule.first().filter(|(time, _)| *time <= now_ns)?;
        match task {
            Task::Verdict(_) => self.schedule.remove(task),
            _ => self.schedule.set(task, now_ns + RETRY),
        }
        Some(task)
    }

    /// Sees to it that what changed is asked for now.
    pub(super) fn change(&mut self, changes: &[Change], now_ns: u64) {
        for change in changes {
            match *change {
                Change::All => {
                    let devices = self.devices.keys().copied().map(Task::Device);
                    let neighbours = self.neighbours.keys().copied().map(Task::Neighbour);
                    let routes = self.wanted.keys().copied().map(Task::Route);
                    for task in devices.chain(neighbours).chain(routes) {
                        self.schedule.by(task, now_ns);
                    }
                }
                Change::Link(index) => self.link_changed(index, now_ns),
                Change::Routes(prefix) => {
                    for (address, _) in self.wanted.range(prefix.addr()..=prefix.last().addr()) {
                        self.schedule.by(Task::Route(*address), now_ns);
                    }
                }
                Change::Neighbour { ifindex, address } => {
                    let of = Neighbour {
                        interface: ifindex,
                        address,
                    };
                    if self.neighbours.contains_key(&of) {
                        self.schedule.by(Task::Neighbour(of), now_ns);
                    }
                }
            }
        }
    }

    /// Routes come and go with their interfaces, untold: those over the interface, and
    /// those of addresses that have none.
    fn link_changed(&mut self, index: u32, now_ns: u64) {
        for (of, device) in &self.devices {
            let sends =
                |d: &Option<Result<Device, _>>| matches!(d, Some(Ok(d)) if d.ifindex == index);
            if *of == index || sends(device) {
                self.schedule.by(Task::Device(*of), now_ns);
            }
        }
        for (address, wanted) in &self.wanted {
            if wanted.via().is_none_or(|via| via.interface == index) {
                self.schedule.by(Task::Route(*address), now_ns);
            }
        }
    }

    /// Takes in the way to an address.
    pub(super) fn path(&mut self, to: IpAddr, path: Result<Path, NoNextHop>, now_ns: u64) {
        let Some(wanted) = self.wanted.get_mut(&to) else {
            return;
        };
        let next = match path {
            Ok(_) => ROUTE_PERIOD,
            Err(_) => pause(wanted.failures),
        };
        wanted.failures = match path {
            Ok(_) => 0,
            Err(_) => wanted.failures.saturating_add(1),
        };
        self.schedule.set(Task::Route(to), now_ns + next);
        if wanted.path.as_ref() == Some(&path) {
            return;
        }
        let former = wanted.via();
        wanted.path = Some(path);
        let via = wanted.via();
        self.suspects.insert(to);
        if former == via {
            return;
        }
        if let Some(via) = via {
            let schedule = &mut self.schedule;
            let known = self.neighbours.entry(via).or_insert_with(|| {
                schedule.set(Task::Neighbour(via), 0);
                Known::default()
            });
            known.users.insert(to);
            self.devices.entry(via.interface).or_insert_with(|| {
                schedule.set(Task::Device(via.interface), 0);
                None
            });
        }
        if let Some(former) = former {
            self.release(former, to);
        }
    }

    /// Packets for an address go to a neighbour no more.
    fn release(&mut self, via: Neighbour, address: IpAddr) {
        let Some(known) = self.neighbours.get_mut(&via) else {
            return;
        };
        known.users.remove(&address);
        if !known.users.is_empty() {
            return;
        }
        self.neighbours.remove(&via);
        self.schedule.remove(Task::Neighbour(via));
        if on(&self.neighbours, via.interface).next().is_none() {
            self.devices.remove(&via.interface);
            self.schedule.remove(Task::Device(via.interface));
        }
    }

    /// Takes in an interface.
    pub(super) fn device(&mut self, index: u32, device: Result<Device, NoNextHop>, now_ns: u64) {
        let Some(known) = self.devices.get_mut(&index) else {
            return;
        };
        self.schedule
            .set(Task::Device(index), now_ns + DEVICE_PERIOD);
        if known.as_ref() != Some(&device) {
            *known = Some(device);
            let users = on(&self.neighbours, index).flat_map(|known| &known.users);
            self.suspects.extend(users);
        }
    }

    /// Takes in what the kernel knows of a neighbour, and says whether to provoke it.
    pub(super) fn neighbour(&mut self, of: Neighbour, found: Resolution, now_ns: u64) -> bool {
        let Some(known) = self.neighbours.get_mut(&of) else {
            return false;
        };
        let former = known.resolution.replace(found);
        if former.is_none_or(|former| former.mac != found.mac) {
            self.suspects.extend(&known.users);
        }
        if found.mac.is_some() {
            known.failures = 0;
        }
        let provoked = found.at_rest && now_ns >= known.quiet_until_ns;
        if provoked {
            known.quiet_until_ns = now_ns + pause(known.failures);
            if found.mac.is_none() {
                known.failures = known.failures.saturating_add(1);
            }
        }
        let next = if found.at_rest {
            known.quiet_until_ns
        } else if found.mac.is_some() {
            now_ns + NEIGHBOUR_PERIOD
        } else {
            now_ns + RETRY
        };
        self.schedule.set(Task::Neighbour(of), next);
        provoked
    }

    /// Takes in how the kernel took it that a neighbour was provoked: nothing, or an error
    /// number.
    pub(super) fn provoked(&mut self, of: Neighbour, refused: Option<i32>) {
        if let Some(known) = self.neighbours.get_mut(&of)
            && known.refused != refused
        {
            known.refused = refused;
            self.suspects.extend(&known.users);
        }
    }

    /// Has an address judged anew.
    pub(super) fn suspect(&mut self, address: IpAddr) {
        self.suspects.insert(address);
    }

    /// The answers that differ from what was told before.
    pub(super) fn verdicts(&mut self, now_ns: u64) -> Vec<(IpAddr, Answer)> {
        let suspects = std::mem::take(&mut self.suspects).into_iter();
        suspects
            .filter_map(|address| Some((address, self.verdict(address, now_ns)?)))
            .collect()
    }

    /// Everything wanted has its task, and nothing else has one or is kept.
    ///
    /// # Panics
    /// When it is not so.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let mut users: BTreeMap<Neighbour, BTreeSet<IpAddr>> = BTreeMap::new();
        for (address, wanted) in &self.wanted {
            assert!(self.schedule.has(Task::Route(*address)), "{address}");
            if let Some(via) = wanted.via() {
                users.entry(via).or_default().insert(*address);
            }
        }
        let known = self.neighbours.iter();
        let known: BTreeMap<_, _> = known
            .map(|(of, known)| (*of, known.users.clone()))
            .collect();
        assert_eq!(known, users);
        let interfaces: BTreeSet<u32> = users.keys().map(|of| of.interface).collect();
        let devices: BTreeSet<u32> = self.devices.keys().copied().collect();
        assert_eq!(devices, interfaces);
        let all = users.keys().map(|of| Task::Neighbour(*of));
        for task in all.chain(devices.into_iter().map(Task::Device)) {
            assert!(self.schedule.has(task), "{task:?}");
        }
        for task in self.schedule.tasks() {
            let kept = match task {
                Task::Device(index) => self.devices.contains_key(&index),
                Task::Neighbour(of) => self.neighbours.contains_key(&of),
                Task::Route(address) | Task::Verdict(address) => self.wanted.contains_key(&address),
            };
            assert!(kept, "{task:?}");
        }
    }

    fn verdict(&mut self, address: IpAddr, now_ns: u64) -> Option<Answer> {
        let answer = self.answer(address)?;
        let wanted = self.wanted.get_mut(&address)?;
        if wanted.told.as_ref() == Some(&answer) {
            wanted.give_up_ns = None;
            return None;
        }
        // What is missing may be on its way.
        let patient = matches!(wanted.told, Some(Ok(_)))
            || matches!(answer, Err(NoNextHop::NoNeighbour { .. }));
        if answer.is_err() && patient {
            let give_up = *wanted.give_up_ns.get_or_insert(now_ns + HOLD);
            if now_ns < give_up {
                self.schedule.set(Task::Verdict(address), give_up);
                return None;
            }
        }
        wanted.give_up_ns = None;
        wanted.told = Some(answer.clone());
        Some(answer)
    }

    /// What is to be said of an address, once everything is known.
    fn answer(&self, address: IpAddr) -> Option<Answer> {
        let path = match self.wanted.get(&address)?.path.as_ref()? {
            Ok(path) => path,
            Err(none) => return Some(Err(none.clone())),
        };
        let device = match self.devices.get(&path.via.interface)?.as_ref()? {
            Ok(device) => device,
            Err(none) => return Some(Err(none.clone())),
        };
        let known = self.neighbours.get(&path.via)?;
        let mac = known.resolution?.mac;
        Some(match (mac, known.refused) {
            (None, Some(code)) => Err(refusal(path.via.address, &device.name, code)),
            _ => join(path, device, mac),
        })
    }
}

/// The neighbours on an interface.
fn on(neighbours: &BTreeMap<Neighbour, Known>, interface: u32) -> impl Iterator<Item = &Known> {
    // IPv4 comes before IPv6.
    let first = Neighbour {
        interface,
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let from = neighbours.range(first..);
    from.take_while(move |(of, _)| of.interface == interface)
        .map(|(_, known)| known)
}

/// Why the kernel does not look for a neighbour.
fn refusal(via: IpAddr, interface: &str, code: i32) -> NoNextHop {
    let family = if via.is_ipv4() { "ipv4" } else { "ipv6" };
    NoNextHop::Unsuitable(match code {
        libc::ENOBUFS => format!(
            "the kernel has no room for the neighbour {via} on {interface}: raise \
             net.{family}.neigh.default.gc_thresh3 over the number of neighbours"
        ),
        code => format!(
            "the kernel does not look for {via} on {interface}: {}",
            std::io::Error::from_raw_os_error(code)
        ),
    })
}
