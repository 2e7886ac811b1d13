//! The primaries or the backups of a group, and the algorithms over those that are usable.

use edge_common::hash::reduce;

use super::{
    group::{Algorithm, Group, State},
    hashing::Ring,
    picker::Ask,
};

/// The whole of a server's share; in its slow start it has less.
const WHOLE: u64 = 256;
/// How many steps a slow start has, as far as workers look at it.
const STEPS: u64 = 64;
/// How often a key asks the ring for a server that takes it. Where one in ten servers is
/// usable, one request in 29 needs more.
const ATTEMPTS: u64 = 32;
/// How often a random one is drawn that is not among those tried before.
const DRAWS: u32 = 8;
/// The standing of servers that must not be picked. Far below all others, and far enough
/// from the end of the numbers for what is added in a pick.
const NEVER: i64 = i64::MIN / 2;

/// How the servers are to be read.
pub(super) struct Reading<'a> {
    pub(super) group: &'a Group,
    pub(super) now: u64,
    /// The earliest time at which time alone makes a difference, of all that were read.
    pub(super) stale_at: u64,
    /// Whether those that are down or ejected are used too.
    pub(super) all: bool,
}

/// A server that may be picked.
#[derive(Clone, Copy, Debug)]
struct Member {
    position: u32,
    /// Its weight times its part of [`WHOLE`]: less than 2^24.
    weight: u32,
    /// The sum of the weights up to its own.
    end: u64,
}

#[derive(Debug)]
pub(super) struct Tier {
    /// Positions in the group of all that belong here.
    positions: Vec<u32>,
    /// Those that may be picked.
    members: Vec<Member>,
    /// Whether all members have the same weight.
    uniform: bool,
    /// Those that operators want to be used.
    wanted: usize,
    /// The member whose turn it is, if they take turns, or from where a search begins.
    turn: usize,
    /// The weight that each of `positions` has now, 0 if it may not be picked.
    weights: Vec<i64>,
    /// How far each is behind its share, in smooth weighted round robin.
    standing: Vec<i64>,
    /// For each of `positions`, which of 2^32 choices of the ring it takes.
    accepts: Vec<u32>,
}

impl Tier {
    pub(super) fn new(positions: &[u32], random: u64) -> Self {
        Self {
            positions: positions.to_vec(),
            members: Vec::with_capacity(positions.len()),
            uniform: true,
            wanted: 0,
            turn: reduce(random as u32, positions.len() as u32) as usize,
            weights: vec![0; positions.len()],
            standing: vec![NEVER; positions.len()],
            accepts: vec![0; positions.len()],
        }
    }

    /// How many may be picked.
    pub(super) const fn usable(&self) -> usize {
        self.members.len()
    }

    /// How many operators want to be used.
    pub(super) const fn wanted(&self) -> usize {
        self.wanted
    }

    /// Finds who may be picked and with which weight.
    pub(super) fn read(&mut self, ring: &Ring, reading: &mut Reading<'_>) {
        self.members.clear();
        self.wanted = 0;
        self.uniform = true;
        let mut end = 0;
        for ((&position, weight), standing) in self
            .positions
            .iter()
            .zip(&mut self.weights)
            .zip(&mut self.standing)
        {
            *weight = 0;
            if let Some(server) = reading.group.server(position as usize) {
                let state = server.state();
                self.wanted += usize::from(state.weight > 0 && !state.draining);
                *weight = reading.weight(&state).into();
            }
            if *weight == 0 {
                *standing = NEVER;
                continue;
            }
            if *standing <= NEVER / 2 {
                *standing = 0;
            }
            let member = Member {
                position,
                weight: *weight as u32,
                end: end + *weight as u64,
            };
            end = member.end;
            self.uniform &= self
                .members
                .first()
                .is_none_or(|first| first.weight == member.weight);
            self.members.push(member);
        }
        if self.turn >= self.members.len() {
            self.turn = 0;
        }
        self.read_accepts(ring);
    }

    /// How much of what the ring gives it each server takes, so that its share is that of
    /// its weight now. The one that has most, for the weight with which the ring was made,
    /// takes all. So nothing else moves than what must: a ring stays as it is.
    fn read_accepts(&mut self, ring: &Ring) {
        let weights = || self.weights.iter().zip(ring.weights());
        let ratio = |(&now, &then): (&i64, &u16)| now as f64 / f64::from(then);
        let most = weights().map(ratio).fold(0.0, f64::max);
        for (accept, both) in self
            .accepts
            .iter_mut()
            .zip(self.weights.iter().zip(ring.weights()))
        {
            *accept = (ratio(both) / most * f64::from(u32::MAX)) as u32;
        }
    }

