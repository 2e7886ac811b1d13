//! What goes wrong again and again, told once.

use std::{collections::BTreeMap, fmt::Display};

use tracing::warn;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// The sysctls are not as they must be.
    Sysctls,
    /// It cannot be seen what the host's TCP grants.
    Features,
    /// Addresses and listeners cannot be asked for.
    Host,
    /// Listeners cannot be asked for their window scale.
    Listeners,
    /// The targets cannot be written.
    Targets,
    /// Counters of services cannot be read.
    Counters,
    /// Those of the host as a whole cannot be read.
    HostCounters,
}

/// What each kind was told of last; nothing once it was over.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<Trouble, String>);

impl Troubles {
    /// Whether it is to be told: it is another one than the last time.
    pub(super) fn is_new(&mut self, kind: Trouble, text: &str) -> bool {
        if self.0.get(&kind).is_some_and(|last| last == text) {
            return false;
        }
        self.0.insert(kind, text.to_owned());
        true
    }

    /// All is well: should it go wrong again, it is told again.
    pub(super) fn is_over(&mut self, kind: Trouble) {
        self.0.remove(&kind);
    }

    /// Tells of an error, once; what there is without one.
    pub(super) fn mind<T, E: Display>(&mut self, kind: Trouble, found: Result<T, E>) -> Option<T> {
        match found {
            Ok(found) => {
                self.is_over(kind);
                Some(found)
            }
            Err(e) => {
                let text = e.to_string();
                if self.is_new(kind, &text) {
                    warn!("{text}");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_once_until_it_is_over() {
        let mut troubles = Troubles::default();
        assert!(troubles.is_new(Trouble::Host, "a"));
        assert!(troubles.is_new(Trouble::Targets, "b"));
        // One does not make the other news.
        assert!(!troubles.is_new(Trouble::Host, "a"));
        assert!(!troubles.is_new(Trouble::Targets, "b"));
        assert!(troubles.is_new(Trouble::Host, "c"));
        assert_eq!(troubles.mind(Trouble::Host, Ok::<_, String>(7)), Some(7));
        assert!(troubles.is_new(Trouble::Host, "c"));
        assert_eq!(troubles.mind(Trouble::Host, Err::<(), _>("c")), None);
        assert!(!troubles.is_new(Trouble::Host, "c"));
    }
}
