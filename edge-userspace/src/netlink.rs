//! Questions to the kernel over netlink(7).
//!
//! Replies are parsed as if they came from a stranger: every length is
//! checked, every wait has an end.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// `linux/netlink.h`: error replies carry attributes behind the request's header.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Set on the type of attributes that hold attributes; no part of the number.
const NLA_TYPE_MASK: u16 = 0x3fff;

const HEADER: usize = 16;

/// The most bytes of a reply: many thousand interfaces, addresses or listeners.
const MAX_REPLY: usize = 16 << 20;

/// The most bytes of a datagram: a dump's are up to 32 KiB.
const DATAGRAM: usize = 64 << 10;

/// Bytes of messages that a [`Subscription`] holds until they are taken: some thousand.
const SUBSCRIPTION_BUFFER: libc::c_int = 2 << 20;

/// What came back.
pub enum Reply {
    /// The payloads of all messages; none for a plain acknowledgement.
    Messages(Vec<Vec<u8>>),
    /// An error.
    Error {
        /// Its number, positive.
        code: i32,
        /// The kernel's sentence about it, if it gave one.
        message: Option<String>,
    },
}

/// How often a dump is asked for in which something changed meanwhile.
const TRIES: u32 = 4;

/// Sends one request of a protocol (`NETLINK_*`) in the calling thread's network
/// namespace; see [`Socket::request`].
///
/// # Errors
/// As there.
pub fn request(
    protocol: libc::c_int,
    kind: u16,
    flags: libc::c_int,
    body: &[u8],
) -> io::Result<Reply> {
    Socket::open(protocol)?.request(kind, flags, body)
}

/// A socket for many requests: opening one costs more than a small request.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    /// Of the last request, and of its replies.
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one for a protocol (`NETLINK_*`), which asks in the network namespace of
    /// the thread that calls now.
    ///
    /// # Errors
    /// Whatever the kernel returns.
    pub fn open(protocol: libc::c_int) -> io::Result<Self> {
        let socket = open(protocol, 0)?;
        // Old kernels know neither of the two; replies are then only less talkative.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            let _ = set_option(&socket, libc::SOL_NETLINK, option, &on);
        }
        let wait = libc::timeval {
            tv_sec: 5,
            tv_usec: 0,
        };
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &wait)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Sends a request, and takes in the whole answer: to a dump all messages, else the
    /// first. A dump in which something changed meanwhile is asked for again.
    ///
    /// # Errors
    /// Whatever the socket returns, `InvalidData` for a reply that makes no sense, and
    /// `Interrupted` when something changed in each of the dumps.
    pub fn request(&mut self, kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<Reply> {
        let mut tries = 1;
        loop {
            match self.ask(kind, flags, body) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted && tries < TRIES => tries += 1,
                answer => return answer,
            }
        }
    }

    fn ask(&mut self, kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<Reply> {
        // What is left of an answer that was given up has another number.
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = Vec::with_capacity(HEADER + body.len());
        let length = u32::try_from(HEADER + body.len()).map_err(|_| bad("request"))?;
        packet.extend_from_slice(&length.to_ne_bytes());
        packet.extend_from_slice(&kind.to_ne_bytes());
        packet.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        packet.extend_from_slice(&self.sequence.to_ne_bytes());
        packet.extend_from_slice(&0u32.to_ne_bytes());
        packet.extend_from_slice(body);
        let (pointer, length) = (packet.as_ptr().cast(), packet.len());
        // SAFETY: the pointer and length are those of a live buffer.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), pointer, length, 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let dump = flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP;
        let mut answer = Answer::new(self.sequence, dump);
        loop {
            if let Some(reply) = answer.take(receive(&self.socket, &mut self.buffer)?)? {
                return Ok(reply);
            }
        }
    }
}

