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
    /// Nothing yet but what a former daemon may have known; it is asked at this time.
    Asked {
        failures: u32,
        next_ns: u64,
        former: Option<u8>,
    },
    /// It cannot be asked, and its scale can only be assumed, if at all.
    Unaskable(Option<u8>),
    /// Its own answer; `None`: it scales no window.
    Answered(Option<u8>),
}

#[derive(Clone, Debug)]
struct Entry {
    sockets: Vec<Listener>,
    /// Wherever it answers.
    at: Vec<SocketAddr>,
    known: Known,
}

/// A question to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which listener.
    pub place: Place,
    /// Where it should answer.
    pub at: SocketAddr,
}

/// Something to tell a person, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A listener is bound to an interface, and the default is taken for its scale.
    Assumed(Place, u8),
    /// A listener is bound to an interface and has a buffer of its own.
    Unknowable(Place),
    /// Sockets share an address and port, and have receive buffers of their own.
    Differing(Place),
    /// A listener does not answer.
    Silent(Place),
    /// A listener answers without a window scale.
    Unscaled(Place),
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Assumed(place, _)
        | Self::Unknowable(place)
        | Self::Differing(place)
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
            Self::Differing(_) => f.write_str(
                "shares its address and port with others that have another receive buffer: which \
                 of them gets a SYN, and so its window scale, cannot be known, and its SYNs are \
                 left to the kernel",
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
        wanted: &BTreeMap<Place, Vec<SocketAddr>>,
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
            let sockets = listeners.sharing(place);
            let entry = match former.remove(place) {
                Some(entry) if entry.sockets == sockets => Entry {
                    at: at.clone(),
                    ..entry
                },
                before => {
                    let known = if differ(&sockets) {
                        if !before.is_some_and(|entry| differ(&entry.sockets)) {
                            notes.push(Note::Differing(*place));
                        }
                        Known::Unaskable(None)
                    } else if place.device == 0 {
                        Known::Asked {
                            failures: 0,
                            next_ns: 0,
                            former: None,
                        }
                    } else {
                        let (known, note) = self.assume(place, &sockets);
                        notes.push(note);
                        known
                    };
                    Entry {
                        sockets,
                        at: at.clone(),
                        known,
                    }
                }
            };
            self.entries.insert(*place, entry);
        }
        notes
    }

    /// Takes in what a former daemon knew of a listener: it holds until the listener
    /// answers, or is another one.
    pub fn inherit(&mut self, place: &Place, scale: u8) {
        if let Some(entry) = self.entries.get_mut(place)
            && let Known::Asked { former, .. } = &mut entry.known
        {
            *former = Some(scale);
        }
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
                Known::Asked {
                    next_ns, failures, ..
                } if next_ns <= now_ns => {
                    // In turn: one address may be filtered, or not be usable.
                    let turn = failures as usize % entry.at.len().max(1);
                    let at = entry.at.get(turn)?;
                    let (place, at) = (*place, *at);
                    Some((next_ns, Question { place, at }))
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
        let Known::Asked {
            failures, former, ..
        } = entry.known
        else {
            return None;
        };
        // Pauses become longer once all its addresses had their turn.
        let addresses = u32::try_from(entry.at.len()).unwrap_or(u32::MAX).max(1);
        match answer {
            Some(scale) => {
                entry.known = Known::Answered(scale);
                scale.is_none().then_some(Note::Unscaled(*place))
            }
            None => {
                let wait = FIRST_RETRY_NS << (failures / addresses).min(8);
                let failures = failures.saturating_add(1);
                entry.known = Known::Asked {
                    failures,
                    next_ns: now_ns.saturating_add(wait.min(LAST_RETRY_NS)),
                    former,
                };
                (failures == SILENT_AFTER.max(addresses)).then_some(Note::Silent(*place))
            }
        }
    }

    /// The window scale of a listener, if it is known.
    pub fn get(&self, place: &Place) -> Option<u8> {
        match self.entries.get(place)?.known {
            Known::Asked { former: scale, .. }
            | Known::Unaskable(scale)
            | Known::Answered(scale) => scale,
        }
    }
}

