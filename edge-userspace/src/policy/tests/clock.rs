//! A wall clock that is wrong, or set.

use super::*;

/// With the wall clock `seconds` off.
fn off(now: Now, seconds: i64) -> Now {
    Now {
        unix_ms: now.unix_ms.saturating_add_signed(seconds * 1000),
        ..now
    }
}

/// So many seconds after the start, in a boot that began `boot` seconds after it.
fn since(boot: u64, seconds: u64) -> Now {
    Now {
        boot_ns: (seconds - boot) * 1_000_000_000,
        ..later(seconds)
    }
}

/// The same in a boot that began 100 s after it.
fn booted(seconds: u64) -> Now {
    since(100, seconds)
}

/// Opens what there is in that boot.
fn reboot(dir: &Path, system: SystemEntries, now: Now) -> Policy {
    open_in("second boot", dir, system, now)
}

/// A long time, seconds: the difference of a clock that was never set.
const YEARS: i64 = 50 * 365 * 86_400;

#[test]
fn a_clock_that_lies_behind_at_a_start_prolongs_nothing_beyond_its_ttl() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let entries = vec![entry("10.0.0.1", Some(1000)), entry("10.0.0.2", None)];
    add(&mut policy, List::Black, entries).unwrap();
    drop(policy);
    // 100 s later, before the time server was asked.
    let boot = booted(100);
    let mut policy = reboot(dir.path(), SystemEntries::default(), off(boot, -YEARS));
    assert!(listed(&policy, "10.0.0.1", List::Black, later(1099)));
    assert!(!listed(&policy, "10.0.0.1", List::Black, later(1101)));
    // Meanwhile somebody is banned for 50 s.
    let ban = NewEntry {
        expires_unix_ms: Some(off(boot, -YEARS).unix_ms + 50_000),
        ..entry("10.0.0.3", None)
    };
    let now = off(boot, -YEARS);
    add_at(&mut policy, List::Black, vec![ban], now).unwrap();
    // 10 s later it was asked: what was said before and after is right again.
    assert_eq!(
        policy
            .mind_clock(off(booted(109), -YEARS), &mut |_, _, _| {})
            .unwrap(),
        None
    );
    let set = policy
        .mind_clock(booted(110), &mut |_, _, _| {})
        .unwrap()
        .unwrap();
    assert_eq!((set.set_by_ms, set.left_out), (YEARS * 1000, 0));
    for (addr, last) in [("10.0.0.1", 1000), ("10.0.0.3", 150)] {
        assert!(
            listed(&policy, addr, List::Black, later(last - 1)),
            "{addr}"
        );
        assert!(
            !listed(&policy, addr, List::Black, later(last + 1)),
            "{addr}"
        );
    }
    assert_eq!(names(&policy, List::Black, booted(149)).len(), 3);
    assert_eq!(
        names(&policy, List::Black, booted(151)),
        ["10.0.0.1", "10.0.0.2"]
    );
    // After another start as well.
    drop(policy);
    let policy = reboot(dir.path(), SystemEntries::default(), booted(120));
    assert!(listed(&policy, "10.0.0.3", List::Black, later(149)));
    assert!(!listed(&policy, "10.0.0.3", List::Black, later(151)));
    assert_eq!(
        policy.counts().entries(List::Black, Family::V4, Kind::Host),
        3
    );
}

