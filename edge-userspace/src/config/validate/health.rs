//! Health checks.

use std::path::PathBuf;
use std::time::Duration;

use super::{number, span};
use crate::config::{
    balance::{
        Backend, Forward, HealthCheck, HttpProbe, MAX_ARGUMENTS, MAX_TEXT, Passive, Probe, Through,
    },
    quantity::spelt,
    raw::{self, ProbeKind},
    report::{At, Place, Report},
    services::{Ports, Protocol},
};

/// The shortest and the longest time from one check to the next.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
/// The shortest time in which a backend may have to answer.
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
/// The most checks in a row that a change of state may take.
const MAX_IN_A_ROW: u32 = 100;
/// The most that chance adds or takes away, per cent.
const MAX_JITTER: u32 = 50;
/// The longest name of a host (RFC 1035, 2.3.4).
const MAX_HOST: usize = 253;
/// Status codes that are success by default.
const STATUS: (u16, u16) = (200, 299);

/// Over which time connections may be counted, and how long a backend may not be tried.
const PASSIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3600));
/// The most SYNs that may be asked for.
const MAX_SYNS: u32 = 1_000_000;

/// Whether anything is to be asked of backends, and the section is not only about what the traffic
/// says of them.
pub(super) fn is_active(raw: &raw::HealthCheck) -> bool {
    let times = [&raw.interval, &raw.timeout]
        .into_iter()
        .any(Option::is_some);
    let counts = [&raw.rise, &raw.fall, &raw.jitter]
        .into_iter()
        .any(Option::is_some);
    let texts = [
        &raw.path,
        &raw.host,
        &raw.body,
        &raw.send,
        &raw.expect,
        &raw.service,
    ];
    let texts = texts.into_iter().any(Option::is_some);
    let others = raw.port.is_some()
        || raw.status.is_some()
        || raw.command.is_some()
        || raw.through.is_some();
    raw.kind.is_some() || times || counts || texts || others
}

/// Whether the program sees what backends answer to SYNs.
pub(super) fn is_seen(forward: Forward, protocol: Protocol) -> bool {
    forward == Forward::Nat && protocol == Protocol::Tcp
}

