//! Why a check failed, in words for a person.

use std::{fmt, io, net::SocketAddr, process::ExitStatus, time::Duration};

/// Why a check failed.
///
/// All of it is shown as one line; texts that come from the backend are bounded.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// This host could not ask: it says nothing about the backend.
    #[error("not asked: {doing}: {}", said(.source))]
    NotAsked {
        /// What did not work.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The time was over.
    #[error("{waiting} within {timeout:?}")]
    Timeout {
        /// What did not come.
        waiting: Waiting,
        /// How long there was for the whole check.
        timeout: Duration,
    },
    /// The connection was refused, or there is no way to the backend.
    #[error("connect: {}", said(.0))]
    Connect(#[source] io::Error),
    /// The connection, or the exchange of packets, broke.
    #[error("{}", said(.0))]
    Lost(#[source] io::Error),
    /// The connection was closed too early.
    #[error("closed before the answer was complete")]
    Closed,
    /// No TLS session came about.
    #[error("TLS: {}", said(.0))]
    Tls(#[source] io::Error),
    /// What came is not what the protocol wants.
    #[error("{protocol}: {wrong}")]
    Protocol {
        /// Its name.
        protocol: &'static str,
        /// What is wrong.
        wrong: String,
    },
    /// Another HTTP status.
    #[error("status {got}, wanted {}", Span(*.wanted))]
    Status {
        /// That of the answer.
        got: u16,
        /// The first and last that are success.
        wanted: (u16, u16),
    },
    /// A body without the text that is looked for.
    #[error("{wanted:?} is not in the first {} KiB of the body", super::http::BODY_BYTES >> 10)]
    Body {
        /// The text.
        wanted: String,
    },
    /// A UDP answer that begins otherwise.
    #[error("the answer begins with \"{got}\", wanted \"{wanted}\"")]
    Answer {
        /// Its beginning, escaped.
        got: String,
        /// The beginning of what is wanted, escaped.
        wanted: String,
    },
    /// The gRPC server does not serve.
    #[error("gRPC: {0}, wanted SERVING")]
    NotServing(String),
    /// The gRPC call failed.
    #[error("gRPC: status {code}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Grpc {
        /// The status code.
        code: u32,
        /// What the server says about it.
        message: String,
    },
    /// What it was, at an address of the service, where the way was the tunnel.
    #[error("{service} through the tunnel: {source}")]
    Through {
        /// Who was asked.
        service: SocketAddr,
        /// What went wrong.
        source: Box<Self>,
    },
    /// The program found something, or was killed.
    #[error("{}", exit(*.0))]
    Exit(ExitStatus),
}

/// What did not work on this side, for `map_err`.
pub(super) fn not_asked(doing: &'static str) -> impl FnOnce(io::Error) -> ProbeError {
    move |source| ProbeError::NotAsked { doing, source }
}

/// What a check was waiting for when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A TCP connection.
    Connect,
    /// A TLS session.
    Tls,
    /// The answer to what was sent.
    Answer,
    /// The end of a program.
    Exit,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect: no answer",
            Self::Tls => "TLS: no answer",
            Self::Answer => "no answer",
            Self::Exit => "not finished",
        })
    }
}

/// A range of status codes.
struct Span((u16, u16));

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.0;
        write!(f, "{first}")?;
        if last == first {
            return Ok(());
        }
        write!(f, " to {last}")
    }
}

/// The kernel's words without their number, as they stand in a sentence.
fn said(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut chars = text.chars();
    let first = chars.next();
    // Not "TLS".
    let starts_a_word = chars.clone().next().is_some_and(char::is_lowercase);
    match first {
        Some(c) if starts_a_word => c.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

fn exit(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended without a status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_person_reads_them() {
        let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let files = io::Error::from_raw_os_error(libc::EMFILE);
        for (error, text) in [
            (
                ProbeError::NotAsked {
                    doing: "socket",
                    source: files,
                },
                "not asked: socket: too many open files",
            ),
            (ProbeError::Connect(refused), "connect: connection refused"),
            (
                ProbeError::Timeout {
                    waiting: Waiting::Answer,
                    timeout: Duration::from_secs(1),
                },
                "no answer within 1s",
            ),
            (
                ProbeError::Timeout {
                    waiting: Waiting::Connect,
                    timeout: Duration::from_millis(1500),
                },
                "connect: no answer within 1.5s",
            ),
            (
                ProbeError::Tls(io::Error::other("TLS is not spoken here")),
                "TLS: TLS is not spoken here",
            ),
            (
                ProbeError::Status {
                    got: 503,
                    wanted: (200, 299),
                },
                "status 503, wanted 200 to 299",
            ),
            (
                ProbeError::Status {
                    got: 404,
                    wanted: (204, 204),
                },
                "status 404, wanted 204",
            ),
            (
                ProbeError::Body {
                    wanted: "fine".to_owned(),
                },
                "\"fine\" is not in the first 64 KiB of the body",
            ),
            (
                ProbeError::Grpc {
                    code: 5,
                    message: "unknown service".to_owned(),
                },
                "gRPC: status 5: unknown service",
            ),
            (
                ProbeError::Grpc {
                    code: 12,
                    message: String::new(),
                },
                "gRPC: status 12",
            ),
            (
                ProbeError::Through {
                    service: "[2001:db8::1]:443".parse().unwrap(),
                    source: Box::new(ProbeError::Timeout {
                        waiting: Waiting::Connect,
                        timeout: Duration::from_secs(1),
                    }),
                },
                "[2001:db8::1]:443 through the tunnel: connect: no answer within 1s",
            ),
            (
                ProbeError::Exit(ExitStatus::from_raw(2 << 8)),
                "exit status 2",
            ),
            (
                ProbeError::Exit(ExitStatus::from_raw(9)),
                "killed by signal 9",
            ),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }
}
