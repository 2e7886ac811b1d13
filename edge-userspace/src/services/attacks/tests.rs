use super::*;
use crate::{
    control::protocol::Packet,
    services::watch::{Followed, Reading, Watch},
};

const SECOND: u64 = 1_000_000_000;

fn now(seconds: u64) -> Now {
    Now {
        mono_ns: seconds * SECOND,
        boot_ns: seconds * SECOND,
        unix_ms: 1_000_000 + seconds * 1000,
    }
}

const WEB: Subject<'_> = Subject {
    name: "web",
    found: Found::Segments,
    remedy: Remedy::Cookies,
};

const ICMP: Subject<'_> = Subject {
    name: "host",
    found: Found::Icmp,
    remedy: Remedy::Drops,
};

/// As the daemon follows a subject.
fn followed<'a>(of: Subject<'a>, history: &History, now: Now) -> Followed<'a> {
    Followed {
        name: of.name,
        found: of.found,
        hold_ns: 10 * SECOND,
        inherited: history.inherited(of, now.mono_ns, 5 * SECOND),
    }
}

/// A service as the program counts it, and a daemon that follows it.
#[derive(Default)]
struct Rig {
    history: History,
    watch: Watch,
    counters: Counters,
    attack: Option<(u64, u64)>,
}

impl Rig {
    /// A service under attack from one second until another one.
    fn attacked(since: u64, until: u64) -> Self {
        Self {
            attack: Some((since, until)),
            ..Self::default()
        }
    }

    fn add(&mut self, counter: ServiceCounter, n: u64) {
        self.counters[counter as usize] += n;
    }

    fn look(&mut self, seconds: u64) -> Vec<(Change, Attack)> {
        let (since, until) = self.attack.unwrap_or_default();
        let reading = Reading {
            pressure: 0,
            attack_since: since * SECOND,
            attack_until: until * SECOND,
            counters: self.counters,
        };
        let of = followed(WEB, &self.history, now(seconds));
        let step = self.watch.take(of, reading, seconds * SECOND);
        self.history.take(WEB, &step, now(seconds))
    }

    /// Looks at the host, of whose ICMP so many packets are over the limit in all.
    fn look_at_icmp(&mut self, seconds: u64, packets: u64) -> Vec<(Change, Attack)> {
        let of = followed(ICMP, &self.history, now(seconds));
        let reading = Reading::of_host([packets, 0, 0]);
        let step = self.watch.take(of, reading, seconds * SECOND);
        self.history.take(ICMP, &step, now(seconds))
    }

    /// Another daemon, with what this one has written.
    fn restarted(self) -> Self {
        Self {
            history: History::read(&self.history.write().unwrap(), None).unwrap(),
            watch: Watch::default(),
            ..self
        }
    }
}

fn kinds(attack: &Attack) -> Vec<(Kind, u64)> {
    attack.kinds.iter().map(|k| (k.kind, k.packets)).collect()
}

fn changes(list: &[(Change, Attack)]) -> Vec<(Change, u64)> {
    list.iter().map(|(c, a)| (*c, a.id)).collect()
}

#[test]
fn an_attack_is_followed_from_its_begin_to_its_end() {
    let mut rig = Rig::default();
    rig.add(ServiceCounter::Syns, 1000);
    assert_eq!(rig.look(1), []);
    rig.add(ServiceCounter::Syns, 100_000);
    rig.attack = Some((2, 12));
    let began = rig.look(3);
    assert_eq!(changes(&began), [(Change::Began, 1)]);
    let attack = &began[0].1;
    assert_eq!(
        (attack.began_unix_ms, attack.ended_unix_ms),
        (1_002_000, None)
    );
    // From the last look before it was noticed.
    assert_eq!(kinds(attack), [(Kind::Syn, 100_000)]);
    assert_eq!(attack.kinds[0].per_second, 50_000.0);
    rig.add(ServiceCounter::Syns, 300_000);
    rig.add(ServiceCounter::CookiesSent, 300_000);
    rig.add(ServiceCounter::CookiesValid, 70);
    rig.add(ServiceCounter::CookiesInvalid, 40_000);
    rig.add(ServiceCounter::OutOfState, 3);
    assert_eq!(rig.look(4), []);
    assert_eq!(rig.look(5), []);
    let current = rig.history.current("web", Found::Segments).unwrap();
    assert_eq!(kinds(&current), [(Kind::Syn, 399_930), (Kind::Ack, 40_000)]);
    assert_eq!(current.kinds[0].per_second, 0.0);
    assert_eq!(current.kinds[0].peak_per_second, 299_930.0);
    assert_eq!(current.clients, 70);
    assert_eq!(current.counters["cookies_sent"], 300_000);
    assert_eq!(current.counters["syns"], 400_000);
    let ended = rig.look(13);
    assert_eq!(changes(&ended), [(Change::Ended, 1)]);
    assert_eq!(ended[0].1.ended_unix_ms, Some(1_012_000));
    assert_eq!(rig.look(14), []);
    assert_eq!(rig.history.current("web", Found::Segments), None);
    assert_eq!(rig.history.list(), [ended[0].1.clone()]);
    assert_eq!(
        (
            rig.history.begun("web", Found::Segments),
            rig.history.begun("mail", Found::Segments)
        ),
        (1, 0)
    );
}