/// When the traffic of clients speaks against backends: by default with NAT, where SYNs and their
/// answers are seen.
pub(super) fn passive(
    raw: Option<&raw::HealthCheck>,
    forward: Forward,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> Option<Passive> {
    let is_seen = is_seen(forward, protocol);
    let default = Passive::default();
    let Some(raw) = raw else {
        return is_seen.then_some(default);
    };
    let wanted = raw.passive.as_ref().map(|p| p.value);
    let given = [
        raw.passive.as_ref().filter(|p| p.value).map(|p| &p.place),
        raw.passive_window.as_ref().map(|p| &p.place),
        raw.passive_syns.as_ref().map(|p| &p.place),
        raw.passive_retry.as_ref().map(|p| &p.place),
    ];
    if !is_seen || wanted == Some(false) {
        let why = match is_seen {
            true => "without effect, for passive = false; remove one of them",
            false => {
                "only for TCP with forward = \"nat\": else answers do not come by here; remove it"
            }
        };
        for place in given.into_iter().flatten() {
            report.problem_without_value(place, why);
        }
        return None;
    }
    Some(Passive {
        window: span(raw.passive_window.as_ref(), default.window, PASSIVE, report),
        syns: number(raw.passive_syns.as_ref(), default.syns, 1, MAX_SYNS, report),
        retry: span(raw.passive_retry.as_ref(), default.retry, PASSIVE, report),
    })
}

/// Checks the section; `None` after a problem has been reported.
pub(super) fn check(
    raw: &raw::HealthCheck,
    forward: Forward,
    protocol: Protocol,
    ports: Option<&Ports>,
    backends: &[Backend],
    report: &mut Report<'_>,
) -> Option<HealthCheck> {
    let Some(At { value: kind, .. }) = raw.kind else {
        let place = raw.place.child("kind");
        if !report.has_problem_at(&place.key) {
            report.problem_without_value(
                &place,
                "missing; say what is asked, such as kind = \"tcp\" or \"http\"",
            );
        }
        return None;
    };
    let fits =
        only_keys_of(kind, raw, report) & has_port(kind, raw, protocol, ports, backends, report);
    let (interval, timeout) = times(raw, report);
    let through = through(kind, raw, forward, report);
    let probe = probe(kind, raw, report)?;
    fits.then_some(HealthCheck {
        probe,
        through: through?,
        port: raw.port.as_ref().map(|p| p.value.0),
        interval,
        timeout,
        rise: number(
            raw.rise.as_ref(),
            HealthCheck::RISE,
            1,
            MAX_IN_A_ROW,
            report,
        ),
        fall: number(
            raw.fall.as_ref(),
            HealthCheck::FALL,
            1,
            MAX_IN_A_ROW,
            report,
        ),
        jitter_per_cent: number(
            raw.jitter.as_ref(),
            HealthCheck::JITTER_PER_CENT,
            0,
            MAX_JITTER,
            report,
        ),
    })
}

fn times(raw: &raw::HealthCheck, report: &mut Report<'_>) -> (Duration, Duration) {
    let interval = span(
        raw.interval.as_ref(),
        HealthCheck::INTERVAL,
        INTERVAL,
        report,
    );
    let default = HealthCheck::TIMEOUT.min(interval / 2);
    let timeout = span(
        raw.timeout.as_ref(),
        default,
        (MIN_TIMEOUT, INTERVAL.1),
        report,
    );
    if let Some(At { place, .. }) = &raw.timeout
        && timeout >= interval
    {
        report.problem(
            place,
            format_args!(
                "not shorter than the interval ({}), so that checks would overtake each other; shorten it, or raise interval",
                spelt(interval)
            ),
        );
    }
    (interval, timeout)
}

/// Which way it goes; `None` after a problem has been reported.
fn through(
    kind: ProbeKind,
    raw: &raw::HealthCheck,
    forward: Forward,
    report: &mut Report<'_>,
) -> Option<Through> {
    let is_possible = forward.is_tunnel() && kind != ProbeKind::Exec;
    let Some(At { value, place }) = &raw.through else {
        let default = match is_possible {
            true => Through::Tunnel,
            false => Through::Direct,
        };
        return (!report.has_problem_at(&raw.place.child("through").key)).then_some(default);
    };
    if *value == Through::Direct || is_possible {
        return Some(*value);
    }
    if forward.is_tunnel() {
        report.problem(
            place,
            "a program sends what it likes, which does not go through the tunnel; remove this key, or choose another kind",
        );
    } else {
        report.problem(
            place,
            format_args!(
                "only with forward = \"ipip\" or \"gue\": with \"{}\" packets go to backends in no tunnel; remove it, or set \"direct\"",
                forward.name()
            ),
        );
    }
    None
}

/// Whether no key of another kind is there.
fn only_keys_of(kind: ProbeKind, raw: &raw::HealthCheck, report: &mut Report<'_>) -> bool {
    use ProbeKind::{Exec, Grpc, Http, Https, Udp};
    fn place<T>(at: Option<&At<T>>) -> Option<&Place> {
        at.map(|at| &at.place)
    }
    const HTTP: &[ProbeKind] = &[Http, Https];
    let mut right = true;
    for (place, kinds) in [
        (place(raw.path.as_ref()), HTTP),
        (place(raw.host.as_ref()), HTTP),
        (place(raw.status.as_ref()), HTTP),
        (place(raw.body.as_ref()), HTTP),
        (place(raw.send.as_ref()), &[Udp]),
        (place(raw.expect.as_ref()), &[Udp]),
        (place(raw.service.as_ref()), &[Grpc]),
        (place(raw.command.as_ref()), &[Exec]),
    ] {
        if let Some(place) = place
            && !kinds.contains(&kind)
        {
            let names: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
            report.problem_without_value(
                place,
                format_args!(
                    "only for kind = \"{}\", and it is \"{}\"; remove one of them",
                    names.join("\" or \""),
                    kind.name()
                ),
            );
            right = false;
        }
    }
    right
}

/// Whether it is known which port is asked.
fn has_port(
    kind: ProbeKind,
    raw: &raw::HealthCheck,
    protocol: Protocol,
    ports: Option<&Ports>,
    backends: &[Backend],
    report: &mut Report<'_>,
) -> bool {
    let place = raw.place.child("port");
    if raw.port.is_some() || report.has_problem_at(&place.key) {
        return true;
    }
    let asks = match kind {
        ProbeKind::Exec => None,
        ProbeKind::Udp => Some(Protocol::Udp),
        _ => Some(Protocol::Tcp),
    };
    if asks.is_some_and(|asks| asks != protocol) {
        report.problem_without_value(
            &place,
            format_args!(
                "missing: \"{}\" does not ask over {}, the protocol of the service; name the port that answers it, such as port = 8080",
                kind.name(),
                protocol.name()
            ),
        );
        return false;
    }
    let own = backends.iter().all(|b| b.port.is_some());
    if ports.is_some_and(|p| p.single().is_none()) && !own {
        report.problem_without_value(
            &place,
            "missing: the service has more than one port; name that which is asked, such as port = 8080",
        );
        return false;
    }
    true
}

fn probe(kind: ProbeKind, raw: &raw::HealthCheck, report: &mut Report<'_>) -> Option<Probe> {
    Some(match kind {
        ProbeKind::Tcp => Probe::Tcp,
        ProbeKind::Http => Probe::Http(http(false, raw, report)?),
        ProbeKind::Https => Probe::Http(http(true, raw, report)?),
        ProbeKind::Udp => udp(raw, report)?,
        ProbeKind::Grpc => {
            let service = text(raw.service.as_ref(), report)?.unwrap_or_default();
            if !service.bytes().all(|b| b.is_ascii_graphic()) {
                let place = raw.service.as_ref().map(|s| &s.place)?;
                report.problem(
                    place,
                    "no name of a service; write it as in the .proto file, such as \"api.v1.Users\"",
                );
                return None;
            }
            Probe::Grpc {
                tls: false,
                service,
            }
        }
        ProbeKind::Exec => exec(raw, report)?,
    })
}

fn http(tls: bool, raw: &raw::HealthCheck, report: &mut Report<'_>) -> Option<HttpProbe> {
    let path = text(raw.path.as_ref(), report)?;
    if let Some(At { value, place }) = &raw.path
        && !(value.starts_with('/') && value.bytes().all(|b| b.is_ascii_graphic() && b != b'#'))
    {
        report.problem(
            place,
            "no path; begin with '/', and write blanks, '#' and what is not ASCII with %, such as \"/health?deep=1\"",
        );
        return None;
    }
    if let Some(At { value, place }) = &raw.host
        && !is_host(value)
    {
        report.problem(
            place,
            "no name of a host; write it without scheme and port, such as \"www.example.org\"",
        );
        return None;
    }
    let body = text(raw.body.as_ref(), report)?;
    if let Some(At { value, place }) = &raw.body
        && value.is_empty()
    {
        report.problem(
            place,
            "empty, which any body contains; name a word of it, or remove the key",
        );
        return None;
    }
    Some(HttpProbe {
        tls,
        http2: false,
        path: path.unwrap_or_else(|| "/".to_owned()),
        host: raw.host.as_ref().map(|h| h.value.clone()),
        status: raw
            .status
            .as_ref()
            .map_or(STATUS, |s| (s.value.0, s.value.1)),
        body,
    })
}

/// As RFC 952 and RFC 1123, 2.1, with the underscore that many names have.
pub(super) fn is_host(name: &str) -> bool {
    let is_label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= MAX_HOST && name.split('.').all(is_label)
}

fn udp(raw: &raw::HealthCheck, report: &mut Report<'_>) -> Option<Probe> {
    let Some(send) = text(raw.send.as_ref(), report)? else {
        let place = raw.place.child("send");
        if !report.has_problem_at(&place.key) {
            report.problem_without_value(
                &place,
                "missing; say what the backend is sent and answers to, such as send = \"ping\"",
            );
        }
        return None;
    };
    let expect = text(raw.expect.as_ref(), report)?.unwrap_or_default();
    Some(Probe::Udp {
        send: send.into_bytes(),
        expect: expect.into_bytes(),
    })
}

fn exec(raw: &raw::HealthCheck, report: &mut Report<'_>) -> Option<Probe> {
    const REMEDY: &str =
        "name a program by its absolute path, such as command = [\"/usr/local/bin/check\"]";
    let Some(At {
        value: words,
        place,
    }) = &raw.command
    else {
        let place = raw.place.child("command");
        if !report.has_problem_at(&place.key) {
            report.problem_without_value(&place, format_args!("missing; {REMEDY}"));
        }
        return None;
    };
    let Some((program, arguments)) = words.split_first() else {
        if !report.has_problem_at(&place.key) {
            report.problem_without_value(place, format_args!("no program; {REMEDY}"));
        }
        return None;
    };
    if arguments.len() > MAX_ARGUMENTS {
        report.problem_without_value(
            place,
            format_args!("more than {MAX_ARGUMENTS} arguments; put them into a script"),
        );
        return None;
    }
    let command = PathBuf::from(&program.value);
    if !command.is_absolute() || command.file_name().is_none() {
        report.problem(&program.place, format_args!("no absolute path; {REMEDY}"));
        return None;
    }
    for word in words {
        text(Some(word), report)?;
        if word.value.contains('\0') {
            report.problem(
                &word.place,
                "holds a zero, which no argument can; remove it",
            );
            return None;
        }
    }
    Some(Probe::Exec {
        command,
        arguments: arguments.iter().map(|a| a.value.clone()).collect(),
    })
}

/// The text of a key, if it is there; `None` after it has been reported as too long.
fn text(at: Option<&At<String>>, report: &mut Report<'_>) -> Option<Option<String>> {
    let Some(At { value, place }) = at else {
        return Some(None);
    };
    if value.len() > MAX_TEXT {
        report.problem_without_value(
            place,
            format_args!(
                "{} bytes long, at most {MAX_TEXT} are possible; shorten it",
                value.len()
            ),
        );
        return None;
    }
    Some(Some(value.clone()))
}
