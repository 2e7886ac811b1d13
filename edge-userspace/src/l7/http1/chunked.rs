//! Bodies in chunks (RFC 9112, section 7.1).

use std::ops::Range;

use super::super::head::{Field, Of, Reject, check};
use super::fields::{self, Line};

/// Digits of a chunk size: sixteen could overflow.
const MAX_DIGITS: u8 = 15;

/// Bytes of extensions in a whole body. Nothing uses them, but they may be there.
const MAX_EXTENSIONS: u32 = 16 * 1024;

/// Bytes of a trailer section with its empty line, which has to lie in the buffer as a whole.
pub const MAX_TRAILER: usize = 4096;

/// Fields of a trailer section.
const MAX_TRAILER_FIELDS: usize = 32;

/// What a look at the buffer found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Where data of the body lie; may be empty.
    pub data: Range<usize>,
    /// How many bytes of the buffer are done with when the data are: the next look begins
    /// behind them.
    pub consumed: usize,
    /// Whether the body has ended.
    pub done: bool,
}

/// Finds the data of a chunked body in a buffer that has a part of it at a time.
///
/// Extensions are passed over. White space that RFC 9112 calls bad, and which some take as a
/// part of the number, is refused, as are line feeds alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunked {
    state: State,
    of: Of,
    /// Bytes that the body may still have.
    budget: u64,
    extensions: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a size of which so many digits have been read.
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    /// Before the line feed behind a size.
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    Trailer,
    Done,
}

const SIZE: State = State::Size { size: 0, digits: 0 };

impl Chunked {
    /// Of a request, whose body may have so many bytes.
    #[must_use]
    pub const fn request(body_bytes: u64) -> Self {
        Self {
            state: SIZE,
            of: Of::Request,
            budget: body_bytes,
            extensions: 0,
        }
    }

    /// Of an answer, whose body may be of any size.
    #[must_use]
    pub const fn response() -> Self {
        Self {
            state: SIZE,
            of: Of::Response,
            budget: u64::MAX,
            extensions: 0,
        }
    }

    /// Looks at what lies in `buf`, behind what earlier looks consumed.
    ///
    /// When nothing was consumed and the body has not ended, more bytes are needed; the
    /// trailer section is consumed as a whole, and of at most [`MAX_TRAILER`] bytes. With the
    /// end of the body its trailers are put into `trailers`, as spans of this `buf`.
    ///
    /// # Errors
    ///
    /// Why the body is refused; nothing of the buffer can be used then.
    pub fn step(&mut self, buf: &[u8], trailers: &mut Vec<Field>) -> Result<Step, Reject> {
        let mut at = 0;
        while self.state != State::Trailer && self.state != State::Done {
            if let State::Data { left } = self.state {
                let len = usize::try_from(left).unwrap_or(usize::MAX);
                let len = len.min(buf.len() - at);
                self.state = match left - len as u64 {
                    0 => State::DataCr,
                    left => State::Data { left },
                };
                return Ok(Step {
                    data: at..at + len,
                    consumed: at + len,
                    done: false,
                });
            }
            let Some(byte) = buf.get(at) else {
                return Ok(Step {
                    data: at..at,
                    consumed: at,
                    done: false,
                });
            };
            self.state = self.next(*byte)?;
            at += 1;
        }
        let end = match self.state {
            State::Trailer => self.trailer(buf, at, trailers)?,
            _ => Some(at),
        };
        if end.is_some() {
            self.state = State::Done;
        }
        let consumed = end.unwrap_or(at);
        Ok(Step {
            data: consumed..consumed,
            consumed,
            done: end.is_some(),
        })
    }

    /// The state behind one byte of framing.
    fn next(&mut self, byte: u8) -> Result<State, Reject> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_DIGITS {
                    return Err(Reject::ChunkSize);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                State::Size {
                    size: (size << 4) | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (State::Size { digits: 0, .. }, _) => return Err(Reject::ChunkSize),
            (State::Size { size, .. }, b';') => State::Extension { size },
            (State::Size { size, .. } | State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Size { .. } | State::Extension { .. }, b'\n') => return Err(Reject::ChunkEnd),
            (State::Size { .. }, _) => return Err(Reject::ChunkSize),
            (State::Extension { .. }, _) => {
                self.extensions += 1;
                if check::text(&[byte]) == 0 || self.extensions > MAX_EXTENSIONS {
                    return Err(Reject::ChunkExtension);
                }
                self.state
            }
            (State::SizeLf { size: 0 }, b'\n') => State::Trailer,
            (State::SizeLf { size }, b'\n') => {
                self.budget = self.budget.checked_sub(size).ok_or(Reject::BodyTooLarge)?;
                State::Data { left: size }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => SIZE,
            (State::SizeLf { .. } | State::DataCr | State::DataLf, _) => {
                return Err(Reject::ChunkEnd);
            }
            (state @ (State::Data { .. } | State::Trailer | State::Done), _) => state,
        })
    }

    /// Reads the trailer section that begins at `start`, and says where it ends if it has
    /// been seen.
    fn trailer(
        &self,
        buf: &[u8],
        start: usize,
        trailers: &mut Vec<Field>,
    ) -> Result<Option<usize>, Reject> {
        let window = &buf[..buf.len().min(start + MAX_TRAILER)];
        let mut at = start;
        trailers.clear();
        loop {
            let line = fields::line(window, at, self.of, MAX_TRAILER_FIELDS, trailers);
            at = match line {
                Ok(Line::End(end)) => return Ok(Some(end)),
                Ok(Line::Field(next)) => next,
                Ok(Line::Partial) if window.len() < start + MAX_TRAILER => return Ok(None),
                Ok(Line::Partial) | Err(Reject::FieldsTooMany) => {
                    return Err(Reject::TrailerTooLarge);
                }
                Err(reject) => return Err(reject),
            };
            if let Some(field) = trailers.last_mut() {
                if field.known.is_framing() {
                    return Err(Reject::TrailerField);
                }
                field.kept &= field.known.may_trail();
            }
        }
    }
}