/// What the kernel tells unasked, of some groups of a protocol.
#[derive(Debug)]
pub struct Subscription {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Subscription {
    /// Subscribes to groups of a protocol (`NETLINK_*`) in the calling thread's network
    /// namespace: bit n-1 of `groups` is group n.
    ///
    /// # Errors
    /// Whatever the kernel returns.
    pub fn open(protocol: libc::c_int, groups: u32) -> io::Result<Self> {
        let socket = open(protocol, libc::SOCK_NONBLOCK)?;
        // Beyond the limit of ordinary sockets, where that is allowed; else what is lost
        // is lost sooner, and said.
        let _ = set_option(
            &socket,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            &SUBSCRIPTION_BUFFER,
        );
        // SAFETY: all zeros is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups;
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer and length are those of a live address.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// The next messages; `None` when there are none now.
    ///
    /// # Errors
    /// `ENOBUFS` when some were lost, for which there was no room; and whatever else the
    /// socket returns.
    pub fn next_messages(&mut self) -> io::Result<Option<Messages<'_>>> {
        match receive(&self.socket, &mut self.buffer) {
            Ok(datagram) => Ok(Some(Messages(datagram))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The same descriptor as long as it lives.
impl AsRawFd for Subscription {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The next datagram.
fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    let got = loop {
        // SAFETY: the pointer and length are those of a live, writable buffer.
        let got = unsafe { libc::recv(socket.as_raw_fd(), pointer.cast(), length, 0) };
        match usize::try_from(got) {
            Ok(got) => break got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    buffer.get(..got).ok_or_else(|| bad("reply"))
}

/// An answer that is coming in.
struct Answer {
    sequence: u32,
    dump: bool,
    found: Vec<Vec<u8>>,
    /// Bytes up to now.
    total: usize,
    /// Whether something changed meanwhile. It is taken in to its end all the same: a
    /// socket has one dump at a time.
    interrupted: bool,
}

impl Answer {
    const fn new(sequence: u32, dump: bool) -> Self {
        Self {
            sequence,
            dump,
            found: Vec::new(),
            total: 0,
            interrupted: false,
        }
    }

    /// Takes in a datagram; the reply, once it is complete.
    fn take(&mut self, datagram: &[u8]) -> io::Result<Option<Reply>> {
        self.total += datagram.len();
        if datagram.is_empty() || self.total > MAX_REPLY {
            return Err(bad("reply"));
        }
        for message in Messages(datagram) {
            let message = message.ok_or_else(|| bad("reply"))?;
            if message.sequence != self.sequence {
                continue;
            }
            if libc::c_int::from(message.flags) & libc::NLM_F_DUMP_INTR != 0 {
                self.interrupted = true;
            }
            match libc::c_int::from(message.kind) {
                libc::NLMSG_DONE if self.interrupted => {
                    let text = "netlink: what is asked for changes faster than it can be told";
                    return Err(io::Error::new(io::ErrorKind::Interrupted, text));
                }
                libc::NLMSG_DONE => {
                    // A dump that failed half-way says so here (netlink_dump_done).
                    let status = u32_at(message.payload, 0).map_or(0, |word| word as i32);
                    return Ok(Some(match status.checked_neg() {
                        Some(code @ 1..) => Reply::Error {
                            code,
                            message: None,
                        },
                        _ => Reply::Messages(std::mem::take(&mut self.found)),
                    }));
                }
                libc::NLMSG_ERROR => {
                    let (code, message) = parse_error(&message).ok_or_else(|| bad("error"))?;
                    return Ok(Some(match code {
                        0 => Reply::Messages(std::mem::take(&mut self.found)),
                        _ => Reply::Error { code, message },
                    }));
                }
                _ => {
                    self.found.push(message.payload.to_vec());
                    if !self.dump {
                        return Ok(Some(Reply::Messages(std::mem::take(&mut self.found))));
                    }
                }
            }
        }
        Ok(None)
    }
}

fn open(protocol: libc::c_int, flags: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option<T>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the pointer and length are those of `value`, which the kernel only reads.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An error for what makes no sense.
pub fn bad(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("netlink: a {what} that makes no sense"),
    )
}

/// Appends an attribute to the body of a request.
///
/// # Errors
/// When it is too long.
pub fn push_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(4 + value.len()).map_err(|_| bad("request"))?;
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
    Ok(())
}

/// A message.
pub struct Message<'a> {
    /// What it is (`RTM_*` and the like).
    pub kind: u16,
    flags: u16,
    sequence: u32,
    /// What follows its header.
    pub payload: &'a [u8],
}

/// The messages of a datagram; `None` once where a length is impossible.
pub struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Option<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = (|| {
            let length = u32_at(self.0, 0)? as usize;
            let payload = self.0.get(HEADER..length)?;
            let message = Message {
                kind: u16_at(self.0, 4)?,
                flags: u16_at(self.0, 6)?,
                sequence: u32_at(self.0, 8)?,
                payload,
            };
            self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            Some(message)
        })();
        if message.is_none() {
            self.0 = &[];
        }
        Some(message)
    }
}

/// The attributes of a message as number and value; ends where a length is impossible.
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// Positive error number and the kernel's sentence of an `NLMSG_ERROR`.
fn parse_error(message: &Message<'_>) -> Option<(i32, Option<String>)> {
    let code = (u32_at(message.payload, 0)? as i32).checked_neg()?;
    let said = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| {
            Attributes(message.payload.get(4 + HEADER..)?)
                .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
                .map(|(_, value)| text(value))
        })
        .flatten();
    Some((code, said))
}

/// A C string out of an attribute, shortened to something that fits a line.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end.min(256)).unwrap_or(value))
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

/// The family (`AF_*`) of an address, as messages name it.
pub const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// Appends an address as an attribute.
///
/// # Errors
/// As [`push_attribute`].
pub fn push_address(to: &mut Vec<u8>, kind: u16, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(a) => push_attribute(to, kind, &a.octets()),
        IpAddr::V6(a) => push_attribute(to, kind, &a.octets()),
    }
}

/// An address out of an attribute.
pub fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

/// A 16-bit word in native order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let (word, _) = bytes.get(at..)?.split_first_chunk::<2>()?;
    Some(u16::from_ne_bytes(*word))
}