/// Whether sockets have not all the same receive buffer.
fn differ(sockets: &[Listener]) -> bool {
    let mut buffers = sockets.iter().map(|s| s.rcvbuf);
    let first = buffers.next();
    buffers.any(|buffer| Some(buffer) != first)
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
            let at = SocketAddr::new("192.0.2.1".parse().unwrap(), l.port);
            (place, vec![at])
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
    fn what_a_former_daemon_knew_holds_until_the_listener_answers_or_is_another() {
        let mut scales = Scales::default();
        let one = listener("0.0.0.0", 80, 1);
        update(&mut scales, &[one], MEMORY);
        let place = scales.due(0, 9)[0].place;
        scales.inherit(&place, 7);
        assert_eq!(scales.get(&place), Some(7));
        scales.answer(&place, None, 0);
        update(&mut scales, &[one], MEMORY);
        assert_eq!(scales.get(&place), Some(7));
        let mut answered = scales.clone();
        answered.answer(&place, Some(Some(9)), 0);
        answered.inherit(&place, 7);
        assert_eq!(answered.get(&place), Some(9));
        update(&mut scales, &[listener("0.0.0.0", 80, 2)], MEMORY);
        assert_eq!(scales.get(&place), None);
    }

    #[test]
    fn each_address_of_a_listener_is_tried_in_turn() {
        let mut scales = Scales::default();
        let one = listener("::", 80, 1);
        let (address, port, device) = (one.address, one.port, one.device);
        let place = Place {
            address,
            port,
            device,
        };
        let at = ["[2001:db8::1]:80", "192.0.2.1:80"].map(|at| at.parse().unwrap());
        let wanted = BTreeMap::from([(place, at.to_vec())]);
        scales.update(&wanted, &Listeners::new(vec![one]), MEMORY);
        let mut asked = Vec::new();
        let mut now = 0;
        for _ in 0..4 {
            asked.push(scales.due(now, 9)[0].at);
            scales.answer(&place, None, now);
            let before = now;
            while scales.due(now, 9).is_empty() {
                now += FIRST_RETRY_NS;
            }
            let round = asked.len().div_ceil(2) as u64;
            assert_eq!((now - before) / FIRST_RETRY_NS, round);
        }
        assert_eq!(asked, [at, at].concat());
    }

    #[test]
    fn sockets_that_share_a_place_must_be_alike() {
        let mut scales = Scales::default();
        let one = listener("0.0.0.0", 80, 1);
        let with = |inode, rcvbuf, device| Listener {
            inode,
            rcvbuf,
            device,
            ..one
        };
        let small = 8192;
        assert_eq!(
            update(&mut scales, &[one, with(2, one.rcvbuf, 0)], MEMORY),
            []
        );
        let place = scales.due(0, 9)[0].place;
        for other in [with(2, small, 0), with(2, small, 3)] {
            update(&mut scales, &[one], MEMORY);
            let wanted = BTreeMap::from([(place, vec!["192.0.2.1:80".parse().unwrap()])]);
            let take = |scales: &mut Scales, list: &[Listener]| {
                scales.update(&wanted, &Listeners::new(list.to_vec()), MEMORY)
            };
            let notes = take(&mut scales, &[one, other]);
            assert_eq!(notes, [Note::Differing(place)]);
            assert_eq!((scales.get(&place), scales.due(0, 9)), (None, vec![]));
            // Also when one of them is another socket: it is told once.
            let other = Listener { inode: 9, ..other };
            assert_eq!(take(&mut scales, &[one, other]), []);
            assert_eq!(take(&mut scales, &[one]), []);
            assert_eq!(scales.due(0, 9).len(), 1);
        }
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
