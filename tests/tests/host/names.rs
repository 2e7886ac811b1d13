//! Servers of the proxy that have names, as a server of DNS tells them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use edge_tests::daemon::Installation;
use edge_tests::lab::Lab;
use edge_tests::netns::Namespace;
use edge_tests::server::{HTTP2, Nginx};
use edge_tests::wait;

use super::proxy::{HTTP, curl, url};

/// What is said of a name.
struct Entry {
    name: &'static str,
    /// Seconds.
    ttl: u32,
    /// None: it fails (SERVFAIL).
    address: Option<Ipv4Addr>,
    /// None: there is none.
    six: Option<Ipv6Addr>,
    /// How often its IPv4 address was asked for.
    asked: u32,
}

/// A server of DNS (RFC 1035) on the loopback address of a namespace, which asks there.
struct Dns {
    entries: Arc<Mutex<Vec<Entry>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The host's configuration of DNS.
    _file: tempfile::NamedTempFile,
}

impl Dns {
    fn new(host: &Namespace, entries: Vec<Entry>) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "nameserver 127.0.0.1\noptions attempts:1 timeout:2\n",
        )
        .unwrap();
        let path = file.path().display().to_string();
        // Seen by processes of the namespace only.
        host.run("mount", &["--bind", &path, "/etc/resolv.conf"]);
        let socket = host.inside(|| UdpSocket::bind("127.0.0.1:53")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let entries = Arc::new(Mutex::new(entries));
        let stop: Arc<AtomicBool> = Arc::default();
        let (known, end) = (entries.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let mut query = [0; 512];
                match socket.recv_from(&mut query) {
                    Ok((len, from)) => {
                        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                        let answer = answer(&query[..len], &mut known).expect("a query");
                        socket.send_to(&answer, from).unwrap();
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => panic!("{e}"),
                }
            }
        });
        Self {
            entries,
            stop,
            thread: Some(thread),
            _file: file,
        }
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        work(entries.iter_mut().find(|entry| entry.name == name).unwrap())
    }

    /// A name has this address, and no IPv6 one.
    fn set(&self, name: &str, address: IpAddr) {
        let IpAddr::V4(address) = address else {
            panic!("{address}");
        };
        self.with(name, |entry| {
            (entry.address, entry.six) = (Some(address), None);
        });
    }

    /// Its IPv4 addresses cannot be had, and there is this one of IPv6 or none.
    fn fail(&self, name: &str, six: Option<IpAddr>) {
        let six = six.map(|six| match six {
            IpAddr::V6(six) => six,
            IpAddr::V4(_) => panic!("{six}"),
        });
        self.with(name, |entry| (entry.address, entry.six) = (None, six));
        let before = self.asked(name);
        wait::until("it was asked again", || self.asked(name) > before + 1);
    }

    fn asked(&self, name: &str) -> u32 {
        self.with(name, |entry| entry.asked)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || thread::panicking());
    }
}

/// The answer to a query with one question, RFC 1035, section 4.
fn answer(query: &[u8], entries: &mut [Entry]) -> Option<Vec<u8>> {
    let (mut name, mut at) = (Vec::new(), 12);
    while let Some(len @ 1..=63) = query.get(at).map(|len| usize::from(*len)) {
        name.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + len)?).to_lowercase());
        at += 1 + len;
    }
    let question = query.get(12..at + 5)?;
    let entry = entries
        .iter_mut()
        .find(|entry| entry.name == name.join("."));
    // Their numbers, and that of the Internet's class.
    let (is_a, is_aaaa) = (
        question.ends_with(&[0, 1, 0, 1]),
        question.ends_with(&[0, 28, 0, 1]),
    );
    // NOERROR, SERVFAIL, NXDOMAIN.
    let (code, found) = match entry {
        None => (3, None),
        Some(entry) if is_a => {
            entry.asked += 1;
            match entry.address {
                None => (2, None),
                Some(address) => (0, Some((entry.ttl, address.octets().to_vec()))),
            }
        }
        Some(entry) => {
            let six = entry.six.filter(|_| is_aaaa);
            (0, six.map(|six| (entry.ttl, six.octets().to_vec())))
        }
    };
    // An answer, as a resolver that recurses; the question, no or one record.
    let mut answer = [query.get(..2)?, &[0x81, 0x80 | code, 0, 1]].concat();
    answer.extend([0, u8::from(found.is_some()), 0, 0, 0, 0]);
    answer.extend(question);
    if let Some((ttl, address)) = found {
        // The name, type and class are those of the question.
        answer.extend([0xc0, 12]);
        answer.extend(&question[question.len() - 4..]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, address.len() as u8]);
        answer.extend(address);
    }
    Some(answer)
}

