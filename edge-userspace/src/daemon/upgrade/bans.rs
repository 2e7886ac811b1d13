//! Bans that the proxy of an old process orders, which has no engine any more: the new process
//! carries them out.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    sync::mpsc::{Sender, channel},
    task::JoinHandle,
};
use tracing::warn;

use super::successor::Successor;
use crate::{
    control::protocol::{Failure, FailureKind},
    daemon::{
        QUEUE,
        facts::{Command, Shared},
        inbox::Inbox,
    },
    l7::proxy::Ban,
};

/// Brings bans to the new process.
pub(in crate::daemon) struct Carrier(JoinHandle<Successor>);

impl Carrier {
    /// Begins with those that wait for an engine already. Whoever waits for an answer of it hears
    /// that there is none.
    pub(super) fn start(inbox: Inbox, mut successor: Successor) -> Self {
        let (bans, mut ordered) = channel(QUEUE);
        let read = move || read(inbox, &bans);
        if let Err(e) = thread::Builder::new().name("bans".into()).spawn(read) {
            warn!("clients of old connections are not banned any more: {e}");
        }
        Self(tokio::spawn(async move {
            while let Some(ban) = ordered.recv().await {
                if let Err(e) = successor.ban(ban).await {
                    warn!("the new process bans no clients of old connections: {e}");
                    break;
                }
            }
            successor
        }))
    }

    /// Waits until all that were ordered are on their way.
    ///
    /// # Errors
    /// When it has panicked.
    pub(in crate::daemon) async fn finish(self, shared: &Arc<Shared>) -> Result<Successor> {
        let shared = shared.clone();
        // It comes after all others.
        tokio::task::spawn_blocking(move || shared.command(Command::Stop)).await?;
        self.0.await.context("bans were not handed over")
    }
}

fn read(mut inbox: Inbox, bans: &Sender<Ban>) {
    while let Ok(command) = inbox.next(Duration::MAX) {
        match command {
            Command::Ban(ban) => {
                if bans.blocking_send(ban).is_err() {
                    return;
                }
            }
            Command::Request(_, reply) => {
                let text = "another process has taken over and did not hear of this; try again";
                reply.send(Err(Failure::new(FailureKind::Busy, text)));
            }
            Command::Stop => return,
            Command::Replan | Command::HandOver => {}
        }
    }
}
