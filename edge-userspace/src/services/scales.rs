//! What is known of the window scales of listeners.
//!
//! A SYN-ACK that is not the listener's own must announce the listener's scale,
//! or flow control breaks without anybody noticing. It follows from the buffers
//! of the socket, which only the socket knows: it is asked with a SYN, and again
//! when another socket takes its place or its buffer changes.

use std::{collections::BTreeMap, net::SocketAddr};

use super::facts::{Listener, Listeners, Place, TcpMemory};

/// Between two questions to a listener that does not answer: at first, and at most.
const FIRST_RETRY_NS: u64 = 250_000_000;
const LAST_RETRY_NS: u64 = 8_000_000_000;
/// So many questions without an answer are worth a line in the log.
const SILENT_AFTER: u32 = 4;

/// What is known of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing yet; it is asked at this time.
    Asked { failures: u32, next_ns: u64 },
    /// It cannot be asked, and its scale can only be assumed, if at all.
    Unaskable(Option<u8>),
    /// Its own answer; `None`: it scales no window.
    Answered(Option<u8>),
}

#[derive(Clone, Debug)]
struct Entry {
    sockets: Vec<Listener>,
    at: SocketAddr,
    known: Known,
}

/// A question to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which listener.
    pub place: Place,
    /// Where it answers.
    pub at: SocketAddr,
}

/// Something to tell a person, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A listener is bound to an interface, and the default is taken for its scale.
    Assumed(Place, u8),
    /// A listener is bound to an interface and has a buffer of its own.
    Unknowable(Place),
    /// A listener does not answer.
    Silent(Place),
    /// A listener answers without a window scale.
    Unscaled(Place),
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Assumed(place, _)
        | Self::Unknowable(place)
        | Self::Silent(place)
        | Self::Unscaled(place)) = self;
        let at = SocketAddr::new(place.address, place.port);
        write!(f, "the listener on {at} ")?;
        match self {
            Self::Assumed(_, scale) => write!(
                f,
                "is bound to an interface and cannot be asked: the default of the sysctls, \
                 {scale}, is taken for its window scale"
            ),
            Self::Unknowable(_) => f.write_str(
                "is bound to an interface and has a receive buffer of its own: its window scale \
                 cannot be known, and its SYNs are left to the kernel",
            ),
            Self::Silent(_) => f.write_str(
                "does not answer a SYN over the loopback interface (a full queue, TCP-MD5 or a \
                 packet filter): its SYNs are left to the kernel until it does",
            ),
            Self::Unscaled(_) => {
                f.write_str("answers a SYN without a window scale: its SYNs are left to the kernel")
            }
        }
    }
}

/// The window scales of listeners.
#[derive(Clone, Debug, Default)]
pub struct Scales {
    memory: TcpMemory,
    entries: BTreeMap<Place, Entry>,
}

impl Scales {
    /// Takes in which listeners there are and where each answers; what has
    /// changed, or is new, is to be asked.
    pub fn update(
        &mut self,
        wanted: &BTreeMap<Place, SocketAddr>,
        listeners: &Listeners,
        memory: TcpMemory,
    ) -> Vec<Note> {
        let mut former = std::mem::take(&mut self.entries);
        if memory != self.memory {
            former.clear();
        }
        self.memory = memory;
        let mut notes = Vec::new();
        for (place, at) in wanted {
            let sockets = listeners.at(place);
            let entry = match former.remove(place) {
                Some(entry) if entry.sockets == sockets => Entry { at: *at, ..entry },
                _ => {
                    let known = if place.device == 0 {
                        Known::Asked {
                            failures: 0,
                            next_ns: 0,
                        }
                    } else {
                        let (known, note) = self.assume(place, sockets);
                        notes.push(note);
                        known
                    };
                    Entry {
                        sockets: sockets.to_vec(),
                        at: *at,
                        known,
                    }
                }
            };
            self.entries.insert(*place, entry);
        }
        notes
    }

    fn assume(&self, place: &Place, sockets: &[Listener]) -> (Known, Note) {
        // What was never set is the default that sockets start with.
        if sockets.iter().all(|s| s.rcvbuf == self.memory.rmem_default) {
            let scale = self.memory.default_scale();
            (Known::Unaskable(Some(scale)), Note::Assumed(*place, scale))
        } else {
            (Known::Unaskable(None), Note::Unknowable(*place))
        }
    }

    /// Who is to be asked at `now_ns`, at most so many, those that have waited
    /// longest first.
    pub fn due(&self, now_ns: u64, most: usize) -> Vec<Question> {
        let mut due: Vec<(u64, Question)> = self
            .entries
            .iter()
            .filter_map(|(place, entry)| match entry.known {
                Known::Asked { next_ns, .. } if next_ns <= now_ns => {
                    let at = entry.at;
                    Some((next_ns, Question { place: *place, at }))
                }
                _ => None,
            })
            .collect();
        due.sort_unstable_by_key(|(next_ns, question)| (*next_ns, question.place));
        due.truncate(most);
        due.into_iter().map(|(_, question)| question).collect()
    }

    /// Takes in what became of a question: nothing, or an answer with a scale or
    /// without one.
    pub fn answer(
        &mut self,
        place: &Place,
        answer: Option<Option<u8>>,
        now_ns: u64,
    ) -> Option<Note> {
        let entry = self.entries.get_mut(place)?;
        let Known::Asked { failures, .. } = entry.known else {
            return None;
        };
        match answer {
            Some(scale) => {
                entry.known = Known::Answered(scale);
                scale.is_none().then_some(Note::Unscaled(*place))
            }
            None => {
                let wait = FIRST_RETRY_NS << failures.min(8);
                entry.known = Known::Asked {
                    failures: failures.saturating_add(1),
                    next_ns: now_ns.saturating_add(wait.min(LAST_RETRY_NS)),
                };
                (failures + 1 == SILENT_AFTER).then_some(Note::Silent(*place))
            }
        }
    }