#[test]
fn another_attack_has_another_number() {
    let mut rig = Rig::attacked(1, 9);
    assert_eq!(changes(&rig.look(2)), [(Change::Began, 1)]);
    // It ended, and the next one began, between two looks.
    rig.attack = Some((8, 20));
    let both = rig.look(10);
    assert_eq!(changes(&both), [(Change::Ended, 1), (Change::Began, 2)]);
    assert_eq!(both[0].1.ended_unix_ms, Some(now(2).unix_ms));
    // A table that was made anew knows of nothing, and counts from zero.
    rig.add(ServiceCounter::Syns, 50);
    rig.look(11);
    rig.counters = Counters::default();
    rig.add(ServiceCounter::Syns, 7);
    rig.look(12);
    rig.attack = None;
    let ended = rig.look(13);
    assert_eq!(changes(&ended), [(Change::Ended, 2)]);
    assert_eq!(kinds(&ended[0].1), [(Kind::Syn, 57)]);
}

#[test]
fn an_attack_goes_on_over_a_restart() {
    let mut rig = Rig::default();
    rig.look(1);
    rig.add(ServiceCounter::Syns, 100);
    rig.attack = Some((2, 30));
    rig.look(3);
    rig.history
        .sample("web", Found::Segments, &event("192.0.2.7", 443, 1));
    let mut rig = rig.restarted();
    rig.add(ServiceCounter::Syns, 11);
    assert_eq!(changes(&rig.look(10)), [(Change::GoesOn, 1)]);
    assert_eq!(rig.look(11), []);
    assert_eq!(
        rig.history.begun("web", Found::Segments),
        0,
        "it began before"
    );
    let (attack, samples) = rig.history.get(1).unwrap();
    assert_eq!((kinds(&attack), samples.len()), (vec![(Kind::Syn, 111)], 1));
    // It ends while nobody looks; what was counted is known, and the end.
    let mut rig = rig.restarted();
    rig.add(ServiceCounter::Syns, 1);
    let ended = rig.look(50);
    assert_eq!(changes(&ended), [(Change::Ended, 1)]);
    assert_eq!(ended[0].1.ended_unix_ms, Some(now(30).unix_ms));
    assert_eq!(kinds(&ended[0].1), [(Kind::Syn, 112)]);
    // Another one, while the daemon was away.
    let mut rig = rig.restarted();
    rig.attack = Some((60, 90));
    assert_eq!(changes(&rig.look(61)), [(Change::Began, 2)]);
    let mut rig = rig.restarted();
    rig.attack = Some((95, 120));
    assert_eq!(
        changes(&rig.look(99)),
        [(Change::Ended, 2), (Change::Began, 3)]
    );
}

#[test]
fn an_attack_ends_with_its_service() {
    let mut rig = Rig::attacked(1, 9);
    rig.look(2);
    assert_eq!(rig.history.keep(|name, _| name == "web"), []);
    let ended = rig.history.keep(|_, _| false);
    assert_eq!(changes(&ended), [(Change::Ended, 1)]);
    assert!(!rig.history.is_any_on());
}

#[test]
fn the_oldest_are_forgotten_but_not_what_is_on() {
    let mut history = History::default();
    let attack = |history: &mut History, name: &str, since: u64, until: u64| {
        let reading = Reading {
            attack_since: since,
            attack_until: until,
            ..Reading::default()
        };
        let subject = Subject { name, ..WEB };
        let of = followed(subject, history, now(10));
        let step = Watch::default().take(of, reading, 10 * SECOND);
        history.take(subject, &step, now(10));
    };
    attack(&mut history, "first", SECOND, 99 * SECOND);
    for n in 0..2 * MAX_ATTACKS as u64 {
        attack(&mut history, "web", n + 1, 99 * SECOND);
        attack(&mut history, "web", n + 1, 9 * SECOND);
    }
    assert_eq!(history.list().len(), MAX_ATTACKS);
    assert!(history.current("first", Found::Segments).is_some());
    assert_eq!(history.list()[0].id, 2 * MAX_ATTACKS as u64 + 1);
    assert_eq!(history.get(2), None);
    // And when all are on.
    for n in 0..2 * MAX_ATTACKS {
        attack(&mut history, &n.to_string(), SECOND, 99 * SECOND);
    }
    assert_eq!(history.list().len(), MAX_ATTACKS);
    assert!(history.current("first", Found::Segments).is_none());
}

