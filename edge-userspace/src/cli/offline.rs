//! What needs no daemon: `check` and `reasons`.

use std::{
    io::{self, Write},
    path::Path,
};

use edge_common::reason::Reason;
use serde::Serialize;

use super::{
    Error, apply,
    output::Out,
    text::{Column, Table},
};
use crate::{
    clock,
    config::{self, Description, describe, possible_cpus},
    control::{client::ClientError, protocol::Comparison},
    tables::Geometry,
};

/// `edge check`.
pub(super) fn check<W: Write>(path: &Path, socket: &Path, out: &mut Out<W>) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Check {
        file: String,
        warnings: Vec<String>,
        #[serde(flatten)]
        description: Description,
        /// What it would change where it was checked, if a daemon runs there.
        against: Option<Comparison>,
        /// Why a daemon there would not take it.
        against_error: Option<String>,
    }
    let (text, checked) = config::load_text(path, clock::coarse_tick_ns())?;
    let model = &checked.model;
    let (against, against_error) = match apply::compare(path, &text, socket) {
        Ok(comparison) => (Some(comparison), None),
        // Nobody is there, or nobody who speaks to us.
        Err(Error::Client(ClientError::Unreachable { .. } | ClientError::Denied { .. })) => {
            (None, None)
        }
        Err(e) => (None, e.message()),
    };
    let check = Check {
        file: path.display().to_string(),
        warnings: checked.warnings.iter().map(ToString::to_string).collect(),
        description: describe(
            model,
            &Geometry::for_capacity(&model.capacity),
            possible_cpus(),
        ),
        against,
        against_error,
    };
    if !out.json {
        for warning in &check.warnings {
            // On stderr, so that the description can be kept by itself.
            writeln!(io::stderr(), "warning: {warning}")?;
        }
    }
    out.either(&check, || {
        let mut text = format!("{}: correct\n\n{}\n", check.file, check.description);
        if let Some(comparison) = &check.against {
            text += "\nagainst what is in force here:\n";
            text += &apply::told(&Comparison {
                warnings: Vec::new(),
                ..comparison.clone()
            });
        } else if let Some(error) = &check.against_error {
            text += &format!("\nnot compared with what is in force here:\n{error}\n");
        }
        text
    })?;
    Ok(())
}

/// `edge reasons`.
pub(super) fn reasons<W: Write>(out: &mut Out<W>) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Row {
        reason: &'static str,
        verdict: &'static str,
        sentence: &'static str,
    }
    let mut table = Table::new([
        Column::Left("REASON"),
        Column::Left("VERDICT"),
        Column::Left("MEANING"),
    ]);
    for reason in Reason::ALL {
        let row = Row {
            reason: reason.name(),
            verdict: reason.verdict().name(),
            sentence: reason.sentence(),
        };
        if out.json {
            out.object(&row)?;
        }
        table.row([row.reason, row.verdict, row.sentence].map(str::to_owned));
    }
    if !out.json {
        out.text(&table.text())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_reasons_in_both_forms() {
        for json in [false, true] {
            let mut text = Vec::new();
            let mut out = Out::new(&mut text, json);
            reasons(&mut out).unwrap();
            out.flush().unwrap();
            drop(out);
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text.lines().count(), Reason::COUNT + usize::from(!json));
            for reason in Reason::ALL {
                let line = text.lines().find(|l| l.contains(reason.sentence()));
                let line = line.unwrap_or_else(|| panic!("{reason:?}"));
                if json {
                    let row: serde_json::Value = serde_json::from_str(line).unwrap();
                    assert_eq!(row["reason"], reason.name());
                    assert_eq!(row["verdict"], reason.verdict().name());
                } else {
                    assert!(line.starts_with(reason.name()));
                }
            }
        }
    }
}