    /// The window scale of a listener, if it is known.
    pub fn get(&self, place: &Place) -> Option<u8> {
        match self.entries.get(place)?.known {
            Known::Asked { .. } => None,
            Known::Unaskable(scale) | Known::Answered(scale) => scale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::facts::tests::listener;

    const MEMORY: TcpMemory = TcpMemory {
        rmem_default: 131_072,
        rmem_limit: 6_291_456,
        rmem_max: 212_992,
    };

    fn update(scales: &mut Scales, list: &[Listener], memory: TcpMemory) -> Vec<Note> {
        let listeners = Listeners::new(list.to_vec());
        let wanted = list.iter().map(|l| {
            let place = Place {
                address: l.address,
                port: l.port,
                device: l.device,
            };
            (place, SocketAddr::new("192.0.2.1".parse().unwrap(), l.port))
        });
        scales.update(&wanted.collect(), &listeners, memory)
    }

    fn ports(questions: &[Question]) -> Vec<u16> {
        questions.iter().map(|q| q.at.port()).collect()
    }

    #[test]
    fn a_listener_is_asked_until_it_is_another_one() {
        let mut scales = Scales::default();
        let one = listener("0.0.0.0", 80, 1);
        assert_eq!(update(&mut scales, &[one], MEMORY), []);
        let [question] = scales.due(5, 9)[..] else {
            panic!()
        };
        assert_eq!(scales.get(&question.place), None);
        assert_eq!(scales.answer(&question.place, Some(Some(7)), 5), None);
        assert_eq!(scales.get(&question.place), Some(7));
        update(&mut scales, &[one], MEMORY);
        assert_eq!(
            (scales.due(6, 9).len(), scales.get(&question.place)),
            (0, Some(7))
        );
        let changed = [
            (vec![listener("0.0.0.0", 80, 2)], MEMORY),
            (
                vec![Listener {
                    rcvbuf: 8192,
                    ..one
                }],
                MEMORY,
            ),
            (vec![one, listener("0.0.0.0", 80, 2)], MEMORY),
            (
                vec![one],
                TcpMemory {
                    rmem_max: 1,
                    ..MEMORY
                },
            ),
        ];
        for (list, memory) in changed {
            update(&mut scales, &[one], MEMORY);
            scales.answer(&question.place, Some(Some(7)), 5);
            update(&mut scales, &list, memory);
            assert_eq!(scales.get(&question.place), None);
            assert_eq!(scales.due(6, 9), [question]);
        }
        update(&mut scales, &[], MEMORY);
        assert_eq!(scales.due(u64::MAX, 9), []);
    }

    #[test]
    fn silence_is_met_with_patience_and_told_once() {
        let mut scales = Scales::default();
        update(&mut scales, &[listener("0.0.0.0", 80, 1)], MEMORY);
        let (mut now, mut notes, mut waits) = (0, Vec::new(), Vec::new());
        for _ in 0..12 {
            let place = scales.due(now, 9)[0].place;
            notes.extend(scales.answer(&place, None, now));
            let before = now;
            while scales.due(now, 9).is_empty() {
                now += FIRST_RETRY_NS;
            }
            waits.push((now - before) / FIRST_RETRY_NS);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32, 32, 32, 32, 32, 32]);
        assert!(matches!(notes[..], [Note::Silent(_)]), "{notes:?}");
    }

    #[test]
    fn questions_are_few_and_fair() {
        let mut scales = Scales::default();
        let list: Vec<Listener> = (1..6).map(|p| listener("0.0.0.0", p, p.into())).collect();
        update(&mut scales, &list, MEMORY);
        let first = scales.due(10, 3);
        assert_eq!(ports(&first), [1, 2, 3]);
        for q in &first {
            scales.answer(&q.place, None, 10);
        }
        assert_eq!(ports(&scales.due(10 + FIRST_RETRY_NS, 3)), [4, 5, 1]);
    }

    #[test]
    fn who_is_bound_to_an_interface_is_not_asked() {
        let mut scales = Scales::default();
        let bound = |port, rcvbuf| Listener {
            device: 3,
            rcvbuf,
            ..listener("0.0.0.0", port, u32::from(port))
        };
        let list = vec![bound(80, MEMORY.rmem_default), bound(81, 9000)];
        let notes = update(&mut scales, &list, MEMORY);
        let [Note::Assumed(a, 7), Note::Unknowable(b)] = notes[..] else {
            panic!("{notes:?}")
        };
        assert_eq!((scales.get(&a), scales.get(&b)), (Some(7), None));
        assert_eq!(scales.due(u64::MAX, 9), []);
        assert_eq!(update(&mut scales, &list, MEMORY), []);
        assert!(
            notes[0]
                .to_string()
                .starts_with("the listener on 0.0.0.0:80 is bound")
        );
    }

    #[test]
    fn an_answer_without_a_scale_leaves_the_kernel_to_it() {
        let mut scales = Scales::default();
        update(&mut scales, &[listener("::", 80, 1)], MEMORY);
        let place = scales.due(0, 1)[0].place;
        let note = scales.answer(&place, Some(None), 0);
        assert_eq!(note, Some(Note::Unscaled(place)));
        assert_eq!(
            (scales.get(&place), scales.due(u64::MAX, 9)),
            (None, vec![])
        );
    }
}
