//! The arguments.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use edge_common::{
    abi::{LimitKind, Mode},
    addr::Prefix,
    tunnel::GUE_PORT,
};

mod proxy;
mod upgrade;

pub(super) use proxy::{RoutesCommand, TestArgs, UpstreamCommand};
pub(super) use upgrade::UpgradeArgs;

use super::duration;
use crate::{
    config::balance::MAX_WEIGHT,
    config::model::SOCKET,
    control::{
        check,
        protocol::{MAX_NOTE, MAX_RECENT_EVENTS},
    },
    entry::{FeedName, Origin},
    wire::Word,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the operation failed, or an entry to remove was not there
  2  the command line, a file or a value is wrong; nothing was changed
  3  no daemon listens on the socket
  4  permission denied";

/// Edge: an XDP firewall with blacklist, allowlist and limits per source.
#[derive(Debug, Parser)]
#[command(name = "edge", version, after_help = EXIT_CODES)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// The daemon's control socket.
    #[arg(long, global = true, value_name = "PATH", env = "EDGE_SOCKET", default_value = SOCKET)]
    pub(super) socket: PathBuf,
    /// Print JSON, one object a line.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon in the foreground.
    #[command(after_help = "\
Examples:
  edge run -c /etc/edge/edge.toml

Checks everything first, tells the memory that the tables take, attaches to the
interfaces and runs until SIGTERM or SIGINT. SIGHUP reloads the configuration.")]
    Run(RunArgs),
    /// Check a configuration, and tell what it takes and changes; needs no daemon.
    #[command(after_help = "\
Examples:
  edge check -c /etc/edge/edge.toml
  edge check -c edge.toml --json | jq .memory_total

Where a daemon runs, it also tells what the configuration would change there.")]
    Check {
        /// The configuration.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show attacks, interfaces, the proxy, counters, tables and lists.
    #[command(after_help = "\
Examples:
  edge status
  edge status --watch
  edge status --watch 5 --json | jq '.services[] | select(.under_attack).name'
  edge status --json | jq '.interfaces[].mode'

With --watch it is shown again and again until Ctrl-C, in place on a terminal and
one below the other elsewhere.")]
    Status {
        /// Show it again every so many seconds.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
              value_parser = clap::value_parser!(u64).range(1..=MAX_WATCH_S))]
        watch: Option<u64>,
    },
    /// The history of attacks on services and on the host as a whole.
    #[command(subcommand)]
    Attacks(AttacksCommand),
    /// Backends of balanced services: how they are, drain, weights.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Upstreams of the proxy and their servers: how they are, drain, weights.
    #[command(subcommand)]
    Upstream(UpstreamCommand),
    /// Routes of the proxy, and which one a request would take.
    #[command(subcommand)]
    Routes(RoutesCommand),
    /// Put another configuration into force, all of it or nothing.
    #[command(after_help = "\
Examples:
  edge apply -c next.toml --dry-run
  edge apply -c next.toml
  edge apply -c next.toml --dry-run --json | jq '.services[].sentence'

The file is checked, and what it changes is told: attached interfaces, tables that
are made anew, how many slots of balanced services move and how many live flows lose
their backend. Then it takes the place of the file that the daemon was started with, and
is put into force; if that fails, the former file is put back.")]
    Apply {
        /// The configuration.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Only tell what would change.
        #[arg(long)]
        dry_run: bool,
    },
    /// Put the changed configuration file into force, all of it or nothing.
    #[command(after_help = "\
Examples:
  edge check -c /etc/edge/edge.toml && edge reload")]
    Reload,
    /// Start a new process in the place of the daemon's, without a connection lost.
    #[command(after_help = upgrade::EXAMPLES)]
    Upgrade(UpgradeArgs),
    /// Addresses and prefixes whose packets are dropped.
    #[command(subcommand)]
    Blacklist(ListCommand),
    /// Addresses and prefixes whose packets always pass.
    #[command(subcommand)]
    Allow(ListCommand),
    /// Tell which entries cover an address, and what happens to its packets.
    #[command(after_help = "\
Examples:
  edge lookup 192.0.2.7
  edge lookup 2001:db8::1 --json | jq .outcome.reason")]
    Lookup {
        /// An IPv4 or IPv6 address.
        address: IpAddr,
    },
    /// Limits per source.
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// Show sampled packets that were dropped, or would have been.
    #[command(after_help = "\