#[test]
fn a_clock_that_runs_ahead_at_a_start_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let system = SystemEntries {
        black: vec![p("10.0.0.4")],
        ..Default::default()
    };
    let mut policy = open_at(dir.path(), system.clone(), START);
    let ttl = ["10.0.0.1", "10.1.0.0/16", "10.0.0.4"].map(|s| entry(s, Some(1000)));
    add(&mut policy, List::Black, ttl.to_vec()).unwrap();
    drop(policy);
    let mut policy = reboot(dir.path(), system, off(booted(100), YEARS));
    assert!(!listed(&policy, "10.0.0.1", List::Black, later(100)));
    assert_eq!(collect(&mut policy, off(booted(200), YEARS)), 0);
    assert_eq!(stored(&policy).len(), 3);
    // Right again: what seemed to be over is back.
    let set = policy
        .mind_clock(booted(300), &mut |_, _, _| {})
        .unwrap()
        .unwrap();
    assert_eq!((set.set_by_ms, set.entries), (-YEARS * 1000, 2));
    for addr in ["10.0.0.1", "10.1.2.3"] {
        assert!(listed(&policy, addr, List::Black, later(999)), "{addr}");
        assert!(!listed(&policy, addr, List::Black, later(1001)), "{addr}");
    }
    let hosts = |policy: &Policy| policy.counts().entries(List::Black, Family::V4, Kind::Host);
    // Two of the store and one of the file.
    assert_eq!(hosts(&policy), 3);
    assert_eq!(collect(&mut policy, booted(1001)), 2);
    assert_eq!(hosts(&policy), 2);
    policy
        .set_system(SystemEntries::default(), booted(1001))
        .unwrap();
    assert_eq!(hosts(&policy), 0);
    assert_eq!(policy.tables.used(), Default::default());
    collect(&mut policy, booted(1001));
    assert!(stored(&policy).is_empty());
}

#[test]
fn what_is_over_by_a_steady_clock_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let entries = vec![entry("10.0.0.1", Some(10)), entry("10.0.0.2", Some(900))];
    add(&mut policy, List::Black, entries).unwrap();
    drop(policy);
    let mut policy = open_at(dir.path(), SystemEntries::default(), later(20));
    assert_eq!(names(&policy, List::Black, later(20)), ["10.0.0.2"]);
    assert_eq!(collect(&mut policy, later(619)), 0);
    assert_eq!(collect(&mut policy, later(620)), 1);
    assert_eq!(stored(&policy), ["10.0.0.2"]);
}

/// A start with a clock years ahead, under which 64 stored hosts (10.0.0.x) seem to
/// be over, and 64 others (10.0.1.x) take all the room for 50 s.
fn full_of_others(directory: &Path, ttl: u64) -> Policy {
    let hosts = |net: u8| -> Vec<NewEntry> {
        let host = |i| entry(&format!("10.0.{net}.{i}"), Some(ttl));
        (0..64).map(host).collect()
    };
    let mut policy = open_at(directory, SystemEntries::default(), START);
    add(&mut policy, List::Black, hosts(0)).unwrap();
    drop(policy);
    let boot = off(booted(100), YEARS);
    let mut policy = reboot(directory, SystemEntries::default(), boot);
    let others = hosts(1).into_iter().map(|e| NewEntry {
        expires_unix_ms: Some(boot.unix_ms + 50_000),
        ..e
    });
    add_at(&mut policy, List::Black, others.collect(), boot).unwrap();
    policy
}

#[test]
fn what_is_back_by_the_new_time_and_has_no_room_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = full_of_others(dir.path(), 1000);
    let set = policy
        .mind_clock(booted(110), &mut |_, _, _| {})
        .unwrap()
        .unwrap();
    assert_eq!(set.left_out, 64);
    assert!(!policy.is_torn());
    assert!(listed(&policy, "10.0.1.9", List::Black, later(149)));
    assert!(!listed(&policy, "10.0.0.9", List::Black, later(149)));
    assert_eq!(
        policy.counts().entries(List::Black, Family::V4, Kind::Host),
        64
    );
}

