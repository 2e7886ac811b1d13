//! Time-outs: which one of a request ends first.

/// What the configuration says, nanoseconds each; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until there is a connection to the server.
    pub connect: u64,
    /// From the end of the request to the head of the answer.
    pub first_byte: u64,
    /// Between two pieces of the body of the request or of the answer.
    pub between_bytes: u64,
    /// The whole request, with all tries and waits.
    pub request: u64,
}

/// A kind of time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// [`Timeouts::connect`].
    Connect,
    /// [`Timeouts::first_byte`].
    FirstByte,
    /// [`Timeouts::between_bytes`].
    BetweenBytes,
    /// [`Timeouts::request`].
    Request,
}

impl Timeout {
    /// Its key in the configuration, and its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
            Self::BetweenBytes => "between_bytes",
            Self::Request => "request",
        }
    }
}

/// The time of the whole request is shorter than that of a part, which could never end by
/// its own time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`request` is shorter than `{}`, which could then never run out: raise `request` or lower `{}`",
    inner.name(), inner.name()
)]
pub struct Shorter {
    /// The part.
    pub inner: Timeout,
}

impl Timeouts {
    /// Checks that no part has more time than the whole.
    ///
    /// # Errors
    /// The first part that has.
    pub fn check(&self) -> Result<(), Shorter> {
        let inner = [Timeout::Connect, Timeout::FirstByte, Timeout::BetweenBytes];
        match inner
            .into_iter()
            .find(|&inner| self.request < self.of(inner))
        {
            Some(inner) if self.request > 0 => Err(Shorter { inner }),
            _ => Ok(()),
        }
    }

    /// The time of one kind.
    pub const fn of(&self, timeout: Timeout) -> u64 {
        match timeout {
            Timeout::Connect => self.connect,
            Timeout::FirstByte => self.first_byte,
            Timeout::BetweenBytes => self.between_bytes,
            Timeout::Request => self.request,
        }
    }
}

/// No end.
const NEVER: u64 = u64::MAX;

/// When a request's time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    timeouts: Timeouts,
    request: u64,
    part: (u64, Timeout),
}

impl Deadlines {
    /// Of a request that begins now.
    pub const fn new(timeouts: Timeouts, now: u64) -> Self {
        Self {
            request: end(now, timeouts.request),
            part: (NEVER, Timeout::Request),
            timeouts,
        }
    }

    /// Begins a part, or the wait for its next piece, and ends the part before. With
    /// [`Timeout::Request`] only the whole is bounded: in a queue, or before another try.
    pub const fn begin(&mut self, part: Timeout, now: u64) {
        let length = match part {
            Timeout::Request => 0,
            part => self.timeouts.of(part),
        };
        self.part = (end(now, length), part);
    }

    /// The end that comes first, and whose it is; `None` if there is none. The whole
    /// request's comes before one of a part at the same time.
    pub const fn next(&self) -> Option<(u64, Timeout)> {
        let (at, part) = self.part;
        if self.request == NEVER && at == NEVER {
            None
        } else if self.request <= at {
            Some((self.request, Timeout::Request))
        } else {
            Some((at, part))
        }
    }

    /// What has run out.
    pub const fn expired(&self, now: u64) -> Option<Timeout> {
        match self.next() {
            Some((at, timeout)) if at <= now => Some(timeout),
            _ => None,
        }
    }

    /// How much time the whole request has left, nanoseconds; `None` if it is not bounded.
    pub const fn left(&self, now: u64) -> Option<u64> {
        if self.request == NEVER {
            None
        } else {
            Some(self.request.saturating_sub(now))
        }
    }
}

const fn end(now: u64, length: u64) -> u64 {
    match length {
        0 => NEVER,
        length => now.saturating_add(length),
    }
}
