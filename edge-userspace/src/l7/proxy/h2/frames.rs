//! What goes by on a client's connection, both ways: frames are counted here, and read by the crate.
//!
//! The crate does not tell when a head has begun that does not end, which heads it refused without
//! showing them, nor why it ended a connection. All of it can be seen in the nine bytes that each
//! frame begins with (RFC 9113, section 4.1); what is in a frame is passed over.

use ::h2::Reason;

/// Bytes that a frame begins with.
const HEAD: usize = 9;
/// What a client sends before its first frame (RFC 9113, section 3.4), bytes.
const PREFACE: u32 = 24;
/// Bytes of a frame that are read of what we send: a GOAWAY, and what it says beside its code.
const READ: usize = 40;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Beyond all streams: with it a GOAWAY only announces that there will be another one (RFC 9113,
/// section 6.8).
const NO_STREAM_YET: u32 = 0x7fff_ffff;

/// What a frame begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Frame {
    len: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    const fn parse(head: [u8; HEAD]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
        Self {
            len: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & NO_STREAM_YET,
        }
    }

    const fn ends_head(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION) && self.flags & END_HEADERS != 0
    }
}

/// What is found in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found<'a> {
    /// A frame begins.
    Begin(Frame),
    /// Some of what is in it.
    Piece(Frame, &'a [u8]),
    /// All of it has come.
    End(Frame),
}

/// Finds frames in bytes that come in any pieces.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD],
    have: usize,
    /// The frame whose bytes come, and how many are still to come.
    frame: Frame,
    left: u32,
}

impl Frames {
    /// Frames that begin behind so many bytes.
    fn behind(bytes: u32) -> Self {
        Self {
            left: bytes,
            ..Self::default()
        }
    }

    fn feed<'a>(&mut self, mut bytes: &'a [u8], mut tell: impl FnMut(Found<'a>)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = bytes.len().min(self.left as usize);
                let (piece, rest) = bytes.split_at(n);
                tell(Found::Piece(self.frame, piece));
                bytes = rest;
                // No more than was left.
                self.left -= n as u32;
                if self.left == 0 {
                    tell(Found::End(self.frame));
                }
                continue;
            }
            let n = bytes.len().min(HEAD - self.have);
            let (piece, rest) = bytes.split_at(n);
            if let Some(room) = self.head.get_mut(self.have..self.have + n) {
                room.copy_from_slice(piece);
            }
            bytes = rest;
            self.have += n;
            if self.have == HEAD {
                self.have = 0;
                self.frame = Frame::parse(self.head);
                self.left = self.frame.len;
                tell(Found::Begin(self.frame));
                if self.left == 0 {
                    tell(Found::End(self.frame));
                }
            }
        }
    }

    /// The kind of a frame of which the first bytes have come, if it is known.
    fn begins(&self) -> Option<u8> {
        (self.have > 3).then_some(self.head[3])
    }
}

/// Heads of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heads {
    small: u64,
    large: u64,
}

impl Heads {
    const fn all(self) -> u64 {
        self.small + self.large
    }
}

/// A head, or a section of trailers, that has begun.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Whether it begins a stream.
    is_request: bool,
    bytes: u32,
}

/// What a client sends.
#[derive(Debug)]
struct Inbound {
    frames: Frames,
    /// A head with more bytes than this is large.
    large: u32,
    block: Option<Block>,
    /// The highest stream that has begun.
    highest: u32,
    /// Heads of requests that have come.
    came: Heads,
    /// Those of them that the crate has looked at.
    looked_at: Heads,
    /// Since when a head is under way that has not ended, nanoseconds; 0: none is.
    since: u64,
}

