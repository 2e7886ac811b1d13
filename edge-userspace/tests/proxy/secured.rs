//! TLS as time goes on: sessions that are resumed, files that change, and what is no request.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    thread,
};

use rcgen::{KeyPair, RsaKeySize};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, Stream,
    SupportedProtocolVersion,
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::ServerName,
    version,
};

use super::{
    edges::{Authority, pair, shake, towards},
    rig::*,
};

const NAME: &str = "a.example";

/// Has a request answered by a new connection, and tells how it began.
fn kind(rig: &Rig, config: &Arc<ClientConfig>) -> io::Result<HandshakeKind> {
    let name = ServerName::try_from(NAME).unwrap();
    let mut session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut tcp = TcpStream::connect(rig.port.at)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let mut stream = Stream::new(&mut session, &mut tcp);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{answer:?}");
    session
        .handshake_kind()
        .ok_or_else(|| io::Error::other("no handshake"))
}

#[test]
fn sessions_are_resumed_unless_clients_show_certificates() {
    let authority = Authority::new();
    let server = Server::saying("ok");
    let files = authority.issue(NAME);
    let shown = authority.issue("client.example");
    let asks = format!(
        ", client_ca = '{}', client_auth = 'required'",
        authority.ca().display()
    );
    for (more, certificate, again) in [
        ("", None, HandshakeKind::Resumed),
        (", tickets = false", None, HandshakeKind::Full),
        // Who was let in once may have been shut out since.
        (&*asks, Some(&shown), HandshakeKind::Full),
    ] {
        let tls = format!("tls = {{ certificates = [{}]{more} }}", pair(&files));
        let rig = Rig::new(&Setup::new(&[&server]).listener(tls));
        let config = authority.client(certificate);
        assert_eq!(kind(&rig, &config).unwrap(), HandshakeKind::Full, "{more}");
        assert_eq!(kind(&rig, &config).unwrap(), again, "{more}");
    }
}

#[test]
fn a_handshake_that_takes_too_long_is_told_apart_from_one_that_fails() {
    let (authority, server) = (Authority::new(), Server::saying("ok"));
    let tls = format!(
        "tls = {{ certificates = [{}] }}",
        pair(&authority.issue(NAME))
    );
    // What is no handshake, and the first bytes of one.
    for (bytes, time, late) in [
        (&b"GET / HTTP/1.1\r\n"[..], "50s", 0),
        (&[22, 3, 1, 2], "200ms", 1),
    ] {
        let listener = format!("{tls}\nlimits = {{ header_timeout = '{time}' }}");
        let rig = Rig::new(&Setup::new(&[&server]).listener(listener));
        let mut client = rig.client();
        client.send(bytes);
        until("it is counted", || {
            rig.tier.view().status().unwrap().listeners[0].tls_failed == 1
        });
        assert_eq!(rig.refusals("tls_timeout"), late);
    }
}

/// Each with keys of both kinds, of which servers of both versions have to choose.
#[test]
fn both_versions_are_spoken_with_keys_of_both_kinds() {
    let (authority, server) = (Authority::new(), Server::saying("ok"));
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let pairs = [authority.issue(NAME), authority.issue_by(NAME, "rsa", &rsa)];
    let [ecdsa, rsa] = pairs.each_ref().map(pair);
    let tls = |more: &str| format!("tls = {{ certificates = [{ecdsa}, {rsa}]{more} }}");
    let setup = Setup::new(&[&server]);
    let mut rig = Rig::new(&setup.clone().listener(tls("")));
    // With TLS 1.2 the suite says of which kind the key is, with 1.3 the scheme of the signature.
    let (ecdsa, rsa) = ("ECDSA", "RSA");
    for (version, kind) in [
        (&version::TLS12, ecdsa),
        (&version::TLS12, rsa),
        (&version::TLS13, ecdsa),
        (&version::TLS13, rsa),
    ] {
        let shown = shown(&rig, &authority, version, kind).unwrap();
        assert_eq!(shown, (version.version, kind), "{version:?} {kind}");
    }
    rig.change(&setup.listener(tls(", min_version = '1.3'")));
    until("TLS 1.2 is refused", || {
        let refused = shown(&rig, &authority, &version::TLS12, rsa).map_err(|e| e.to_string());
        refused.is_err_and(|why| why.contains("ProtocolVersion"))
    });
    let shown = shown(&rig, &authority, &version::TLS13, rsa).unwrap();
    assert_eq!(shown, (ProtocolVersion::TLSv1_3, rsa));
}

