//! What is said of an entry of the lists wherever it is: in the store, the
//! engine and on the control socket.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum List {
    /// The blacklist.
    #[serde(rename = "blacklist")]
    Black,
    /// The allowlist.
    #[serde(rename = "allowlist")]
    Allow,
}

impl List {
    /// The word for it, also the value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Black => "blacklist",
            Self::Allow => "allowlist",
        }
    }
}

/// Where an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// `blacklist add` and `allow add`.
    Cli,
    /// The configuration file.
    File,
    /// `blacklist import` and `allow import`.
    Feed,
    /// A verdict of the proxy.
    L7,
    /// A verdict of the packet path.
    Auto,
}

impl Origin {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::File => "file",
            Self::Feed => "feed",
            Self::L7 => "l7",
            Self::Auto => "auto",
        }
    }
}

/// The longest name of a feed, in bytes.
pub const MAX_FEED_NAME: usize = 64;

/// The name of a feed: entries of one feed do not replace those of another.
/// Letters, digits, `.`, `_` and `-` of ASCII, at most [`MAX_FEED_NAME`],
/// beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FeedName(Arc<str>);

/// What was given is no name of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a feed is named with letters, digits, '.', '_' and '-', at most {MAX_FEED_NAME}, the first a letter or digit"
)]
pub struct BadFeedName;

impl FeedName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for FeedName {
    /// The feed of imports that name none.
    fn default() -> Self {
        Self("default".into())
    }
}

impl FromStr for FeedName {
    type Err = BadFeedName;

    fn from_str(text: &str) -> Result<Self, BadFeedName> {
        let sound = text.len() <= MAX_FEED_NAME
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if sound {
            Ok(Self(text.into()))
        } else {
            Err(BadFeedName)
        }
    }
}

impl TryFrom<String> for FeedName {
    type Error = BadFeedName;

    fn try_from(text: String) -> Result<Self, BadFeedName> {
        text.parse()
    }
}

impl From<FeedName> for String {
    fn from(name: FeedName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for FeedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who has an entry on a list. Several may have the same one, each with its own
/// expiry and note; it is in force as long as one of them wants it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Where it comes from.
    pub origin: Origin,
    /// Of which feed: given for [`Origin::Feed`], and for no other.
    pub feed: Option<FeedName>,
}

impl Source {
    /// A source of this origin; of the feed of that name, or of the default one,
    /// when it is a feed.
    pub fn new(origin: Origin, feed: Option<FeedName>) -> Self {
        Self {
            origin,
            feed: (origin == Origin::Feed).then(|| feed.unwrap_or_default()),
        }
    }

    /// Whether it is of this origin and this feed, where they are given.
    pub fn is(&self, origin: Option<Origin>, feed: Option<&FeedName>) -> bool {
        origin.is_none_or(|origin| origin == self.origin)
            && feed.is_none_or(|feed| Some(feed) == self.feed.as_ref())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.origin.name())?;
        match &self.feed {
            Some(feed) => write!(f, " {feed}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_feeds_are_words() {
        let longest = "x".repeat(MAX_FEED_NAME);
        for good in ["drop", "DROP-v6.2", "1", "a_b", &longest] {
            assert_eq!(good.parse::<FeedName>().unwrap().as_str(), good);
        }
        let long = "x".repeat(MAX_FEED_NAME + 1);
        for bad in ["", ".x", "-x", "a b", "a/b", "é", "a\n", &long] {
            assert_eq!(bad.parse::<FeedName>(), Err(BadFeedName), "{bad:?}");
        }
        assert!(serde_json::from_str::<FeedName>("\"a b\"").is_err());
    }

    #[test]
    fn only_feeds_have_names() {
        let name: FeedName = "drop".parse().unwrap();
        let feed = Source::new(Origin::Feed, Some(name.clone()));
        assert_eq!(feed.to_string(), "feed drop");
        assert_eq!(Source::new(Origin::Feed, None).to_string(), "feed default");
        let cli = Source::new(Origin::Cli, Some(name.clone()));
        assert_eq!(cli.to_string(), "cli");
        assert!(feed.is(Some(Origin::Feed), Some(&name)) && feed.is(None, None));
        assert!(!feed.is(None, Some(&FeedName::default())));
        assert!(!cli.is(None, Some(&name)) && !cli.is(Some(Origin::Feed), None));
    }
}
