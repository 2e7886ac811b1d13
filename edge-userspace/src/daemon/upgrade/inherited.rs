//! What this process was started with: sockets of a service manager (`sd_listen_fds(3)`), or of
//! the process that it is to follow.

use std::{
    env,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    thread,
};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Socket, Type};
use tracing::warn;

use super::{CHANNEL, Sockets, ToPredecessor, ToSuccessor};
use crate::l7::proxy::{Ban, Given, Said};

/// The variables by which a service manager tells of sockets: for which process, how many, and
/// their names.
pub(super) const LISTEN: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
/// The first of them (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// More than this is a mistake.
const MOST: RawFd = 1 << 16;

/// What there was.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Inherited {
    /// For the proxy, as far as is known.
    pub(in crate::daemon) proxy: Vec<Given>,
    /// Whom it is to follow.
    pub(in crate::daemon) predecessor: Option<Predecessor>,
}

/// The process that this one is to follow.
#[derive(Debug)]
pub(in crate::daemon) struct Predecessor {
    channel: BufReader<UnixStream>,
    stderr: OwnedFd,
    /// Its control socket and the lock of that.
    control: Option<(UnixListener, File)>,
    metrics: Option<TcpListener>,
}

impl Inherited {
    /// Takes all of it. To be called once, before other threads open anything.
    ///
    /// # Errors
    /// When it makes no sense.
    pub(in crate::daemon) fn take() -> Result<Self> {
        let get = |name: &str| env::var(name).ok();
        if let Some(fd) = get(CHANNEL) {
            return Self::follow(&fd).with_context(|| {
                format!("{CHANNEL} is set, by which `edge upgrade` starts a new process")
            });
        }
        let mut proxy = Vec::new();
        for (fd, name) in activated(std::process::id(), get).map_err(anyhow::Error::msg)? {
            let owned = own(fd).with_context(|| {
                format!(
                    "{}: descriptor {fd}, which the service manager should have opened",
                    LISTEN.join(", ")
                )
            })?;
            match listener(owned) {
                Ok(socket) => proxy.push(Given {
                    socket,
                    name,
                    is_kept: true,
                }),
                Err(what) => warn!(
                    "the service manager has opened {what} (descriptor {fd}{}): it is not used",
                    name.map(|name| format!(", {name:?}")).unwrap_or_default()
                ),
            }
        }
        Ok(Self {
            proxy,
            predecessor: None,
        })
    }

    fn follow(fd: &str) -> Result<Self> {
        let channel = UnixStream::from(own(fd.parse().context("no number")?)?);
        let mut channel = BufReader::new(channel);
        let ToSuccessor::Sockets(sockets) = receive(&mut channel)?.context("nobody is there")?
        else {
            bail!("the old process does not tell what there is");
        };
        let Sockets {
            stderr,
            control,
            control_lock,
            metrics,
            proxy,
        } = sockets;
        let given = proxy.into_iter().map(|given| {
            Ok(Given {
                socket: TcpListener::from(own(given.fd)?),
                name: given.name,
                is_kept: given.is_kept,
            })
        });
        Ok(Self {
            proxy: given.collect::<io::Result<_>>()?,
            predecessor: Some(Predecessor {
                channel,
                stderr: own(stderr)?,
                control: Some((own(control)?.into(), own(control_lock)?.into())),
                metrics: metrics.map(own).transpose()?.map(TcpListener::from),
            }),
        })
    }

    /// The addresses of the sockets for the proxy.
    pub(in crate::daemon) fn addresses(&self) -> Vec<SocketAddr> {
        let all = self.proxy.iter();
        let mut all: Vec<_> = all
            .filter_map(|given| given.socket.local_addr().ok())
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The socket of an address, if there is one, for the metrics.
    pub(in crate::daemon) fn metrics(
        &mut self,
        address: SocketAddr,
        predecessor: Option<&mut Predecessor>,
    ) -> Option<TcpListener> {
        let is_it = |socket: &TcpListener| socket.local_addr().is_ok_and(|a| a == address);
        let former = predecessor.and_then(|p| p.metrics.take());
        former.filter(is_it).or_else(|| {
            let at = self.proxy.iter().position(|given| is_it(&given.socket))?;
            Some(self.proxy.swap_remove(at).socket)
        })
    }
}

impl Predecessor {
    /// Its control socket and the lock of that, if it is at this path.
    pub(in crate::daemon) fn control(&mut self, path: &Path) -> Option<(UnixListener, File)> {
        let (listener, lock) = self.control.take()?;
        let at = listener.local_addr().ok()?;
        (at.as_pathname() == Some(path)).then_some((listener, lock))
    }