/// Which version is spoken with a client that takes keys of one kind, `ECDSA` or `RSA`, only, and
/// of which kind the key is that the proxy shows.
fn shown(
    rig: &Rig,
    authority: &Authority,
    version: &'static SupportedProtocolVersion,
    kind: &str,
) -> io::Result<(ProtocolVersion, &'static str)> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| {
        let name = format!("{:?}", suite.suite());
        name.starts_with("TLS13") || name.contains(kind)
    });
    let algorithms = provider.signature_verification_algorithms;
    let of_kind = algorithms.mapping.iter().copied();
    let of_kind = of_kind.filter(|(scheme, _)| format!("{scheme:?}").contains(kind));
    provider.signature_verification_algorithms = WebPkiSupportedAlgorithms {
        all: algorithms.all,
        mapping: of_kind.collect::<Vec<_>>().leak(),
    };
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).unwrap();
    let mut session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut tcp = TcpStream::connect(rig.port.at)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    while session.is_handshaking() {
        session.complete_io(&mut tcp)?;
    }
    let chain = session.peer_certificates().unwrap();
    // rsaEncryption, 1.2.840.113549.1.1.1 (RFC 8017, appendix A.1), is in certificates for such.
    let rsa = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    let is_rsa = chain[0].windows(rsa.len()).any(|bytes| bytes == rsa);
    let kind = if is_rsa { "RSA" } else { "ECDSA" };
    Ok((session.protocol_version().unwrap(), kind))
}

#[test]
fn files_that_change_hold_for_every_listener() {
    let (authority, server, second) = (Authority::new(), Server::saying("ok"), Port::new());
    let (cert, key) = authority.issue(NAME);
    let tls = format!(
        "tls = {{ certificates = [{}] }}\n[[listener]]\nname = 'second'\naddresses = ['{}']\n\
         tls = {{ certificates = [{}] }}",
        pair(&(cert.clone(), key.clone())),
        second.at,
        pair(&(cert.clone(), key.clone()))
    );
    let mut rig = Rig::new(&Setup::new(&[&server]).listener(tls));
    let config = authority.client(None);
    shake(&rig, &config, NAME).unwrap();
    let (new_cert, new_key) = authority.issue("b.example");
    fs::rename(new_key, key).unwrap();
    fs::rename(new_cert, cert).unwrap();
    until("the first listener's new certificate", || {
        shake(&rig, &config, "b.example").is_ok()
    });
    rig.port = second;
    until("the second listener's new certificate", || {
        shake(&rig, &config, "b.example").is_ok()
    });
}

#[test]
fn a_trickle_of_a_record_is_no_request() {
    let (authority, server) = (Authority::new(), Server::saying("ok"));
    let files = authority.issue(NAME);
    let listener = format!(
        "limits = {{ idle_timeout = '1s' }}\ntls = {{ certificates = [{}] }}",
        pair(&files)
    );
    let rig = Rig::new(&Setup::new(&[&server]).listener(listener));
    let name = ServerName::try_from(NAME).unwrap();
    let mut session = ClientConnection::new(authority.client(None), name).unwrap();
    let mut tcp = TcpStream::connect(rig.port.at).unwrap();
    tcp.set_nodelay(true).unwrap();
    let mut stream = Stream::new(&mut session, &mut tcp);
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    // A record of application data (RFC 8446, section 5.1) of 16 KiB, a byte at a time.
    tcp.write_all(&[23, 3, 3, 0x40, 0]).unwrap();
    until("the connection is ended", || tcp.write_all(b"x").is_err());
}

#[test]
fn checks_are_made_with_the_tls_of_requests() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (cert, key) = authority.issue("client.example");
    let shown = format!(", cert = '{}', key = '{}'", cert.display(), key.display());
    for (kind, ca, more, is_up) in [
        ("https", authority.ca(), &*shown, true),
        ("http", authority.ca(), &shown, true),
        ("https", authority.ca(), "", false),
        ("https", other.ca(), &shown, false),
    ] {
        let server = authority.server("server.example", true, "ok");
        let upstream = format!(
            "health = {{ kind = '{kind}', interval = '500ms', timeout = '450ms', rise = 1, \
             fall = 1 }}\n{}",
            towards(&ca, more)
        );
        let rig = Rig::new(&Setup::new(&[&server]).upstream(&*upstream));
        let what = format!("{kind} {ca:?} {more:?}");
        if !is_up {
            until(&what, || !rig.app().servers[0].up);
            assert_eq!(server.requests(), 0, "{what}");
            continue;
        }
        until(&what, || server.requests() > 2 && rig.app().servers[0].up);
        // Who is asked for by a name is named by it.
        let seen = server.seen().concat();
        assert!(seen.contains("\r\nHost: server.example\r\n"), "{seen}");
    }
}