#[test]
fn what_had_no_room_comes_back_when_there_is_some_and_friends_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = |net: u8, n: u8| -> Vec<NewEntry> {
        (0..n)
            .map(|i| entry(&format!("10.0.{net}.{i}"), Some(1000)))
            .collect()
    };
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    add(&mut policy, List::Black, hosts(0, 60)).unwrap();
    add(&mut policy, List::Allow, hosts(2, 4)).unwrap();
    drop(policy);
    // Under a clock years ahead all of them seem to be over, and others take
    // most of the room for 50 s.
    let boot = off(booted(100), YEARS);
    let mut policy = reboot(dir.path(), SystemEntries::default(), boot);
    let others = hosts(1, 61).into_iter().map(|e| NewEntry {
        expires_unix_ms: Some(boot.unix_ms + 50_000),
        ..e
    });
    add_at(&mut policy, List::Black, others.collect(), boot).unwrap();
    let set = policy.mind_clock(booted(110), &mut |_, _, _| {}).unwrap();
    assert_eq!(set.unwrap().left_out, 61);
    let back = |policy: &Policy, net: u8, list| {
        (0..64)
            .filter(|i| listed(policy, &format!("10.0.{net}.{i}"), list, later(149)))
            .count()
    };
    let count = |policy: &Policy, list| policy.counts().entries(list, Family::V4, Kind::Host);
    assert_eq!(back(&policy, 2, List::Allow), 3);
    assert_eq!(back(&policy, 0, List::Black), 0);
    assert_eq!(policy.readmit(booted(120)).unwrap(), 0);
    assert_eq!(collect(&mut policy, booted(151)), 61);
    let found: u64 = (0..9).map(|_| policy.readmit(booted(152)).unwrap()).sum();
    assert_eq!(found, 61);
    assert_eq!(back(&policy, 2, List::Allow), 4);
    assert_eq!(back(&policy, 0, List::Black), 60);
    assert_eq!(count(&policy, List::Allow), 4);
    assert_eq!(count(&policy, List::Black), 60);
    // It is not looked for any longer.
    assert!(policy.left_out.is_none());
    assert!(!listed(&policy, "10.0.0.9", List::Black, later(1001)));
}

#[test]
fn a_feed_that_comes_while_the_clock_runs_ahead_takes_nothing_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let bans = ["10.0.0.1", "10.0.0.2"].map(|s| entry(s, Some(1_000_000)));
    add(&mut policy, List::Black, bans.to_vec()).unwrap();
    drop(policy);
    let boot = off(booted(100), YEARS);
    let mut policy = reboot(dir.path(), SystemEntries::default(), boot);
    // One feed stays, and one has entries that are soon over.
    let drop_feed = of("drop", &["10.0.0.1"]);
    replace_at(&mut policy, "drop", &drop_feed, boot).unwrap();
    let short = of("short", &["10.0.0.2"]).into_iter().map(|e| NewEntry {
        expires_unix_ms: Some(boot.unix_ms + 5000),
        ..e
    });
    add_at(&mut policy, List::Black, short.collect(), boot).unwrap();
    let drop_is = "drop".parse().unwrap();
    let flushed = policy.flush(
        List::Black,
        None,
        Some(&drop_is),
        off(booted(101), YEARS),
        &mut |_, _, _| {},
    );
    assert_eq!(flushed.unwrap(), 1);
    let hosts = |policy: &Policy| policy.counts().entries(List::Black, Family::V4, Kind::Host);
    assert_eq!(hosts(&policy), 1, "what seems to be over is not counted");
    collect(&mut policy, off(booted(109), YEARS));
    assert_eq!(hosts(&policy), 0);
    assert_eq!(stored(&policy).len(), 2);
    policy
        .mind_clock(booted(110), &mut |_, _, _| {})
        .unwrap()
        .unwrap();
    for addr in ["10.0.0.1", "10.0.0.2"] {
        assert!(listed(&policy, addr, List::Black, later(999_999)), "{addr}");
    }
    assert_eq!(hosts(&policy), 2);
}

#[test]
fn what_was_left_out_keeps_its_claims_when_another_source_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = full_of_others(dir.path(), 100_000);
    policy.mind_clock(booted(110), &mut |_, _, _| {}).unwrap();
    // Room again, and the search for leftovers is through.
    assert_eq!(collect(&mut policy, booted(1000)), 64);
    add_at(
        &mut policy,
        List::Black,
        of("drop", &["10.0.0.9"]),
        booted(1001),
    )
    .unwrap();
    let page = policy
        .list(List::Black, Some(p("10.0.0.9")), None, 9, later(1002))
        .unwrap();
    assert_eq!(page.entries.len(), 2, "{:?}", page.entries);
}

