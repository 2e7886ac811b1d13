//! What each prefix says itself, and what follows from that for those below it.
//!
//! The kernel takes the longest match and looks no further, so each entry in
//! its table must hold what all that cover it say as well. Their own values are
//! kept here, in the order in which a prefix comes before all it contains.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    ops::Bound::{Excluded, Included, Unbounded},
};

use edge_common::addr::{Family, Prefix};

use super::Listing;

/// The prefixes of both families with what they say themselves.
///
/// ::/0 has no place in the kernel's table: what it says is part of both /1,
/// the nodes that stand for it.
#[derive(Default)]
pub(super) struct Prefixes {
    v4: BTreeMap<Prefix, Listing>,
    v6: BTreeMap<Prefix, Listing>,
    whole6: Listing,
    halves6: [Listing; 2],
    trail: Trail,
}

/// Where the last [`Prefixes::cover`] was, so that one after the other in
/// order costs a step each and not a climb through all of the tree.
#[derive(Default)]
struct Trail {
    /// The prefix that was asked for; `None` when it was never, or is no longer
    /// true.
    at: Option<Prefix>,
    /// The nodes before `at` that contain it, shortest first, with what each and
    /// all above it say.
    nodes: Vec<(Prefix, Listing)>,
}

/// Half of the IPv6 space: its index and its bits.
const HALF: u128 = 1 << 127;

impl Prefixes {
    const fn map(&self, family: Family) -> &BTreeMap<Prefix, Listing> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// ::/0 and what it says itself; `None` when it is not there.
    pub(super) fn whole6(&self) -> Option<(Prefix, Listing)> {
        let [half, _] = halves();
        let whole = half?.parent()?;
        (!self.whole6.is_empty()).then_some((whole, self.whole6))
    }

