//! What is said of an entry of the lists wherever it is: in the store, the
//! engine and on the control socket.

use serde::{Deserialize, Serialize};

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