impl Inbound {
    fn feed(&mut self, bytes: &[u8], now: impl FnOnce() -> u64) {
        let Self {
            frames,
            large,
            block,
            highest,
            came,
            since,
            ..
        } = self;
        frames.feed(bytes, |found| match found {
            Found::Begin(frame) if frame.kind == HEADERS => {
                // A client's streams have odd numbers, each a higher one.
                let is_request = frame.stream % 2 == 1 && frame.stream > *highest;
                *highest = frame.stream.max(*highest);
                *block = Some(Block {
                    is_request,
                    bytes: frame.len,
                });
            }
            Found::Begin(frame) if frame.kind == CONTINUATION => {
                if let Some(block) = block {
                    block.bytes = block.bytes.saturating_add(frame.len);
                }
            }
            Found::End(frame) if frame.ends_head() => {
                *since = 0;
                match block.take() {
                    Some(block) if block.is_request && block.bytes > *large => came.large += 1,
                    Some(block) if block.is_request => came.small += 1,
                    _ => {}
                }
            }
            _ => {}
        });
        let is_open = self.block.is_some() || self.frames.begins() == Some(HEADERS);
        if !is_open {
            self.since = 0;
        } else if self.since == 0 {
            self.since = now();
        }
    }
}

/// What is sent to a client.
#[derive(Debug)]
struct Outbound {
    frames: Frames,
    /// The first bytes of the frame that goes by, of those that are read.
    read: [u8; READ],
    have: usize,
    /// Streams that were reset because there were too many.
    too_many: u64,
    /// Streams that were reset with an error that only the crate finds, and those of them that
    /// broke a rule.
    made: u64,
    broke: u64,
    /// Bytes that were read of the GOAWAY that was sent last.
    said: usize,
    /// Whether one says which streams are the last.
    is_leaving: bool,
}

impl Outbound {
    fn feed(&mut self, bytes: &[u8]) {
        let Self {
            frames,
            read,
            have,
            too_many,
            made,
            broke,
            said,
            is_leaving,
        } = self;
        frames.feed(bytes, |found| match found {
            Found::Begin(_) => *have = 0,
            Found::Piece(frame, piece) if matches!(frame.kind, RST_STREAM | GOAWAY) => {
                let n = piece.len().min(READ - *have);
                let room = read.get_mut(*have..*have + n);
                if let (Some(room), Some(piece)) = (room, piece.get(..n)) {
                    room.copy_from_slice(piece);
                }
                *have += n;
            }
            Found::End(frame) if frame.kind == RST_STREAM => match Reason::from(number(read, 0)) {
                Reason::REFUSED_STREAM => *too_many += 1,
                Reason::PROTOCOL_ERROR => {
                    *broke += 1;
                    *made += 1;
                }
                reason if is_made(reason) => *made += 1,
                _ => {}
            },
            Found::End(frame) if frame.kind == GOAWAY => {
                *said = *have;
                *is_leaving |= number(read, 0) & NO_STREAM_YET != NO_STREAM_YET;
            }
            _ => {}
        });
    }
}

/// The number in four bytes.
fn number(bytes: &[u8; READ], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |four| u32::from_be_bytes(*four))
}

/// Whether it is one of the errors of streams that the crate finds. Ours are others.
pub(super) fn is_made(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PROTOCOL_ERROR | Reason::FLOW_CONTROL_ERROR | Reason::STREAM_CLOSED
    )
}

/// Heads that the crate refused without showing them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unseen {
    /// For there were too many streams.
    pub(super) too_many: u64,
    /// For their size: answered with 431.
    pub(super) too_large: u64,
    /// For what is in them.
    pub(super) malformed: u64,
}

/// What goes by on a client's connection.
#[derive(Debug)]
pub(super) struct Traffic {
    inbound: Inbound,
    outbound: Outbound,
    told: Told,
}

/// What was told of refused heads.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    refused: u64,
    /// Of these, and of what went by, those that tell them apart.
    large: u64,
    too_many: u64,
    broke: u64,
}

impl Traffic {
    /// A connection on which nothing has come yet. A head of more bytes than `large` is one that an
    /// honest client may have meant to be so large.
    pub(super) fn new(large: u32) -> Self {
        Self {
            inbound: Inbound {
                frames: Frames::behind(PREFACE),
                large,
                block: None,
                highest: 0,
                came: Heads::default(),
                looked_at: Heads::default(),
                since: 0,
            },
            outbound: Outbound {
                frames: Frames::default(),
                read: [0; READ],
                have: 0,
                too_many: 0,
                made: 0,
                broke: 0,
                said: 0,
                is_leaving: false,
            },
            told: Told::default(),
        }
    }