    /// Picks one that is not among `tried`.
    pub(super) fn pick(
        &mut self,
        group: &Group,
        ring: &Ring,
        ask: &Ask<'_>,
        tried: &[usize],
    ) -> Option<usize> {
        match group.settings.algorithm {
            Algorithm::RoundRobin | Algorithm::WeightedRoundRobin if self.uniform => {
                self.next(tried)
            }
            Algorithm::RoundRobin | Algorithm::WeightedRoundRobin => self.smooth(tried),
            Algorithm::LeastConnections => self.least_loaded(group, tried),
            Algorithm::RandomOfTwo => self.random_of_two(group, ask.random, tried),
            Algorithm::Hash => match ask.key {
                Some(key) => self.hashed(group, ring, key, tried),
                None => self.random(ask.random, tried),
            },
        }
    }

    /// The next one.
    fn next(&mut self, tried: &[usize]) -> Option<usize> {
        let member = self.from(self.turn, tried)?;
        self.turn = member + 1;
        if self.turn == self.members.len() {
            self.turn = 0;
        }
        Some(self.members.get(member)?.position as usize)
    }

    /// The first member that is not among `tried`, from this one on.
    fn from(&self, start: usize, tried: &[usize]) -> Option<usize> {
        let count = self.members.len();
        let free = |&at: &usize| {
            self.members
                .get(at)
                .is_some_and(|member| !is_among(tried, member.position))
        };
        (start..count).chain(0..start.min(count)).find(free)
    }

    /// Smooth weighted round robin: each comes forward by its weight, and the foremost is
    /// picked and goes back by the weights of all.
    fn smooth(&mut self, tried: &[usize]) -> Option<usize> {
        let mut sum = self.members.last()?.end as i64;
        let mut best = None;
        let mut foremost = NEVER / 2;
        let all = self.standing.iter_mut().zip(&self.weights);
        for (at, ((standing, weight), position)) in all.zip(&self.positions).enumerate() {
            *standing += *weight;
            if *standing > foremost && !is_among(tried, *position) {
                foremost = *standing;
                best = Some(at);
            }
        }
        // Who was passed over is owed nothing for it.
        for position in tried {
            if let Ok(at) = self.positions.binary_search(&(*position as u32))
                && let (Some(standing), Some(weight)) =
                    (self.standing.get_mut(at), self.weights.get(at))
            {
                *standing -= *weight;
                sum -= *weight;
            }
        }
        let best = best?;
        *self.standing.get_mut(best)? -= sum;
        Some(*self.positions.get(best)? as usize)
    }

    /// The one with the least load. Among equals the search begins at another one each time.
    fn least_loaded(&mut self, group: &Group, tried: &[usize]) -> Option<usize> {
        if self.turn >= self.members.len() {
            self.turn = 0;
        }
        let (before, after) = self.members.split_at(self.turn);
        self.turn += 1;
        let mut best: Option<(Load, u32)> = None;
        for member in after.iter().chain(before) {
            let load = Load::of(group, member, 1);
            if best.is_none_or(|(least, _)| load.is_less(least))
                && !is_among(tried, member.position)
            {
                best = Some((load, member.position));
            }
        }
        best.map(|(_, position)| position as usize)
    }

    /// The less loaded of two random ones. The weights have their part in the draw already, so
    /// that of two idle ones it is the first.
    fn random_of_two(&self, group: &Group, random: u64, tried: &[usize]) -> Option<usize> {
        let first = self.draw(random, tried)?;
        let one = self.members.get(first)?;
        let other = self
            .draw_besides(scramble(random), one)
            .and_then(|other| self.members.get(other))
            .filter(|other| !is_among(tried, other.position));
        let less = match other {
            Some(other) if Load::of(group, other, 0).is_less(Load::of(group, one, 0)) => other,
            _ => one,
        };
        Some(less.position as usize)
    }

    /// A random one.
    fn random(&self, random: u64, tried: &[usize]) -> Option<usize> {
        let member = self.draw(random, tried)?;
        Some(self.members.get(member)?.position as usize)
    }

