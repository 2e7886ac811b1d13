//! The arguments that speak of the proxy.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};

use crate::config::proxy::upstream::MAX_WEIGHT;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum UpstreamCommand {
    /// List upstreams and their servers: how they are, what they answered.
    #[command(after_help = "\
Examples:
  edge upstream list
  edge upstream list app
  edge upstream list --json | jq -r '.servers[] | select(.up | not).address'")]
    List {
        /// Only this upstream.
        name: Option<String>,
    },
    /// Give a server no new requests, and let those that it has end.
    #[command(after_help = "\
Examples:
  edge upstream drain app 10.0.0.1:8080
  edge upstream drain app 10.0.0.1:8080 --undo

In force at once, until --undo or the end of the daemon.")]
    Drain {
        /// The upstream.
        name: String,
        /// The server's address, as in the configuration.
        server: String,
        /// Use it again.
        #[arg(long)]
        undo: bool,
    },
    /// Set the weight of a server.
    #[command(after_help = "\
Examples:
  edge upstream weight app 10.0.0.1:8080 5

In force at once, until a reload that changes the upstream, or has TLS of it to read
anew. With 0 it gets no new requests.")]
    Weight {
        /// The upstream.
        name: String,
        /// The server's address, as in the configuration.
        server: String,
        /// 0 to 1000.
        #[arg(value_parser = clap::value_parser!(u16).range(..=i64::from(MAX_WEIGHT)))]
        weight: u16,
    },
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RoutesCommand {
    /// List the routes in the order of the file, with their requests.
    #[command(after_help = "\
Examples:
  edge routes list
  edge routes list --json | jq -r 'select(.requests.classes[4] > 0).route'")]
    List,
    /// Tell which route a request would take, and what it would get there.
    #[command(after_help = "\
Examples:
  edge routes test https://example.com/api/users?id=7
  edge routes test https://example.com/ --method POST --header 'x-beta: 1'
  edge routes test /health --header 'Host: 10.0.0.1' --listener internal
  edge routes test http://example.com/ --from 10.0.0.1 --header 'X-Forwarded-Proto: https'
  edge routes test -c next.toml https://example.com/

Nothing is sent. Without --listener the request comes to each listener that fits the
scheme and the port of the URL, else to each that fits the scheme. The exit code is 1
when no listener would take it: it is malformed, or no route has it.")]
    Test(TestArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TestArgs {
    /// http:// or https:// and the rest; or a path, with --header 'Host: …'.
    pub(in crate::cli) url: String,
    /// The method.
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    pub(in crate::cli) method: String,
    /// A field of the header, 'Name: value'; may be given several times.
    #[arg(long = "header", value_name = "FIELD", value_parser = field)]
    pub(in crate::cli) headers: Vec<(String, String)>,
    /// The listener that it comes to.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) listener: Option<String>,
    /// Who connects: a trusted proxy is believed what its fields say of the way of the request
    /// [default: somebody who is none].
    #[arg(long, value_name = "ADDRESS")]
    pub(in crate::cli) from: Option<IpAddr>,
    /// Ask this configuration instead of the daemon, which need not run.
    #[arg(short, long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .filter(|(name, _)| !name.is_empty())
        .ok_or("no field; write 'Name: value'")?;
    Ok((name.to_owned(), value.trim().to_owned()))
}
