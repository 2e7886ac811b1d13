//! `edge backend`.

use std::{fmt::Write as _, io::Write, path::Path};

use super::{
    Error,
    args::{BackendCommand, NewWeight},
    ask,
    output::Out,
    text::{Column, Table, count},
    unexpected,
};
use crate::{
    control::protocol::{BackendChange, Request, Response},
    status::balance::{AdminState, BackendStatus, BalanceStatus},
};

pub(super) fn execute<W: Write>(
    command: BackendCommand,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    let (name, change) = match command {
        BackendCommand::List { service } => return list(service.as_deref(), socket, out),
        BackendCommand::Drain { name, timeout_s } => (name, BackendChange::Drain { timeout_s }),
        BackendCommand::Undrain { name } => (name, BackendChange::Undrain {}),
        BackendCommand::Weight { name, weight } => {
            let weight = match weight {
                NewWeight::Configured => None,
                NewWeight::Set(weight) => Some(weight),
            };
            (name, BackendChange::Weight { weight })
        }
    };
    let backend = match ask(socket, Request::Backend { name, change })? {
        Response::Backend(backend) => backend,
        other => return Err(unexpected(socket, &other)),
    };
    if out.json {
        out.object(&*backend)?;
    } else {
        out.text(&sentence(&backend))?;
    }
    Ok(())
}

fn sentence(b: &BackendStatus) -> String {
    let flows = count(b.flows.into());
    let share = b.share * 100.0;
    match b.admin {
        AdminState::Draining => {
            format!("{}: gets no new flows; {flows} flows are left\n", b.name)
        }
        AdminState::Drained => format!("{}: drained\n", b.name),
        AdminState::Active => format!(
            "{}: weight {}, {share:.1} % of new flows: {}\n",
            b.name, b.weight, b.why
        ),
    }
}

fn list<W: Write>(service: Option<&str>, socket: &Path, out: &mut Out<W>) -> Result<(), Error> {
    let status = match ask(socket, Request::Status {})? {
        Response::Status(status) => status,
        other => return Err(unexpected(socket, &other)),
    };
    let mut balance = status.balance.unwrap_or_default();
    balance
        .services
        .retain(|s| service.is_none_or(|name| s.name == name));
    if out.json {
        for service in &balance.services {
            out.object(service)?;
        }
    } else {
        out.text(&text(&balance))?;
    }
    Ok(())
}

/// All services with their backends.
pub(super) fn text(balance: &BalanceStatus) -> String {
    if balance.services.is_empty() {
        return "no balanced services\n".to_owned();
    }
    let mut table = Table::new([
        Column::Left("SERVICE"),
        Column::Left("BACKEND"),
        Column::Left("ADDRESS"),
        Column::Left("HEALTH"),
        Column::Right("WEIGHT"),
        Column::Right("SHARE"),
        Column::Right("FLOWS"),
        Column::Right("PACKETS"),
        Column::Left("WHY"),
    ]);
    for service in &balance.services {
        for b in &service.backends {
            let weight = match b.weight == b.set_weight.unwrap_or(b.configured_weight) {
                true => b.weight.to_string(),
                false => format!(
                    "{} of {}",
                    b.weight,
                    b.set_weight.unwrap_or(b.configured_weight)
                ),
            };
            table.row([
                service.name.clone(),
                b.name.clone(),
                b.port.map_or_else(
                    || b.address.to_string(),
                    |port| std::net::SocketAddr::new(b.address, port).to_string(),
                ),
                b.health.clone().unwrap_or_else(|| "-".to_owned()),
                weight,
                format!("{:.1} %", b.share * 100.0),
                count(b.flows.into()),
                count(b.packets),
                why(b),
            ]);
        }
    }
    let mut text = table.text();
    for service in balance.services.iter().filter(|s| s.failed_open) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}: FAILS OPEN, too few backends are healthy and all are used",
            service.name
        );
    }
    text
}

/// Why it gets flows or not, and what is wrong with it.
fn why(b: &BackendStatus) -> String {
    let wrong = [b.error.as_deref(), b.no_way.as_deref()];
    let wrong: Vec<&str> = wrong.into_iter().flatten().collect();
    match wrong.as_slice() {
        [] => b.why.clone(),
        wrong => format!("{} ({})", b.why, wrong.join("; ")),
    }
}