    /// Tells that the configuration is right, and waits until everything is free; tells what was
    /// said of servers.
    ///
    /// # Errors
    /// When it is not going to be.
    pub(in crate::daemon) fn wait(&mut self) -> Result<Vec<Said>> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.send(&ToPredecessor::Prepared { version })
            .context("the old process has gone")?;
        match receive(&mut self.channel)? {
            Some(ToSuccessor::Take { servers }) => Ok(servers),
            Some(other) => bail!("the old process said {other:?} too early"),
            None => bail!("the old process has given up"),
        }
    }

    /// Tells that everything is in force and which sockets are not used, and waits until the old
    /// process has stopped. From now on the log is our own. Afterwards `ban` is told whom the old one
    /// wants to be banned, as long as it lives.
    pub(in crate::daemon) fn follow(
        mut self,
        control: bool,
        unwanted: Vec<SocketAddr>,
        ban: impl Fn(Ban) + Send + 'static,
    ) {
        let told = self.send(&ToPredecessor::Ready { control, unwanted });
        let yours = told
            .map_err(anyhow::Error::from)
            .and_then(|()| receive(&mut self.channel));
        // SAFETY: both are open descriptors, and standard error is to be replaced.
        unsafe { libc::dup2(self.stderr.as_raw_fd(), libc::STDERR_FILENO) };
        if !matches!(yours, Ok(Some(ToSuccessor::Yours {}))) {
            // It let go of everything before, so that nothing is missing.
            return warn!("the old process has ended without a word");
        }
        let hear = move || carry_out(&mut self.channel, ban);
        if let Err(e) = thread::Builder::new().name("old-bans".into()).spawn(hear) {
            warn!("whom the old process wants to be banned is not banned: {e}");
        }
    }

    fn send(&mut self, message: &ToPredecessor) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.channel.get_mut().write_all(&line)
    }
}

/// Passes on whom the old process wants to be banned, until its end. What else a newer one may say
/// is none of ours.
fn carry_out(channel: &mut impl io::BufRead, ban: impl Fn(Ban)) {
    let mut line = Vec::new();
    while next_line(channel, &mut line).is_ok_and(|length| length > 0) {
        if let Ok(ToSuccessor::Ban(order)) = serde_json::from_slice(&line) {
            ban(order.into());
        }
    }
}

fn next_line(channel: &mut impl io::BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    /// Thousands of sockets and of servers.
    const MOST: u64 = 16 << 20;
    line.clear();
    channel.take(MOST).read_until(b'\n', line)
}