fn event(source: &str, port: u16, unix_ms: u64) -> Event {
    Event {
        unix_ms,
        interface: "eth0".to_owned(),
        reason: Reason::ReplySynCookie,
        would_drop: false,
        frame_len: 60,
        packet: Some(Packet {
            source: source.parse().unwrap(),
            destination: "198.51.100.1".parse().unwrap(),
            protocol: "tcp".to_owned(),
            source_port: Some(1024),
            destination_port: Some(port),
        }),
        data: "00".to_owned(),
    }
}

#[test]
fn sources_and_ports_are_counted_by_what_stands_out() {
    let mut rig = Rig::attacked(1, 99);
    rig.history
        .sample("web", Found::Segments, &event("192.0.2.7", 443, 0));
    rig.look(2);
    for n in 0..10_000u64 {
        let noise = format!("10.{}.{}.1", n / 250 % 250, n % 250);
        rig.history
            .sample("web", Found::Segments, &event(&noise, 443, n));
        if n % 4 == 0 {
            rig.history
                .sample("web", Found::Segments, &event("192.0.2.7", 80, n));
            rig.history
                .sample("web", Found::Segments, &event("192.0.2.200", 443, n));
            rig.history
                .sample("web", Found::Segments, &event("2001:db8:1:2::3", 443, n));
        }
        rig.history
            .sample("mail", Found::Segments, &event("192.0.2.7", 25, n));
    }
    let (attack, samples) = rig.history.get(1).unwrap();
    assert_eq!(attack.sampled, 17_500);
    let sources: Vec<String> = attack.sources.iter().map(|s| s.of.0.to_string()).collect();
    assert_eq!(sources[..2], ["192.0.2.0/24", "2001:db8:1::/48"]);
    assert_eq!(sources.len(), TOLD);
    let first = attack.sources[0];
    assert!(first.samples >= 5000 && first.samples - first.error <= 5000);
    let ports: Vec<(u16, u64)> = attack.ports.iter().map(|p| (p.of, p.samples)).collect();
    assert_eq!(ports, [(443, 15_000), (80, 2500)]);
    // Samples are of all the time that it lasted.
    assert!((MAX_SAMPLES / 2..=MAX_SAMPLES).contains(&samples.len()));
    assert_eq!(samples[0].unix_ms, 0);
    let late = samples.iter().filter(|s| s.unix_ms >= 5000).count();
    assert!(
        (samples.len() / 3..=samples.len() * 2 / 3).contains(&late),
        "{late}"
    );
    assert!(rig.history.write().unwrap().len() < 64 << 10);
}

