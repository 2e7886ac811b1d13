//! Floods that are no SYNs.

use edge_common::{
    abi::{LimitKind, Mode},
    defence::{Hitter, IcmpKind, SKETCH_SAMPLE},
};

use super::{limits::Amounts, services::sorted};
use crate::config::{
    floods::{Floods, Icmp, Prefixes, Reflection},
    limits::Rate,
    model::Model,
    raw,
    report::Report,
    services::Protocol,
};

/// Checks the sections inside `[flood]`; one that is not there is off.
pub(super) fn floods(raw: Option<&raw::Flood>, report: &mut Report<'_>, tick_ns: u64) -> Floods {
    let Some(raw) = raw else {
        return Floods::default();
    };
    let (mut icmp, mut reflection) = (Icmp::default(), Reflection::default());
    if let Some(raw) = &raw.icmp {
        icmp.mode = raw.mode.unwrap_or(Icmp::MODE);
        for (kind, rate) in IcmpKind::ALL.into_iter().zip(&mut icmp.rates) {
            let given = match kind {
                IcmpKind::Echo => &raw.echo,
                IcmpKind::Error => &raw.errors,
                IcmpKind::Other => &raw.other,
            };
            let given = given.as_ref().and_then(|raw| {
                Amounts::of(raw).make(report, |rate, burst| {
                    Rate::new(LimitKind::Icmp, rate, burst, tick_ns)
                })
            });
            *rate = given.unwrap_or(*rate);
        }
    }
    if let Some(raw) = &raw.reflection {
        reflection.mode = raw.mode.unwrap_or(Reflection::MODE);
        if let Some(ports) = &raw.ports {
            let what = "no port; name some, or leave the key out for the usual ones";
            reflection.ports = sorted(ports, what, report).unwrap_or_default();
        }
    }
    let prefixes = raw
        .prefixes
        .as_ref()
        .map_or_else(Prefixes::default, |raw| prefixes(raw, report, tick_ns));
    Floods {
        icmp,
        reflection,
        prefixes,
    }
}

fn prefixes(raw: &raw::PrefixFlood, report: &mut Report<'_>, tick_ns: u64) -> Prefixes {
    let rates = Hitter::ALL.map(|kind| {
        let given = match kind {
            Hitter::SourceNarrow => &raw.source,
            Hitter::SourceWide => &raw.source_wide,
            Hitter::Dest => &raw.dest,
            Hitter::DestPrefix => &raw.dest_prefix,
        };
        Amounts::of(given.as_ref()?).make(report, |rate, burst| {
            Rate::sampled(rate, burst, (SKETCH_SAMPLE, 1), tick_ns)
        })
    });
    Prefixes {
        mode: raw.mode.unwrap_or(Prefixes::MODE),
        rates,
    }
}

/// Packets of reflectors for each service that does not say otherwise.
pub(super) fn reflection(
    raw: Option<&raw::Flood>,
    report: &mut Report<'_>,
    tick_ns: u64,
) -> Option<Rate> {
    let raw = raw?.reflection.as_ref()?;
    Amounts::packets(raw.rate.as_ref(), raw.burst.as_ref()).make(report, |rate, burst| {
        Rate::new(LimitKind::Udp, rate, burst, tick_ns)
    })
}

/// Warns of what has no effect.
pub(super) fn check_effect(model: &Model, raw: &raw::Root, report: &mut Report<'_>) {
    let floods = &model.floods;
    let has_udp = model.services.iter().any(|s| s.protocol == Protocol::Udp);
    if let Some(raw) = raw.flood.as_ref().and_then(|f| f.reflection.as_ref())
        && floods.reflection.mode != Mode::Off
        && !has_udp
    {
        report.warn_without_value(
            &raw.place,
            "without effect, for there is no [[service]] with protocol = \"udp\"",
        );
    }
    if let Some(raw) = raw.flood.as_ref().and_then(|f| f.prefixes.as_ref())
        && floods.prefixes.mode != floods.prefixes.effective_mode()
    {
        report.warn_without_value(
            &raw.place,
            "without effect, for there is no limit; add source, source_wide, dest or dest_prefix with a rate",
        );
    }
    for service in raw.services.as_deref().unwrap_or(&[]) {
        let protocol = service.protocol.as_ref();
        let udp = protocol.filter(|p| p.value == Protocol::Udp);
        let forward = service.forward.as_ref().map(|f| f.value);
        if let Some(protocol) = udp
            && !matches!(forward, Some(raw::Forwarding::Balanced(_)))
            && floods.reflection.mode == Mode::Off
        {
            report.warn(
                &protocol.place,
                "without effect: services of UDP are defended against reflection only; add [flood.reflection]",
            );
        }
        if let Some(reflection) = &service.reflection
            && udp.is_none()
        {
            report.warn_without_value(
                &reflection.place,
                "without effect: reflection comes over UDP, and the service is TCP",
            );
        }
    }
}
