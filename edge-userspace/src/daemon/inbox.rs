//! What waits for the engine.
//!
//! Changes are carried out one after the other, in order. While one of them
//! takes long, what only reads is answered in between: it is told what was
//! before the change. Other changes wait, also small ones: the store writes one
//! transaction at a time, and a change that fails puts back what it found,
//! which another one may not have altered meanwhile.

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use super::{QUEUE, facts::Command};
use crate::control::protocol::{Failure, Request, Response};

/// What waits for the engine, in order.
pub(super) struct Inbox {
    commands: Receiver<Command>,
    /// Came while something else was under way, and changes something; at the
    /// most [`QUEUE`].
    held: VecDeque<Command>,
}

impl Inbox {
    pub(super) const fn new(commands: Receiver<Command>) -> Self {
        Self {
            commands,
            held: VecDeque::new(),
        }
    }

    /// The next command, waited for at the most so long.
    ///
    /// # Errors
    /// When none comes, or none can come any more.
    pub(super) fn next(&mut self, patience: Duration) -> Result<Command, RecvTimeoutError> {
        match self.held.pop_front() {
            Some(command) => Ok(command),
            None => self.commands.recv_timeout(patience),
        }
    }

    /// Answers what `read` answers of all that has come, and holds back the rest.
    pub(super) fn answer(
        &mut self,
        mut read: impl FnMut(&Request) -> Option<Result<Response, Failure>>,
    ) {
        // No more in one go, so that asking without end does not hold up a change.
        for _ in 0..QUEUE {
            if self.held.len() == QUEUE {
                return;
            }
            match self.commands.try_recv() {
                Ok(Command::Request(request, reply)) => match read(&request) {
                    Some(answer) => reply.send(answer),
                    None => self.held.push_back(Command::Request(request, reply)),
                },
                Ok(other) => self.held.push_back(other),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::control::server::{Pending, Reply};

    const SOON: Duration = Duration::from_millis(1);

    fn lookup() -> Request {
        let address = [192, 0, 2, 1].into();
        Request::Lookup { address }
    }

    fn read(request: &Request) -> Option<Result<Response, Failure>> {
        matches!(request, Request::Lookup { .. }).then(|| Ok(Response::EventsEnd {}))
    }

    #[test]
    fn what_reads_overtakes_what_changes_and_that_keeps_its_order() {
        let (sender, commands) = sync_channel(8);
        let mut inbox = Inbox::new(commands);
        let ask = |request| -> Pending {
            let (reply, pending) = Reply::channel();
            sender.send(Command::Request(request, reply)).unwrap();
            pending
        };
        let _first = ask(Request::Reload {});
        let mut answered = ask(lookup());
        sender.send(Command::Stop).unwrap();
        let mut after = ask(lookup());
        inbox.answer(read);
        assert!(answered.answer.try_recv().unwrap().is_ok());
        assert!(after.answer.try_recv().unwrap().is_ok());
        let _last = ask(Request::Limits {});
        let next = |inbox: &mut Inbox| match inbox.next(SOON) {
            Ok(Command::Request(request, _)) => Some(request),
            Ok(Command::Stop | Command::HandOver | Command::Replan | Command::Ban(_)) => None,
            Err(e) => panic!("{e}"),
        };
        assert_eq!(next(&mut inbox), Some(Request::Reload {}));
        assert_eq!(next(&mut inbox), None);
        assert_eq!(next(&mut inbox), Some(Request::Limits {}));
        assert!(inbox.next(SOON).is_err());
    }

    #[test]
    fn no_more_is_held_back_than_may_wait() {
        let (sender, commands) = sync_channel(2 * QUEUE);
        let mut inbox = Inbox::new(commands);
        for _ in 0..QUEUE + 1 {
            let (reply, _) = Reply::channel();
            let command = Command::Request(Request::Reload {}, reply);
            sender.send(command).unwrap();
        }
        for _ in 0..3 {
            inbox.answer(read);
            assert_eq!(inbox.held.len(), QUEUE);
        }
    }
}
