//! The checks of a request that need nothing but the request. They are made
//! by the server, before the engine sees it.

use super::protocol::{
    Failure, FailureKind, FeedName, ImportHeader, LimitValue, MAX_CHUNK, MAX_NOTE, MAX_PAGE,
    MAX_TTL_S, Origin, Request, ServerChange, SetLimit,
};
use crate::config::proxy::upstream::MAX_WEIGHT;

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Invalid, message)
}

/// Checks a request.
///
/// # Errors
/// [`FailureKind::Invalid`] with what is wrong.
pub fn request(request: &Request) -> Result<(), Failure> {
    match request {
        Request::Add(a) => {
            header(&a.header)?;
            count(a.prefixes.len())
        }
        Request::Remove { prefixes, .. } => count(prefixes.len()),
        Request::List { limit, .. } if !(1..=MAX_PAGE).contains(limit) => Err(invalid(format!(
            "limit is {limit}; a page has 1 to {MAX_PAGE} entries"
        ))),
        Request::SetLimit(s) => set_limit(s),
        Request::Flush { origin, feed, .. } => feed_of(*origin, feed.as_ref()),
        Request::Upstream {
            change: ServerChange::Weight { weight },
            ..
        } if u32::from(*weight) > MAX_WEIGHT => Err(invalid(format!(
            "weight is {weight}; a server has 0 to {MAX_WEIGHT}"
        ))),
        Request::Upgrade { timeout_ms: 0, .. } => {
            Err(invalid("a time-out of 0; give the new process some time"))
        }
        Request::Upgrade {
            binary: Some(path), ..
        } if path.is_relative() => Err(invalid(format!(
            "{}: a relative path, which means another file to the daemon; give the whole path",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn count(prefixes: usize) -> Result<(), Failure> {
    match prefixes {
        0 => Err(invalid("no prefix given")),
        1..=MAX_CHUNK => Ok(()),
        n => Err(invalid(format!(
            "{n} prefixes in one request; at most {MAX_CHUNK}, use an import for more"
        ))),
    }
}

/// Checks the head of an import.
///
/// # Errors
/// [`FailureKind::Invalid`] with what is wrong.
pub fn header(header: &ImportHeader) -> Result<(), Failure> {
    note(&header.note)?;
    feed_of(Some(header.origin), header.feed.as_ref())?;
    if header.replace && header.feed.is_none() {
        return Err(invalid(
            "replace removes all other entries of a feed, and no feed is given: name it (--feed)",
        ));
    }
    match header.ttl_s {
        None | Some(1..=MAX_TTL_S) => Ok(()),
        Some(s) => Err(invalid(format!(
            "a time to live of {s} seconds; it must be 1 second to 3650 days"
        ))),
    }
}

fn feed_of(origin: Option<Origin>, feed: Option<&FeedName>) -> Result<(), Failure> {
    match (origin, feed) {
        (None | Some(Origin::Feed), _) | (_, None) => Ok(()),
        (Some(other), Some(feed)) => Err(invalid(format!(
            "the feed {feed} is given, but entries of origin {} are of no feed",
            other.name()
        ))),
    }
}

/// Checks a note: it has to fit in a line of an export.
///
/// # Errors
/// [`FailureKind::Invalid`] with what is wrong.
pub fn note(note: &str) -> Result<(), Failure> {
    if note.len() > MAX_NOTE {
        return Err(invalid(format!(
            "the note has {} bytes; at most {MAX_NOTE}",
            note.len()
        )));
    }
    if note.chars().any(char::is_control) {
        return Err(invalid(
            "the note has control characters; write it as one line of plain text",
        ));
    }
    Ok(())
}

fn set_limit(set: &SetLimit) -> Result<(), Failure> {
    if set.rate.is_none() && set.mode.is_none() {
        return Err(invalid("neither a rate nor a mode is given"));
    }
    if set.prefix.is_some() && set.mode.is_some() {
        return Err(invalid(
            "a mode holds for all sources; set it without a prefix",
        ));
    }
    match set.rate {
        Some(LimitValue::Rate { per_second: 0, .. } | LimitValue::Rate { burst: 0, .. }) => Err(
            invalid("rate and burst are at least 1; to drop everything, use the blacklist"),
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use edge_common::abi::{LimitKind, Mode};

    use super::*;
    use crate::control::protocol::{Addition, List};

    fn add(change: impl FnOnce(&mut Addition)) -> Result<(), Failure> {
        let mut addition = Addition {
            header: ImportHeader {
                list: List::Black,
                origin: Origin::Cli,
                feed: None,
                ttl_s: Some(MAX_TTL_S),
                note: "n".repeat(MAX_NOTE),
                replace: false,
            },
            prefixes: vec!["10.0.0.0/8".parse().unwrap(); MAX_CHUNK],
        };
        change(&mut addition);
        request(&Request::Add(addition))
    }

    #[test]
    fn additions_are_bounded() {
        add(|_| ()).unwrap();
        add(|a| a.header.ttl_s = None).unwrap();
        for (change, word) in [
            (
                (|a: &mut Addition| a.header.ttl_s = Some(0)) as fn(&mut Addition),
                "1 second",
            ),
            (|a| a.header.ttl_s = Some(u64::MAX), "3650 days"),
            (|a| a.header.note.push('n'), "257 bytes"),
            (|a| a.header.note = "a\nb".to_owned(), "control"),
            (|a| a.header.feed = "x".parse().ok(), "origin cli"),
            (|a| a.header.replace = true, "--feed"),
            (
                |a| {
                    a.header.origin = Origin::Feed;
                    a.header.replace = true;
                },
                "--feed",
            ),
            (|a| a.prefixes.clear(), "no prefix"),
            (|a| a.prefixes.push(a.prefixes[0]), "import"),
        ] {
            let e = add(change).unwrap_err();
            assert_eq!(e.kind, FailureKind::Invalid);
            assert!(e.message.contains(word), "{}", e.message);
        }
    }

    #[test]
    fn a_feed_that_is_named_can_be_replaced() {
        add(|a| {
            a.header.origin = Origin::Feed;
            a.header.feed = "drop".parse().ok();
            a.header.replace = true;
        })
        .unwrap();
    }

    #[test]
    fn weights_are_bounded() {
        let weight = |weight: u32| {
            request(&Request::Upstream {
                name: "app".to_owned(),
                server: "10.0.0.1:80".to_owned(),
                change: ServerChange::Weight {
                    weight: u16::try_from(weight).unwrap(),
                },
            })
        };
        weight(0).unwrap();
        weight(MAX_WEIGHT).unwrap();
        weight(MAX_WEIGHT + 1).unwrap_err();
    }

    #[test]
    fn limits_say_something_that_makes_sense() {
        let rate = LimitValue::Rate {
            per_second: 5,
            burst: 5,
        };
        let set = |rate, mode, prefix| {
            request(&Request::SetLimit(SetLimit {
                kind: LimitKind::Syn,
                prefix,
                rate,
                mode,
            }))
        };
        let prefix = Some("10.0.0.0/8".parse().unwrap());
        set(Some(rate), None, prefix).unwrap();
        set(Some(rate), Some(Mode::Off), None).unwrap();
        set(Some(LimitValue::Unlimited), None, None).unwrap();
        set(None, None, None).unwrap_err();
        set(None, Some(Mode::Enforce), prefix).unwrap_err();
        let zero = LimitValue::Rate {
            per_second: 5,
            burst: 0,
        };
        set(Some(zero), None, None).unwrap_err();
    }
}
