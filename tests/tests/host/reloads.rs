//! A hundred reloads that change all that a reload can change, with connections of all kinds that
//! were there before.

use std::io::Read as _;
use std::net::TcpStream;

use edge_tests::daemon::Installation;
use edge_tests::lab::{Lab, Link};
use edge_tests::server::Nginx;
use edge_tests::wait;

use crate::proxy::{curl, settings, under_load, url, with_certificate};
use crate::secured::{Answer, Certificate, H2, ask as ask_secured, shake_hands, trusting};
use crate::upgrade::{ask, connect, downloads, echo, echoes, routes, upgraded};

const RELOADS: usize = 100;
const TUNNELS: usize = 1000;
const DOWNLOADS: usize = 3;

/// The configuration of a reload: a route, the servers and a time-out of an upstream, the
/// certificate and a limit are not those of the one before.
fn nth(lab: &Lab, certificates: &[Certificate; 2], n: usize) -> String {
    let route = format!(
        "[[route]]\nname = \"n\"\npath = {{ exact = \"/n\" }}\n\
         respond = {{ status = 200, body = \"{n}\" }}\n"
    );
    // Requests need four fields at the most.
    let limit = format!("limits = {{ headers = {} }}", 20 + n);
    let text = settings(lab, "", &limit, &format!("{}{route}", routes(lab)));
    let text = with_certificate(&text, &certificates[n % 2].files());
    let app = "name = \"app\"\n";
    let timeout = format!(
        "{app}timeouts = {{ request = \"{}s\", between_bytes = \"300s\" }}\n",
        1000 + n % 7
    );
    let text = text.replace(app, &timeout);
    // Every other time the first server is no more.
    let first = format!(
        "[[upstream.server]]\naddress = \"{}:80\"\n",
        lab.links[1].v4(2)
    );
    if n.is_multiple_of(2) {
        text
    } else {
        text.replace(&first, "")
    }
}

/// A download over a connection of its own, of which more is read now and then.
fn download(link: &Link) -> TcpStream {
    let mut stream = connect(link);
    let answer = ask(&mut stream, "/files/large", "").unwrap();
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");
    stream
}

#[test]
fn a_hundred_reloads_under_load_lose_and_reset_nothing() {
    let lab = Lab::new(3);
    let link = lab.link();
    // More clients come than there are ports, of which each is otherwise held for a minute.
    for setting in [
        "net.ipv4.tcp_tw_reuse=1",
        "net.ipv4.ip_local_port_range=1024 65535",
    ] {
        link.outside.run("sysctl", &["-q", "-w", setting]);
    }
    let (files, content) = downloads();
    let _servers = [1, 2].map(|n| Nginx::serving(&lab.links[n].outside, files.path()));
    echo(&lab.links[2].outside);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let certificates = ["one", "two"].map(|name| Certificate::new(&edge, name));
    edge.configure(&["eth0"], &nth(&lab, &certificates, 0));
    let _daemon = edge.start();

    let mut tunnels: Vec<TcpStream> = (0..TUNNELS).map(|_| upgraded(link)).collect();
    let mut large: Vec<TcpStream> = (0..DOWNLOADS).map(|_| download(link)).collect();
    let [http1, http2] = ["http/1.1", "h2"]
        .map(|protocol| trusting(&[&certificates[0], &certificates[1]], protocol));
    // Who has asked once may be idle for longer.
    let mut secured = shake_hands(link, &http1).unwrap();
    ask_secured(&mut secured, "/n").unwrap();
    let mut streams = H2::new(shake_hands(link, &http2).unwrap()).unwrap();
    let mut other = H2::new(shake_hands(link, &http2).unwrap()).unwrap();
    let mut got = Answer::default();
    let id = other.begin("/files/large").unwrap();
    let mut parts = content.chunks(content.len().div_ceil(RELOADS));

    let answered = under_load(link, |more| {
        for n in 1..=RELOADS {
            edge.configure(&["eth0"], &nth(&lab, &certificates, n));
            edge.ok(&["reload"]);
            wait::until("the new route", || {
                curl(link, link.v4(2), &url(link, "http", "/n"), &[]) == (200, n.to_string())
            });
            // New sessions have the new certificate, as soon as all workers have the configuration.
            wait::until("the new certificate", || {
                let fresh = shake_hands(link, &http1).unwrap();
                let shown = fresh.conn.peer_certificates().unwrap();
                shown[0] == certificates[n % 2].der
            });
            // And those that there were go on.
            wait::until("the new route with TLS", || {
                let (head, body) = ask_secured(&mut secured, "/n").unwrap();
                assert!(head.starts_with("http/1.1 200 "), "reload {n}: {head}");
                assert!(!head.contains("connection: close"), "reload {n}: {head}");
                body == n.to_string().as_bytes()
            });
            wait::until("the new route with HTTP/2", || {
                let answer = streams.get("/n").unwrap().expect("an answer");
                assert!(answer.is_ok && !streams.is_over(), "reload {n}");
                answer.body == n.to_string().as_bytes()
            });
            // A tenth of them each time.
            for (at, tunnel) in tunnels.iter_mut().enumerate().skip(n % 10).step_by(10) {
                assert!(echoes(tunnel, &format!("{n}")), "tunnel {at} after {n}");
            }
            let part = parts.next().unwrap_or_default();
            for stream in &mut large {
                let mut read = vec![0; part.len()];
                stream.read_exact(&mut read).unwrap();
                assert!(read == part, "the download is another one after {n}");
            }
            other
                .take(id, &mut got, content.len() * n / (RELOADS + 1))
                .unwrap();
            assert!(!other.is_over(), "reload {n}");
            if n.is_multiple_of(10) {
                more();
            }
        }
    });
    println!("{answered} answered by new connections over {RELOADS} reloads");
    assert_eq!(edge.status()["config"]["generation"], RELOADS + 1);
    for (at, tunnel) in tunnels.iter_mut().enumerate() {
        assert!(echoes(tunnel, &format!("{at}")), "tunnel {at}");
    }
    other.take(id, &mut got, usize::MAX).unwrap();
    assert!(got.is_ok && got.body == content, "{}", got.body.len());
    for listener in edge.status()["proxy"]["listeners"].as_array().unwrap() {
        assert_eq!(
            listener["refusals"].as_array().unwrap().len(),
            0,
            "{listener}"
        );
        assert_eq!(
            (&listener["refused"], &listener["tls_failed"]),
            (&0.into(), &0.into())
        );
    }
}
