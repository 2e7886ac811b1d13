//! What waits for the engine.
//!
//! Changes are carried out one after the other, in order. While one of them
//! takes long, what only reads is answered in between: it is told what was
//! before the change. Other changes wait, also small ones: the store writes one
//! transaction at a time, and a change that fails puts back what it found,
//! which another one may not have altered meanwhile. Bans of the proxy, which are small and
//! urgent, take turns with what came before them.

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
    /// Whether a ban was the last to overtake others.
    has_banned: bool,
}

impl Inbox {
    pub(super) const fn new(commands: Receiver<Command>) -> Self {
        Self {
            commands,
            held: VecDeque::new(),
            has_banned: false,
        }
    }

    /// The next command, waited for at the most so long.
    ///
    /// # Errors
    /// When none comes, or none can come any more.
    pub(super) fn next(&mut self, patience: Duration) -> Result<Command, RecvTimeoutError> {
        while self.held.len() < QUEUE
            && let Ok(command) = self.commands.try_recv()
        {
            self.held.push_back(command);
        }
        // Every other time, so that bans without end hold up nothing.
        let is_ban = |command: &Command| matches!(command, Command::Ban(_));
        let ban = self.held.iter().position(is_ban);
        let ban = ban.filter(|_| !self.has_banned);
        self.has_banned = ban.is_some();
        match self.held.remove(ban.unwrap_or(0)) {
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

    use edge_common::addr::Prefix;

    use super::*;
    use crate::{
        control::server::{Pending, Reply},
        l7::proxy::Ban,
    };

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
    fn bans_overtake_others_and_hold_up_none() {
        let (sender, commands) = sync_channel(2 * QUEUE);
        let mut inbox = Inbox::new(commands);
        let ban = |n: u8| {
            let address = [192, 0, 2, n].into();
            let ban = Ban {
                source: Prefix::host(address),
                address,
                ttl: SOON,
                note: String::new(),
            };
            sender.send(Command::Ban(ban)).unwrap();
        };
        for _ in 0..2 {
            sender.send(Command::Replan).unwrap();
        }
        (1..4).for_each(ban);
        sender.send(Command::Stop).unwrap();
        let next = |inbox: &mut Inbox| match inbox.next(SOON).unwrap() {
            Command::Ban(ban) => ban.source.to_string(),
            Command::Replan => "replan".to_owned(),
            Command::Stop => "stop".to_owned(),
            _ => "other".to_owned(),
        };
        let all: Vec<String> = (0..6).map(|_| next(&mut inbox)).collect();
        assert_eq!(
            all,
            [
                "192.0.2.1",
                "replan",
                "192.0.2.2",
                "replan",
                "192.0.2.3",
                "stop"
            ]
        );
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
