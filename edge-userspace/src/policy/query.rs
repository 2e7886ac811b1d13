//! Reading the lists.

use super::{Policy, PolicyError};
use crate::{
    clock::Now,
    entry::{List, Origin, Source},
    store::{Claim, Record},
};
use edge_common::addr::Prefix;
use std::{net::IpAddr, sync::Arc};

/// An entry as a person sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryView {
    /// What it lists.
    pub prefix: Prefix,
    /// Which list it is on.
    pub list: List,
    /// Who has it there.
    pub source: Source,
    /// When it was added, Unix time in milliseconds; 0 for the configuration file's.
    pub created_unix_ms: u64,
    /// When it runs out, likewise; `None` for never.
    pub expires_unix_ms: Option<u64>,
    /// What a person wrote about it.
    pub note: Arc<str>,
    /// Packets that matched it, on whichever list, since it is in the tables.
    pub hits: u32,
}

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries in the order of their prefixes; one prefix has
    /// an entry for each source of it, that of the configuration file first.
    pub entries: Vec<EntryView>,
    /// Where the next page goes on; `None` at the end.
    pub next: Option<Prefix>,
}

impl Policy {
    /// About `limit` entries of a list, behind `after` and inside `within`.
    ///
    /// # Errors
    /// [`PolicyError::Store`].
    pub fn list(
        &self,
        list: List,
        within: Option<Prefix>,
        after: Option<Prefix>,
        limit: usize,
        now: Now,
    ) -> Result<Page, PolicyError> {
        let entries = self.store.read()?;
        let mut stored = entries.range(list, after, within)?.peekable();
        let mut file = self.system.range(list, after, within).peekable();
        let mut page = Page::default();
        loop {
            let from_store = match stored.peek() {
                Some(Ok((prefix, _))) => Some(*prefix),
                Some(Err(_)) | None => None,
            };
            if let Some(Err(e)) = stored.next_if(Result::is_err) {
                return Err(e.into());
            }
            let Some(prefix) = [from_store, file.peek().copied()]
                .into_iter()
                .flatten()
                .min()
            else {
                return Ok(page);
            };
            if page.entries.len() >= limit {
                page.next = page.entries.last().map(|e| e.prefix);
                return Ok(page);
            }
            if file.next_if_eq(&prefix).is_some() {
                page.entries.push(self.of_file(list, prefix));
            }
            if from_store == Some(prefix)
                && let Some(item) = stored.next()
            {
                let (_, record) = item?;
                page.entries.extend(self.views(list, prefix, record, now));
            }
        }
    }

    /// Every entry that covers an address, the longest prefix first.
    ///
    /// # Errors
    /// [`PolicyError::Store`].
    pub fn lookup(&self, addr: IpAddr, now: Now) -> Result<Vec<EntryView>, PolicyError> {
        let entries = self.store.read()?;
        let mut found = Vec::new();
        let mut at = Some(Prefix::host(addr));
        while let Some(prefix) = at {
            for list in [List::Allow, List::Black] {
                if self.system.own(prefix).lists(list) {
                    found.push(self.of_file(list, prefix));
                }
                if let Some(record) = entries.get(list, prefix)? {
                    found.extend(self.views(list, prefix, record, now));
                }
            }
            at = prefix.parent();
        }
        Ok(found)
    }

    fn of_file(&self, list: List, prefix: Prefix) -> EntryView {
        EntryView {
            prefix,
            list,
            source: Source::new(Origin::File, None),
            created_unix_ms: 0,
            expires_unix_ms: None,
            note: "".into(),
            hits: self.tables.hits(prefix),
        }
    }

    /// The entries of a record, without those that have run out.
    fn views(
        &self,
        list: List,
        prefix: Prefix,
        record: Record,
        now: Now,
    ) -> impl Iterator<Item = EntryView> {
        let hits = self.tables.hits(prefix);
        let at = self.store.moment(now);
        let in_force = move |c: &Claim| !c.has_expired(at);
        let claims = record.claims.into_iter().filter(in_force);
        claims.map(move |claim| EntryView {
            prefix,
            list,
            source: claim.source,
            created_unix_ms: claim.created_unix_ms,
            expires_unix_ms: claim.expires_unix_ms,
            note: claim.note,
            hits,
        })
    }
}
