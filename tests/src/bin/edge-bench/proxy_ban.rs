//! From a verdict of the proxy to the first packet that the firewall drops.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use edge_tests::{daemon::Installation, lab::Lab};
use serde_json::json;

use crate::{
    packets::Bench,
    report::{Report, Row, Target},
};

const NAME: &str = "proxy, from a verdict to the firewall";
/// Bans; the slowest counts.
const BANS: usize = 20;
/// Milliseconds that it may take.
const MOST: f64 = 10.0;
/// The source has gone quiet when nothing of it came for so long.
const QUIET: Duration = Duration::from_millis(300);
/// Packets of a ban at the most, and between two of them.
const PACKETS: u32 = 200_000;
const PAUSE: Duration = Duration::from_micros(50);
/// Ports of the host.
const HTTP: u16 = 8080;
const UDP: u16 = 9000;
/// A request without `Host`.
const OFFENCE: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

impl Bench {
    /// How long packets of a source still come that the proxy has had enough of.
    pub(crate) fn bans(&mut self) -> Result<()> {
        if !self.wants(NAME) {
            return Ok(());
        }
        let lab = Lab::new(1);
        let link = lab.link();
        let (host, source) = (link.v4(1), link.v4(3));
        let settings = format!(
            "[proxy]\nworkers = 1\nbans = {{ offences = 1, window = \"60s\", ttl = \"60s\" }}\n\
             [[listener]]\nname = \"web\"\naddresses = [\"{host}:{HTTP}\"]\n\
             [[route]]\nname = \"all\"\nrespond = {{ status = 200, body = \"here\" }}\n"
        );
        let edge = Installation::new(&lab.host, &["eth0"], &settings);
        let _daemon = edge.start();
        let receiver = lab.host.inside(|| UdpSocket::bind((host, UDP)))?;
        receiver.set_read_timeout(Some(QUIET))?;
        let mut took = Vec::new();
        for _ in 0..BANS {
            took.push(
                link.outside
                    .inside(|| ban(&receiver, (source, 0).into(), host))?,
            );
            edge.ok(&["blacklist", "del", &source.to_string()]);
        }
        took.sort_by(f64::total_cmp);
        let worst = took.last().copied().context("a ban")?;
        Report::head("Proxy and firewall", "ms");
        self.report.add(Row {
            name: NAME.to_owned(),
            unit: "ms from the request that is one too many to the last packet that came through",
            floor: None,
            gross: Some(worst),
            value: worst,
            target: Some(Target::AtMost(MOST)),
            note: format!("median {:.2}", took[took.len() / 2]),
            more: json!({ "ms": took }),
        });
        Ok(())
    }
}

/// Offends until packets of the source come no more; tells after how many milliseconds that was.
fn ban(receiver: &UdpSocket, source: SocketAddr, host: std::net::IpAddr) -> Result<f64> {
    offend(source, host)?;
    let sender = UdpSocket::bind(source)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..PACKETS {
                if stop.load(Relaxed) || sender.send_to(b"here", (host, UDP)).is_err() {
                    return;
                }
                let next = Instant::now() + PAUSE;
                while Instant::now() < next {
                    std::hint::spin_loop();
                }
            }
        });
        let measured = (|| {
            let mut packet = [0; 16];
            receiver.recv(&mut packet).context("no packet came")?;
            let began = Instant::now();
            offend(source, host)?;
            let mut last = began;
            while receiver.recv(&mut packet).is_ok() {
                last = Instant::now();
            }
            Ok((last - began).as_secs_f64() * 1000.0)
        })();
        stop.store(true, Relaxed);
        measured
    })
}

/// A request that is none, from a source; what is said of it.
fn offend(source: SocketAddr, host: std::net::IpAddr) -> Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&source.into())?;
    socket.connect_timeout(
        &SocketAddr::from((host, HTTP)).into(),
        Duration::from_secs(5),
    )?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(OFFENCE)?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 400"), "no answer of 400");
    Ok(())
}
