//! What `edge decap` prints.

use std::{
    fmt::Display,
    io::{self, Write},
};

use edge_common::decap::Outcome;
use serde_json::json;

use super::{
    output::Out,
    text::{Column, Table, count},
};
use crate::status::{
    AttachMode,
    decap::{News, Ready, Totals},
};

/// Prints news at once: whoever waits for them reads a pipe.
pub(super) fn tell<W: Write>(news: &News, out: &mut Out<W>) -> io::Result<()> {
    match news {
        News::Ready(ready) => {
            out.either(&json!({ "ready": ready }), || format!("{}\n", line(ready)))
        }
        News::Ended(totals) => out.either(&json!({ "ended": totals }), || table(totals)),
    }?;
    out.flush()
}

fn line(ready: &Ready) -> String {
    let interfaces = ready.interfaces.iter().map(|i| match i.mode {
        Some(AttachMode::Native) => format!("{} (native)", i.name),
        Some(AttachMode::Generic) => format!("{} (GENERIC, slow)", i.name),
        None => format!("{} (NOT ATTACHED)", i.name),
    });
    format!(
        "ready: tunnels on {} from {} to {}; GUE on UDP port {}",
        list(interfaces),
        list(&ready.sources),
        if ready.local.is_empty() {
            "no address yet".to_owned()
        } else {
            list(&ready.local)
        },
        ready.gue_port
    )
}

fn list(items: impl IntoIterator<Item: Display>) -> String {
    let texts: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(", ")
}

fn table(totals: &Totals) -> String {
    let mut table = Table::new([
        Column::Left("OUTCOME"),
        Column::Right("PACKETS"),
        Column::Left("MEANING"),
    ]);
    for outcome in Outcome::ALL {
        let packets = totals.packets.get(outcome.name());
        table.row([
            outcome.name().to_owned(),
            count(packets.copied().unwrap_or_default()),
            outcome.sentence().to_owned(),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::decap::DecapInterface;

    fn ready() -> News {
        News::Ready(Ready {
            interfaces: vec![
                DecapInterface {
                    name: "eth0".to_owned(),
                    mode: Some(AttachMode::Native),
                },
                DecapInterface {
                    name: "eth1".to_owned(),
                    mode: Some(AttachMode::Generic),
                },
            ],
            sources: vec![
                "10.0.0.0/24".parse().unwrap(),
                "fd00:7::/64".parse().unwrap(),
            ],
            local: ["10.0.0.9".parse().unwrap()].into(),
            gue_port: 6080,
        })
    }

    fn told(news: &News, json: bool) -> String {
        let mut text = Vec::new();
        tell(news, &mut Out::new(&mut text, json)).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn ready_in_both_forms() {
        assert_eq!(
            told(&ready(), false),
            "ready: tunnels on eth0 (native), eth1 (GENERIC, slow) from 10.0.0.0/24, fd00:7::/64 \
             to 10.0.0.9; GUE on UDP port 6080\n"
        );
        let value: serde_json::Value = serde_json::from_str(&told(&ready(), true)).unwrap();
        assert_eq!(
            value["ready"],
            json!({
                "interfaces": [
                    {"name": "eth0", "mode": "native"},
                    {"name": "eth1", "mode": "generic"},
                ],
                "sources": ["10.0.0.0/24", "fd00:7::/64"],
                "local": ["10.0.0.9"],
                "gue_port": 6080,
            })
        );
    }

    #[test]
    fn totals_in_both_forms() {
        let mut packets = [0; Outcome::COUNT];
        packets[Outcome::DecapIpip as usize] = 1234;
        let ended = News::Ended(packets.into());
        let text = told(&ended, false);
        assert_eq!(text.lines().count(), 1 + Outcome::COUNT);
        let line = text.lines().find(|l| l.starts_with("decap_ipip ")).unwrap();
        assert!(line.contains("1,234"), "{line}");
        let value: serde_json::Value = serde_json::from_str(&told(&ended, true)).unwrap();
        let packets = value["ended"]["packets"].as_object().unwrap();
        assert_eq!(packets.len(), Outcome::COUNT);
        assert_eq!(packets["decap_ipip"], 1234);
    }
}