#[test]
fn servers_with_names_are_where_dns_says_for_as_long_as_it_says() {
    const SHORT: &str = "app.edge.test";
    const LONG: &str = "far.edge.test";
    let lab = Lab::new(3);
    let link = lab.link();
    let _one = Nginx::saying(&lab.links[1].outside, "one");
    let _two = Nginx::saying(&lab.links[2].outside, "two");
    let [one, two] = [1, 2].map(|n| lab.links[n].v4(2));
    let entry = |name, ttl| Entry {
        name,
        ttl,
        address: None,
        six: None,
        asked: 0,
    };
    let dns = Dns::new(&lab.host, vec![entry(SHORT, 1), entry(LONG, 3600)]);
    dns.set(SHORT, one);
    dns.set(LONG, two);
    let at = link.v4(1);
    let upstream = |name: &str, protocol: &str, server: &str, port: u16| {
        format!(
            "[[upstream]]\nname = '{name}'\nprotocol = '{protocol}'\n\
             [[upstream.server]]\naddress = '{server}:{port}'\n\
             [[route]]\nname = '{name}'\npath = {{ prefix = '/{name}' }}\nupstream = '{name}'\n"
        )
    };
    let settings = format!(
        "[[listener]]\nname = 'web'\naddresses = ['{at}:{HTTP}']\n{}{}{}",
        upstream("app", "http1", SHORT, 80),
        upstream("two", "http2", SHORT, HTTP2),
        upstream("far", "http1", LONG, 80)
    );
    let edge = Installation::new(&lab.host, &["eth0"], &settings);
    let _daemon = edge.start();
    let get = |path| curl(link, link.v4(2), &url(link, "http", path), &[]).1;
    let app = || [get("/app"), get("/two")];
    // A host that is busy may begin without an address.
    wait::until("the first address", || app() == ["one\n", "one\n"]);
    wait::until("that of the other name", || get("/far") == "two\n");
    let asked = dns.asked(LONG);
    // Also those connections that are kept and shared lead there from now on.
    dns.set(SHORT, two);
    dns.set(LONG, one);
    wait::until("the new address", || app() == ["two\n", "two\n"]);
    // While nobody knows, that of before is right, also when there are others of the other family.
    dns.fail(SHORT, None);
    assert_eq!(app(), ["two\n", "two\n"]);
    dns.fail(SHORT, Some(lab.links[1].v6(2)));
    assert_eq!(app(), ["two\n", "two\n"]);
    // What is known outlives a reload.
    edge.configure(&["eth0"], &format!("{settings}# another\n"));
    edge.ok(&["reload"]);
    dns.fail(SHORT, Some(lab.links[1].v6(2)));
    assert_eq!(app(), ["two\n", "two\n"]);
    dns.set(SHORT, one);
    wait::until("the address of before", || app() == ["one\n", "one\n"]);
    // What holds for an hour is not asked for again.
    assert_eq!((get("/far"), dns.asked(LONG)), ("two\n".into(), asked));
    let told = edge.ok(&["upstream", "list"]);
    assert!(told.contains(SHORT) && told.contains(LONG), "{told}");
}
