//! Feeds, large and wrong, and the way back out.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::time::Instant;

use edge_common::addr::Prefix;
use edge_common::decide::Standing;
use edge_tests::daemon::Installation;
use edge_tests::lab::Lab;
use edge_tests::wait;
use edge_userspace::control::client::{Client, ImportStage};
use edge_userspace::control::protocol::{ImportHeader, List, Origin, Request, Response};

/// Entries of a large feed.
const MILLION: u32 = 1_000_000;

/// Every third address of 10.100.0.0 and on, as feeds are published: a head, comments behind
/// entries, CRLF here and there, empty lines.
fn large_feed() -> String {
    let mut feed = String::with_capacity(20 << 20);
    feed.push_str("\u{feff}# a large feed\r\n; of single addresses\n\n");
    for n in 0..MILLION {
        let address = std::net::Ipv4Addr::from_bits(0x0a64_0000 + 3 * n);
        let tail = match n % 4 {
            0 => "\n",
            1 => " ; SBL1234\r\n",
            2 => "\t# seen twice\n\n",
            _ => "/32\r\n",
        };
        let _ = write!(feed, "{address}{tail}");
    }
    feed
}

#[test]
fn a_million_lines_are_in_force_and_a_scrape_stays_small() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "tables.hosts_v4 = \"1.1M\"\n");
    let daemon = edge.start();
    let before = edge.scrape();
    let feed = edge.file("feed.txt");
    fs::write(&feed, large_feed()).unwrap();
    let path = feed.display().to_string();

    let started = Instant::now();
    let added = edge
        .json(&["blacklist", "import", &path, "--note", "large"])
        .remove(0);
    let took = started.elapsed();
    assert_eq!(added["added"], MILLION);
    println!(
        "imported {MILLION} lines in {took:.2?}: {:.0} entries a second",
        f64::from(MILLION) / took.as_secs_f64()
    );
    let listed = |n: u32| std::net::Ipv4Addr::from_bits(0x0a64_0000 + n).into();
    for n in [0, 3, 1_500_000, 3 * (MILLION - 1)] {
        assert!(!link.passes_from(listed(n)), "{n}");
        assert!(link.passes_from(listed(n + 1)), "{n} + 1");
    }
    // A scrape tells how many there are, and does not list them.
    let after = edge.scrape();
    let entries =
        format!("edge_list_entries{{list=\"blacklist\",family=\"ipv4\",kind=\"host\"}} {MILLION}");
    assert!(after.contains(&entries), "{after}");
    assert!(after.lines().count() < before.lines().count() + 20);

    // They survive a restart, and are in force when the daemon says that it is ready.
    daemon.kill();
    let _daemon = edge.start_within(4 * wait::PATIENCE);
    assert!(!link.passes_from(listed(3 * (MILLION - 1))));
    let counts = edge.status();
    let hosts = counts["tables"].as_array().unwrap();
    let hosts = hosts.iter().find(|t| t["table"] == "hosts_v4").unwrap();
    assert_eq!(hosts["entries"], MILLION);
}

#[test]
fn who_only_asks_does_not_wait_for_an_import() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "tables.hosts_v4 = \"1.1M\"\n");
    let _daemon = edge.start();
    let header = ImportHeader {
        list: List::Black,
        origin: Origin::Feed,
        feed: "large".parse().ok(),
        ttl_s: None,
        note: String::new(),
        replace: true,
    };
    let host = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a64_0000 + n));
    let prefixes: Vec<Prefix> = (0..MILLION).map(|n| Prefix::host(host(n))).collect();
    let connect = || Client::connect(&edge.socket()).unwrap();
    let is_listed =
        |client: &mut Client, address| match client.call(Request::Lookup { address }).unwrap() {
            Response::Lookup(lookup) => lookup.standing == Standing::Blacklisted,
            other => panic!("{other:?}"),
        };
    let mut asker = connect();
    let mut before = 0;
    connect()
        .import(header, &prefixes, &mut |stage, _, _| {
            // Under way: until the answer comes, nothing of it is told, first or last.
            if stage == ImportStage::Applied {
                let listed = [0, MILLION - 1].map(|n| is_listed(&mut asker, host(n)));
                before += u32::from(listed == [false, false]);
            }
        })
        .unwrap();
    assert!(before > 0, "asked only when it was done");
    assert!(is_listed(&mut asker, host(0)) && is_listed(&mut asker, host(MILLION - 1)));
}

