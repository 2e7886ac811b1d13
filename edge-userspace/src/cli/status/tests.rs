use super::*;
use crate::{
    entry::List,
    status::{
        ConfigStatus, EntryKind, EventsStatus, FamilyName, HostFloodStatus, LimiterStatus,
        ListCount, ReasonCount, Reloads, ServiceTargets, TableStatus,
        attack::{Found, Kind, Remedy},
    },
};

fn sample() -> Status {
    let traffic = |packets, bytes| Traffic { packets, bytes };
    let reason = |reason, ended, would_drop| ReasonCount {
        reason,
        ended,
        would_drop,
    };
    Status {
        version: "0.1.0".to_owned(),
        abi_version: 1,
        pid: 42,
        started_unix_ms: 1_795_325_503_000,
        uptime_ms: 10_000,
        config: ConfigStatus {
            file: "/etc/edge/edge.toml".to_owned(),
            generation: 2,
            since_unix_ms: 1_795_325_504_000,
        },
        reloads: Reloads {
            failed: 1,
            last_failure_unix_ms: Some(1_795_325_505_000),
            last_error: Some("edge.toml:3: nonsense".to_owned()),
            ..Reloads::default()
        },
        interfaces: vec![
            InterfaceStatus {
                name: "eth0".to_owned(),
                ifindex: 2,
                mode: Some(AttachMode::Native),
                problem: None,
                adopted: true,
                passed_at_start: traffic(1000, 100_000),
                dropped_at_start: Traffic::default(),
                reasons: vec![
                    reason(Reason::Pass, traffic(1900, 190_000), traffic(0, 0)),
                    reason(Reason::PassAllowlisted, traffic(100, 10_000), traffic(0, 0)),
                    reason(
                        Reason::Blacklisted,
                        traffic(1_234_567, 74_074_020),
                        traffic(0, 0),
                    ),
                    reason(Reason::LimitSyn, traffic(5, 300), traffic(7, 420)),
                ],
            },
            InterfaceStatus {
                name: "veth1".to_owned(),
                ifindex: 3,
                mode: Some(AttachMode::Generic),
                problem: None,
                adopted: false,
                passed_at_start: Traffic::default(),
                dropped_at_start: Traffic::default(),
                reasons: vec![],
            },
        ],
        services: vec![],
        host_floods: vec![],
        tables: vec![TableStatus {
            table: "hosts_v4".to_owned(),
            entries: 131,
            capacity: 131_072,
        }],
        lists: vec![ListCount {
            list: List::Black,
            family: FamilyName::Ipv4,
            kind: EntryKind::Host,
            entries: 131,
        }],
        limiter: LimiterStatus {
            claimed: 5,
            recycled: 4,
            evicted: 3,
            contended: 0,
        },
        events: EventsStatus {
            read: 12,
            lost_in_kernel: 0,
            lost_by_followers: 1,
        },
        control: vec![],
        stage_missing: 0,
        balance: None,
        proxy: None,
    }
}

#[test]
fn the_proxy_has_a_section() {
    let proxy = proxy::tests::proxy();
    let section = format!("\n\n{}\n", proxy::section(&proxy));
    let status = Status {
        proxy: Some(proxy),
        ..sample()
    };
    assert!(render(&status).contains(&section));
}

#[test]
fn status_as_people_see_it() {
    assert_eq!(
        render(&sample()),
        "\
edge 0.1.0, up 10s (since 2026-11-22 05:31:43 UTC), process 42
configuration /etc/edge/edge.toml, generation 2 since 2026-11-22 05:31:44 UTC
LAST RELOAD REFUSED at 2026-11-22 05:31:45 UTC: edge.toml:3: nonsense
veth1: GENERIC MODE, many times slower than native

INTERFACE  MODE                   PACKETS    BYTES  PACKETS/S  BITS/S
eth0       native   passed          2,000   200 kB        100  80.0 k
                    dropped     1,234,572  74.1 MB      123 k  59.3 M
                    would drop          7    420 B          -       -
veth1      GENERIC  passed              0      0 B          0       0
                    dropped             0      0 B          0       0

DROPPED FOR    PACKETS    BYTES    SHARE
blacklisted  1,234,567  74.1 MB  100.0 %
limit_syn            5    300 B    0.0 %

WOULD DROP FOR  PACKETS  BYTES    SHARE
limit_syn             7  420 B  100.0 %

TABLE     ENTRIES  CAPACITY   FILL
hosts_v4      131   131,072  0.1 %

LIST       FAMILY  KIND  ENTRIES
blacklist  ipv4    host      131

limiter: 5 sources seen, 4 recycled, 3 evicted while active (raise tables.limiter_sources if this grows)
events: 12 sampled, 0 lost in the kernel, 1 lost by followers
"
    );
}

