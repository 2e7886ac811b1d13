//! Floods that are no SYNs: files in, models out.

use edge_common::{
    abi::{LimitKind, Mode},
    defence::When,
};

use super::{TICK_NS, model_of};
use crate::config::{
    floods::{Floods, Icmp, Prefixes, Reflection},
    limits::Rate,
    services::Service,
};

#[test]
fn floods_are_off_unless_their_section_is_there() {
    let floods = |text: &str| model_of(text).floods;
    assert_eq!(floods("[flood]\nhold = '1s'"), Floods::default());
    let bare = floods("[flood.icmp]\n[flood.reflection]\n[flood.prefixes]");
    assert_eq!(
        bare.icmp,
        Icmp {
            mode: Mode::Enforce,
            ..Icmp::default()
        }
    );
    let dry_run = Reflection {
        mode: Mode::DryRun,
        ..Reflection::default()
    };
    assert_eq!(bare.reflection, dry_run);
    // Without a rate there is nothing to look for.
    assert_eq!(
        (bare.prefixes.mode, bare.prefixes.effective_mode()),
        (Mode::DryRun, Mode::Off)
    );
    let m = model_of(
        r#"
        [flood]
        dry_run = true
        rest = "auto"
        incomplete = { rate = 200 }
        [flood.icmp]
        mode = "dry-run"
        echo = { rate = 7, burst = 8 }
        other = { rate = 500 }
        [flood.reflection]
        mode = "enforce"
        ports = [123, "50-53"]
        rate = 20
        [flood.prefixes]
        mode = "enforce"
        source = { rate = 1000, burst = 64 }
        dest_prefix = { rate = 10 }
        [[service]]
        name = "dns"
        ports = [53]
        protocol = "udp"
        [[service]]
        name = "ntp"
        ports = [123]
        protocol = "udp"
        reflection = { rate = 5000, burst = 6000 }
        "#,
    );
    let rate = |rate, burst| Rate::new(LimitKind::Packets, rate, Some(burst), TICK_NS).unwrap();
    let floods = Floods {
        icmp: Icmp {
            mode: Mode::DryRun,
            rates: [rate(7, 8), rate(1000, 200), rate(500, 500)],
        },
        reflection: Reflection {
            mode: Mode::Enforce,
            ports: vec![50..=53, 123..=123],
        },
        prefixes: Prefixes {
            mode: Mode::Enforce,
            // At least two samples.
            rates: [Some(rate(1000, 64)), None, None, Some(rate(10, 32))],
        },
    };
    assert_eq!(m.floods, floods);
    let [dns, ntp, host] = &m.services[..] else {
        panic!("{:?}", m.services)
    };
    assert_eq!(
        (dns.reflection, ntp.reflection),
        (rate(20, 20), rate(5000, 6000))
    );
    assert_eq!(*host, Service::rest(true, rate(200, 400)));
    assert_eq!((host.name.as_str(), host.syn), ("host", When::Auto));
    assert!(!m.needs_cookies() && m.has_rest());
    assert!(!model_of("flood.rest = 'auto'").needs_cookies());
    // Two samples at least, whatever the rate is.
    let slow = model_of("flood.incomplete.rate = 5\nflood.rest = 'auto'");
    assert_eq!(slow.services[0].incomplete, rate(5, 128));
}