#[test]
fn a_file_that_is_none_is_refused() {
    let written = History::default().write().unwrap();
    assert_eq!(
        written,
        br#"{"version":2,"boot":null,"next_id":0,"attacks":[]}"#
    );
    for (bytes, word) in [
        (&b""[..], "damaged"),
        (b"{\"version\":1", "damaged"),
        (b"{\"version\":3,\"new\":[]}", "version 3"),
        (b"{\"version\":0,\"new\":[]}", "version 0"),
        (b"{\"version\":1,\"next_id\":0,\"attacks\":[7]}", "damaged"),
    ] {
        let error = History::read(bytes, None).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    // Whatever is cut off of one, nothing panics.
    let mut rig = Rig::attacked(1, 9);
    rig.look(2);
    rig.history
        .sample("web", Found::Segments, &event("192.0.2.7", 443, 0));
    let whole = rig.history.write().unwrap();
    for end in 0..whole.len() {
        assert!(History::read(&whole[..end], None).is_err());
    }
    // Numbers go on behind the largest.
    let text = String::from_utf8(whole).unwrap();
    let text = text.replace("\"next_id\":2", "\"next_id\":0");
    let mut history = History::read(text.as_bytes(), None).unwrap();
    let of = followed(WEB, &history, now(1));
    let step = Watch::default().take(of, Reading::default(), SECOND);
    assert_eq!(
        changes(&history.take(WEB, &step, now(1))),
        [(Change::Ended, 1)]
    );
    rig.history = history;
    rig.attack = Some((3, 9));
    assert_eq!(changes(&rig.look(4)), [(Change::Began, 2)]);
}

#[test]
fn a_flood_of_the_host_is_an_attack_of_its_own() {
    let mut rig = Rig::attacked(1, 99);
    rig.look(2);
    assert_eq!(rig.look_at_icmp(2, 500), []);
    let began = rig.look_at_icmp(3, 1500);
    assert_eq!(changes(&began), [(Change::Began, 2)]);
    let attack = &began[0].1;
    assert_eq!(
        (attack.service.as_str(), attack.began_unix_ms),
        ("host", now(2).unix_ms)
    );
    assert_eq!(kinds(attack), [(Kind::Icmp, 1000)]);
    assert_eq!(attack.kinds[0].per_second, 1000.0);
    let counters: Vec<(&str, u64)> = { attack.counters.iter() }
        .map(|(name, n)| (name.as_str(), *n))
        .collect();
    assert_eq!(
        counters,
        [("flood_dest", 0), ("flood_icmp", 1000), ("flood_source", 0)]
    );
    assert!(!attack.knows_clients());
    // Samples are of one of them, by what they are found by.
    rig.history
        .sample("host", Found::Icmp, &event("192.0.2.7", 0, 1));
    rig.history
        .sample("host", Found::Prefixes, &event("192.0.2.7", 0, 1));
    assert_eq!(rig.history.get(2).unwrap().0.sampled, 1);
    assert_eq!(rig.history.get(1).unwrap().0.sampled, 0);
    // What is done may change meanwhile.
    let dry_run = Subject {
        remedy: Remedy::DryRun,
        ..ICMP
    };
    let of = followed(ICMP, &rig.history, now(4));
    let step = rig
        .watch
        .take(of, Reading::of_host([1500, 0, 0]), 4 * SECOND);
    assert_eq!(rig.history.take(dry_run, &step, now(4)), []);
    let current = rig.history.current("host", Found::Icmp).unwrap();
    assert_eq!(current.remedy, Remedy::DryRun);
    // It goes on over a restart, if that is soon.
    let mut rig = rig.restarted();
    assert_eq!(changes(&rig.look_at_icmp(7, 1600)), [(Change::GoesOn, 2)]);
    assert_eq!(rig.history.begun("host", Found::Icmp), 0);
    // An interface has left, and what it had counted with it.
    assert_eq!(rig.look_at_icmp(8, 900), []);
    assert_eq!(rig.look_at_icmp(9, 1100), []);
    let until = 19;
    let mut rig = rig.restarted();
    let ended = rig.look_at_icmp(until + 5, 1700);
    assert_eq!(changes(&ended), [(Change::Ended, 2)]);
    assert_eq!(ended[0].1.ended_unix_ms, Some(now(9).unix_ms));
    // What was counted while nobody looked may be of another one.
    assert_eq!(kinds(&ended[0].1), [(Kind::Icmp, 1300)]);
    assert_eq!(changes(&rig.look_at_icmp(25, 9000)), [(Change::Began, 3)]);
}

#[test]
fn only_an_attack_of_this_boot_is_inherited_and_not_for_long() {
    let mut rig = Rig {
        history: History::new(Some("a".to_owned())),
        ..Rig::default()
    };
    rig.look_at_icmp(2, 0);
    rig.look_at_icmp(3, 1000);
    let written = rig.history.write().unwrap();
    let inherited = |boot: Option<&str>, of, at_s: u64| {
        let history = History::read(&written, boot).unwrap();
        history.inherited(of, at_s * SECOND, 5 * SECOND)
    };
    let span = Some((2 * SECOND, 13 * SECOND));
    assert_eq!(inherited(Some("a"), ICMP, 4), span);
    assert_eq!(inherited(Some("a"), ICMP, 17), span);
    assert_eq!(inherited(Some("a"), ICMP, 18), None);
    for boot in [None, Some("b")] {
        assert_eq!(inherited(boot, ICMP, 4), None);
    }
    let prefixes = Subject {
        found: Found::Prefixes,
        ..ICMP
    };
    assert_eq!(inherited(Some("a"), prefixes, 4), None);
    // Who followed it all the time inherits nothing.
    assert_eq!(rig.history.inherited(ICMP, 4 * SECOND, 0), None);
}

#[test]
fn a_history_of_before_floods_of_the_host_is_read() {
    let mut rig = Rig::attacked(1, 99);
    rig.look(1);
    rig.add(ServiceCounter::Syns, 7);
    rig.look(2);
    let text = String::from_utf8(rig.history.write().unwrap()).unwrap();
    let mut old = text.replace("\"version\":2,\"boot\":null", "\"version\":1");
    for new in [
        "\"found\":\"segments\",",
        "\"until_ns\":99000000000,",
        "\"flood_dest\":0,",
        "\"flood_icmp\":0,",
        "\"flood_source\":0,",
    ] {
        assert!(old.contains(new), "{new} in {old}");
        old = old.replace(new, "");
    }
    rig.history = History::read(old.as_bytes(), Some("a")).unwrap();
    rig.watch = Watch::default();
    rig.add(ServiceCounter::Syns, 3);
    assert_eq!(changes(&rig.look(3)), [(Change::GoesOn, 1)]);
    let attack = rig.history.current("web", Found::Segments).unwrap();
    assert_eq!(kinds(&attack), [(Kind::Syn, 10)]);
}