    /// Number of nodes: what takes a slot in the kernel's table.
    pub(super) fn nodes(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// What a prefix says itself; empty when it is not there.
    pub(super) fn own(&self, prefix: Prefix) -> Listing {
        match (prefix.family(), prefix.len()) {
            (Family::V6, 0) => self.whole6,
            (Family::V6, 1) => self.halves6[usize::from(prefix.bits() >= HALF)],
            (family, _) => self.map(family).get(&prefix).copied().unwrap_or_default(),
        }
    }

    /// Sets what a prefix says itself, empty to remove it. Returns the nodes
    /// whose own value that changes.
    pub(super) fn set(&mut self, prefix: Prefix, own: Listing) -> [Option<Prefix>; 2] {
        // ::/0 comes before the halves that stand for it.
        if self.trail.at.is_some_and(|at| prefix < at) {
            self.trail.at = None;
        }
        match (prefix.family(), prefix.len()) {
            (Family::V6, 0) => {
                self.whole6 = own;
                let halves = halves();
                for half in halves.into_iter().flatten() {
                    self.set_half(half);
                }
                halves
            }
            (Family::V6, 1) => {
                self.halves6[usize::from(prefix.bits() >= HALF)] = own;
                self.set_half(prefix);
                [Some(prefix), None]
            }
            (Family::V4, _) => {
                set(&mut self.v4, prefix, own);
                [Some(prefix), None]
            }
            (Family::V6, _) => {
                set(&mut self.v6, prefix, own);
                [Some(prefix), None]
            }
        }
    }

    fn set_half(&mut self, half: Prefix) {
        let own = self.halves6[usize::from(half.bits() >= HALF)].under(self.whole6);
        set(&mut self.v6, half, own);
    }

    /// What a node says itself, on behalf of ::/0 as well; `None` when there is
    /// no such node.
    pub(super) fn node(&self, prefix: Prefix) -> Option<Listing> {
        self.map(prefix.family()).get(&prefix).copied()
    }

    /// The longest node that contains `prefix`, is shorter, and does not sort
    /// before `from`.
    fn nearest(&self, prefix: Prefix, from: Option<Prefix>) -> Option<(Prefix, Listing)> {
        let map = self.map(prefix.family());
        let mut found = map.range(..prefix).next_back();
        // What contains `prefix` sorts before it, and contains all between.
        while let Some((&at, &own)) = found
            && from.is_none_or(|from| from <= at)
        {
            if at.contains(prefix) {
                return Some((at, own));
            }
            found = map.range(..=at.common(prefix)?).next_back();
        }
        None
    }

    /// What the nodes that contain `prefix`, but not itself, say together.
    pub(super) fn cover(&mut self, prefix: Prefix) -> Listing {
        let Trail { at, mut nodes } = std::mem::take(&mut self.trail);
        let from = at.filter(|at| at.family() == prefix.family() && *at <= prefix);
        if from.is_none() {
            nodes.clear();
        }
        while nodes.pop_if(|n| !n.0.contains(prefix)).is_some() {}
        let known = nodes.len();
        let mut all = nodes.last().map_or_else(Listing::default, |n| n.1);
        let mut below = prefix;
        while let Some(node) = self.nearest(below, from) {
            nodes.push(node);
            below = node.0;
        }
        nodes[known..].reverse();
        for (_, says) in &mut nodes[known..] {
            *says = says.under(all);
            all = *says;
        }
        self.trail = Trail {
            at: Some(prefix),
            nodes,
        };
        all
    }

    /// The nodes that contain `prefix`, itself included, longest first.
    pub(super) fn covering(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> {
        let itself = self.node(prefix).map(|_| prefix);
        let up = std::iter::successors(self.nearest(prefix, None), |n| self.nearest(n.0, None));
        itself.into_iter().chain(up.map(|n| n.0))
    }

    /// Calls `visit` with each node below `top` (not `top` itself) and what it
    /// and all above it say, `above` being what holds at `top`. Where `visit`
    /// returns false, nothing changed, and what lies below is passed over.
    pub(super) fn push_down(
        &self,
        top: Prefix,
        above: Listing,
        mut visit: impl FnMut(Prefix, Listing) -> bool,
    ) {
        let below = (Excluded(top), Included(top.last()));
        let mut path: Vec<(Prefix, Listing)> = Vec::new();
        let mut unchanged: Option<Prefix> = None;
        for (&node, &own) in self.map(top.family()).range(below) {
            if unchanged.is_some_and(|u| u.contains(node)) {
                continue;
            }
            while path.pop_if(|p| !p.0.contains(node)).is_some() {}
            let says = own.under(path.last().map_or(above, |p| p.1));
            if visit(node, says) {
                path.push((node, says));
            } else {
                unchanged = Some(node);
            }
        }
    }

    /// Calls `visit` with every node and what it and all above it say, shorter
    /// ones before those they contain, until it fails.
    pub(super) fn for_each<E>(
        &self,
        mut visit: impl FnMut(Prefix, Listing) -> Result<(), E>,
    ) -> Result<(), E> {
        for map in [&self.v4, &self.v6] {
            let mut path: Vec<(Prefix, Listing)> = Vec::new();
            for (&node, &own) in map {
                while path.pop_if(|p| !p.0.contains(node)).is_some() {}
                let says = own.under(path.last().map_or_else(Listing::default, |p| p.1));
                visit(node, says)?;
                path.push((node, says));
            }
        }
        Ok(())
    }

    /// The nodes behind `after`, IPv4 before IPv6; all of them for `None`.
    pub(super) fn after(&self, after: Option<Prefix>) -> impl Iterator<Item = Prefix> {
        let from = after.map_or(Unbounded, Excluded);
        let (from4, skip4, from6) = match after.map(Prefix::family) {
            None => (Unbounded, false, Unbounded),
            Some(Family::V4) => (from, false, Unbounded),
            Some(Family::V6) => (Unbounded, true, from),
        };
        let v4 = self
            .v4
            .range((from4, Unbounded))
            .take_while(move |_| !skip4);
        let v6 = self.v6.range((from6, Unbounded));
        v4.chain(v6).map(|e| *e.0)
    }
}

fn set(map: &mut BTreeMap<Prefix, Listing>, prefix: Prefix, own: Listing) {
    if own.is_empty() {
        map.remove(&prefix);
    } else {
        map.insert(prefix, own);
    }
}

/// Both /1 of ::/0.
pub(super) fn halves() -> [Option<Prefix>; 2] {
    [0, HALF].map(|bits| Prefix::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_common::table::Meta;
    use proptest::prelude::*;

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    fn black(stamp: u32) -> Listing {
        Listing {
            black: stamp,
            ..Listing::default()
        }
    }

    fn all(prefixes: &Prefixes) -> Vec<(Prefix, u32)> {
        let mut v = Vec::new();
        let r: Result<(), ()> = prefixes.for_each(|n, l| {
            v.push((n, l.black));
            Ok(())
        });
        r.unwrap();
        v
    }

    #[test]
    fn values_reach_everything_below() {
        let mut x = Prefixes::default();
        for (s, b) in [
            ("10.0.0.0/8", 5),
            ("10.1.0.0/16", 3),
            ("10.1.2.0/24", 9),
            ("10.2.0.0/16", 1),
            ("11.0.0.0/8", 1),
        ] {
            x.set(p(s), black(b));
        }
        let want = [
            ("10.0.0.0/8", 5),
            ("10.1.0.0/16", 5),
            ("10.1.2.0/24", 9),
            ("10.2.0.0/16", 5),
            ("11.0.0.0/8", 1),
        ];
        assert_eq!(all(&x), want.map(|(s, b)| (p(s), b)));
        assert_eq!(x.cover(p("10.1.2.0/24")), black(5));
        assert_eq!(x.cover(p("10.1.2.3")), black(9));
        assert_eq!(x.cover(p("12.0.0.0/8")), black(0));
        let chain: Vec<_> = x.covering(p("10.1.2.3")).collect();
        assert_eq!(chain, ["10.1.2.0/24", "10.1.0.0/16", "10.0.0.0/8"].map(p));
    }

    proptest! {
        #[test]
        fn covers_are_right_in_any_order_of_questions_and_changes(
            steps in proptest::collection::vec((any::<bool>(), 0u8..6, 0u8..16, 0u32..9), 1..60),
        ) {
            let mut x = Prefixes::default();
            let mut naive: BTreeMap<Prefix, Listing> = BTreeMap::new();
            for (v4, len, bits, stamp) in steps {
                let prefix = if v4 {
                    Prefix::new([bits << 4, 0, 0, 0].into(), 8)
                } else {
                    Prefix::new(Ipv6Addr::from_bits(u128::from(bits) << 124).into(), 8)
                };
                let prefix = prefix.unwrap();
                let prefix = std::iter::successors(Some(prefix), |p| p.parent())
                    .find(|p| p.len() == len)
                    .unwrap();
                if stamp < 4 {
                    x.set(prefix, black(stamp));
                    naive.insert(prefix, black(stamp));
                }
                let above = |p: &Prefix| *p != prefix && p.contains(prefix);
                let want = naive
                    .iter()
                    .filter(|n| above(n.0))
                    .fold(Listing::default(), |all, n| n.1.under(all));
                // ::/0 is part of what its halves say themselves.
                if stamp >= 2 && (v4 || len >= 2) {
                    prop_assert_eq!(x.cover(prefix), want, "{}", prefix);
                }
            }
        }
    }

    #[test]
    fn pushing_stops_where_nothing_changes() {
        let mut x = Prefixes::default();
        for (s, b) in [
            ("10.0.0.0/8", 5),
            ("10.1.0.0/16", 9),
            ("10.1.1.0/24", 1),
            ("10.2.0.0/16", 2),
        ] {
            x.set(p(s), black(b));
        }
        let mut seen = Vec::new();
        x.push_down(p("10.0.0.0/8"), black(5), |n, l| {
            seen.push((n, l.black));
            n != p("10.1.0.0/16")
        });
        assert_eq!(seen, [(p("10.1.0.0/16"), 9), (p("10.2.0.0/16"), 5)]);
    }

    #[test]
    fn the_whole_of_ipv6_is_its_two_halves() {
        let mut x = Prefixes::default();
        let nodes = x.set(p("::/0"), black(7));
        assert_eq!(nodes, [Some(p("::/1")), Some(p("8000::/1"))]);
        x.set(p("8000::/1"), black(9));
        x.set(p("::/1"), black(2));
        assert_eq!(all(&x), [(p("::/1"), 7), (p("8000::/1"), 9)]);
        assert_eq!(x.own(p("::/1")), black(2));
        x.set(p("::/0"), Listing::default());
        assert_eq!(all(&x), [(p("::/1"), 2), (p("8000::/1"), 9)]);
        x.set(p("::/1"), Listing::default());
        assert_eq!(all(&x), [(p("8000::/1"), 9)]);
        assert_eq!(x.cover(p("10.0.0.0/8")), Listing::default());
    }

    #[test]
    fn a_walk_goes_on_where_it_stopped() {
        let mut x = Prefixes::default();
        for s in ["::/8", "10.0.0.0/8", "11.0.0.0/8", "2001:db8::/32"] {
            x.set(p(s), black(1));
        }
        let want = ["10.0.0.0/8", "11.0.0.0/8", "::/8", "2001:db8::/32"].map(p);
        for n in 0..=4usize {
            let after = n.checked_sub(1).map(|i| want[i]);
            assert_eq!(x.after(after).collect::<Vec<_>>(), want[n..]);
        }
    }

    #[test]
    fn the_nearest_profile_wins() {
        let with = |profile| Listing {
            meta: Meta { flags: 0, profile },
            ..Listing::default()
        };
        let mut x = Prefixes::default();
        x.set(p("2001:db8::/32"), with(3));
        x.set(p("2001:db8::/48"), black(1));
        x.set(p("2001:db8::/64"), with(4));
        assert_eq!(x.cover(p("2001:db8::/64")).meta.profile, 3);
        assert_eq!(x.cover(p("2001:db8::/65")).meta.profile, 4);
    }
}