    /// Notes that the crate asks for more: it has looked at all that came before.
    pub(super) const fn ask(&mut self) {
        self.inbound.looked_at = self.inbound.came;
    }

    /// Notes what came. `now` is asked for only when a head is under way.
    pub(super) fn read(&mut self, bytes: &[u8], now: impl FnOnce() -> u64) {
        self.inbound.feed(bytes, now);
    }

    /// Notes what is sent.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.outbound.feed(bytes);
    }

    /// Since when a head is under way that has not ended, nanoseconds; 0: none is.
    pub(super) const fn since(&self) -> u64 {
        self.inbound.since
    }

    /// How many streams were reset with an error that only the crate finds.
    pub(super) const fn made(&self) -> u64 {
        self.outbound.made
    }

    /// What the GOAWAY that was sent last says beside its code.
    pub(super) fn why(&self) -> &[u8] {
        let said = self.outbound.read.get(8..self.outbound.said);
        said.unwrap_or_default()
    }

    /// Heads that the crate has refused since this was asked last, when it has shown `accepted` in
    /// all and has no more to show, and all that it answered was taken from it.
    pub(super) fn unseen(&mut self, accepted: u64) -> Unseen {
        let (heads, sent, told) = (self.inbound.looked_at, &self.outbound, self.told);
        let refused = heads.all().saturating_sub(accepted);
        if refused == told.refused && sent.too_many == told.too_many {
            return Unseen::default();
        }
        self.told = Told {
            refused,
            large: heads.large,
            too_many: sent.too_many,
            broke: sent.broke,
        };
        // Streams beyond the last one are passed over, as may be that were on their way.
        if sent.is_leaving {
            return Unseen::default();
        }
        let since = |now: u64, before: u64| now.saturating_sub(before);
        let all = since(refused, told.refused);
        let too_many = since(sent.too_many, told.too_many).min(all);
        let rest = all - too_many;
        // A stream that ends with its head is answered with 431 and no more, and one whose head is
        // malformed is reset. Where a body was to come both are reset: then what came large is
        // taken for what is too large.
        let answered = rest.saturating_sub(since(sent.broke, told.broke));
        let large = since(heads.large, told.large).saturating_sub(answered);
        let too_large = answered + large.min(rest - answered);
        Unseen {
            too_many,
            too_large,
            malformed: rest - too_large,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut bytes = len[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// A connection on which the preface has come.
    fn begun() -> Traffic {
        let mut traffic = Traffic::new(100);
        traffic.read(&[b'x'; PREFACE as usize], || panic!("no head"));
        traffic
    }

    /// A head of so many bytes, in one frame.
    fn head(stream: u32, bytes: usize) -> Vec<u8> {
        frame(HEADERS, END_HEADERS, stream, &vec![7; bytes])
    }

    fn reset(stream: u32, reason: Reason) -> Vec<u8> {
        frame(RST_STREAM, 0, stream, &u32::from(reason).to_be_bytes())
    }

    fn go_away(last: u32, why: &[u8]) -> Vec<u8> {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend([0, 0, 0, 11]);
        payload.extend(why);
        frame(GOAWAY, 0, 0, &payload)
    }

    #[test]
    fn a_head_is_under_way_from_its_first_frame_to_the_end_of_its_last() {
        let mut traffic = begun();
        let first = frame(HEADERS, 0, 1, &[7; 20]);
        // Not before it is known to be one.
        traffic.read(&first[..3], || panic!("unknown"));
        traffic.read(&first[3..5], || 5);
        traffic.read(&first[5..], || 6);
        traffic.read(&frame(CONTINUATION, 0, 1, &[7; 20]), || 7);
        let last = frame(CONTINUATION, END_HEADERS, 1, &[7; 20]);
        traffic.read(&last[..28], || 8);
        assert_eq!(traffic.since(), 5);
        // The next one has its own time.
        let both = [&last[28..], &first].concat();
        traffic.read(&both, || 9);
        assert_eq!(traffic.since(), 9);
        traffic.read(&frame(CONTINUATION, END_HEADERS, 1, &[]), || 10);
        assert_eq!(traffic.since(), 0);
        traffic.read(&frame(0, 0, 1, &[7; 20])[..15], || panic!("no head"));
        assert_eq!(traffic.since(), 0);
    }

    #[test]
    fn heads_that_are_not_shown_were_refused() {
        let mut traffic = begun();
        let read = |traffic: &mut Traffic, bytes: &[u8]| {
            traffic.read(bytes, || 1);
            traffic.ask();
        };
        for stream in [1, 3, 5, 7, 9] {
            read(&mut traffic, &head(stream, 10));
        }
        // Trailers begin no stream.
        read(&mut traffic, &head(5, 10));
        traffic.write(&reset(7, Reason::REFUSED_STREAM));
        traffic.write(&reset(9, Reason::PROTOCOL_ERROR));
        let unseen = traffic.unseen(2);
        let expected = Unseen {
            too_many: 1,
            too_large: 1,
            malformed: 1,
        };
        assert_eq!(unseen, expected);
        // Once.
        assert_eq!(traffic.unseen(2), Unseen::default());
        // One with a body to come, whose answer is followed by a reset.
        read(&mut traffic, &head(11, 200));
        traffic.write(&frame(HEADERS, END_HEADERS | 1, 11, &[7; 5]));
        traffic.write(&reset(11, Reason::PROTOCOL_ERROR));
        let expected = Unseen {
            too_large: 1,
            ..Unseen::default()
        };
        assert_eq!(traffic.unseen(2), expected);
        // What was not looked at yet may be shown later.
        traffic.read(&head(13, 10), || 1);
        assert_eq!(traffic.unseen(2), Unseen::default());
        traffic.ask();
        assert_eq!(traffic.unseen(3), Unseen::default());
        // An announcement of the end is not the end.
        traffic.write(&go_away(NO_STREAM_YET, b""));
        read(&mut traffic, &head(15, 10));
        assert_eq!(traffic.unseen(3).too_large, 1);
        traffic.write(&go_away(15, b""));
        read(&mut traffic, &head(17, 10));
        assert_eq!(traffic.unseen(3), Unseen::default());
    }

    #[test]
    fn the_last_goaway_says_why() {
        let mut traffic = begun();
        assert_eq!(traffic.why(), b"");
        traffic.write(&go_away(NO_STREAM_YET, b""));
        traffic.write(&reset(1, Reason::FLOW_CONTROL_ERROR));
        traffic.write(&reset(3, Reason::CANCEL));
        assert_eq!((traffic.why(), traffic.made()), (&b""[..], 1));
        traffic.write(&go_away(3, b"header_list_way_too_large"));
        assert_eq!(traffic.why(), b"header_list_way_too_large");
        traffic.write(&go_away(3, &[b'x'; 1000]));
        assert_eq!(traffic.why(), [b'x'; READ - 8]);
    }

    /// All that is known of it.
    fn known(traffic: &mut Traffic) -> impl PartialEq + std::fmt::Debug {
        traffic.ask();
        (
            traffic.since() != 0,
            traffic.made(),
            traffic.why().to_vec(),
            traffic.inbound.came,
            traffic.inbound.highest,
            traffic.unseen(0),
        )
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let payload = collection::vec(any::<u8>(), 0..60);
        (0..12_u8, any::<u8>(), 0..20_u32, payload)
            .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload))
    }

    proptest! {
        #[test]
        fn it_is_the_same_in_whatever_pieces_it_comes(
            frames in collection::vec(any_frame(), 0..30),
            rest in collection::vec(any::<u8>(), 0..30),
            sizes in collection::vec(1..40_usize, 1..20),
        ) {
            let mut all = frames.concat();
            all.extend(rest);
            let mut whole = begun();
            whole.read(&all, || 1);
            whole.write(&all);
            let mut pieces = begun();
            let mut left = &all[..];
            for size in sizes.iter().cycle() {
                let (piece, rest) = left.split_at(left.len().min(*size));
                pieces.read(piece, || 1);
                pieces.write(piece);
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(known(&mut whole), known(&mut pieces));
        }
    }
}
