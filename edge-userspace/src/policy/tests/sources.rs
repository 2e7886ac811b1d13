//! Several sources of the same entries.

use super::*;

#[test]
fn a_replacement_takes_away_what_the_feed_no_longer_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    add(&mut policy, List::Black, vec![entry("10.0.0.9", None)]).unwrap();
    add(
        &mut policy,
        List::Black,
        of("drop", &["10.0.0.1", "10.0.0.2"]),
    )
    .unwrap();
    add(&mut policy, List::Black, of("other", &["10.0.0.4"])).unwrap();
    let new = of("drop", &["10.0.0.2", "10.0.0.3"]);
    let done = replace_at(&mut policy, "drop", &new, START).unwrap();
    assert_eq!((done.added, done.updated, done.removed), (1, 1, 1));
    assert_eq!(
        names(&policy, List::Black, START),
        ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.9"]
    );
}

#[test]
fn an_entry_stays_as_long_as_one_of_its_sources_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let both = ["10.0.0.1", "10.1.0.0/16"];
    add(&mut policy, List::Black, of("a", &both)).unwrap();
    let short = of("b", &both).into_iter().map(|e| NewEntry {
        expires_unix_ms: Some(START.unix_ms + 10_000),
        ..e
    });
    let done = add(&mut policy, List::Black, short.collect()).unwrap();
    assert_eq!((done.added, done.updated), (2, 0));
    add(&mut policy, List::Black, vec![entry("10.0.0.1", Some(30))]).unwrap();
    let sources = |policy: &Policy, now| -> Vec<String> {
        let page = policy.list(List::Black, None, None, 10, now).unwrap();
        let tell = |e: &EntryView| format!("{} {}", e.prefix, e.source);
        page.entries.iter().map(tell).collect()
    };
    assert_eq!(
        sources(&policy, START),
        [
            "10.0.0.1 feed a",
            "10.0.0.1 feed b",
            "10.0.0.1 cli",
            "10.1.0.0/16 feed a",
            "10.1.0.0/16 feed b"
        ]
    );
    // The shorter expiry of the one does not end what the other wants.
    assert!(listed(&policy, "10.1.2.3", List::Black, later(11)));
    assert_eq!(policy.expire(later(11)).unwrap(), 0);
    assert_eq!(sources(&policy, later(11)).len(), 3);
    let count = |policy: &Policy| {
        let of = |kind| policy.counts().entries(List::Black, Family::V4, kind);
        (of(Kind::Host), of(Kind::Prefix))
    };
    assert_eq!(count(&policy), (1, 1), "each prefix counts once");
    let gone = policy.flush(
        List::Black,
        None,
        Some(&"a".parse().unwrap()),
        START,
        &mut |_, _, _| {},
    );
    assert_eq!(gone.unwrap(), 2);
    assert_eq!(count(&policy), (1, 1));
    assert!(listed(&policy, "10.1.2.3", List::Black, later(9)));
    assert!(!listed(&policy, "10.1.2.3", List::Black, later(11)));
    assert!(listed(&policy, "10.0.0.1", List::Black, later(29)));
    assert!(!listed(&policy, "10.0.0.1", List::Black, later(31)));
    // It is removed for all of them at once.
    policy.remove(List::Black, &[p("10.0.0.1")], START).unwrap();
    assert_eq!(sources(&policy, START), ["10.1.0.0/16 feed b"]);
    let done = replace_at(&mut policy, "b", &of("b", &["10.3.0.0/16"]), START).unwrap();
    assert_eq!((done.added, done.updated, done.removed), (1, 0, 1));
    drop(policy);
    let policy = open_at(dir.path(), SystemEntries::default(), START);
    assert_eq!(sources(&policy, START), ["10.3.0.0/16 feed b"]);
}

#[test]
fn the_sources_of_an_entry_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    for i in 0..MAX_CLAIMS {
        add(
            &mut policy,
            List::Black,
            of(&format!("f{i}"), &["10.0.0.1"]),
        )
        .unwrap();
    }
    let error = add(&mut policy, List::Black, of("more", &["10.0.0.1"])).unwrap_err();
    assert!(error.to_string().contains("10.0.0.1"), "{error}");
    add(&mut policy, List::Black, of("f0", &["10.0.0.1"])).unwrap();
}
