//! The backends of a service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use edge_common::quic::ServerId;

use super::{
    check_unicast, number,
    services::{NAME_REMEDY, is_name},
};
use crate::config::{
    balance::{Backend, Forward, HashBy, MAX_SERVICE_BACKENDS, MAX_WEIGHT, WEIGHT},
    raw,
    report::{At, Report},
    services::Ports,
};

/// Checks them; `None` after a problem has been reported.
pub(super) fn backends(
    raw: &raw::Service,
    forward: Forward,
    hash: HashBy,
    ports: Option<&Ports>,
    report: &mut Report<'_>,
) -> Option<Vec<Backend>> {
    let place = raw.place.child("backend");
    let list = raw.backends.as_deref().unwrap_or(&[]);
    if list.is_empty() {
        if !report.has_problem_at(&place.key) {
            report.problem_without_value(
                &place,
                "missing; a balanced service needs a [[service.backend]] at least",
            );
        }
        return None;
    }
    if let Some(first) = list.get(MAX_SERVICE_BACKENDS) {
        report.problem_without_value(
            &first.place,
            format_args!(
                "more than {MAX_SERVICE_BACKENDS} backends; spread them over several services"
            ),
        );
        return None;
    }
    let (mut names, mut places) = (BTreeSet::new(), BTreeMap::new());
    let mut ids = BTreeMap::new();
    let mut backends = Vec::new();
    for raw in list {
        let name = backend_name(raw, &mut names, report);
        let address = backend_address(raw, report);
        let port = backend_port(raw, forward, ports, report);
        let weight = number(raw.weight.as_ref(), WEIGHT, 0, MAX_WEIGHT, report);
        let server_id = server_id(raw, hash, &mut ids, report);
        let (Some(name), Some(address), Some(port), Some(server_id)) =
            (name, address, port, server_id)
        else {
            continue;
        };
        // What it does not say is the service's, where that has only one.
        let listens = port.or(ports.and_then(Ports::single));
        if let Some(other) = places.insert((address, listens), name.clone()) {
            report.problem_without_value(
                &raw.place,
                format_args!(
                    "{name:?} is where {other:?} is; remove one of them, and give the other its weight"
                ),
            );
            continue;
        }
        backends.push(Backend {
            name,
            address,
            port,
            weight,
            backup: raw.backup.unwrap_or(false),
            server_id,
        });
    }
    if backends.len() < list.len() {
        return None;
    }
    let mut regular = backends.iter().filter(|b| !b.backup).peekable();
    if regular.peek().is_none() {
        report.problem_without_value(
            &place,
            "all are backups, and of nothing; take backup = true away from those that are to be used",
        );
        return None;
    }
    if regular.all(|b| b.weight == 0) {
        report.problem_without_value(
            &place,
            "the weight of all that are no backups is 0, so that nothing would be used; give one a weight",
        );
        return None;
    }
    Some(backends)
}

fn backend_name(
    raw: &raw::Backend,
    names: &mut BTreeSet<String>,
    report: &mut Report<'_>,
) -> Option<String> {
    let Some(At { value, place }) = &raw.name else {
        missing(
            raw,
            "name",
            "missing; give the backend a name, such as name = \"web-1\"",
            report,
        );
        return None;
    };
    if !is_name(value) {
        report.problem(place, NAME_REMEDY);
        return None;
    }
    if !names.insert(value.clone()) {
        report.problem(
            place,
            "the name of another backend of the service; give each one of its own",
        );
        return None;
    }
    Some(value.clone())
}

fn backend_address(raw: &raw::Backend, report: &mut Report<'_>) -> Option<IpAddr> {
    let Some(At { value, place }) = raw.address.as_ref() else {
        missing(
            raw,
            "address",
            "missing; say where it is, such as address = \"10.0.0.11\"",
            report,
        );
        return None;
    };
    check_unicast(
        *value,
        place,
        "name one of the backend that is its alone",
        report,
    )
    .then_some(*value)
}

/// `None` after a problem has been reported.
#[expect(clippy::option_option, reason = "a port that is right may be none")]
fn backend_port(
    raw: &raw::Backend,
    forward: Forward,
    ports: Option<&Ports>,
    report: &mut Report<'_>,
) -> Option<Option<u16>> {
    let Some(At { value, place }) = &raw.port else {
        return (!report.has_problem_at(&raw.place.child("port").key)).then_some(None);
    };
    if forward.keeps_packet() {
        report.problem(
            place,
            format_args!(
                "forward = \"{}\" leaves packets as they are, with the port of the service; remove it, or choose \"nat\"",
                forward.name()
            ),
        );
        return None;
    }
    if ports == Some(&Ports::Any) {
        report.problem(
            place,
            "the service has ports = \"any\", which would all become this one; remove it, or list the ports",
        );
        return None;
    }
    Some(Some(value.0))
}

/// What connection ids name it by. `ids` are those of the backends before it, with their
/// names. `None` after a problem has been reported.
#[expect(
    clippy::option_option,
    reason = "one that names nobody may be right to have none"
)]
fn server_id<'a>(
    raw: &'a raw::Backend,
    hash: HashBy,
    ids: &mut BTreeMap<ServerId, &'a str>,
    report: &mut Report<'_>,
) -> Option<Option<ServerId>> {
    let Some(At { value, place }) = &raw.server_id else {
        if hash == HashBy::Quic {
            missing(
                raw,
                "server_id",
                "missing; hash = \"quic\" knows a backend by the id in the connection ids that it chooses, so give it one, such as server_id = \"0a1b\"",
                report,
            );
            return None;
        }
        return (!report.has_problem_at(&raw.place.child("server_id").key)).then_some(None);
    };
    if hash != HashBy::Quic {
        report.problem(
            place,
            "only for a service with hash = \"quic\"; add that, or remove this",
        );
        return None;
    }
    if let Some((other, _)) = ids.first_key_value()
        && other.octets() != value.octets()
    {
        report.problem(
            place,
            format_args!(
                "{} octets long, and that of another backend of the service, \"{other}\", {}: where ids are of different length, none can be told; give all of them one length",
                value.octets(),
                other.octets()
            ),
        );
        return None;
    }
    let name = raw.name.as_ref().map_or("", |at| at.value.as_str());
    if let Some(other) = ids.insert(*value, name) {
        report.problem(
            place,
            format_args!("the id of {other:?} too; give each backend of the service its own"),
        );
        return None;
    }
    Some(Some(*value))
}

/// A key that a backend cannot do without.
fn missing(raw: &raw::Backend, key: &str, what: &str, report: &mut Report<'_>) {
    let place = raw.place.child(key);
    if !report.has_problem_at(&place.key) {
        report.problem_without_value(&place, what);
    }
}
