use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::prelude::*;

use super::{
    Answer, Change, NextHop, NoNextHop,
    schedule::Task,
    state::{HOLD, NEIGHBOUR_PERIOD, ROUTE_PERIOD, SECOND, State},
    way::{Device, Path},
};
use crate::host::neighbours::{Neighbour, Resolution};

const ETH0: u32 = 3;
const MAC: [u8; 6] = [2, 0xed, 0, 0, 0, 2];
const OTHER_MAC: [u8; 6] = [2, 0xed, 0, 0, 0, 3];

const REACHABLE: Resolution = Resolution {
    mac: Some(MAC),
    at_rest: false,
};
const STALE: Resolution = Resolution {
    mac: Some(MAC),
    at_rest: true,
};
const INCOMPLETE: Resolution = Resolution {
    mac: None,
    at_rest: false,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn via(interface: u32, address: &str) -> Neighbour {
    Neighbour {
        interface,
        address: ip(address),
    }
}

fn path(via: Neighbour) -> Result<Path, NoNextHop> {
    Ok(Path {
        via,
        mtu: None,
        source: ip("10.0.0.1"),
    })
}

fn no_route() -> NoNextHop {
    NoNextHop::NoRoute("none".to_owned())
}

fn device(index: u32) -> Result<Device, NoNextHop> {
    Ok(Device {
        name: format!("eth{index}"),
        ifindex: index,
        vlan: None,
        mac: [2, 0xed, 0, 0, 0, 1],
        mtu: 1500,
    })
}

fn hop(ifindex: u32, dest_mac: [u8; 6]) -> Answer {
    Ok(NextHop {
        ifindex,
        vlan: None,
        dest_mac,
        source_mac: [2, 0xed, 0, 0, 0, 1],
        mtu: 1500,
        source: ip("10.0.0.1"),
    })
}

/// What there is to know, and who knows it.
#[derive(Default)]
struct World {
    state: State,
    /// Routes to gateways; every other address is on the link.
    gateways: BTreeMap<IpAddr, Neighbour>,
    unreachable: BTreeSet<IpAddr>,
    neighbours: BTreeMap<Neighbour, Resolution>,
    refuses: Option<i32>,
    asked: Vec<Task>,
    provoked: Vec<Neighbour>,
}

impl World {
    fn of(addresses: &[&str]) -> Self {
        let mut world = Self::default();
        world.want(addresses);
        world
    }

    fn want(&mut self, addresses: &[&str]) {
        self.state.want(addresses.iter().map(|a| ip(a)).collect());
    }

    fn know(&mut self, address: &str, what: Resolution) {
        self.neighbours.insert(via(ETH0, address), what);
    }

    /// Asks all that is due, and returns what is told.
    fn tell(&mut self, now_ns: u64, changes: &[Change]) -> Vec<(IpAddr, Answer)> {
        self.asked.clear();
        self.provoked.clear();
        self.state.change(changes, now_ns);
        while let Some(task) = self.state.next(now_ns) {
            self.asked.push(task);
            match task {
                Task::Route(to) if self.unreachable.contains(&to) => {
                    self.state.path(to, Err(no_route()), now_ns);
                }
                Task::Route(to) => {
                    let direct = via(ETH0, &to.to_string());
                    let via = self.gateways.get(&to).copied().unwrap_or(direct);
                    self.state.path(to, path(via), now_ns);
                }
                Task::Device(index) => self.state.device(index, device(index), now_ns),
                Task::Neighbour(of) => {
                    let found = self.neighbours.get(&of).copied();
                    let found = found.unwrap_or(Resolution::NONE);
                    if self.state.neighbour(of, found, now_ns) {
                        self.provoked.push(of);
                        self.state.provoked(of, self.refuses);
                    }
                }
                Task::Verdict(address) => self.state.suspect(address),
            }
        }
        self.state.verdicts(now_ns)
    }
}

fn neighbour_changed(address: &str) -> Change {
    Change::Neighbour {
        ifindex: ETH0,
        address: ip(address),
    }
}

#[test]
fn an_answer_is_told_once_all_is_known() {
    let mut state = State::default();
    let to = ip("10.0.0.7");
    state.want(BTreeSet::from([to]));
    assert_eq!(state.next(9), Some(Task::Route(to)));
    state.path(to, path(via(ETH0, "10.0.0.7")), 9);
    assert_eq!(state.verdicts(9), []);
    assert_eq!(state.next(9), Some(Task::Device(ETH0)));
    state.device(ETH0, device(ETH0), 9);
    assert_eq!(state.verdicts(9), []);
    assert_eq!(state.next(9), Some(Task::Neighbour(via(ETH0, "10.0.0.7"))));
    assert!(!state.neighbour(via(ETH0, "10.0.0.7"), REACHABLE, 9));
    assert_eq!(state.verdicts(9), [(to, hop(ETH0, MAC))]);
    assert_eq!(state.verdicts(9), []);
    assert_eq!(state.next(9), None);
}

#[test]
fn no_route_is_told_at_once_and_no_neighbour_after_a_while() {
    let mut world = World::of(&["10.0.0.7", "192.0.2.1"]);
    world.unreachable.insert(ip("192.0.2.1"));
    let told = world.tell(0, &[]);
    assert_eq!(told, [(ip("192.0.2.1"), Err(no_route()))]);
    assert_eq!(world.provoked, [via(ETH0, "10.0.0.7")]);
    assert_eq!(world.tell(HOLD - 1, &[]), []);
    let none = NoNextHop::NoNeighbour {
        interface: "eth3".to_owned(),
        via: ip("10.0.0.7"),
    };
    assert!(world.state.due_ns().unwrap() <= HOLD);
    assert_eq!(world.tell(HOLD, &[]), [(ip("10.0.0.7"), Err(none))]);
    assert_eq!(world.tell(2 * HOLD, &[]), []);
    world.know("10.0.0.7", REACHABLE);
    let told = world.tell(2 * HOLD, &[neighbour_changed("10.0.0.7")]);
    assert_eq!(told, [(ip("10.0.0.7"), hop(ETH0, MAC))]);
}

#[test]
fn a_good_next_hop_outlasts_a_short_failure() {
    let mut world = World::of(&["10.0.0.7"]);
    world.know("10.0.0.7", REACHABLE);
    assert_eq!(world.tell(0, &[]).len(), 1);
    let changed = [neighbour_changed("10.0.0.7")];
    for lost in [Resolution::NONE, INCOMPLETE] {
        world.know("10.0.0.7", lost);
        assert_eq!(world.tell(SECOND, &changed), []);
        world.know("10.0.0.7", STALE);
        assert_eq!(world.tell(SECOND + HOLD - 1, &changed), []);
        // The time that was left counts no more.
        world.know("10.0.0.7", lost);
        assert_eq!(world.tell(SECOND + HOLD, &changed), []);
        world.know("10.0.0.7", REACHABLE);
        assert_eq!(world.tell(SECOND + HOLD, &changed), []);
    }
    // Nor does a route that goes and comes again take it away.
    world.unreachable.insert(ip("10.0.0.7"));
    let routes = Change::Routes("10.0.0.0/24".parse().unwrap());
    assert_eq!(world.tell(20 * SECOND, &[routes]), []);
    let told = world.tell(20 * SECOND + HOLD, &[]);
    assert_eq!(told, [(ip("10.0.0.7"), Err(no_route()))]);
}

#[test]
fn what_is_known_of_a_gateway_is_for_all_behind_it() {
    let mut world = World::default();
    let gateway = via(ETH0, "10.0.0.254");
    let behind: BTreeSet<IpAddr> = (0..100).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    world
        .gateways
        .extend(behind.iter().map(|address| (*address, gateway)));
    world.state.want(behind.clone());
    world.know("10.0.0.254", REACHABLE);
    assert_eq!(world.tell(0, &[]).len(), 100);
    // A route each, the gateway and the interface.
    assert_eq!(world.asked.len(), 102);
    let moved = Resolution {
        mac: Some(OTHER_MAC),
        ..REACHABLE
    };
    world.know("10.0.0.254", moved);
    let told = world.tell(SECOND, &[neighbour_changed("10.0.0.254")]);
    assert_eq!(world.asked, [Task::Neighbour(gateway)]);
    assert_eq!(told.len(), 100);
    assert!(
        told.iter()
            .all(|(_, answer)| *answer == hop(ETH0, OTHER_MAC))
    );
}

#[test]
fn another_gateway_takes_over_once_it_answers() {
    let mut world = World::of(&["192.0.2.1"]);
    let to = ip("192.0.2.1");
    world.gateways.insert(to, via(ETH0, "10.0.0.254"));
    world.know("10.0.0.254", REACHABLE);
    assert_eq!(world.tell(0, &[]), [(to, hop(ETH0, MAC))]);
    world.gateways.insert(to, via(4, "10.1.0.254"));
    let routes = Change::Routes("192.0.0.0/16".parse().unwrap());
    assert_eq!(world.tell(1, &[routes]), []);
    assert_eq!(world.provoked, [via(4, "10.1.0.254")]);
    let known = Resolution {
        mac: Some(OTHER_MAC),
        ..STALE
    };
    world.neighbours.insert(via(4, "10.1.0.254"), known);
    let change = Change::Neighbour {
        ifindex: 4,
        address: ip("10.1.0.254"),
    };
    assert_eq!(world.tell(2, &[change]), [(to, hop(4, OTHER_MAC))]);
    // Nobody looks after the old one any more.
    assert_eq!(world.tell(3, &[neighbour_changed("10.0.0.254")]), []);
    assert_eq!(world.asked, []);
}

#[test]
fn who_does_not_answer_is_provoked_less_and_less_often() {
    let mut world = World::of(&["10.0.0.7"]);
    let mut times = Vec::new();
    for tenth in 0..700 {
        let now = tenth * SECOND / 10;
        // However much the kernel tells.
        world.tell(now, &[neighbour_changed("10.0.0.7"), Change::All]);
        times.extend(world.provoked.iter().map(|_| tenth / 10));
    }
    assert_eq!(times, [0, 1, 3, 7, 15, 31, 47, 63]);
    // And one that answers and is lost is asked for at once.
    world.know("10.0.0.7", REACHABLE);
    world.tell(90 * SECOND, &[]);
    world.know("10.0.0.7", Resolution::NONE);
    world.tell(91 * SECOND, &[neighbour_changed("10.0.0.7")]);
    assert_eq!(world.provoked.len(), 1);
}

#[test]
fn only_a_neighbour_at_rest_is_provoked() {
    let mut world = World::of(&["10.0.0.7"]);
    for (at, (what, provoked)) in [(REACHABLE, 0), (INCOMPLETE, 0), (STALE, 1)]
        .into_iter()
        .enumerate()
    {
        world.know("10.0.0.7", what);
        world.tell(at as u64, &[neighbour_changed("10.0.0.7")]);
        assert_eq!(world.provoked.len(), provoked, "{what:?}");
    }
    // The kernel takes its time to confirm.
    world.tell(SECOND / 2, &[neighbour_changed("10.0.0.7")]);
    assert_eq!(world.provoked, []);
    // One that nothing is heard of is looked at all the same.
    world.know("10.0.0.7", REACHABLE);
    world.tell(10 * SECOND, &[neighbour_changed("10.0.0.7")]);
    world.know("10.0.0.7", STALE);
    world.tell(10 * SECOND + NEIGHBOUR_PERIOD, &[]);
    assert_eq!(world.provoked.len(), 1);
}

#[test]
fn a_change_concerns_what_it_is_about() {
    let mut world = World::of(&["10.0.0.7", "10.1.0.7", "fd00::7"]);
    world.gateways.insert(ip("10.1.0.7"), via(4, "10.9.9.9"));
    world.tell(0, &[]);
    let asked = |world: &mut World, change| {
        world.tell(1, &[change]);
        world.asked.clone()
    };
    let route = |to| Task::Route(ip(to));
    let prefix = |text: &str| Change::Routes(text.parse().unwrap());
    assert_eq!(
        asked(&mut world, prefix("10.1.0.0/16")),
        [route("10.1.0.7")]
    );
    assert_eq!(
        asked(&mut world, prefix("0.0.0.0/0")),
        [route("10.0.0.7"), route("10.1.0.7")]
    );
    assert_eq!(asked(&mut world, prefix("::/0")), [route("fd00::7")]);
    assert_eq!(asked(&mut world, prefix("10.2.0.0/16")), []);
    assert_eq!(
        asked(&mut world, Change::Link(4)),
        [Task::Device(4), route("10.1.0.7")]
    );
    assert_eq!(asked(&mut world, Change::Link(5)), []);
    assert_eq!(asked(&mut world, neighbour_changed("10.0.0.8")), []);
    // Two interfaces, three neighbours, three routes.
    assert_eq!(asked(&mut world, Change::All).len(), 8);
    // An interface that comes up may bring the route that is missing.
    world.unreachable.insert(ip("fd00::7"));
    world.tell(2, &[prefix("::/0")]);
    assert_eq!(asked(&mut world, Change::Link(5)), [route("fd00::7")]);
}

#[test]
fn everything_is_asked_for_now_and_then() {
    let mut world = World::of(&["10.0.0.7", "192.0.2.1"]);
    world.know("10.0.0.7", REACHABLE);
    world.unreachable.insert(ip("192.0.2.1"));
    let mut asked: BTreeMap<Task, u64> = BTreeMap::new();
    for second in 0..120 {
        world.tell(second * SECOND, &[]);
        for task in &world.asked {
            *asked.entry(*task).or_default() += 1;
        }
    }
    let expected = [
        (Task::Device(ETH0), 120 * SECOND / ROUTE_PERIOD),
        (
            Task::Neighbour(via(ETH0, "10.0.0.7")),
            120 * SECOND / NEIGHBOUR_PERIOD,
        ),
        (Task::Route(ip("10.0.0.7")), 120 * SECOND / ROUTE_PERIOD),
        // After 0, 1, 3, 7, 15, 31 seconds, then each 16.
        (Task::Route(ip("192.0.2.1")), 11),
    ];
    assert_eq!(asked, BTreeMap::from(expected));
}

#[test]
fn what_the_kernel_refuses_is_told_with_a_remedy() {
    let mut world = World::of(&["10.0.0.7"]);
    world.refuses = Some(libc::ENOBUFS);
    let [(_, Err(none))] = &world.tell(0, &[])[..] else {
        panic!()
    };
    let text = none.to_string();
    assert!(text.contains("net.ipv4.neigh.default.gc_thresh3"), "{text}");
    world.refuses = Some(libc::EPERM);
    let [(_, Err(none))] = &world.tell(SECOND, &[])[..] else {
        panic!()
    };
    assert!(
        none.to_string().contains("Operation not permitted"),
        "{none}"
    );
    world.know("10.0.0.7", REACHABLE);
    let told = world.tell(2 * SECOND, &[neighbour_changed("10.0.0.7")]);
    assert_eq!(told, [(ip("10.0.0.7"), hop(ETH0, MAC))]);
}

#[test]
fn an_answer_that_does_not_come_is_asked_for_again() {
    let mut state = State::default();
    state.want(BTreeSet::from([ip("10.0.0.7")]));
    assert_eq!(state.next(7), Some(Task::Route(ip("10.0.0.7"))));
    assert_eq!(state.next(7), None);
    let again = state.due_ns().unwrap();
    assert_eq!(state.next(again), Some(Task::Route(ip("10.0.0.7"))));
}

#[test]
fn what_is_wanted_no_more_is_forgotten() {
    let mut world = World::of(&["10.0.0.7", "10.0.0.8", "192.0.2.1"]);
    world.unreachable.insert(ip("192.0.2.1"));
    world.know("10.0.0.7", REACHABLE);
    world.tell(0, &[]);
    world.want(&["10.0.0.7"]);
    assert_eq!(world.tell(10 * HOLD, &[Change::All]), []);
    assert_eq!(world.asked.len(), 3);
    world.want(&[]);
    assert_eq!(world.state.due_ns(), None);
    // One that comes again is told again.
    world.want(&["10.0.0.7"]);
    let told = world.tell(11 * HOLD, &[]);
    assert_eq!(told, [(ip("10.0.0.7"), hop(ETH0, MAC))]);
}

#[derive(Clone, Debug)]
enum Step {
    Want(Vec<u8>),
    Path(u8, Option<(u32, u8)>),
    Device(u32, bool),
    Neighbour((u32, u8), u8),
    Change(u8, u8),
    Next,
    Verdicts,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        proptest::collection::vec(0u8..6, 0..6).prop_map(Step::Want),
        (0u8..6, proptest::option::of((1u32..4, 0u8..4))).prop_map(|(a, v)| Step::Path(a, v)),
        (1u32..4, any::<bool>()).prop_map(|(i, good)| Step::Device(i, good)),
        ((1u32..4, 0u8..4), 0u8..4).prop_map(|(of, what)| Step::Neighbour(of, what)),
        (0u8..4, 0u8..6).prop_map(|(kind, what)| Step::Change(kind, what)),
        Just(Step::Next),
        Just(Step::Verdicts),
        (0u64..20).prop_map(|tenths| Step::Wait(tenths * SECOND / 10)),
    ];
    proptest::collection::vec(step, 0..200)
}

