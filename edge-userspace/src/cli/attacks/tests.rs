use std::os::unix::fs::PermissionsExt as _;

use edge_common::reason::Reason;

use super::*;
use crate::status::attack::{Found, Kind, KindCount, Remedy, Source};

/// An attack that is on.
pub(in crate::cli) fn attack() -> Attack {
    let kind = |kind, packets, per_second, peak_per_second| KindCount {
        kind,
        packets,
        per_second,
        peak_per_second,
    };
    Attack {
        id: 7,
        service: "web".to_owned(),
        found: Found::Segments,
        began_unix_ms: 1_795_325_504_000,
        ended_unix_ms: None,
        kinds: vec![
            kind(Kind::Syn, 1_000_000, 912_345.0, 1_200_000.0),
            kind(Kind::Ack, 100_000, 80_000.0, 90_000.0),
        ],
        remedy: Remedy::Cookies,
        clients: 1234,
        counters: [("syns".to_owned(), 1_001_234), ("closed".to_owned(), 0)].into(),
        sampled: 130,
        sources: vec![
            Share {
                of: Source("198.51.100.0/24".parse().unwrap()),
                samples: 90,
                error: 0,
            },
            Share {
                of: Source("2001:db8::/48".parse().unwrap()),
                samples: 40,
                error: 3,
            },
        ],
        ports: vec![Share {
            of: 443,
            samples: 130,
            error: 0,
        }],
    }
}

#[test]
fn attacks_are_listed() {
    let over = Attack {
        id: 6,
        ended_unix_ms: Some(1_795_325_504_000 + 90_000),
        remedy: Remedy::DryRun,
        ..attack()
    };
    assert_eq!(
        table(&[attack(), over]),
        "\
ID  SERVICE  BEGAN                     LASTED  KINDS     PEAK/S  REMEDY   CLIENTS
 7  web      2026-11-22 05:31:44 UTC  goes on  syn, ack  1.20 M  cookies    1,234
 6  web      2026-11-22 05:31:44 UTC   1m 30s  syn, ack  1.20 M  dry_run    1,234
"
    );
    assert_eq!(table(&[]), "no attacks\n");
}

#[test]
fn an_attack_is_shown_whole() {
    assert_eq!(
        render(&attack(), 64),
        "\
attack 7 on web: a SYN flood and a flood of guessed acknowledgements
began 2026-11-22 05:31:44 UTC, goes on
answered with SYN cookies, 1,234 clients got through

KIND    PACKETS   NOW/S  PEAK/S
syn   1,000,000   912 k  1.20 M
ack     100,000  80.0 k  90.0 k

COUNTED      TIMES
syns     1,001,234

FROM              SAMPLES
198.51.100.0/24        90
2001:db8::/48    37 to 40

TO PORT  SAMPLES
443          130

130 packets were sampled, 64 of them are kept
"
    );
    let over = Attack {
        ended_unix_ms: Some(1_795_325_504_000 + 90_000),
        ..attack()
    };
    let text = render(&over, 0);
    assert!(
        text.contains("UTC, ended 2026-11-22 05:33:14 UTC, lasted 1m 30s\n"),
        "{text}"
    );
}

#[test]
fn samples_become_bytes() {
    let event = |data: &str| Event {
        unix_ms: 5,
        interface: "eth0".to_owned(),
        reason: Reason::ReplySynCookie,
        would_drop: false,
        frame_len: 60,
        packet: None,
        data: data.to_owned(),
    };
    let packet_of = |data| packet(&event(data)).map(|p| p.bytes);
    assert_eq!(packet_of("00fF7a"), Some(vec![0, 255, 0x7a]));
    assert_eq!(packet_of(""), Some(vec![]));
    for wrong in ["0", "000", "0g", "é"] {
        assert_eq!(packet_of(wrong), None, "{wrong}");
    }
}

#[test]
fn a_file_is_private_and_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pcap");
    write(&path, b"one", false).unwrap();
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let refused = write(&path, b"two", false).unwrap_err();
    assert!(matches!(&refused, Error::Input(m) if m.contains("--force")));
    assert_eq!(fs::read(&path).unwrap(), b"one");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    write(&path, b"two", true).unwrap();
    assert_eq!((fs::read(&path).unwrap(), mode()), (b"two".to_vec(), 0o600));
    // With --force as well, but only files are replaced.
    let new = dir.path().join("b.pcap");
    write(&new, b"x", true).unwrap();
    assert!(matches!(
        write(dir.path(), b"x", true),
        Err(Error::Input(_))
    ));
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(write(&link, b"x", true), Err(Error::Input(_))));
    assert!(matches!(write(&link, b"x", false), Err(Error::Input(_))));
    let nowhere = dir.path().join("no/where");
    assert!(matches!(write(&nowhere, b"x", true), Err(Error::Failed(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}
