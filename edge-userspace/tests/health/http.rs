//! HTTP: nginx, and servers that do what nginx does not.

use edge_userspace::config::balance::HttpProbe;

use super::{
    nginx::{Nginx, V3},
    *,
};

fn http(path: &str) -> HttpProbe {
    HttpProbe {
        tls: false,
        http2: false,
        path: path.to_owned(),
        host: None,
        status: (200, 299),
        body: None,
    }
}

fn with_body(path: &str, body: &str) -> Probe {
    Probe::Http(HttpProbe {
        body: Some(body.to_owned()),
        ..http(path)
    })
}

#[tokio::test]
async fn the_status_decides() {
    let nginx = Nginx::start(V3, "");
    for (path, status, result) in [
        ("/", (200, 299), Ok(())),
        ("/?q=%20x", (200, 200), Ok(())),
        ("/empty", (200, 299), Ok(())),
        ("/moved", (200, 399), Ok(())),
        (
            "/moved",
            (200, 299),
            failed("status 302, wanted 200 to 299"),
        ),
        (
            "/overloaded",
            (200, 299),
            failed("status 503, wanted 200 to 299"),
        ),
        ("/overloaded", (503, 503), Ok(())),
        ("/", (204, 204), failed("status 200, wanted 204")),
    ] {
        let probe = Probe::Http(HttpProbe {
            status,
            ..http(path)
        });
        assert_eq!(ask(probe, nginx.http).await, result, "{path}");
    }
    // To the end of a body that is longer than what is looked at.
    assert_eq!(
        ask(Probe::Http(http("/files/far")), nginx.http).await,
        Ok(())
    );
    let log = nginx.access_log();
    let agent = concat!("edge-health/", env!("CARGO_PKG_VERSION"));
    assert!(
        log.contains(&format!("200 GET /?q=%20x {agent}\n")),
        "{log}"
    );
}

#[tokio::test]
async fn servers_see_a_client_that_goes_in_order() {
    let nginx = Nginx::start(V3, "");
    for path in ["/", "/overloaded", "/files/first", "/chunked/first"] {
        let _ = ask(Probe::Http(http(path)), nginx.http).await;
    }
    assert_eq!(ask(with_body("/", "well"), nginx.http).await, Ok(()));
    assert_eq!(ask(Probe::Tcp, nginx.http).await, Ok(()));
    // What it has to say of earlier clients is said before it answers a later one.
    assert_eq!(ask(Probe::Http(http("/last")), nginx.http).await, Ok(()));
    let log = nginx.error_log();
    for complaint in ["reset", "prematurely", "timed out"] {
        assert!(!log.contains(complaint), "{log}");
    }
}

#[tokio::test]
async fn the_body_is_searched_as_far_as_it_goes() {
    let nginx = Nginx::start(V3, "");
    let missing = failed("\"needle\" is not in the first 64 KiB of the body");
    for directory in ["/files", "/chunked"] {
        for (file, result) in [
            ("first", Ok(())),
            ("edge", Ok(())),
            ("across", missing.clone()),
            ("far", missing.clone()),
        ] {
            let path = format!("{directory}/{file}");
            let found = ask(with_body(&path, "needle"), nginx.http).await;
            assert_eq!(found, result, "{path}");
        }
    }
    assert_eq!(ask(with_body("/empty", ""), nginx.http).await, Ok(()));
    let none = ask(with_body("/empty", "x"), nginx.http).await;
    assert_eq!(none, failed("\"x\" is not in the first 64 KiB of the body"));
    // A wrong status is said first.
    let wrong = ask(with_body("/overloaded", "x"), nginx.http).await;
    assert_eq!(wrong, failed("status 503, wanted 200 to 299"));
}

#[tokio::test]
async fn the_host_is_the_address_or_what_is_said() {
    let nginx = Nginx::start(V3, "");
    let address = format!("host={};", nginx.http);
    assert_eq!(ask(with_body("/", &address), nginx.http).await, Ok(()));
    let named = Probe::Http(HttpProbe {
        host: Some("www.example.org".to_owned()),
        status: (418, 418),
        ..http("/")
    });
    assert_eq!(ask(named, nginx.http).await, Ok(()));
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_said() {
    for (path, host) in [("/a b", None), ("/", Some("a\r\nb"))] {
        let probe = Probe::Http(HttpProbe {
            host: host.map(str::to_owned),
            ..http(path)
        });
        let said = ask(probe, closed_port().await).await.unwrap_err();
        assert!(said.starts_with("HTTP: cannot ask for"), "{said}");
    }
}

#[tokio::test]
async fn answers_come_in_many_forms() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (answer, result) in [
        // Of a server that knows no lengths; the end is the end of the connection.
        ("HTTP/1.0 200 OK\r\n\r\nneedle", Ok(())),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nneedle",
            Ok(()),
        ),
        (
            &format!("{CHUNKED}3\r\nnee\r\n3;x=y\r\ndle\r\n0\r\nTrailer: x\r\n\r\n"),
            Ok(()),
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nnee",
            failed("closed before the answer was complete"),
        ),
        (
            &format!("{CHUNKED}3\r\nnee\r\n"),
            failed("closed before the answer was complete"),
        ),
        ("", failed("closed before the answer was complete")),
        (
            "HTTP/1.1 200 OK\r\nConte",
            failed("closed before the answer was complete"),
        ),
        (
            "SSH-2.0-OpenSSH_9.9\r\n",
            failed("HTTP: invalid HTTP version parsed"),
        ),
        (
            &format!("{CHUNKED}zz\r\n"),
            failed("HTTP: Invalid chunk size line: missing size digit"),
        ),
    ] {
        let target = answering(answer.as_bytes().to_vec(), true).await;
        assert_eq!(
            ask(with_body("/", "needle"), target).await,
            result,
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_header_has_a_largest_size() {
    let line = format!("X-Padding: {}\r\n", "x".repeat(1000));
    for (lines, result) in [
        (15, Ok(())),
        (20, failed("HTTP: the header is larger than 16 KiB")),
        (1000, failed("HTTP: the header is larger than 16 KiB")),
    ] {
        let header = format!("HTTP/1.1 204 No Content\r\n{}\r\n", line.repeat(lines));
        let target = answering(header.into_bytes(), false).await;
        assert_eq!(ask(Probe::Http(http("/")), target).await, result, "{lines}");
    }
}

#[tokio::test]
async fn enough_is_enough_though_the_server_goes_on() {
    // The status is there, or the text: what is still to come does not matter.
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nneedle";
    let target = answering(begun.as_bytes().to_vec(), false).await;
    let plain = Probe::Http(http("/"));
    let a_while = 10 * SOON;
    assert_eq!(ask_within(a_while, plain, target).await, Ok(()));
    assert_eq!(
        ask_within(a_while, with_body("/", "needle"), target).await,
        Ok(())
    );
    assert_eq!(
        ask_within(SOON, with_body("/", "other"), target).await,
        failed("no answer within 200ms")
    );
    let silent = answering(Vec::new(), false).await;
    assert_eq!(
        ask_within(SOON, Probe::Http(http("/")), silent).await,
        failed("no answer within 200ms")
    );
    let trickling = answering(b"HTTP/1.1 200 OK\r\nX: ".to_vec(), false).await;
    assert_eq!(
        ask_within(SOON, Probe::Http(http("/")), trickling).await,
        failed("no answer within 200ms")
    );
}
