//! Header fields that the file makes up, and changes to headers.

use super::conditions::{is_header, too_long, too_many};
use crate::{
    config::{
        proxy::route::{HeaderRules, MAX_PARTS, MAX_TEXT},
        raw::proxy as raw,
        report::{At, Place, Report},
    },
    uri,
};

/// Fields that say where a message ends or belong to one connection (RFC 9110, 7.6.1): they are
/// the proxy's.
const OWN_FIELDS: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Fields with their places; what cannot be one is reported.
pub(super) fn fields<'a>(
    raw::Fields(list): &'a raw::Fields,
    section: &Place,
    report: &mut Report<'_>,
) -> Vec<(String, String, &'a Place)> {
    if list.len() > MAX_PARTS {
        too_many(section, report);
        return Vec::new();
    }
    let mut fields: Vec<(String, String, &Place)> = Vec::new();
    for (name, At { value, place }) in list {
        let Some(name) = field_name(name, place, report) else {
            continue;
        };
        let is_text = |b: u8| b == b'\t' || (b >= b' ' && b != 0x7f);
        if value.len() > MAX_TEXT {
            too_long(place, value.len(), report);
        } else if !value.bytes().all(is_text) || value.trim_matches([' ', '\t']) != value {
            report.problem(place, "no value of a header; leave out line ends, control characters, and blanks around it");
        } else if fields.iter().any(|(n, ..)| *n == name) {
            report.problem(
                place,
                "named twice, for names of headers know no case; remove one",
            );
        } else {
            fields.push((name, value.clone(), place));
        }
    }
    fields
}

fn field_name(name: &str, place: &Place, report: &mut Report<'_>) -> Option<String> {
    match is_header(name) {
        Err(why) => report.problem(place, why),
        Ok(name) if OWN_FIELDS.contains(&name.as_str()) => report.problem(
            place,
            "says where a message ends or belongs to one connection, and is the proxy's; remove it",
        ),
        Ok(name) => return Some(name),
    }
    None
}

pub(super) fn rules(
    raw: Option<&raw::HeaderRules>,
    is_request: bool,
    report: &mut Report<'_>,
) -> HeaderRules {
    let Some(raw) = raw else {
        return HeaderRules::default();
    };
    let mut of = |at: &Option<raw::Fields>, key| {
        at.as_ref().map_or_else(Vec::new, |f| {
            let fields = fields(f, &raw.place.child(key), report);
            fields
                .into_iter()
                .map(|(n, v, p)| (n, v, p.clone()))
                .collect()
        })
    };
    let (set, add): (Vec<(String, String, Place)>, Vec<_>) =
        (of(&raw.set, "set"), of(&raw.add, "add"));
    let mut remove = Vec::new();
    let list = raw.remove.as_deref().unwrap_or(&[]);
    if list.len() > MAX_PARTS {
        too_many(&raw.place.child("remove"), report);
    }
    for At { value, place } in list.iter().take(MAX_PARTS) {
        let Some(name) = field_name(value, place, report) else {
            continue;
        };
        if set.iter().any(|(n, ..)| *n == name) {
            report.problem(place, "set as well, which replaces it; remove one of them");
        } else if is_request && name == "host" {
            report.problem(
                place,
                "every request has one host; set it, or leave it alone",
            );
        } else if remove.contains(&name) {
            report.warn(place, "named twice");
        } else {
            remove.push(name);
        }
    }
    for (name, _, place) in &add {
        if set.iter().any(|(n, ..)| n == name) {
            report.problem(place, "set as well; keep one of them");
        } else if is_request && name == "host" {
            report.problem(place, "every request has one host; set it instead");
        }
    }
    if let Some((_, value, place)) = set.iter().find(|(n, ..)| is_request && n == "host") {
        let mut buffer = Vec::new();
        if uri::host::authority(value.as_bytes(), &mut buffer).is_none() {
            report.problem(
                place,
                "no host; write it as in \"app.example.org\" or \"app.example.org:8080\"",
            );
        }
    }
    let plain =
        |fields: Vec<(String, String, Place)>| fields.into_iter().map(|(n, v, _)| (n, v)).collect();
    HeaderRules {
        set: plain(set),
        add: plain(add),
        remove,
    }
}
