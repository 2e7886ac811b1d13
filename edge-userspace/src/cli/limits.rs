//! `edge limits`.

use std::{io::Write, path::Path};

use edge_common::abi::LimitKind;

use super::{
    Error,
    args::LimitsCommand,
    ask,
    output::Out,
    text::{Column, Table, count},
    unexpected,
};
use crate::{
    config::quantity::{self, Unit},
    control::protocol::{LimitRule, LimitValue, Limits, Request, Response, SetLimit},
};

/// Carries out a subcommand. All of them print the limits that are then in force.
pub(super) fn execute<W: Write>(
    command: LimitsCommand,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    let request = match command {
        LimitsCommand::Show => Request::Limits {},
        LimitsCommand::Reset { kind, prefix } => Request::ResetLimits { kind, prefix },
        LimitsCommand::Set {
            kind,
            rate,
            burst,
            unlimited,
            prefix,
            mode,
        } => {
            let rate = value(kind, rate.as_deref(), burst.as_deref(), unlimited)?;
            if rate.is_none() && mode.is_none() {
                return Err(Error::Input(
                    "nothing to set; give --rate, --unlimited or --mode".to_owned(),
                ));
            }
            Request::SetLimit(SetLimit {
                kind,
                prefix,
                rate,
                mode,
            })
        }
    };
    match ask(socket, request)? {
        Response::Limits(limits) => Ok(out.either(&limits, || render(&limits))?),
        other => Err(unexpected(socket, &other)),
    }
}

fn value(
    kind: LimitKind,
    rate: Option<&str>,
    burst: Option<&str>,
    unlimited: bool,
) -> Result<Option<LimitValue>, Error> {
    if unlimited {
        return Ok(Some(LimitValue::Unlimited));
    }
    let Some(rate) = rate else {
        return Ok(None);
    };
    let (rate_unit, burst_unit) = match kind {
        LimitKind::Bytes => (Unit::ByteRate, Unit::Bytes),
        _ => (Unit::CountRate, Unit::Count),
    };
    let per_second = amount("--rate", rate, rate_unit)?;
    let burst = match burst {
        Some(burst) => amount("--burst", burst, burst_unit)?,
        None => per_second,
    };
    Ok(Some(LimitValue::Rate { per_second, burst }))
}

fn amount(flag: &str, text: &str, unit: Unit) -> Result<u64, Error> {
    // A bare number counts bytes, as it does in the configuration.
    if let Ok(plain) = text.parse() {
        return Ok(plain);
    }
    quantity::parse(text, unit).map_err(|e| Error::Input(format!("{flag} {text}: {e}")))
}

fn render(limits: &Limits) -> String {
    let mut modes = Table::new([
        Column::Left("LIMIT"),
        Column::Left("MODE"),
        Column::Left("SET BY"),
    ]);
    for m in &limits.modes {
        modes.row([m.kind.name(), m.mode.name(), m.origin.name()].map(str::to_owned));
    }
    let mut rules = Table::new([
        Column::Left("SOURCES"),
        Column::Left("LIMIT"),
        Column::Right("RATE"),
        Column::Right("BURST"),
        Column::Left("SET BY"),
    ]);
    for rule in &limits.rules {
        rules.row(row(rule));
    }
    let mut text = format!(
        "One source is an IPv4 /{} or an IPv6 /{}.\n\n{}",
        limits.v4_prefix,
        limits.v6_prefix,
        modes.text()
    );
    if rules.is_empty() {
        text.push_str("\nNo limits are set.\n");
    } else {
        text.push('\n');
        text.push_str(&rules.text());
    }
    text
}

fn row(rule: &LimitRule) -> [String; 5] {
    let unit = match rule.kind {
        LimitKind::Bytes => " B",
        _ => "",
    };
    let (rate, burst) = match rule.limit {
        LimitValue::Unlimited => ("unlimited".to_owned(), "-".to_owned()),
        LimitValue::Rate { per_second, burst } => (
            format!("{}{unit}/s", count(per_second)),
            format!("{}{unit}", count(burst)),
        ),
    };
    [
        rule.prefix.map_or("every".to_owned(), |p| p.to_string()),
        rule.kind.name().to_owned(),
        rate,
        burst,
        rule.origin.name().to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use edge_common::abi::Mode;

    use super::*;
    use crate::{control::protocol::LimitMode, entry::Origin};

    #[test]
    fn amounts_are_those_of_the_configuration() {
        let v = |kind, rate, burst| value(kind, Some(rate), burst, false);
        let rate = |per_second, burst| Some(LimitValue::Rate { per_second, burst });
        assert_eq!(v(LimitKind::Syn, "1k", None).unwrap(), rate(1000, 1000));
        assert_eq!(
            v(LimitKind::Bytes, "100Mbit", Some("2MB")).unwrap(),
            rate(12_500_000, 2_000_000)
        );
        assert_eq!(
            v(LimitKind::Bytes, "5000", Some("70000")).unwrap(),
            rate(5000, 70_000)
        );
        assert_eq!(
            value(LimitKind::Udp, None, None, true).unwrap(),
            Some(LimitValue::Unlimited)
        );
        assert_eq!(value(LimitKind::Udp, None, None, false).unwrap(), None);
        for (kind, rate, burst, word) in [
            (LimitKind::Bytes, "10M", None, "--rate 10M: bytes or bits?"),
            (LimitKind::Syn, "10MB", None, "--rate 10MB"),
            (LimitKind::Syn, "10", Some("x"), "--burst x"),
            (LimitKind::Syn, "-10", None, "--rate -10"),
        ] {
            match v(kind, rate, burst).unwrap_err() {
                Error::Input(m) => assert!(m.starts_with(word), "{m}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn limits_as_people_and_programs_see_them() {
        let limits = Limits {
            v4_prefix: 32,
            v6_prefix: 64,
            modes: vec![LimitMode {
                kind: LimitKind::Bytes,
                mode: Mode::DryRun,
                origin: Origin::File,
            }],
            rules: vec![
                LimitRule {
                    kind: LimitKind::Bytes,
                    prefix: None,
                    limit: LimitValue::Rate {
                        per_second: 12_500_000,
                        burst: 2_000_000,
                    },
                    origin: Origin::File,
                },
                LimitRule {
                    kind: LimitKind::Syn,
                    prefix: Some("10.0.0.0/8".parse().unwrap()),
                    limit: LimitValue::Unlimited,
                    origin: Origin::Cli,
                },
            ],
        };
        assert_eq!(
            render(&limits),
            "\
One source is an IPv4 /32 or an IPv6 /64.

LIMIT  MODE     SET BY
bytes  dry-run  file

SOURCES     LIMIT            RATE        BURST  SET BY
every       bytes  12,500,000 B/s  2,000,000 B  file
10.0.0.0/8  syn         unlimited            -  cli
"
        );
        assert_eq!(
            serde_json::to_string(&limits).unwrap(),
            r#"{"v4_prefix":32,"v6_prefix":64,"modes":[{"kind":"bytes","mode":"dry-run","origin":"file"}],"rules":[{"kind":"bytes","prefix":null,"limit":{"rate":{"per_second":12500000,"burst":2000000}},"origin":"file"},{"kind":"syn","prefix":"10.0.0.0/8","limit":"unlimited","origin":"cli"}]}"#
        );
    }
}