/// A 32-bit word in native order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let (word, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_panics() {
        let mut whole = Vec::new();
        push_attribute(&mut whole, 7, b"value").unwrap();
        push_attribute(&mut whole, 8, b"").unwrap();
        let all: Vec<_> = Attributes(&whole).collect();
        assert_eq!(all, [(7, b"value".as_slice()), (8, b"".as_slice())]);
        for at in 0..whole.len() {
            for value in [0, 1, 3, 0xff] {
                let mut m = whole.clone();
                m[at] = value;
                assert!(Messages(&m).count() <= m.len());
                assert!(Attributes(&m).count() <= m.len());
            }
        }
    }

    fn message(kind: libc::c_int, flags: libc::c_int, payload: &[u8]) -> Vec<u8> {
        let mut m = ((HEADER + payload.len()) as u32).to_ne_bytes().to_vec();
        m.extend_from_slice(&(kind as u16).to_ne_bytes());
        m.extend_from_slice(&(flags as u16).to_ne_bytes());
        m.extend_from_slice(&1u32.to_ne_bytes());
        m.extend_from_slice(&[0; 4]);
        m.extend_from_slice(payload);
        m
    }

    fn dump() -> Answer {
        Answer::new(1, true)
    }

    #[test]
    fn a_dump_that_failed_half_way_is_an_error() {
        let part = message(20, libc::NLM_F_MULTI, &[1, 2, 3, 4]);
        for (status, code) in [(0i32, None), (-libc::ENOMEM, Some(libc::ENOMEM))] {
            let mut answer = dump();
            assert!(answer.take(&part).unwrap().is_none());
            let done = message(libc::NLMSG_DONE, libc::NLM_F_MULTI, &status.to_ne_bytes());
            let got = match answer.take(&done).unwrap().unwrap() {
                Reply::Messages(found) => {
                    assert_eq!(found, [[1, 2, 3, 4]]);
                    None
                }
                Reply::Error { code, .. } => Some(code),
            };
            assert_eq!(got, code);
        }
        // Some kernels say nothing at the end.
        let done = message(libc::NLMSG_DONE, 0, &[]);
        let got = dump().take(&done).unwrap();
        assert!(matches!(got, Some(Reply::Messages(_))));
    }

    #[test]
    fn a_dump_that_something_changed_in_is_no_answer() {
        let flags = libc::NLM_F_MULTI | libc::NLM_F_DUMP_INTR;
        let done = |flags| message(libc::NLMSG_DONE, flags, &[0; 4]);
        let error = dump().take(&done(flags)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let mut answer = dump();
        assert!(answer.take(&message(20, flags, &[])).unwrap().is_none());
        let error = answer.take(&done(libc::NLM_F_MULTI)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_socket_that_gave_up_an_answer_takes_the_next() {
        let mut socket = Socket::open(libc::NETLINK_ROUTE).unwrap();
        let links = |socket: &mut Socket| {
            let all = socket.request(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]);
            match all.unwrap() {
                Reply::Messages(all) => all.len(),
                Reply::Error { code, .. } => panic!("{code}"),
            }
        };
        let count = links(&mut socket);
        assert!(count > 0);
        // Answers that nobody waits for.
        let mut lo = vec![0; 16];
        lo[4] = 1;
        for _ in 0..2 {
            let old = message(
                libc::c_int::from(libc::RTM_GETLINK),
                libc::NLM_F_REQUEST,
                &lo,
            );
            let (pointer, length) = (old.as_ptr().cast(), old.len());
            // SAFETY: the pointer and length are those of a live buffer.
            let sent = unsafe { libc::send(socket.socket.as_raw_fd(), pointer, length, 0) };
            assert_eq!(usize::try_from(sent), Ok(length));
        }
        assert_eq!(links(&mut socket), count);
    }

    #[test]
    fn an_error_carries_the_kernels_sentence() {
        let mut payload = (-95i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; HEADER]);
        push_attribute(&mut payload, NLMSGERR_ATTR_MSG, b"MTU too large\0").unwrap();
        let message = Message {
            kind: 2,
            flags: NLM_F_ACK_TLVS,
            sequence: 1,
            payload: &payload,
        };
        assert_eq!(
            parse_error(&message),
            Some((95, Some("MTU too large".into())))
        );
        let least = Message {
            payload: &payload[..4],
            flags: 0,
            ..message
        };
        assert_eq!(parse_error(&least), Some((95, None)));
    }
}
