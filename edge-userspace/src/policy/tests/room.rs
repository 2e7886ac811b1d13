//! Changes when the tables are full.

use super::*;

#[test]
fn what_is_new_takes_the_room_of_what_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let hosts = |from: u32| -> Vec<String> {
        let addr = |i| std::net::Ipv4Addr::from_bits(0x0a00_0000 + i).to_string();
        (from..from + 64).map(addr).collect()
    };
    let nets = |from: u32| -> Vec<String> {
        let net = |i: u32| {
            format!(
                "{}/24",
                std::net::Ipv4Addr::from_bits(0x1400_0000 + (i << 8))
            )
        };
        (from..from + 64).map(net).collect()
    };
    let both = |from| -> Vec<String> { [hosts(from), nets(from)].concat() };
    let entries = |names: &[String]| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        of("drop", &names)
    };
    add(&mut policy, List::Black, entries(&both(0))).unwrap();
    // The tables are full, and nothing of the old overlaps the new.
    for from in [64, 32, 0] {
        let new = entries(&both(from));
        replace_at(&mut policy, "drop", &new, START).unwrap();
        let mut want: Vec<Prefix> = both(from).iter().map(|s| p(s)).collect();
        want.sort_unstable();
        let want: Vec<String> = want.iter().map(ToString::to_string).collect();
        assert_eq!(names(&policy, List::Black, START), want);
    }
    // What overlaps needs room beside the other for a moment: that of another
    // will do, and the error says so when there is none.
    let mut halves = nets(0);
    halves[0] = "20.0.0.0/25".into();
    halves.truncate(63);
    replace_at(&mut policy, "drop", &entries(&halves), START).unwrap();
    let mut wider = nets(0);
    wider[0] = "20.0.0.0/8".into();
    let error = replace_at(&mut policy, "drop", &entries(&wider), START).unwrap_err();
    assert!(matches!(error, PolicyError::Overlap(_)), "{error}");
    assert!(
        error.to_string().contains("remove some of these first"),
        "{error}"
    );
    assert!(listed(&policy, "20.0.0.1", List::Black, START));
    assert!(!listed(&policy, "20.200.0.1", List::Black, START));
}

#[test]
fn what_a_feed_keeps_takes_no_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let of_drop = |names: &[String]| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        of("drop", &names)
    };
    let mut old = ["20.0.0.0/8", "20.1.0.0/16", "20.2.0.0/16"]
        .map(str::to_owned)
        .to_vec();
    old.extend((0..61).map(|i| format!("30.{i}.0.0/16")));
    add(&mut policy, List::Black, of_drop(&old)).unwrap();
    assert_eq!(policy.tables.used().prefixes, 64);
    // One goes out of what else stays, and one comes that sorts before it.
    let mut new = old.clone();
    new.retain(|s| s != "20.2.0.0/16");
    new.push("9.0.0.0/8".to_owned());
    replace_at(&mut policy, "drop", &of_drop(&new), START).unwrap();
    assert_eq!(policy.tables.used().prefixes, 64);
    assert!(listed(&policy, "9.0.0.1", List::Black, START));
    // The same where another feed keeps what this one gives up.
    add(&mut policy, List::Black, of("level1", &["20.1.0.0/16"])).unwrap();
    new.retain(|s| !s.starts_with("20."));
    new.extend(["20.0.0.0/8".to_owned(), "8.0.0.0/8".to_owned()]);
    new.retain(|s| s != "30.7.0.0/16");
    replace_at(&mut policy, "drop", &of_drop(&new), START).unwrap();
    assert_eq!(policy.tables.used().prefixes, 64);
    assert!(listed(&policy, "8.0.0.1", List::Black, START));
    assert!(!listed(&policy, "30.7.0.1", List::Black, START));
}

#[test]
fn what_never_fits_is_not_blamed_on_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let nets = |second: u8, n: u8| -> Vec<NewEntry> {
        let names: Vec<String> = (0..n).map(|i| format!("{second}.{i}.0.0/16")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        of("drop", &names)
    };
    let mut replace = |new: Vec<NewEntry>| replace_at(&mut policy, "drop", &new, START);
    replace([nets(20, 63), of("drop", &["10.0.0.1"])].concat()).unwrap();
    // Two go, 65 would be there: what is removed first makes no difference.
    let error = replace([nets(20, 61), nets(30, 4)].concat()).unwrap_err();
    assert!(matches!(error, PolicyError::Table(_)), "{error}");
    // Only a host goes, which makes no room for prefixes.
    let error = replace([nets(20, 63), nets(30, 2)].concat()).unwrap_err();
    assert!(matches!(error, PolicyError::Table(_)), "{error}");
    // Exactly as many as fit.
    replace([nets(20, 61), nets(30, 3)].concat()).unwrap();
}

#[test]
fn another_file_takes_the_room_of_the_former_one() {
    let dir = tempfile::tempdir().unwrap();
    let system = |from: u8| SystemEntries {
        black: (from..from + 64)
            .map(|i| p(&format!("10.{i}.0.0/16")))
            .collect(),
        ..Default::default()
    };
    let mut policy = open_at(dir.path(), system(100), START);
    // What comes sorts before what goes, and the other way round.
    policy.set_system(system(36), START).unwrap();
    assert!(listed(&policy, "10.36.0.1", List::Black, START));
    assert!(!listed(&policy, "10.100.0.1", List::Black, START));
    policy.set_system(system(100), START).unwrap();
    assert_eq!(policy.tables.used().prefixes, 64);
}

#[test]
fn a_change_that_fails_leaves_full_tables_as_they_were() {
    // Four buckets: what is put back finds its slots taken by what moved.
    let geometry = Geometry {
        hosts4_buckets: 4,
        ..Geometry::for_capacity(&capacity())
    };
    let host = |i: u32| Prefix::host(IpAddr::from([10, 0, (i >> 8) as u8, i as u8]));
    let of = |hosts: &[u32]| -> Vec<NewEntry> {
        let entry = |&i: &u32| NewEntry {
            prefix: host(i),
            source: feed("drop"),
            ..entry("10.0.0.1", None)
        };
        hosts.iter().map(entry).collect()
    };
    let mut failed = 0;
    for round in 0..40u32 {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let system = SystemEntries::default();
        let regions = Regions::heap(&geometry);
        let mut policy = Policy::open(store, None, regions, geometry, SEED, system, START)
            .unwrap()
            .0;
        let mut listed: Vec<u32> = Vec::new();
        for i in round * 100..round * 100 + 20 {
            if add(&mut policy, List::Black, of(&[i])).is_ok() {
                listed.push(i);
            }
        }
        // Half of them stay; as many others as do not fit come.
        let stay = listed.iter().copied().filter(|i| i % 2 == 0);
        let new: Vec<u32> = stay.chain(5000 + round * 100..5020 + round * 100).collect();
        let replaced = replace_at(&mut policy, "drop", &of(&new), START);
        let Err(error) = replaced else { continue };
        failed += 1;
        assert!(matches!(error, PolicyError::Overlap(_)), "{error}");
        assert!(!policy.is_torn());
        for &i in &listed {
            let says = policy.tables.reader().lookup(host(i).addr());
            assert_ne!(says.black, 0, "{i} of round {round}");
        }
        assert_eq!(policy.tables.used().hosts_v4 as usize, listed.len());
    }
    assert!(failed > 20, "{failed}");
}
