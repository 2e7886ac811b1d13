//! Bodies on their way from one side to the other.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use super::{
    back::Back,
    conn::arm,
    front::Front,
    link::BodyError,
    timers::{Expired, Timer},
    worker::Worker,
};
use crate::l7::resilience::{Deadlines, Timeout};

/// Which side ended an exchange.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    /// The client: it went away, or its body is not as it should be.
    Client(BodyError),
    /// The server, likewise.
    Server,
    /// Nobody did anything for too long.
    Expired,
}

impl From<Expired> for Side {
    fn from(_: Expired) -> Self {
        Self::Expired
    }
}

/// The client's connection broke.
const GONE: Side = Side::Client(BodyError::Broken);

/// Moves the request's body on as far as it goes; ready at its end. Counts its bytes.
pub(super) fn poll_up<F: Front>(
    cx: &mut Context<'_>,
    from: &mut F,
    to: &mut Back,
    moved: &mut u64,
) -> Poll<Result<(), Side>> {
    loop {
        match from.poll_body(cx) {
            Poll::Ready(Ok(true)) => {
                let sent = to.poll_send(cx, from.data());
                if sent.is_pending() {
                    from.read_ahead(cx).map_err(Side::Client)?;
                }
                let n = ready!(sent).map_err(|_| Side::Server)?;
                from.consume(n);
                *moved += n as u64;
            }
            Poll::Ready(Ok(false)) => {
                let (trailers, of) = from.trailers();
                to.finish(trailers, of);
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(e)) => return Poll::Ready(Err(Side::Client(e))),
            Poll::Pending => {
                if to.has_out()
                    && let Poll::Ready(Err(_)) = to.poll_drain(cx)
                {
                    return Poll::Ready(Err(Side::Server));
                }
                return Poll::Pending;
            }
        }
    }
}

/// The same for the answer's body.
fn poll_down<F: Front>(
    cx: &mut Context<'_>,
    from: &mut Back,
    to: &mut F,
    moved: &mut u64,
) -> Poll<Result<(), Side>> {
    loop {
        match from.poll_body(cx) {
            Poll::Ready(Ok(true)) => {
                let sent = to.poll_send(cx, from.data());
                if sent.is_pending() {
                    from.read_ahead(cx);
                }
                let n = ready!(sent).map_err(|_| GONE)?;
                from.consume(n);
                *moved += n as u64;
            }
            Poll::Ready(Ok(false)) => {
                let (trailers, of) = from.trailers();
                to.finish(trailers, of);
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::Server)),
            Poll::Pending => {
                if to.has_out()
                    && let Poll::Ready(Err(_)) = to.poll_drain(cx)
                {
                    return Poll::Ready(Err(GONE));
                }
                return Poll::Pending;
            }
        }
    }
}

/// What is under way of an exchange.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Whether the whole request has been sent.
    pub(super) sent: bool,
    /// Whether the server takes no more of it.
    pub(super) is_refused: bool,
    /// Bytes of bodies to the server, and to the client.
    pub(super) up: u64,
    pub(super) down: u64,
}

/// Brings the answer to its end, and as much of the request as the server takes until then.
///
/// # Errors
/// When one side does not go on.
pub(super) async fn answer<F: Front>(
    (timer, deadlines): (&Timer, &mut Deadlines),
    client_side: &mut F,
    server_side: &mut Back,
    progress: &mut Progress,
) -> Result<(), Side> {
    let mut is_down = false;
    deadlines.begin(Timeout::BetweenBytes, Worker::now());
    arm(timer, deadlines);
    let moving = poll_fn(|cx| {
        let before = (progress.up, progress.down);
        if !is_down && poll_down(cx, server_side, client_side, &mut progress.down)?.is_ready() {
            is_down = true;
        }
        if is_down {
            return client_side.poll_drain(cx).map_err(|_| GONE);
        }
        if !progress.sent && !progress.is_refused {
            match poll_up(cx, client_side, server_side, &mut progress.up) {
                Poll::Ready(Ok(())) => progress.sent = true,
                // What it says is still to come.
                Poll::Ready(Err(Side::Server)) => progress.is_refused = true,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {}
            }
        }
        // What is wrong with a body that nobody wants is no matter.
        if progress.is_refused
            && let Err(BodyError::Broken) = client_side.read_ahead(cx)
        {
            return Poll::Ready(Err(GONE));
        }
        if progress.sent && !progress.is_refused && server_side.has_out() {
            progress.is_refused = matches!(server_side.poll_drain(cx), Poll::Ready(Err(_)));
        }
        if before != (progress.up, progress.down) {
            deadlines.begin(Timeout::BetweenBytes, Worker::now());
            arm(timer, deadlines);
        }
        // What the server has yet to say, nobody waits for.
        if client_side.has_ended() && client_side.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(GONE));
        }
        Poll::Pending
    });
    timer.within(moving).await?
}

/// Carries bytes both ways until both sides have ended, or nothing comes for `patience`
/// nanoseconds.
///
/// # Errors
/// When one side breaks.
pub(super) async fn tunnel<F: Front>(
    timer: &Timer,
    patience: u64,
    client_side: &mut F,
    server_side: &mut Back,
    progress: &mut Progress,
) -> Result<(), Side> {
    client_side.become_tunnel();
    server_side.become_tunnel();
    let (mut up, mut down) = (Way::Open, Way::Open);
    timer.set(Worker::now().saturating_add(patience));
    let moving = poll_fn(|cx| {
        let before = (progress.up, progress.down);
        if down == Way::Open
            && poll_down(cx, server_side, client_side, &mut progress.down)?.is_ready()
        {
            down = Way::Ending;
        }
        if down == Way::Ending
            && client_side.poll_drain(cx).map_err(|_| GONE)?.is_ready()
            && client_side.poll_close(cx).map_err(|_| GONE)?.is_ready()
        {
            down = Way::Ended;
        }
        if up == Way::Open && poll_up(cx, client_side, server_side, &mut progress.up)?.is_ready() {
            up = Way::Ending;
        }
        if up == Way::Ending
            && server_side
                .poll_drain(cx)
                .map_err(|_| Side::Server)?
                .is_ready()
            && server_side
                .poll_close(cx)
                .map_err(|_| Side::Server)?
                .is_ready()
        {
            up = Way::Ended;
        }
        if before != (progress.up, progress.down) {
            timer.set(Worker::now().saturating_add(patience));
        }
        if up == Way::Ended && down == Way::Ended {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    });
    timer.within(moving).await?
}

/// How far one way of a tunnel has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// What is left is sent.
    Ending,
    Ended,
}