#[test]
fn an_attack_is_shown_as_an_attack() {
    let mut status = sample();
    let counter = |c: ServiceCounter, n: u64| (c.name().to_owned(), n);
    let service = |name: &str| ServiceStatus {
        name: name.to_owned(),
        syn: "auto".to_owned(),
        targets: ServiceTargets { total: 4, ready: 3 },
        ..ServiceStatus::default()
    };
    status.services = vec![
        ServiceStatus {
            under_attack: true,
            attack_since_unix_ms: Some(1_795_325_504_000),
            attack: Some(Box::new(super::super::attacks::tests::attack())),
            defended: true,
            pressure: 1.04,
            syn_per_second: 912_345.0,
            counters: [
                counter(ServiceCounter::Syns, 1_000_000),
                counter(ServiceCounter::CookiesSent, 999_000),
                counter(ServiceCounter::CookiesValid, 1234),
            ]
            .into(),
            ..service("web")
        },
        ServiceStatus {
            dry_run: true,
            under_attack: true,
            ..service("mail")
        },
        ServiceStatus {
            under_attack: true,
            defended: true,
            counters: [counter(ServiceCounter::OutOfState, 70)].into(),
            ..service(crate::config::services::HOST)
        },
    ];
    let text = render(&status);
    for line in [
        "web: UNDER ATTACK since 2026-11-22 05:31:44 UTC: a SYN flood of 912 k/s and a flood of \
         guessed acknowledgements of 80.0 k/s, answered with SYN cookies, 1,234 clients got \
         through (attack 7)\n",
        "mail: UNDER ATTACK\n",
        "SERVICE  MODE           STATE     PRESSURE  SYNS/S  TARGETS  READY\n\
         web      auto           ATTACKED     104 %   912 k        4      3\n\
         mail     auto, dry run  ATTACKED       0 %       0        4      3\n",
        "SERVICE       SYNS  COOKIES  VALID  INVALID  CHALLENGES  VERIFIED  CLOSED  OUT OF STATE  REFLECTED\n\
         web      1,000,000  999,000  1,234        0           0         0       0             0          0\n",
    ] {
        assert!(text.contains(line), "{line}in\n{text}");
    }
}

#[test]
fn an_attack_on_the_host_as_a_whole_is_told_as_one() {
    let mut status = sample();
    let attack = |remedy| Attack {
        service: crate::config::services::HOST.to_owned(),
        found: Found::Icmp,
        kinds: vec![KindCount {
            kind: Kind::Icmp,
            packets: 7000,
            per_second: 912.0,
            peak_per_second: 1000.0,
        }],
        remedy,
        ..super::super::attacks::tests::attack()
    };
    let flood = |attack| HostFloodStatus {
        flood: Found::Icmp,
        dry_run: false,
        attack,
        attacks: 1,
    };
    status.host_floods = vec![
        flood(None),
        flood(Some(Box::new(attack(Remedy::Drops)))),
        flood(Some(Box::new(attack(Remedy::DryRun)))),
    ];
    let text = render(&status);
    let began = "\nhost: UNDER ATTACK since 2026-11-22 05:31:44 UTC: an ICMP flood of 912/s, ";
    for how in [
        "what is over the limit is dropped (attack 7)\n",
        "NOT DEFENDED (dry run) (attack 7)\n",
    ] {
        let line = format!("{began}{how}");
        assert!(text.contains(&line), "{line}in\n{text}");
    }
    assert_eq!(text.matches("UNDER ATTACK").count(), 2);
}

#[test]
fn what_is_watched_is_drawn_over_and_fits_the_screen() {
    let over = "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J";
    assert_eq!(drawn("a\nb\n", false), over);
    assert_eq!(drawn("a\nb\n", true), format!("\x1b[2J{over}"));
    for (rows, columns, fits) in [
        (9, 80, "aaaa\n\nb\n"),
        (4, 4, "aaaa\n\nb\n"),
        (3, 80, "aaaa\n\n"),
        (4, 3, "aaaa\n\n"),
        (1, 80, ""),
    ] {
        assert_eq!(
            fitting("aaaa\n\nb\n", rows, columns),
            fits,
            "{rows} {columns}"
        );
    }
}

#[test]
fn a_service_without_a_listener_that_is_ready_is_told_loudly() {
    let mut status = sample();
    let attacked = ServiceStatus {
        name: "web".to_owned(),
        syn: "auto".to_owned(),
        targets: ServiceTargets { total: 4, ready: 0 },
        under_attack: true,
        ..ServiceStatus::default()
    };
    let attack = Some(Box::new(super::super::attacks::tests::attack()));
    status.services = vec![
        attacked.clone(),
        ServiceStatus {
            name: "mail".to_owned(),
            attack,
            ..attacked.clone()
        },
        ServiceStatus {
            name: "dns".to_owned(),
            syn: "always".to_owned(),
            under_attack: false,
            ..attacked.clone()
        },
        ServiceStatus {
            name: "quiet".to_owned(),
            under_attack: false,
            ..attacked
        },
    ];
    let text = render(&status);
    for line in [
        "\nweb: UNDER ATTACK: NOT DEFENDED (no listener is ready)\n",
        "80.0 k/s, NOT DEFENDED (no listener is ready), 1,234 clients",
        "\ndns: NOT DEFENDED (no listener is ready)\n",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(!text.contains("quiet: NOT"), "{text}");
}

#[test]
fn status_as_programs_see_it_survives_a_round_trip() {
    let text = serde_json::to_string(&sample()).unwrap();
    assert!(text.contains(r#""mode":"generic""#));
    assert!(text.contains(r#""reason":"limit_syn","ended":{"packets":5,"bytes":300}"#));
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), sample());
}

#[test]
fn an_interface_without_the_program_is_told_loudly() {
    let mut status = sample();
    status.interfaces[0].mode = None;
    status.interfaces[0].problem = Some("it is gone".to_owned());
    let text = render(&status);
    assert!(
        text.contains("\neth0: NOT PROTECTED: it is gone\n"),
        "{text}"
    );
    assert!(text.contains("\neth0       NONE"), "{text}");
}

#[test]
fn a_daemon_of_this_moment_divides_by_nothing() {
    let text = render(&Status::default());
    assert!(text.contains("up 0s"));
    let total = Traffic {
        packets: 5,
        bytes: 5,
    };
    assert_eq!(rates(total, Some(Traffic::default()), 0), ["-", "-"]);
}
