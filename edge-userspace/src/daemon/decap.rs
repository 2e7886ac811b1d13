//! `edge decap`: the process around the decapsulator. The program is on the
//! interfaces as long as the process lives, and no longer.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use edge_common::addr::Prefix;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{
    Ask, Signals,
    notify::{News as ManagerNews, Notifier},
    start_log,
};
use crate::{
    datapath::Decap,
    host::{self, Stack, sysctl},
    metrics::{
        registry::{Format, render_decap},
        serve::{Scraped, Server},
    },
    status::decap::{News, Ready, Totals},
};

/// Between two looks at addresses and interfaces.
const FOLLOW: Duration = Duration::from_secs(1);

/// What it is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Interfaces by name.
    pub interfaces: Vec<String>,
    /// Where tunnels may come from.
    pub sources: Vec<Prefix>,
    /// Where they may go to; if there is none, to the addresses of the interfaces.
    pub local: Vec<IpAddr>,
    /// The UDP port of GUE.
    pub gue_port: u16,
    /// Whether the slower generic mode will do where a driver has no native one.
    pub allow_generic: bool,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// What is logged, in the form of `RUST_LOG`; that variable if `None`, and `info`
    /// without it.
    pub log: Option<String>,
}

/// Where news go.
pub type Tell<'a> = &'a mut dyn FnMut(&News) -> io::Result<()>;

/// Runs the decapsulator until it is told to stop.
///
/// # Errors
/// When it cannot start, with nothing attached; or when it cannot detach at the end.
pub fn run(options: &Options, tell: Tell<'_>) -> Result<()> {
    start_log(options.log.as_deref())?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(options, tell))
}

async fn serve(options: &Options, tell: Tell<'_>) -> Result<()> {
    let notifier = Notifier::start().context("cannot start a thread")?;
    let mut signals = Signals::new()?;
    let metrics = match options.metrics {
        Some(address) => Some(Server::bind(address).await?),
        None => None,
    };
    let mut interfaces = options.interfaces.clone();
    let mut seen = BTreeSet::new();
    interfaces.retain(|name| seen.insert(name.clone()));

    let mut decap = Decap::load(&options.sources, options.gue_port)?;
    let stack = host::stack(&interfaces).context("cannot ask for addresses")?;
    // Before it is attached: nothing must pass that is going to be taken in.
    decap.set_local(&wanted(options, &stack))?;
    for name in &interfaces {
        decap.attach(name, options.allow_generic)?;
    }
    warn_of(options, &decap, &stack);
    let ready = Ready {
        interfaces: decap.interfaces(),
        sources: options.sources.clone(),
        local: decap.local().clone(),
        gue_port: options.gue_port,
    };
    let shared = Shared(Arc::new(Mutex::new(decap)));

    let (stop, stopped) = watch::channel(false);
    let metrics = metrics.map(|m| tokio::spawn(m.run(Arc::new(shared.clone()), stopped)));
    notifier.tell(ManagerNews::Ready);
    told(tell(&News::Ready(ready)));

    let mut ticks = interval(FOLLOW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ask = signals.next() => match ask {
                Ask::Stop(name) => {
                    info!("stopping on {name}");
                    break;
                }
                Ask::Reload => info!("there is nothing to reload: restart with other arguments"),
            },
            _ = ticks.tick() => follow(options, &interfaces, &mut shared.lock()),
        }
    }
    notifier.tell(ManagerNews::Stopping);
    stop.send_replace(true);
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    let mut decap = shared.lock();
    decap.detach()?;
    told(tell(&News::Ended(decap.packets()?.into())));
    Ok(())
}

/// Nobody listening on stdout is no reason to take no more packets in.
fn told(outcome: io::Result<()>) {
    if let Err(e) = outcome {
        warn!("cannot write to stdout: {e}");
    }
}

/// The addresses that tunnels may go to.
fn wanted(options: &Options, stack: &Stack) -> BTreeSet<IpAddr> {
    if options.local.is_empty() {
        stack.addresses.clone()
    } else {
        options.local.iter().copied().collect()
    }
}

/// Keeps up with the host.
fn follow(options: &Options, interfaces: &[String], decap: &mut Decap) {
    decap.watch();
    let stack = match host::stack(interfaces) {
        Ok(stack) => stack,
        Err(e) => return warn!("cannot ask for addresses: {e}"),
    };
    let wanted = wanted(options, &stack);
    if wanted == *decap.local() {
        return;
    }
    match decap.set_local(&wanted) {
        Ok(()) => info!("tunnels may go to {}", list(&wanted)),
        Err(e) => warn!("{e}"),
    }
}

/// Says what will not work, or not well.
fn warn_of(options: &Options, decap: &Decap, stack: &Stack) {
    if decap.local().is_empty() {
        warn!(
            "none of the interfaces has an address: every tunnel is left to the kernel until one \
             has, or `--local` names one"
        );
    }
    for source in options.sources.iter().filter(|s| s.len() == 0) {
        warn!(
            "--source {source} lets everybody send packets from any address to this host; name \
             the balancers"
        );
    }
    for name in &stack.interfaces {
        let filter = |of: &str| {
            let name = format!("net/ipv4/conf/{of}/rp_filter");
            sysctl::read(Path::new(sysctl::ROOT), &name).ok()
        };
        if let (Some(all), Some(own)) = (filter("all"), filter(name))
            && is_strict(&all, &own)
        {
            // In sysctl(8) a dot in a name is a slash.
            let key = format!("net.ipv4.conf.{}.rp_filter", name.replace('.', "/"));
            warn!(
                "{key} is strict: the kernel drops what comes out of a tunnel unless its own route \
                 to the client leads out of {name}, too; if clients get no answer, run `sysctl -w \
                 {key}=2`"
            );
        }
    }
}

/// Whether the kernel checks strictly where IPv4 packets come from: the greater value
/// counts, 1 is strict and 2 is not (kernel documentation, ip-sysctl).
fn is_strict(all: &str, own: &str) -> bool {
    let number = |text: &str| text.parse().unwrap_or(0);
    number(all).max(number(own)) == 1
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return "no address".to_owned();
    }
    let texts: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(", ")
}

/// The decapsulator, also for those who scrape its metrics.
#[derive(Clone)]
struct Shared(Arc<Mutex<Decap>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Decap> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scraped for Shared {
    fn scrape(&self, format: Format) -> Result<String, fmt::Error> {
        let decap = self.lock();
        let packets = decap.packets().map_err(|e| {
            warn!("{e}");
            fmt::Error
        })?;
        render_decap(decap.interfaces(), Totals::from(packets), format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_value_of_rp_filter_counts() {
        for (all, own, strict) in [
            ("0", "0", false),
            ("0", "1", true),
            ("1", "0", true),
            ("1", "1", true),
            ("2", "1", false),
            ("1", "2", false),
            ("0", "2", false),
        ] {
            assert_eq!(is_strict(all, own), strict, "{all} and {own}");
        }
    }
}
