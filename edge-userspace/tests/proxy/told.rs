//! What is told of requests: to clients that are refused, and in the access log.

use std::{
    fs::OpenOptions,
    io::Read as _,
    process::Command,
    sync::{atomic::Ordering::Relaxed, mpsc},
    thread,
};

use super::{resilience::held, rig::*};

#[test]
fn error_pages_name_the_request_and_nothing_of_the_inside() {
    let failing = |said: &'static str| {
        Server::start(move |mut peer| {
            peer.request();
            peer.send(said);
            if said.is_empty() {
                peer.rest();
            }
        })
    };
    let timeouts = "retries = { tries = 1 }\n\
                    timeouts = { connect = '200ms', first_byte = '1s', between_bytes = '1s', request = '60s' }\n";
    let (silent, rubbish) = (failing(""), failing("secret-rubbish\r\n\r\n"));
    let breaker = "breaker = { failure_rate = 1.0, window = 1, open = '1h' }";
    let mut nobody = Setup::new(&[]).upstream(timeouts);
    nobody.servers = vec!["127.0.0.1:1".to_owned()];
    for (setup, status, reason) in [
        (
            Setup::new(&[&silent]).upstream(timeouts),
            504,
            "answer_timeout",
        ),
        (
            Setup::new(&[&rubbish]).upstream(timeouts),
            502,
            "bad_answer",
        ),
        (nobody.clone(), 502, "connect_failed"),
        (
            nobody.upstream(format!("{timeouts}{breaker}")),
            503,
            "breaker_open",
        ),
    ] {
        let rig = Rig::new(&setup);
        if status == 503 {
            assert_eq!(rig.get("/first").status, 502);
        }
        let answer = rig.get("/x");
        let line = rig.logged("/x");
        assert_eq!((answer.status, &line["reason"]), (status, &reason.into()));
        let id = line["request_id"].as_str().unwrap();
        assert_eq!(answer.header("x-request-id"), Some(id));
        let page = answer.text();
        assert!(page.contains(&format!("request id: {id}\n")), "{page}");
        let all = format!("{}{page}", answer.head).to_lowercase();
        for inside in ["127.0.0.1", "app", "all", "web", "edge", "secret", reason] {
            assert!(!all.contains(inside), "{inside}: {all}");
        }
    }
}

#[test]
fn lines_can_be_logfmt() {
    let server = Server::saying("ok");
    let rig = Rig::with(|at, log| {
        let text = Setup::new(&[&server]).text(at, log);
        let changed = text.replace("access.log' }", "access.log', format = 'logfmt' }");
        assert_ne!(text, changed);
        changed
    });
    rig.client()
        .get_with("/x?a=b", "User-Agent: an \"agent\" =\r\n");
    let line = until_some("a line", || {
        let text = std::fs::read_to_string(rig.log()).unwrap();
        text.strip_suffix('\n').map(str::to_owned)
    });
    for part in [
        " listener=web route=all upstream=app server=127.0.0.1:",
        " method=GET host=a.example target=\"/x?a=b\" version=1.1 status=200 received=0 sent=2 ",
        " tries=1 user_agent=\"an \\\"agent\\\" =\"",
    ] {
        assert!(line.contains(part), "{part}\n{line}");
    }
    assert!(line.starts_with("time=2"), "{line}");
}

#[test]
fn lines_tell_where_the_time_went() {
    let (server, had, go) = held();
    let rig = Rig::new(
        &Setup::new(&[&server])
            .upstream("concurrency = { requests = 1, queue = 2, queue_timeout = '50s' }"),
    );
    let (mut first, mut second, mut third) = (rig.client(), rig.client(), rig.client());
    first.send("GET /first HTTP/1.1\r\nHost: a.example\r\n\r\n");
    until("it is under way", || had.load(Relaxed) == 1);
    second.send("GET /second HTTP/1.1\r\nHost: a.example\r\n\r\n");
    until("the next waits", || rig.app().waiting == 1);
    third.send("GET /third HTTP/1.1\r\nHost: a.example\r\n\r\n");
    until("and the one after", || rig.app().waiting == 2);
    // It never gets its turn.
    third.reset();
    until("that is seen", || rig.app().waiting == 1);
    go.send(()).unwrap();
    go.send(()).unwrap();
    assert_eq!(first.answer().text(), "ok");
    assert_eq!(second.answer().text(), "ok");
    let of = |target: &str, key: &str| rig.logged(target)[key].as_u64();
    assert_eq!(of("/first", "queued_us"), Some(0));
    assert!(of("/first", "connect_us").unwrap() > 0);
    assert!(of("/second", "queued_us").unwrap() > 0);
    // By the connection of the first.
    assert_eq!(of("/second", "connect_us"), Some(0));
    for target in ["/first", "/second"] {
        let parts = ["queued_us", "connect_us", "first_byte_us"];
        let sum: u64 = parts.iter().map(|part| of(target, part).unwrap()).sum();
        assert!(of(target, "first_byte_us").unwrap() > 0);
        assert!(sum <= of(target, "duration_us").unwrap(), "{target}");
    }
    assert!(of("/third", "queued_us").unwrap() > 0);
    assert_eq!(of("/third", "tries"), None);
}

#[test]
fn a_disk_that_takes_nothing_keeps_no_request_waiting() {
    let server = Server::saying("ok");
    let mut reader = None;
    let rig = Rig::with(|at, log| {
        // Nobody reads it, so it takes 64 KiB and then nothing.
        let made = Command::new("mkfifo").arg(log).status().unwrap();
        assert!(made.success());
        let mut open = OpenOptions::new();
        reader = Some(open.read(true).write(true).open(log).unwrap());
        Setup::new(&[&server]).text(at, log)
    });
    let lost = || rig.tier.view().status().unwrap().log_lost;
    let long = "x".repeat(7000);
    let (mut asked, mut first_lost) = (0, None);
    until("lines are lost", || {
        let mut client = rig.client();
        for _ in 0..64 {
            assert_eq!(client.get(&format!("/{long}")).text(), "ok");
            asked += 1;
        }
        first_lost = Some(lost()).filter(|lost| *lost > 0);
        first_lost.is_some()
    });
    // What was not lost is there, in whole lines.
    let mut reader = reader.take().unwrap();
    let (send, lines) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        let mut text = Vec::new();
        let mut room = vec![0; 1 << 16];
        while let Ok(n) = reader.read(&mut room) {
            text.extend_from_slice(&room[..n]);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if send.send(line).is_err() {
                    return;
                }
            }
        }
    });
    let mut seen = 0;
    until("all lines are written or lost", || {
        for line in lines.try_iter() {
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(line["status"], 200);
            seen += 1;
        }
        seen + lost() == asked
    });
    assert!(seen > 0);
}
