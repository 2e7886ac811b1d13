//! The limits section.

use std::collections::BTreeMap;

use edge_common::{
    abi::{LIMIT_KINDS, LimitKind, Mode},
    addr::Prefix,
};

use crate::config::{
    limits::{Limits, Override, OverrideLimit, Rate, RateError, V4_PREFIX, V6_PREFIX},
    quantity::{ByteRate, Bytes, Count, CountRate},
    raw,
    report::{At, Place, Report},
};

/// The shortest IPv4 prefix that may share a limit.
const MIN_V4_PREFIX: u32 = 8;
/// The shortest IPv6 prefix that may share a limit.
const MIN_V6_PREFIX: u32 = 16;

/// A rate and a burst as written, in packets or bytes.
#[derive(Default)]
pub(super) struct Amounts<'a> {
    rate: Option<(u64, &'a Place)>,
    burst: Option<(u64, &'a Place)>,
}

impl<'a> Amounts<'a> {
    pub(super) fn packets(rate: Option<&'a At<CountRate>>, burst: Option<&'a At<Count>>) -> Self {
        Self {
            rate: rate.map(|r| (r.value.0, &r.place)),
            burst: burst.map(|b| (b.value.0, &b.place)),
        }
    }

    pub(super) fn of(raw: &'a raw::PacketRate) -> Self {
        Self::packets(raw.rate.as_ref(), raw.burst.as_ref())
    }

    fn bytes(rate: Option<&'a At<ByteRate>>, burst: Option<&'a At<Bytes>>) -> Self {
        Self {
            rate: rate.map(|r| (r.value.0, &r.place)),
            burst: burst.map(|b| (b.value.0, &b.place)),
        }
    }

    /// The rate; `None` without one, or after a problem has been reported.
    fn check(&self, kind: LimitKind, report: &mut Report<'_>, tick_ns: u64) -> Option<Rate> {
        self.make(report, |rate, burst| Rate::new(kind, rate, burst, tick_ns))
    }

    /// The same with another way to make a rate of both numbers.
    pub(super) fn make(
        &self,
        report: &mut Report<'_>,
        rate_of: impl FnOnce(u64, Option<u64>) -> Result<Rate, RateError>,
    ) -> Option<Rate> {
        let Some((rate, rate_place)) = self.rate else {
            if let Some((_, place)) = self.burst {
                report.problem(place, "a burst without a rate; add rate, or remove burst");
            }
            return None;
        };
        match rate_of(rate, self.burst.map(|b| b.0)) {
            Ok(rate) => Some(rate),
            Err(error) => {
                let place = match self.burst {
                    Some((_, burst_place)) if !error.is_about_rate() => burst_place,
                    _ => rate_place,
                };
                report.problem(place, error);
                None
            }
        }
    }
}

/// Checks the section.
pub(super) fn limits(raw: &raw::Limits, report: &mut Report<'_>, tick_ns: u64) -> Limits {
    let mut limits = Limits {
        v4_prefix: length(raw.v4_prefix.as_ref(), V4_PREFIX, MIN_V4_PREFIX, 32, report),
        v6_prefix: length(
            raw.v6_prefix.as_ref(),
            V6_PREFIX,
            MIN_V6_PREFIX,
            128,
            report,
        ),
        ..Limits::default()
    };
    for kind in LimitKind::ALL {
        let (_, amounts) = default_of(raw, kind);
        limits.default.kinds[kind as usize] = amounts.check(kind, report, tick_ns);
    }
    let mut overrides = BTreeMap::new();
    for one in raw.overrides.as_deref().unwrap_or(&[]) {
        let kinds = override_kinds(one, report, tick_ns);
        add_override(one, kinds, &limits, &mut overrides, report);
    }
    let overrides = overrides.into_iter();
    limits.overrides = overrides
        .map(|(prefix, kinds)| Override { prefix, kinds })
        .collect();
    for kind in LimitKind::ALL {
        let (Some(mode), _) = default_of(raw, kind) else {
            continue;
        };
        limits.modes[kind as usize] = mode.value;
        if mode.value != Mode::Off && limits.mode(kind) == Mode::Off {
            report.warn(
                &mode.place,
                format_args!(
                    "without effect, for there is no limit of {}; add rate",
                    kind.name()
                ),
            );
        }
    }
    if let Err(error) = limits.profiles() {
        let place = raw.overrides.as_deref().and_then(<[_]>::last);
        let place = place.map_or(&raw.place, |o| &o.place);
        report.problem_without_value(place, error);
    }
    limits
}

fn length(at: Option<&At<Count>>, default: u8, min: u32, max: u32, report: &mut Report<'_>) -> u8 {
    let n = super::number(at, u32::from(default), min, max, report);
    u8::try_from(n).unwrap_or(default)
}

/// Mode and amounts of a kind in `[limits.KIND]`.
fn default_of(raw: &raw::Limits, kind: LimitKind) -> (Option<&At<Mode>>, Amounts<'_>) {
    let packets = match kind {
        LimitKind::Packets => raw.packets.as_ref(),
        LimitKind::Syn => raw.syn.as_ref(),
        LimitKind::Udp => raw.udp.as_ref(),
        LimitKind::Icmp => raw.icmp.as_ref(),
        LimitKind::Bytes => {
            return raw.bytes.as_ref().map_or_else(Default::default, |b| {
                (
                    b.mode.as_ref(),
                    Amounts::bytes(b.rate.as_ref(), b.burst.as_ref()),
                )
            });
        }
    };
    packets.map_or_else(Default::default, |p| {
        (
            p.mode.as_ref(),
            Amounts::packets(p.rate.as_ref(), p.burst.as_ref()),
        )
    })
}

fn override_kinds(
    raw: &raw::Override,
    report: &mut Report<'_>,
    tick_ns: u64,
) -> [OverrideLimit; LIMIT_KINDS] {
    LimitKind::ALL.map(|kind| {
        let packets = match kind {
            LimitKind::Packets => &raw.packets,
            LimitKind::Syn => &raw.syn,
            LimitKind::Udp => &raw.udp,
            LimitKind::Icmp => &raw.icmp,
            LimitKind::Bytes => {
                return override_limit(raw.bytes.as_ref(), kind, report, tick_ns, |b| {
                    (Amounts::bytes(b.rate.as_ref(), b.burst.as_ref()), &b.place)
                });
            }
        };
        override_limit(packets.as_ref(), kind, report, tick_ns, |p| {
            (
                Amounts::packets(p.rate.as_ref(), p.burst.as_ref()),
                &p.place,
            )
        })
    })
}

fn override_limit<'a, T>(
    raw: Option<&'a raw::OverrideLimit<T>>,
    kind: LimitKind,
    report: &mut Report<'_>,
    tick_ns: u64,
    amounts: impl FnOnce(&'a T) -> (Amounts<'a>, &'a Place),
) -> OverrideLimit {
    let limit = match raw {
        None => return OverrideLimit::Inherit,
        Some(raw::OverrideLimit::Unlimited) => return OverrideLimit::Unlimited,
        Some(raw::OverrideLimit::Limit(limit)) => limit,
    };
    let (amounts, place) = amounts(limit);
    if amounts.rate.is_none() && amounts.burst.is_none() {
        report.problem(
            place,
            "neither rate nor burst; write { rate = 1000, burst = 200 } or \"unlimited\"",
        );
    }
    amounts
        .check(kind, report, tick_ns)
        .map_or(OverrideLimit::Inherit, OverrideLimit::Rate)
}

fn add_override(
    raw: &raw::Override,
    kinds: [OverrideLimit; LIMIT_KINDS],
    limits: &Limits,
    overrides: &mut BTreeMap<Prefix, [OverrideLimit; LIMIT_KINDS]>,
    report: &mut Report<'_>,
) {
    let Some(prefixes) = raw.prefixes.as_ref().filter(|p| !p.value.is_empty()) else {
        let place = raw.place.child("prefixes");
        if !report.has_problem_at(&place.key) {
            report.problem_without_value(
                &place,
                "missing; name the sources, such as prefixes = [\"198.51.100.0/24\"]",
            );
        }
        return;
    };
    if kinds == [OverrideLimit::Inherit; LIMIT_KINDS] && !report.has_problem_at(&raw.place.key) {
        let names = LimitKind::ALL.map(LimitKind::name).join(", ");
        report.problem_without_value(
            &raw.place,
            format_args!("an override of nothing; add one of {names}, or remove it"),
        );
    }
    for At {
        value: prefix,
        place,
    } in &prefixes.value
    {
        let shared = limits.shared_prefix(prefix.family());
        if prefix.len() > shared {
            report.warn(
                place,
                format_args!(
                    "longer than the /{shared} that shares one limit: its neighbours are charged together with it"
                ),
            );
        }
        if overrides.insert(*prefix, kinds).is_some() {
            report.problem(
                place,
                "overridden twice; put all its limits into one override",
            );
        }
    }
}