/// The next message; `None` at the end.
fn receive(channel: &mut impl io::BufRead) -> Result<Option<ToSuccessor>> {
    let mut line = Vec::new();
    next_line(channel, &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// The descriptors that a service manager has opened for a process, and their names.
fn activated(
    pid: u32,
    get: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(RawFd, Option<String>)>, String> {
    let [for_whom, count, names] = LISTEN;
    if get(for_whom).and_then(|text| text.parse().ok()) != Some(pid) {
        // None, or those of whoever started us.
        return Ok(Vec::new());
    }
    let text = get(count).unwrap_or_default();
    let number = text.parse().ok().filter(|n| (0..=MOST).contains(n));
    let number: RawFd =
        number.ok_or_else(|| format!("{count} = {text:?} is no number of sockets"))?;
    let names = get(names).filter(|names| !names.is_empty());
    let names: Vec<&str> = names.iter().flat_map(|names| names.split(':')).collect();
    let fds = (FIRST..FIRST + number).enumerate();
    Ok(fds
        .map(|(at, fd)| (fd, names.get(at).map(|&name| name.to_owned())))
        .collect())
}

/// Takes a descriptor that somebody has left for us, and keeps it from those whom we start.
fn own(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; one that is not open is an error.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and was opened for this process before it began, which takes each once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The socket, if TCP connections are accepted from it; else what it is.
fn listener(fd: OwnedFd) -> Result<TcpListener, &'static str> {
    let socket = Socket::from(fd);
    let domain = socket.domain().map_err(|_| "what is no socket")?;
    if ![Domain::IPV4, Domain::IPV6].contains(&domain)
        || !socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
    {
        return Err("a socket that is not of TCP");
    }
    if !socket.is_listener().unwrap_or(false) {
        return Err("a socket that does not listen (Accept=yes in its unit?)");
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PID: u32 = 42;

    fn parse(values: [Option<&str>; 3]) -> Result<Vec<(RawFd, Option<String>)>, String> {
        activated(PID, |name| {
            let at = LISTEN.iter().position(|n| *n == name)?;
            values[at].map(str::to_owned)
        })
    }

    #[test]
    fn sockets_are_those_of_this_process() {
        let none = Ok(Vec::new());
        for values in [
            [None, None, None],
            [None, Some("2"), None],
            [Some("41"), Some("2"), None],
            [Some("x"), Some("2"), None],
            [Some("42"), Some("0"), Some("")],
        ] {
            assert_eq!(parse(values), none, "{values:?}");
        }
        let name = |text: &str| Some(text.to_owned());
        for (names, first, second) in [
            (None, None, None),
            (Some(""), None, None),
            (Some("web"), name("web"), None),
            (Some("web:tls"), name("web"), name("tls")),
            (Some("web:tls:more"), name("web"), name("tls")),
        ] {
            let told = parse([Some("42"), Some("2"), names]);
            assert_eq!(told, Ok(vec![(3, first), (4, second)]), "{names:?}");
        }
    }

    #[test]
    fn a_number_that_is_none_is_told_of() {
        for count in [
            None,
            Some(""),
            Some("-1"),
            Some("x"),
            Some("70000"),
            Some("99999999999"),
        ] {
            let error = parse([Some("42"), count, None]).unwrap_err();
            assert!(error.starts_with("LISTEN_FDS = "), "{error}");
        }
    }

    #[test]
    fn processes_of_other_versions_understand_each_other() {
        let mut older = &b"{\"take\":{}}\n{\"yours\":{}}\n"[..];
        let take = receive(&mut older).unwrap();
        assert!(matches!(take, Some(ToSuccessor::Take { servers }) if servers.is_empty()));
        let yours = receive(&mut older).unwrap();
        assert!(matches!(yours, Some(ToSuccessor::Yours {})));
        let newer = "{\"take\":{\"more\":1,\"servers\":[{\"upstream\":\"a\",\"server\":\"b\",\"new\":[]}]}}\n";
        let take = receive(&mut newer.as_bytes()).unwrap();
        assert!(matches!(take, Some(ToSuccessor::Take { servers }) if servers[0].upstream == "a"));
        for (ready, addresses) in [
            ("{\"ready\":{\"control\":true}}", 0),
            (
                "{\"ready\":{\"control\":true,\"unwanted\":[\"[::1]:80\"],\"x\":{}}}",
                1,
            ),
        ] {
            let ready = serde_json::from_str(ready).unwrap();
            let ToPredecessor::Ready { control, unwanted } = ready else {
                panic!("{ready:?}")
            };
            assert_eq!((control, unwanted.len()), (true, addresses));
        }
    }

    #[test]
    fn bans_come_over_whatever_else_is_said() {
        let ban = Ban {
            source: "2001:db8::/64".parse().unwrap(),
            address: "2001:db8::7".parse().unwrap(),
            ttl: Duration::from_millis(1500),
            note: "a \"note\"\n".into(),
        };
        let order = serde_json::to_string(&ToSuccessor::Ban(ban.clone().into())).unwrap();
        let said = format!("{{\"later\":1}}\n{order}\nnonsense\n{order}\n{order}");
        let heard = std::cell::RefCell::new(Vec::new());
        carry_out(&mut said.as_bytes(), |ban| heard.borrow_mut().push(ban));
        assert_eq!(*heard.borrow(), [ban.clone(), ban.clone(), ban]);
    }

    #[test]
    fn only_tcp_that_listens_is_taken() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert_eq!(listener(tcp.into()).unwrap().local_addr().unwrap(), address);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(listener(udp.into()).unwrap_err().contains("not of TCP"));
        let (unix, _other) = UnixStream::pair().unwrap();
        assert!(listener(unix.into()).unwrap_err().contains("not of TCP"));
        let file = tempfile::tempfile().unwrap();
        assert!(listener(file.into()).unwrap_err().contains("no socket"));
        let quiet = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert!(
            listener(quiet.into())
                .unwrap_err()
                .contains("does not listen")
        );
    }
}