fn address(n: u8) -> IpAddr {
    match n {
        0..4 => IpAddr::from([10, 0, 0, n]),
        _ => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
    }
}

proptest! {
    /// Whatever is answered in whatever order: nothing is told twice, and what is
    /// scheduled and kept is what is wanted.
    #[test]
    fn nothing_is_lost_or_left_over(steps in steps()) {
        let mut state = State::default();
        let mut now = 0;
        let mut told: BTreeMap<IpAddr, Answer> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Want(list) => {
                    let list: BTreeSet<IpAddr> = list.into_iter().map(address).collect();
                    told.retain(|address, _| list.contains(address));
                    state.want(list);
                }
                Step::Path(to, Some((interface, gateway))) => {
                    let of = Neighbour { interface, address: address(gateway) };
                    state.path(address(to), path(of), now);
                }
                Step::Path(to, None) => state.path(address(to), Err(no_route()), now),
                Step::Device(index, good) => {
                    let device = if good { device(index) } else { Err(no_route()) };
                    state.device(index, device, now);
                }
                Step::Neighbour((interface, gateway), what) => {
                    let of = Neighbour { interface, address: address(gateway) };
                    let what = [REACHABLE, STALE, INCOMPLETE, Resolution::NONE][usize::from(what)];
                    if state.neighbour(of, what, now) {
                        state.provoked(of, None);
                    }
                }
                Step::Change(kind, what) => {
                    let change = match kind {
                        0 => Change::All,
                        1 => Change::Link(what.into()),
                        2 => Change::Routes(edge_common::addr::Prefix::host(address(what))),
                        _ => Change::Neighbour { ifindex: 1, address: address(what) },
                    };
                    state.change(&[change], now);
                }
                Step::Next => {
                    if let Some(Task::Verdict(address)) = state.next(now) {
                        state.suspect(address);
                    }
                }
                Step::Verdicts => {
                    for (address, answer) in state.verdicts(now) {
                        prop_assert_ne!(told.get(&address), Some(&answer));
                        told.insert(address, answer);
                    }
                }
                Step::Wait(time) => now += time,
            }
            state.assert_consistent();
        }
    }
}