Examples:
  edge events
  edge events -f
  edge events -f -n 0 --json | jq -r .packet.source

Not every packet is shown: at most `events.per_second` of each reason.")]
    Events {
        /// Go on with new ones as they come.
        #[arg(short, long)]
        follow: bool,
        /// Show so many of the last ones first.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20,
              value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_RECENT_EVENTS)))]
        last: u32,
    },
    /// Take packets out of tunnels on a backend of the load balancer; needs no daemon.
    #[command(after_help = "\
Examples:
  edge decap --interface eth0 --source 10.0.0.0/24
  edge decap --interface eth0 --interface eth1 --source 10.0.0.7 --source fd00:7::/64
  edge decap --interface eth0 --source 10.0.0.0/24 --metrics 127.0.0.1:9101 --json

Takes IPv4 and IPv6 packets out of IPIP, 6in4, 4in6, IP6IP6 and GUE (variant 1) and
hands them to the kernel, whose own address they must be for: put the service's on
the loopback interface (`ip addr add 203.0.113.80/32 dev lo`). Runs until SIGTERM or
SIGINT, and takes packets in only as long as it runs.")]
    Decap(DecapArgs),
    /// List all reasons a packet can end with; needs no daemon.
    #[command(after_help = "\
Examples:
  edge reasons
  edge reasons --json | jq -r 'select(.verdict == \"drop\").reason'")]
    Reasons,
}

/// The longest time between two looks of `status --watch`, seconds: well within what
/// the daemon lets a connection be idle.
const MAX_WATCH_S: u64 = 300;

#[derive(Debug, Subcommand)]
pub(super) enum BackendCommand {
    /// List backends: their health, their share of new flows, and why.
    #[command(after_help = "\
Examples:
  edge backend list
  edge backend list --service web
  edge backend list --json | jq '.backends[] | select(.weight == 0) | .name'")]
    List {
        /// Only backends of this service.
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
    },
    /// Give a backend no new flows, and let those that it has end.
    #[command(after_help = "\
Examples:
  edge backend drain web-1
  edge backend drain web/web-1 --timeout 10m

It is drained when no flow is left, or when the time is up: what is left then goes
to other backends, which will not know it. The change outlasts a restart.")]
    Drain {
        /// Its name, or its service's and its own: web/web-1.
        name: String,
        /// How long flows may take to end [default: as long as they want]
        #[arg(long = "timeout", value_name = "TIME", value_parser = duration::parse)]
        timeout_s: Option<u64>,
    },
    /// Use a backend again that was drained.
    #[command(after_help = "\
Examples:
  edge backend undrain web-1")]
    Undrain {
        /// Its name, or its service's and its own: web/web-1.
        name: String,
    },
    /// Set the weight of a backend, until it is set back to that of the file.
    #[command(after_help = "\
Examples:
  edge backend weight web-1 50
  edge backend weight web-1 configured

The change outlasts a restart. With 0 it gets no new flows.")]
    Weight {
        /// Its name, or its service's and its own: web/web-1.
        name: String,
        /// 0 to 1000, or \"configured\" for what the file says.
        #[arg(value_parser = NewWeight::parse)]
        weight: NewWeight,
    },
}

/// A weight for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewWeight {
    /// What the file says.
    Configured,
    /// This one.
    Set(u32),
}