#[test]
fn what_checks_found_stays_over_a_reload() {
    let authority = Authority::new();
    // It asks for what is not shown.
    let server = authority.server("server.example", true, "ok");
    let upstream = |weight: u32| {
        format!(
            "balance = 'weighted-round-robin'\npanic_threshold = 0\n\
             health = {{ kind = 'https', interval = '100ms', rise = 1, fall = 1 }}\n{}\n\
             [[upstream.server]]\naddress = '{}'\nweight = {weight}\n",
            towards(&authority.ca(), ""),
            server.address
        )
    };
    let setup = |weight| Setup::new(&[]).upstream(upstream(weight));
    let mut rig = Rig::new(&setup(1));
    until("it is down", || !rig.app().servers[0].up);
    for weight in 2..20 {
        rig.change(&setup(weight));
        let app = rig.app();
        assert_eq!((app.servers[0].weight, app.servers[0].up), (weight, false));
    }
}

#[test]
fn reloads_leave_what_is_known_of_servers_behind_tls() {
    let authority = Authority::new();
    let server = authority.server("server.example", false, "ok");
    let upstream = towards(&authority.ca(), "");
    let setup = Setup::new(&[&server]).upstream(&*upstream);
    let mut rig = Rig::new(&setup);
    let mut client = rig.client();
    assert_eq!(client.get("/").text(), "ok");
    let view = rig.tier.view();
    let change = edge_userspace::l7::proxy::Change::Weight(7);
    view.change("app", &server.address, change).unwrap();
    let weight = |rig: &Rig| rig.app().servers[0].weight;
    // Another route, and another time-out elsewhere: nothing of this upstream.
    let routes = format!(
        "[[route]]\nname = 'n'\npath = {{ exact = '/n' }}\nrespond = {{ status = 200, body = 'n' }}\n{ALL}"
    );
    rig.change(&setup.clone().routes(routes));
    until("the change", || rig.get("/n").text() == "n");
    assert_eq!(weight(&rig), 7);
    assert_eq!(client.get("/").text(), "ok");
    assert_eq!(rig.app().connects, 1, "the connection that was there");
    // Servers of another authority are to be trusted from now on, and no longer this one.
    let other = Authority::new();
    fs::copy(other.ca(), authority.ca()).unwrap();
    rig.change(&setup);
    until("the connection of before is not used", || {
        client.get("/").status == 502
    });
}

#[test]
fn a_handshake_that_is_slow_has_its_request_answered_when_another_process_accepts() {
    let (authority, server) = (Authority::new(), Server::saying("ok"));
    let files = authority.issue(NAME);
    let tls = format!("tls = {{ certificates = [{}] }}", pair(&files));
    let rig = Rig::new(&Setup::new(&[&server]).listener(tls));
    let begin = || {
        let name = ServerName::try_from(NAME).unwrap();
        let session = ClientConnection::new(authority.client(None), name).unwrap();
        let tcp = TcpStream::connect(rig.port.at).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        (session, tcp)
    };
    let (mut slow, mut slow_tcp) = begin();
    let mut hello = Vec::new();
    slow.write_tls(&mut hello).unwrap();
    let (first, rest) = hello.split_at(hello.len() / 2);
    slow_tcp.write_all(first).unwrap();
    // One that has its handshake behind it, and asks for nothing.
    let (mut idle, mut idle_tcp) = begin();
    idle.complete_io(&mut idle_tcp).unwrap();
    until("both are accepted", || rig.tier.view().connections() == 2);
    let Rig {
        mut tier,
        directory: _directory,
        ..
    } = rig;
    let draining = thread::spawn(move || tier.drain(PATIENCE, &[], || false));
    // The time for a first request is over then.
    let mut nothing = Vec::new();
    let ended = Stream::new(&mut idle, &mut idle_tcp).read_to_end(&mut nothing);
    assert!(nothing.is_empty(), "{ended:?} {nothing:?}");
    assert!(!draining.is_finished());
    slow_tcp.write_all(rest).unwrap();
    slow.complete_io(&mut slow_tcp).unwrap();
    // Tickets come when it is over for the server as well.
    slow.read_tls(&mut slow_tcp).unwrap();
    slow.process_new_packets().unwrap();
    let mut stream = Stream::new(&mut slow, &mut slow_tcp);
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    // It ends by itself after that.
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{answer:?}");
    drop((slow_tcp, idle_tcp));
    draining.join().unwrap();
}
