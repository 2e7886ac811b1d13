//! Where routes lie, by host and path.

use std::collections::HashMap;

/// Indexes of routes with the same host and path: that which is tried first stands first.
pub(super) type List = Box<[u32]>;

/// The routes of a listener by host.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    exact: HashMap<Box<[u8]>, PathTable>,
    /// By what a name must end with, which begins with a dot.
    below: HashMap<Box<[u8]>, PathTable>,
    /// The longest key of `below`.
    longest: usize,
    any: PathTable,
}

impl Hosts {
    pub(super) fn new(
        exact: HashMap<Box<[u8]>, PathTable>,
        below: HashMap<Box<[u8]>, PathTable>,
        any: PathTable,
    ) -> Self {
        let longest = below.keys().map(|key| key.len()).max().unwrap_or(0);
        Self {
            exact,
            below,
            longest,
            any,
        }
    }

    /// The tables of a host, in order of precedence.
    pub(super) fn of<'a>(&'a self, host: &'a [u8]) -> impl Iterator<Item = &'a PathTable> {
        let first = host.len().saturating_sub(self.longest);
        let ends = (first..host.len()).filter(|&i| self.longest > 0 && host[i] == b'.');
        let below = ends.filter_map(|i| self.below.get(&host[i..]));
        self.exact
            .get(host)
            .into_iter()
            .chain(below)
            .chain([&self.any])
    }
}

/// The routes of a host by path.
#[derive(Debug)]
pub(super) struct PathTable {
    exact: HashMap<Box<[u8]>, List>,
    /// The longest key of `exact`.
    longest: usize,
    /// A tree of segments; the first is the root.
    nodes: Vec<Node>,
    /// The set of regular expressions, if there are any, and the routes of each of them.
    pub(super) set: Option<usize>,
    pub(super) by_pattern: Box<[List]>,
    pub(super) any: List,
}

/// A path of whole segments, without a slash at its end.
#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<[u8]>, u32>,
    /// Routes with this path as prefix.
    here: List,
    /// Routes with this path and a slash as prefix.
    below: List,
    /// The next node towards the root that has routes; the root's is itself.
    up: u32,
}

impl Default for PathTable {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            longest: 0,
            nodes: vec![Node::default()],
            set: None,
            by_pattern: Box::default(),
            any: Box::default(),
        }
    }
}

impl PathTable {
    /// Adds the routes of a path; once for each path.
    pub(super) fn add_exact(&mut self, path: &str, list: List) {
        self.longest = self.longest.max(path.len());
        self.exact.insert(path.as_bytes().into(), list);
    }

    /// Adds the routes of a prefix, which begins with a slash; once for each prefix.
    pub(super) fn add_prefix(&mut self, prefix: &str, list: List) {
        let (segments, has_slash) = match prefix.strip_suffix('/') {
            Some(before) => (before, true),
            None => (prefix, false),
        };
        let mut at = 0;
        for segment in segments.split('/').skip(1) {
            let next = self.nodes.len() as u32;
            let child = *(self.nodes[at].children)
                .entry(segment.as_bytes().into())
                .or_insert(next);
            if child == next {
                self.nodes.push(Node::default());
            }
            at = child as usize;
        }
        match has_slash {
            true => self.nodes[at].below = list,
            false => self.nodes[at].here = list,
        }
    }

    /// Ties nodes to those above them, after all prefixes have been added.
    pub(super) fn finish(&mut self) {
        // Children come behind their parents.
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            let is_used = !node.here.is_empty() || !node.below.is_empty();
            let up = if is_used { i as u32 } else { node.up };
            let children: Vec<u32> = node.children.values().copied().collect();
            for child in children {
                self.nodes[child as usize].up = up;
            }
        }
    }

    /// The routes with exactly this path.
    pub(super) fn exact(&self, path: &[u8]) -> &[u32] {
        if path.len() > self.longest {
            return &[];
        }
        self.exact.get(path).map_or(&[], |list| list)
    }

    /// The routes with a prefix of this path, those with the longest first.
    pub(super) fn prefixes(&self, path: &[u8]) -> impl Iterator<Item = &u32> {
        let mut rest = path.strip_prefix(b"/");
        let mut at = &self.nodes[0];
        // Each segment is looked up once, and only as many as the longest prefix has.
        while let Some(text) = rest {
            let slash = text.iter().position(|&b| b == b'/');
            let segment = &text[..slash.unwrap_or(text.len())];
            let Some(&child) = at.children.get(segment) else {
                break;
            };
            at = &self.nodes[child as usize];
            rest = slash.map(|slash| &text[slash + 1..]);
        }
        // Behind a node on the way there is a slash, behind the last segment there is none.
        let last: &[u32] = if rest.is_some() { &at.below } else { &[] };
        let mut current = at;
        let above = std::iter::from_fn(move || {
            let next = &self.nodes[current.up as usize];
            let is_root = std::ptr::eq(next, current);
            current = next;
            (!is_root).then_some(next)
        });
        last.iter()
            .chain(&*at.here)
            .chain(above.flat_map(|node| node.below.iter().chain(&*node.here)))
    }
}