impl NewWeight {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "configured" {
            return Ok(Self::Configured);
        }
        let weight = text.parse().ok().filter(|w| *w <= MAX_WEIGHT);
        weight
            .map(Self::Set)
            .ok_or_else(|| format!("no weight; 0 to {MAX_WEIGHT}, or \"configured\""))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum AttacksCommand {
    /// List the attacks that are remembered, the newest first.
    #[command(after_help = "\
Examples:
  edge attacks list
  edge attacks list --service web
  edge attacks list --json | jq 'select(.ended_unix_ms == null).id'

The last 100 attacks are remembered, also over a restart.")]
    List {
        /// Only attacks on this service.
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
    },
    /// Show what an attack came to, and write sampled packets of it to a file.
    #[command(after_help = "\
Examples:
  edge attacks show 7
  edge attacks show 7 --pcap attack7.pcap && tcpdump -nr attack7.pcap
  edge attacks show 7 --json | jq -r '.attack.sources[].of'

Sampled are packets for the service that were answered or dropped, or would have
been, at most `events.per_second` of each reason; 64 of them are kept, spread over
the attack, with their first 128 bytes. The file can be read by its owner only.")]
    Show {
        /// The number of the attack, as `edge attacks list` tells it.
        id: u64,
        /// Write the sampled packets to this file, which must not exist.
        #[arg(long, value_name = "FILE")]
        pcap: Option<PathBuf>,
        /// Replace the file.
        #[arg(long, requires = "pcap")]
        force: bool,
    },
}

/// What the daemon is started with.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The configuration.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// What is logged, such as debug or edge_userspace::datapath=debug; info by default.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG")]
    pub log: Option<String>,
}

/// What the decapsulator is started with.
#[derive(Clone, Debug, Args)]
pub struct DecapArgs {
    /// An interface that tunnels come in on; may be given several times.
    #[arg(long = "interface", required = true, value_name = "NAME")]
    pub interfaces: Vec<String>,
    /// Where tunnels may come from, an address or a prefix; may be given several times.
    #[arg(long = "source", required = true, value_name = "PREFIX")]
    pub sources: Vec<Prefix>,
    /// An address that tunnels go to, instead of all of the interfaces; may be given
    /// several times.
    #[arg(long, value_name = "ADDRESS", value_parser = local)]
    pub local: Vec<IpAddr>,
    /// The UDP port of GUE.
    #[arg(long, value_name = "PORT", default_value_t = GUE_PORT,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub gue_port: u16,
    /// Run in the slower generic mode where a driver has no native XDP.
    #[arg(long)]
    pub allow_generic: bool,
    /// Serve metrics at this address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// What is logged, such as debug or edge_userspace::datapath=debug; info by default.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG")]
    pub log: Option<String>,
}