#[test]
fn a_wrong_feed_is_named_line_by_line_and_changes_nothing() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    let feed = edge.file("feed.txt");
    let path = feed.display().to_string();
    fs::write(
        &feed,
        "10.66.0.1\r\n10.66.0.300 ; x\n# fine\n10.66.0.0/33\n10.66.1.1/24\n::g\n",
    )
    .unwrap();
    let refused = edge.outcome(&["blacklist", "import", &path]);
    assert_eq!(refused.code, 2, "{refused:?}");
    for number in ["2", "4", "5", "6"] {
        assert!(
            refused.stderr.contains(number),
            "line {number}: {}",
            refused.stderr
        );
    }
    assert!(
        refused.stderr.contains("10.66.1.0/24"),
        "{}",
        refused.stderr
    );
    assert!(edge.json(&["blacklist", "list"]).is_empty());
    assert!(link.passes_from("10.66.0.1".parse().unwrap()));

    // Thousands of bad lines are counted, and some of them named.
    fs::write(&feed, "nonsense\n".repeat(5000)).unwrap();
    let refused = edge.outcome(&["blacklist", "import", &path]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("5,000") || refused.stderr.contains("5000"));
    assert!(
        refused.stderr.len() < 10_000,
        "{} bytes",
        refused.stderr.len()
    );

    // What is only untidy is taken when that is asked for.
    fs::write(&feed, "10.66.1.1/24\n").unwrap();
    edge.ok(&["blacklist", "import", &path, "--lenient"]);
    assert!(!link.passes_from("10.66.1.77".parse().unwrap()));

    // More than the tables hold: refused as a whole, with the key that helps.
    let mut many = String::new();
    for n in 0..200_000u32 {
        let _ = writeln!(many, "{}", std::net::Ipv4Addr::from_bits(0x0a80_0000 + n));
    }
    fs::write(&feed, many).unwrap();
    let refused = edge.outcome(&["blacklist", "import", &path]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("tables.hosts_v4"),
        "{}",
        refused.stderr
    );
    assert!(link.passes_from("10.128.0.1".parse().unwrap()));
    assert_eq!(edge.json(&["blacklist", "list"]).len(), 1);
}

#[test]
fn what_is_exported_can_be_imported() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    edge.ok(&[
        "blacklist",
        "add",
        "10.66.0.0/16",
        "fd66::/32",
        "--note",
        "networks; two",
    ]);
    edge.ok(&["blacklist", "add", "10.67.0.1", "fd67::1"]);
    let exported = edge.ok(&["blacklist", "export"]);
    let file = edge.file("export.txt");
    fs::write(&file, &exported).unwrap();
    edge.ok(&["blacklist", "flush", "--yes"]);
    for source in ["10.66.9.9", "fd66::9", "10.67.0.1", "fd67::1"] {
        assert!(
            link.passes_from(source.parse().unwrap()),
            "{source} after the flush"
        );
    }
    edge.ok(&["blacklist", "import", &file.display().to_string()]);
    for source in ["10.66.9.9", "fd66::9", "10.67.0.1", "fd67::1"] {
        assert!(
            !link.passes_from(source.parse().unwrap()),
            "{source} after the import"
        );
    }
    let prefixes = |text: &str| -> Vec<String> {
        text.lines()
            .map(|l| l.split(" ;").next().unwrap_or(l).to_owned())
            .collect()
    };
    assert_eq!(
        prefixes(&edge.ok(&["blacklist", "export"])),
        prefixes(&exported)
    );

    // A newer edition of the feed takes the place of the old one; other entries stay.
    edge.ok(&["blacklist", "add", "10.68.0.1"]);
    fs::write(&file, "10.67.0.1\n").unwrap();
    edge.ok(&[
        "blacklist",
        "import",
        &file.display().to_string(),
        "--feed",
        "export",
        "--replace",
    ]);
    for (source, passes) in [
        ("10.66.9.9", true),
        ("10.67.0.1", false),
        ("10.68.0.1", false),
    ] {
        assert_eq!(
            link.passes_from(source.parse().unwrap()),
            passes,
            "{source}"
        );
    }
}

#[test]
fn each_feed_has_its_own_entries() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start();
    let (drop, level1) = ("drop", "level1");
    let import = |feed: &str, text: &str| {
        // The names of downloads say nothing of the feed.
        let file = edge.file("download.txt");
        fs::write(&file, text).unwrap();
        let path = file.display().to_string();
        let done = edge.json(&["blacklist", "import", &path, "--feed", feed, "--replace"]);
        let of = |key: &str| done[0][key].as_u64().unwrap();
        (of("added"), of("updated"), of("removed"))
    };
    let passes = |source: &str| link.passes_from(source.parse().unwrap());
    assert_eq!(import(drop, "10.66.0.0/16\n10.67.0.1\n"), (2, 0, 0));
    assert_eq!(import(level1, "10.66.0.0/16\nfd66::/32\n"), (2, 0, 0));
    // One feed gives up what the other still has, and then the other does.
    assert_eq!(import(drop, "10.68.0.1\n"), (1, 0, 2));
    assert!(!passes("10.66.1.1") && passes("10.67.0.1") && !passes("fd66::1"));
    assert_eq!(import(level1, "fd66::/32\n"), (0, 1, 1));
    assert!(passes("10.66.1.1") && !passes("10.68.0.1") && !passes("fd66::1"));

    // Whose they are outlasts the daemon, and is told.
    daemon.kill();
    let _daemon = edge.start();
    let feeds: Vec<_> = edge
        .json(&["blacklist", "list"])
        .iter()
        .map(|e| (e["prefix"].clone(), e["feed"].clone()))
        .collect();
    let want = [("10.68.0.1", "drop"), ("fd66::/32", "level1")];
    assert_eq!(feeds, want.map(|(p, f)| (p.into(), f.into())));
    edge.ok(&["blacklist", "flush", "--feed", "drop", "--yes"]);
    assert!(passes("10.68.0.1") && !passes("fd66::1"));
}