    /// A random member by weight that is not among `tried`.
    fn draw(&self, mut random: u64, tried: &[usize]) -> Option<usize> {
        let sum = self.members.last()?.end;
        for _ in 0..DRAWS {
            let at = self.at(share(random, sum));
            let member = self.members.get(at)?;
            if !is_among(tried, member.position) {
                return Some(at);
            }
            random = scramble(random);
        }
        // Nearly all of the weight was tried.
        self.from(self.at(share(random, sum)), tried)
    }

    /// A random member by weight, another than this one.
    fn draw_besides(&self, random: u64, one: &Member) -> Option<usize> {
        let weight = u64::from(one.weight);
        let others = self.members.last()?.end - weight;
        if others == 0 {
            return None;
        }
        let point = share(random, others);
        let skip = if point >= one.end - weight { weight } else { 0 };
        Some(self.at(point + skip))
    }

    /// The member whose part of all weights has this point.
    fn at(&self, point: u64) -> usize {
        if self.uniform
            && let Some(first) = self.members.first()
        {
            return (point / u64::from(first.weight)) as usize;
        }
        self.members.partition_point(|member| member.end <= point)
    }

    /// The first one that takes the key, in an order that is the key's own.
    fn hashed(&self, group: &Group, ring: &Ring, key: u64, tried: &[usize]) -> Option<usize> {
        if self.members.is_empty() {
            return None;
        }
        let mut last = 0;
        for attempt in 0..ATTEMPTS {
            let (at, random) = ring.candidate(&group.seed, key, attempt)?;
            last = random;
            let accept = *self.accepts.get(at)?;
            if random < accept || accept == u32::MAX {
                let position = self.positions.get(at)?;
                if !is_among(tried, *position) {
                    return Some(*position as usize);
                }
            }
        }
        // Few are left. Keys need not stay where they are when the next one goes.
        let start = reduce(last, self.members.len() as u32);
        let member = self.from(start as usize, tried)?;
        Some(self.members.get(member)?.position as usize)
    }
}

/// Requests for a weight.
#[derive(Clone, Copy)]
struct Load {
    requests: u64,
    weight: u64,
}

impl Load {
    /// Of those under way, and `more`.
    fn of(group: &Group, member: &Member, more: u64) -> Self {
        let active = group
            .server(member.position as usize)
            .map_or(0, |server| server.active());
        Self {
            requests: u64::from(active) + more,
            weight: u64::from(member.weight),
        }
    }

    const fn is_less(self, other: Self) -> bool {
        self.requests * other.weight < other.requests * self.weight
    }
}

impl Reading<'_> {
    /// The weight of a server now; 0 if it must not be picked.
    fn weight(&mut self, state: &State) -> u32 {
        if state.weight == 0 || state.draining {
            return 0;
        }
        let weight = match self.group.settings.algorithm {
            Algorithm::RoundRobin => 1,
            _ => u32::from(state.weight),
        };
        if self.all {
            return weight * WHOLE as u32;
        }
        if state.ejected_until > self.now {
            self.stale_at = self.stale_at.min(state.ejected_until);
            return 0;
        }
        if !state.up {
            return 0;
        }
        weight * self.part(state.since.max(state.ejected_until))
    }

    /// The part of [`WHOLE`] that one has who came back at a time.
    fn part(&mut self, since: u64) -> u32 {
        let whole = self.group.settings.slow_start;
        let passed = self.now.saturating_sub(since);
        if since == 0 || passed >= whole {
            return WHOLE as u32;
        }
        self.stale_at = self.stale_at.min(self.now + (whole / STEPS).max(1));
        let part = u128::from(passed) * u128::from(WHOLE) / u128::from(whole);
        (part as u32).max(1)
    }
}

/// Whether a position is one of those.
fn is_among(tried: &[usize], position: u32) -> bool {
    tried.contains(&(position as usize))
}

/// A random number below `sum`.
const fn share(random: u64, sum: u64) -> u64 {
    ((random as u128 * sum as u128) >> 64) as u64
}

/// Other random bits from some: a step of SplitMix64 (Steele, Lea and Flood, "Fast
/// splittable pseudorandom number generators", OOPSLA 2014).
const fn scramble(random: u64) -> u64 {
    let x = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