/// The same for both lists; the examples name the blacklist and are turned
/// into those of the allowlist in [`command`].
#[derive(Debug, Subcommand)]
pub(super) enum ListCommand {
    /// Add entries, or change those that are there; in force at once.
    #[command(after_help = "\
Examples:
  edge blacklist add 192.0.2.7
  edge blacklist add 192.0.2.0/24 2001:db8::/32 --ttl 1h30m --note 'port scan'

All entries or, when one cannot be added, none.")]
    Add {
        /// Addresses or prefixes.
        #[arg(required = true, value_name = "PREFIX")]
        prefixes: Vec<Prefix>,
        #[command(flatten)]
        terms: Terms,
    },
    /// Remove entries by exactly the prefix they were added with.
    #[command(after_help = "\
Examples:
  edge blacklist del 192.0.2.7
  edge blacklist del 192.0.2.0/24 2001:db8::/32

All entries or none: when one of them is not on the list it is named, and the
exit code is 1. Entries of the configuration file are removed there.")]
    Del {
        /// Addresses or prefixes.
        #[arg(required = true, value_name = "PREFIX")]
        prefixes: Vec<Prefix>,
    },
    /// List the entries, in the order of their addresses.
    #[command(after_help = "\
Examples:
  edge blacklist list
  edge blacklist list 192.0.2.0/24 --limit 10
  edge blacklist list --json | jq -r 'select(.origin == \"cli\").prefix'")]
    List {
        /// Only entries inside this prefix.
        #[arg(value_name = "PREFIX")]
        within: Option<Prefix>,
        /// Only entries of this feed.
        #[arg(long, value_name = "NAME")]
        feed: Option<FeedName>,
        /// At most so many.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Add entries from a feed, one a line, all or nothing.
    #[command(after_help = "\
Examples:
  edge blacklist import drop.txt --note 'Spamhaus DROP' --ttl 2d
  curl -fsS https://example.net/x.txt | edge blacklist import - --feed x --replace
  edge blacklist import messy.txt --lenient

One address or prefix a line; empty lines and comments behind # or ; are skipped.
When a line is wrong, the lines are named and nothing is changed.

Each feed has its own entries: what --replace or a flush takes away from one
stays as long as another has it.")]
    Import {
        /// The feed, or - for standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        terms: Terms,
        /// Take 10.0.0.1/8 as 10.0.0.0/8 instead of refusing it.
        #[arg(long)]
        lenient: bool,
        /// The name of the feed; that of the file without its extension, if not
        /// given, and `default` for standard input.
        #[arg(long, value_name = "NAME")]
        feed: Option<FeedName>,
        /// Remove the entries of former imports of this feed that are not in
        /// this one, in the same step; needs --feed.
        #[arg(long, requires = "feed")]
        replace: bool,
    },
    /// Print the entries in the form that import reads, feeds and notes as comments.
    #[command(after_help = "\
Examples:
  edge blacklist export > blacklist.txt
  edge blacklist export --feed drop > drop.txt
  edge blacklist export --json > blacklist.jsonl

Expiry and origin are in the JSON form only.")]
    Export {
        /// Only entries inside this prefix.
        #[arg(value_name = "PREFIX")]
        within: Option<Prefix>,
        /// Only entries of this feed.
        #[arg(long, value_name = "NAME")]
        feed: Option<FeedName>,
    },
    /// Remove all entries, or all of one origin or feed.
    #[command(after_help = "\
Examples:
  edge blacklist flush
  edge blacklist flush --origin cli
  edge blacklist flush --feed drop --yes

Asks first; where nobody can answer, --yes is needed. Entries of the
configuration file stay.")]
    Flush {
        /// Only entries of this origin: cli, feed, l7 or auto.
        #[arg(long, value_parser = origin)]
        origin: Option<Origin>,
        /// Only entries of this feed.
        #[arg(long, value_name = "NAME", conflicts_with = "origin")]
        feed: Option<FeedName>,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Terms {
    /// Entries expire after this time, such as 90s, 1h30m or 7d.
    #[arg(long = "ttl", value_name = "TIME", value_parser = duration::parse)]
    pub(super) ttl_s: Option<u64>,
    /// Why they are here, one line.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true,
          value_parser = note)]
    pub(super) note: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum LimitsCommand {
    /// Show the limits in force, and whether they come from the file or from here.
    #[command(after_help = "\
Examples:
  edge limits show
  edge limits show --json | jq '.rules[] | select(.origin == \"cli\")'")]
    Show,
    /// Change a limit; in force at once, and still after a restart.
    #[command(after_help = "\
Examples:
  edge limits set syn --rate 200 --burst 400
  edge limits set bytes --rate 100Mbit --burst 2MB --prefix 198.51.100.0/24
  edge limits set packets --unlimited --prefix 2001:db8::/32
  edge limits set udp --mode dry-run

Amounts are written as in the configuration: 250k, 10MB, 100Mbit; a number alone
counts packets or bytes. What is set here goes before what the file says until
`edge limits reset`.")]
    Set {
        /// packets, bytes, syn, udp or icmp.
        #[arg(value_parser = kind)]
        kind: LimitKind,
        /// Packets or bytes a second of one source.
        #[arg(long, value_name = "AMOUNT", conflicts_with = "unlimited")]
        rate: Option<String>,
        /// Packets or bytes at once; what the rate gives in a second, if not given.
        #[arg(long, value_name = "AMOUNT", requires = "rate")]
        burst: Option<String>,
        /// No limit.
        #[arg(long)]
        unlimited: bool,
        /// Only for sources inside this prefix.
        #[arg(long, value_name = "PREFIX", conflicts_with = "mode")]
        prefix: Option<Prefix>,
        /// off, dry-run or enforce; for all sources.
        #[arg(long, value_parser = mode)]
        mode: Option<Mode>,
    },
    /// Take changes back: what the file says is in force again.
    #[command(after_help = "\
Examples:
  edge limits reset
  edge limits reset syn
  edge limits reset bytes --prefix 198.51.100.0/24")]
    Reset {
        /// Only this kind: packets, bytes, syn, udp or icmp.
        #[arg(value_parser = kind)]
        kind: Option<LimitKind>,
        /// Only what was set for this prefix.
        #[arg(long, value_name = "PREFIX")]
        prefix: Option<Prefix>,
    },
}

fn kind(text: &str) -> Result<LimitKind, String> {
    LimitKind::of(text).ok_or_else(|| format!("expected {}", LimitKind::WHAT))
}

fn mode(text: &str) -> Result<Mode, String> {
    Mode::of(text).ok_or_else(|| format!("expected {}", Mode::WHAT))
}

fn local(text: &str) -> Result<IpAddr, String> {
    let address = text.parse::<IpAddr>().map_err(|e| e.to_string())?;
    match address.to_canonical() {
        a if a.is_unspecified() || a.is_multicast() => Err("no host has this address".to_owned()),
        a => Ok(a),
    }
}

fn origin(text: &str) -> Result<Origin, String> {
    // Those of the file go with the file.
    [Origin::Cli, Origin::Feed, Origin::L7, Origin::Auto]
        .into_iter()
        .find(|o| o.name() == text)
        .ok_or_else(|| "expected cli, feed, l7 or auto".to_owned())
}

fn note(text: &str) -> Result<String, String> {
    check::note(text)
        .map(|()| text.to_owned())
        .map_err(|e| format!("{e} (one line, at most {MAX_NOTE} bytes)"))
}

/// The whole command, with help.
pub(super) fn command() -> clap::Command {
    Cli::command().mut_subcommand("allow", |allow| {
        allow.mut_subcommands(|command| match command.get_after_help() {
            Some(help) => {
                let help = help
                    .to_string()
                    .replace("edge blacklist", "edge allow")
                    .replace("blacklist.", "allow.");
                command.after_help(help)
            }
            None => command,
        })
    })
}

/// Reads the command line; ends the process when it is wrong (exit code 2) or
/// only asks for help.
pub(super) fn parse() -> Cli {
    read(std::env::args_os()).unwrap_or_else(|e| e.exit())
}

fn read(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    let matches = command()
        .try_get_matches_from(words)
        .map_err(with_the_reason)?;
    Cli::from_arg_matches(&matches)
}

/// Tells why an import that replaces has to name its feed.
fn with_the_reason(mut error: clap::Error) -> clap::Error {
    let lacks_feed = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing)) => missing.iter().any(|a| a.starts_with("--feed ")),
        _ => false,
    };
    if lacks_feed {
        let tip = "--replace removes what the feed had before, and a file's name may change or be \
                   that of another feed's file; say which feed it is: \
                   edge blacklist import drop.txt --feed drop --replace";
        let tip = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        // Words, with '…' for one that has spaces.
        let mut words = vec!["edge".to_owned()];
        for (i, part) in line.split('\'').enumerate() {
            if i % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        read(words)
    }

    #[test]
    fn what_replaces_names_its_feed() {
        for line in [
            "blacklist import drop.txt --replace",
            "allow import - --replace",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument);
            let text = error.to_string();
            assert!(text.contains("--feed drop --replace"), "{text}");
            assert!(text.contains("say which feed it is"), "{text}");
        }
        let error = parse("blacklist import").unwrap_err().to_string();
        assert!(!error.contains("say which feed"), "{error}");
        assert!(parse("blacklist import drop.txt --feed drop --replace").is_ok());
        assert!(parse("blacklist import drop.txt").is_ok());
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_example_of_the_help_parses() {
        fn examples(command: &clap::Command, found: &mut Vec<String>) {
            for line in command
                .get_after_help()
                .map(|h| h.to_string())
                .unwrap_or_default()
                .lines()
            {
                // What stands before or behind another program's part is ours.
                for part in line.split("| ").flat_map(|p| p.split("&& ")) {
                    let part = part.split(" > ").next().unwrap_or(part).trim();
                    if line.starts_with("  ")
                        && let Some(rest) = part.strip_prefix("edge ")
                    {
                        found.push(rest.to_owned());
                    }
                }
            }
            for sub in command.get_subcommands() {
                if sub.get_name() != "help" {
                    let before = found.len();
                    examples(sub, found);
                    assert!(
                        sub.has_subcommands() || found.len() > before,
                        "{} has no example",
                        sub.get_name()
                    );
                }
            }
        }
        let mut found = Vec::new();
        examples(&command(), &mut found);
        assert!(found.len() > 30, "{}", found.len());
        assert!(found.iter().any(|e| e.starts_with("allow add")));
        for example in found {
            parse(&example).unwrap_or_else(|e| panic!("{example}: {e}"));
        }
    }

    #[test]
    fn the_reference_has_every_command_and_option() {
        fn walk(command: &clap::Command, path: &str, text: &str) {
            for argument in command.get_arguments() {
                if let Some(long) = argument.get_long() {
                    assert!(text.contains(&format!("--{long}")), "{path} --{long}");
                }
            }
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                if sub.has_subcommands() {
                    walk(sub, &path, text);
                } else if !path.starts_with("edge allow") {
                    assert!(text.contains(&format!("\n### `{path}")), "{path}");
                    walk(sub, &path, text);
                }
            }
        }
        let text = include_str!("../../../docs/CLI.md");
        walk(&command(), "edge", text);
    }

    #[test]
    fn values_arrive() {
        let cli = parse("allow add 10.0.0.0/8 ::1 --ttl 1h30m --note 'a b' --json").unwrap();
        assert!(cli.global.json);
        match cli.command {
            Command::Allow(ListCommand::Add { prefixes, terms }) => {
                assert_eq!(prefixes.len(), 2);
                assert_eq!((terms.ttl_s, terms.note.as_str()), (Some(5400), "a b"));
            }
            other => panic!("{other:?}"),
        }
        let cli = parse("routes test http://a/ --header 'X-A:  b c' --listener web").unwrap();
        match cli.command {
            Command::Routes(RoutesCommand::Test(test)) => {
                assert_eq!(test.headers, [("X-A".to_owned(), "b c".to_owned())]);
                assert_eq!(
                    (test.method.as_str(), test.listener.as_deref()),
                    ("GET", Some("web"))
                );
            }
            other => panic!("{other:?}"),
        }
        let cli = parse("--socket /x limits set udp --mode dry-run").unwrap();
        assert_eq!(cli.global.socket, PathBuf::from("/x"));
        match cli.command {
            Command::Limits(LimitsCommand::Set { kind, mode, .. }) => {
                assert_eq!((kind, mode), (LimitKind::Udp, Some(Mode::DryRun)));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mistakes_are_usage_errors_that_say_what_to_do() {
        for (line, word) in [
            ("blacklist add 10.0.0.1/8", "did you mean 10.0.0.0/8"),
            ("blacklist add", "required"),
            ("blacklist add 1.2.3", "not an IPv4 or IPv6 address"),
            ("blacklist add 10.0.0.1 --ttl 90", "90s"),
            ("blacklist add 10.0.0.1 --note 'a\nb'", "control characters"),
            ("blacklist flush --origin file", "cli, feed, l7 or auto"),
            (
                "blacklist flush --origin feed --feed x",
                "cannot be used with",
            ),
            (
                "blacklist import x --feed 'a b'",
                "a feed is named with letters",
            ),
            (
                "limits set pps --rate 1",
                "packets, bytes, syn, udp or icmp",
            ),
            ("limits set syn --burst 1", "--rate"),
            ("limits set syn --rate 1 --unlimited", "cannot be used with"),
            ("limits set syn --mode on", "off, dry-run or enforce"),
            (
                "limits set syn --mode off --prefix ::/0",
                "cannot be used with",
            ),
            ("events -n 5000", "1024"),
            ("lookup 10.0.0.0/8", "invalid"),
            ("run", "--config"),
            ("decap --interface eth0", "--source"),
            ("decap --source 10.0.0.1", "--interface"),
            (
                "decap --interface eth0 --source 10.0.0.1/8",
                "did you mean 10.0.0.0/8",
            ),
            (
                "decap --interface eth0 --source ::/0 --gue-port 0",
                "1..=65535",
            ),
            (
                "decap --interface eth0 --source ::/0 --local ff02::1",
                "no host has this address",
            ),
            ("upstream weight app 10.0.0.1:80 1001", "0..=1000"),
            ("upstream drain app", "SERVER"),
            ("routes test", "URL"),
            ("routes test / --header x-a", "Name: value"),
            ("frobnicate", "unrecognized"),
        ] {
            let e = parse(line).map(|_| ()).unwrap_err();
            assert_eq!(e.exit_code(), 2, "{line}");
            assert!(e.to_string().contains(word), "{line}: {e}");
        }
    }
}