#[test]
fn what_is_over_stays_so_when_the_clock_falls_to_1970() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    add(&mut policy, List::Black, vec![entry("10.0.0.1", Some(60))]).unwrap();
    add(&mut policy, List::Black, of("drop", &["10.0.0.1"])).unwrap();
    // An hour later it falls, and is set right a minute after.
    let fallen = Now {
        unix_ms: 5000,
        ..later(3600)
    };
    for now in [fallen, later(3660)] {
        policy.mind_clock(now, &mut |_, _, _| {}).unwrap().unwrap();
    }
    let drop_feed = "drop".parse().unwrap();
    policy
        .flush(
            List::Black,
            None,
            Some(&drop_feed),
            later(3661),
            &mut |_, _, _| {},
        )
        .unwrap();
    let page = policy
        .list(List::Black, None, None, 9, later(3662))
        .unwrap();
    assert!(page.entries.is_empty(), "{:?}", page.entries);
    assert!(!listed(&policy, "10.0.0.1", List::Black, later(3662)));
}

#[test]
fn time_goes_on_in_a_suspend_and_nothing_was_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let ttl = ["10.0.0.1", "10.1.0.0/16"].map(|s| entry(s, Some(1000)));
    let entries = [&ttl[..], &[entry("10.0.0.2", Some(3000))]].concat();
    add(&mut policy, List::Black, entries).unwrap();
    // 700 s, of which the machine was suspended for 500, the tables' clock with it.
    let asleep = |seconds| Now {
        mono_ns: later(seconds - 500).mono_ns,
        ..later(seconds)
    };
    let jump = policy.mind_clock(asleep(700), &mut |_, _, _| {});
    let jump = jump.unwrap().unwrap();
    assert_eq!((jump.set_by_ms, jump.suspended_ms), (0, 500_000));
    assert_eq!(jump.entries, 3);
    for addr in ["10.0.0.1", "10.1.2.3"] {
        assert!(listed(&policy, addr, List::Black, asleep(999)), "{addr}");
        assert!(!listed(&policy, addr, List::Black, asleep(1001)), "{addr}");
    }
    // The clock was never wrong: what is over is removed without a wait.
    assert_eq!(collect(&mut policy, asleep(1001)), 2);
    assert_eq!(stored(&policy), ["10.0.0.2"]);
    let page = policy.list(List::Black, None, None, 9, asleep(1001));
    let expires = page.unwrap().entries[0].expires_unix_ms;
    assert_eq!(expires, Some(START.unix_ms + 3_000_000));
    // Over while the machine slept again.
    let asleep = |seconds| Now {
        mono_ns: later(seconds - 3000).mono_ns,
        ..later(seconds)
    };
    policy.mind_clock(asleep(4000), &mut |_, _, _| {}).unwrap();
    assert!(!listed(&policy, "10.0.0.2", List::Black, asleep(4000)));
}

#[test]
fn a_step_that_cannot_be_stored_is_dealt_with_later() {
    let dir = tempfile::tempdir().unwrap();
    let boot = off(START, -YEARS);
    let mut policy = open_at(dir.path(), SystemEntries::default(), boot);
    let ban = NewEntry {
        expires_unix_ms: Some(boot.unix_ms + 50_000),
        ..entry("10.0.0.1", None)
    };
    add_at(&mut policy, List::Black, vec![ban], boot).unwrap();
    // A record without a claim cannot be read.
    let damage = |record| (List::Black, p("10.0.0.2"), record);
    let none = crate::store::Record { claims: Vec::new() };
    policy.store.write(&[damage(Some(none.into()))]).unwrap();
    for at in [10, 11] {
        policy.mind_clock(later(at), &mut |_, _, _| {}).unwrap_err();
    }
    policy.store.write(&[damage(None)]).unwrap();
    let set = policy.mind_clock(later(12), &mut |_, _, _| {}).unwrap();
    assert_eq!(set.unwrap().set_by_ms, YEARS * 1000);
    assert_eq!(names(&policy, List::Black, later(49)), ["10.0.0.1"]);
    assert!(names(&policy, List::Black, later(51)).is_empty());
    assert_eq!(
        policy.mind_clock(later(13), &mut |_, _, _| {}).unwrap(),
        None
    );
}

#[test]
fn a_restart_under_a_wrong_clock_does_not_lose_what_it_is_wrong_by() {
    let dir = tempfile::tempdir().unwrap();
    let boot = off(START, -YEARS);
    let mut policy = open_at(dir.path(), SystemEntries::default(), boot);
    let ban = |addr: &str, now: Now| NewEntry {
        expires_unix_ms: Some(now.unix_ms + 500_000),
        ..entry(addr, None)
    };
    add_at(&mut policy, List::Black, vec![ban("10.0.0.1", boot)], boot).unwrap();
    drop(policy);
    // The same boot, and the clock was not set yet.
    let again = off(later(50), -YEARS);
    let mut policy = open_at(dir.path(), SystemEntries::default(), again);
    add_at(
        &mut policy,
        List::Black,
        vec![ban("10.0.0.2", again)],
        again,
    )
    .unwrap();
    policy
        .mind_clock(later(60), &mut |_, _, _| {})
        .unwrap()
        .unwrap();
    let both = |policy: &Policy| {
        for (addr, last) in [("10.0.0.1", 500), ("10.0.0.2", 550)] {
            assert!(listed(policy, addr, List::Black, later(last - 1)), "{addr}");
            assert!(
                !listed(policy, addr, List::Black, later(last + 1)),
                "{addr}"
            );
        }
        let page = policy.list(List::Black, None, None, 9, later(61)).unwrap();
        assert_eq!(page.entries[0].created_unix_ms, START.unix_ms);
        assert_eq!(page.entries[1].created_unix_ms, later(50).unix_ms);
    };
    both(&policy);
    drop(policy);
    both(&open_at(dir.path(), SystemEntries::default(), later(70)));
    // Set while no daemon ran: wrong, and right again.
    drop(open_at(
        dir.path(),
        SystemEntries::default(),
        off(later(80), YEARS),
    ));
    both(&open_at(dir.path(), SystemEntries::default(), later(90)));
}

#[test]
fn what_a_former_boot_said_is_not_taken_for_said_by_a_wrong_clock() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    add(
        &mut policy,
        List::Black,
        vec![entry("10.0.0.1", Some(5000))],
    )
    .unwrap();
    drop(policy);
    // Two hours later the clock is two hours behind: it shows the very time at
    // which the entry was made, by the right clock.
    let wrong = off(since(7200, 7200), -7200);
    let mut policy = reboot(dir.path(), SystemEntries::default(), wrong);
    let right = since(7200, 7300);
    policy
        .mind_clock(right, &mut |_, _, _| {})
        .unwrap()
        .unwrap();
    assert!(!listed(&policy, "10.0.0.1", List::Black, right));
    assert!(names(&policy, List::Black, right).is_empty());
}

#[test]
fn under_a_clock_that_is_behind_a_ttl_does_not_start_anew_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    add(
        &mut policy,
        List::Black,
        vec![entry("10.0.0.1", Some(1000))],
    )
    .unwrap();
    drop(policy);
    // At the boot it is as if it had just been said; from then on its time passes.
    let wrong = |seconds| off(booted(seconds), -YEARS);
    let ends_at_1100 = |policy: &Policy| {
        assert!(listed(policy, "10.0.0.1", List::Black, later(1099)));
        assert!(!listed(policy, "10.0.0.1", List::Black, later(1101)));
    };
    for start in [100, 400, 900] {
        ends_at_1100(&reboot(dir.path(), SystemEntries::default(), wrong(start)));
    }
    // Tables of another size, and a feed that names it.
    let mut policy = reboot(dir.path(), SystemEntries::default(), wrong(950));
    let geometry = *policy.tables.geometry();
    let (regions, system) = (Regions::heap(&geometry), SystemEntries::default());
    policy
        .replace_tables(regions, geometry, system, wrong(960), &mut || {})
        .unwrap();
    ends_at_1100(&policy);
    let short = of("short", &["10.0.0.1"]).into_iter().map(|e| NewEntry {
        expires_unix_ms: Some(wrong(970).unix_ms + 10_000),
        ..e
    });
    add_at(&mut policy, List::Black, short.collect(), wrong(970)).unwrap();
    ends_at_1100(&policy);
    assert!(names(&policy, List::Black, wrong(1101)).is_empty());
}
