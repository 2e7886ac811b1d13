//! What the kernel knows of its network interfaces, asked over rtnetlink(7).
//!
//! Replies are parsed as if they came from a stranger: every length is
//! checked, every wait has an end.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Attribute numbers of `linux/if_link.h` that libc does not have.
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_EXPECTED_FD: u16 = 8;

const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_FLAGS_REPLACE: u32 = 1 << 4;

/// `IFLA_EXT_MASK` value that leaves the statistics out of a reply.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// `linux/netlink.h`: error replies carry attributes behind the request's header.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Set on the type of attributes that hold attributes; no part of the number.
const NLA_TYPE_MASK: u16 = 0x3fff;

const HEADER: usize = 16;
const IFINFO: usize = 16;

/// The most bytes of a reply: some thousand interfaces.
const MAX_REPLY: usize = 16 << 20;

/// How a program sits on an interface's XDP hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookMode {
    /// In the driver (`XDP_ATTACHED_DRV`).
    Native,
    /// In the network stack, for any driver (`XDP_ATTACHED_SKB`).
    Generic,
    /// In the hardware, or in several places.
    Other,
}

/// The program on an interface's XDP hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// Where it runs.
    pub mode: HookMode,
    /// Kernel id of the program; 0 when there are several.
    pub program: u32,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// Kernel index, which changes when an interface is created anew.
    pub index: u32,
    /// Name in this network namespace.
    pub name: String,
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// What holds the XDP hook.
    pub hook: Option<Hook>,
}

/// The interface with this name in the calling thread's network namespace, or
/// `None` when there is none.
///
/// # Errors
/// Whatever the socket returns, and `InvalidData` for a reply that makes no sense.
pub(super) fn interface(name: &str) -> io::Result<Option<Interface>> {
    let mut body = ifinfo(0);
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    push_attribute(&mut body, libc::IFLA_IFNAME, &text)?;
    push_attribute(
        &mut body,
        libc::IFLA_EXT_MASK,
        &RTEXT_FILTER_SKIP_STATS.to_ne_bytes(),
    )?;
    match request(libc::RTM_GETLINK, 0, &body)? {
        Reply::Messages(found) => found
            .first()
            .map(|m| parse_interface(m).ok_or_else(|| bad("link message")))
            .transpose(),
        Reply::Error { code, .. } if code == libc::ENODEV => Ok(None),
        Reply::Error { code, .. } => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Every interface in the calling thread's network namespace.
///
/// # Errors
/// As [`interface`].
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut body = ifinfo(0);
    push_attribute(
        &mut body,
        libc::IFLA_EXT_MASK,
        &RTEXT_FILTER_SKIP_STATS.to_ne_bytes(),
    )?;
    match request(libc::RTM_GETLINK, libc::NLM_F_DUMP, &body)? {
        Reply::Messages(found) => Ok(found.iter().filter_map(|m| parse_interface(m)).collect()),
        Reply::Error { code, .. } => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Why a driver refuses `program` in native mode, in its own words.
///
/// Attaching by link returns a bare error number; the older way over netlink
/// carries the driver's sentence ("extended ack"). Should it succeed against
/// all expectation, the program is taken off again. `None` when there is no
/// sentence to be had.
pub(super) fn native_refusal(index: u32, program: BorrowedFd<'_>) -> Option<String> {
    match set(index, XDP_FLAGS_DRV_MODE, Some(program), None).ok()? {
        Reply::Messages(_) => {
            clear(index, HookMode::Native, program).ok()?;
            None
        }
        Reply::Error { message, .. } => message,
    }
}

/// Takes `program` off an interface's hook, when it sits there without a link.
///
/// # Errors
/// Whatever the kernel returns, `EEXIST` when another program is there.
pub(super) fn clear(index: u32, mode: HookMode, program: BorrowedFd<'_>) -> io::Result<()> {
    let mode = match mode {
        HookMode::Native => XDP_FLAGS_DRV_MODE,
        HookMode::Generic => XDP_FLAGS_SKB_MODE,
        HookMode::Other => 0,
    };
    match set(index, mode, None, Some(program))? {
        Reply::Messages(_) => Ok(()),
        Reply::Error { code, .. } => Err(io::Error::from_raw_os_error(code)),
    }
}

fn set(
    index: u32,
    mode: u32,
    program: Option<BorrowedFd<'_>>,
    expected: Option<BorrowedFd<'_>>,
) -> io::Result<Reply> {
    let mut xdp = Vec::new();
    let fd = program.map_or(-1, |p| p.as_raw_fd());
    push_attribute(&mut xdp, IFLA_XDP_FD, &fd.to_ne_bytes())?;
    let mut flags = mode;
    match expected {
        Some(old) => {
            flags |= XDP_FLAGS_REPLACE;
            push_attribute(
                &mut xdp,
                IFLA_XDP_EXPECTED_FD,
                &old.as_raw_fd().to_ne_bytes(),
            )?;
        }
        None => flags |= XDP_FLAGS_UPDATE_IF_NOEXIST,
    }
    push_attribute(&mut xdp, IFLA_XDP_FLAGS, &flags.to_ne_bytes())?;
    let mut body = ifinfo(index);
    push_attribute(&mut body, IFLA_XDP | libc::NLA_F_NESTED as u16, &xdp)?;
    request(libc::RTM_SETLINK, libc::NLM_F_ACK, &body)
}

/// What came back.
enum Reply {
    /// The payloads of all messages; none for a plain acknowledgement.
    Messages(Vec<Vec<u8>>),
    /// An error number, and the kernel's sentence about it if it gave one.
    Error { code: i32, message: Option<String> },
}

fn request(kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<Reply> {
    const SEQUENCE: u32 = 1;
    let socket = open()?;
    let mut packet = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).map_err(|_| bad("request"))?;
    packet.extend_from_slice(&length.to_ne_bytes());
    packet.extend_from_slice(&kind.to_ne_bytes());
    packet.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    packet.extend_from_slice(&SEQUENCE.to_ne_bytes());
    packet.extend_from_slice(&0u32.to_ne_bytes());
    packet.extend_from_slice(body);
    // SAFETY: the pointer and length are those of a live buffer.
    let sent = unsafe { libc::send(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let dump = flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP;
    let mut buffer = vec![0; 64 << 10];
    let mut found = Vec::new();
    let mut total = 0;
    loop {
        // SAFETY: the pointer and length are those of a live, writable buffer.
        let got = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        let datagram = buffer.get(..got as usize).ok_or_else(|| bad("reply"))?;
        total += datagram.len();
        if datagram.is_empty() || total > MAX_REPLY {
            return Err(bad("reply"));
        }
        for message in Messages(datagram) {
            let message = message.ok_or_else(|| bad("reply"))?;
            if message.sequence != SEQUENCE {
                continue;
            }
            match libc::c_int::from(message.kind) {
                libc::NLMSG_DONE => return Ok(Reply::Messages(found)),
                libc::NLMSG_ERROR => {
                    let (code, message) = parse_error(&message).ok_or_else(|| bad("error"))?;
                    return Ok(match code {
                        0 => Reply::Messages(found),
                        _ => Reply::Error { code, message },
                    });
                }
                _ => {
                    found.push(message.payload.to_vec());
                    if !dump {
                        return Ok(Reply::Messages(found));
                    }
                }
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
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
    Ok(socket)
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

fn bad(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("rtnetlink: a {what} that makes no sense"),
    )
}

/// A `struct ifinfomsg` for an interface; index 0 for any.
fn ifinfo(index: u32) -> Vec<u8> {
    let mut body = vec![0; IFINFO];
    if let Some(field) = body.get_mut(4..8) {
        field.copy_from_slice(&index.to_ne_bytes());
    }
    body
}

fn push_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(4 + value.len()).map_err(|_| bad("request"))?;
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
    Ok(())
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The messages of a datagram; `None` once where a length is impossible.
struct Messages<'a>(&'a [u8]);

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
struct Attributes<'a>(&'a [u8]);

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

fn parse_interface(payload: &[u8]) -> Option<Interface> {
    let index = u32_at(payload, 4)?;
    let flags = u32_at(payload, 8)?;
    let (mut name, mut mtu, mut hook) = (None, 0, None);
    for (kind, value) in Attributes(payload.get(IFINFO..)?) {
        match kind {
            libc::IFLA_IFNAME => name = Some(text(value)),
            libc::IFLA_MTU => mtu = u32_at(value, 0)?,
            IFLA_XDP => hook = parse_hook(value),
            _ => {}
        }
    }
    Some(Interface {
        index,
        name: name?,
        mtu,
        up: flags & libc::IFF_UP as u32 != 0,
        hook,
    })
}

fn parse_hook(value: &[u8]) -> Option<Hook> {
    let (mut mode, mut program) = (None, 0);
    for (kind, value) in Attributes(value) {
        match kind {
            IFLA_XDP_ATTACHED => {
                mode = match value.first()? {
                    0 => None,
                    1 => Some(HookMode::Native),
                    2 => Some(HookMode::Generic),
                    _ => Some(HookMode::Other),
                }
            }
            IFLA_XDP_PROG_ID => program = u32_at(value, 0)?,
            _ => {}
        }
    }
    mode.map(|mode| Hook { mode, program })
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
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end.min(256)).unwrap_or(value))
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let (word, _) = bytes.get(at..)?.split_first_chunk::<2>()?;
    Some(u16::from_ne_bytes(*word))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let (word, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, hook: Option<(u8, u32)>) -> Vec<u8> {
        let mut m = ifinfo(7);
        m[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        push_attribute(&mut m, libc::IFLA_IFNAME, format!("{name}\0").as_bytes()).unwrap();
        push_attribute(&mut m, libc::IFLA_MTU, &1500u32.to_ne_bytes()).unwrap();
        if let Some((mode, id)) = hook {
            let mut x = Vec::new();
            push_attribute(&mut x, IFLA_XDP_ATTACHED, &[mode]).unwrap();
            push_attribute(&mut x, IFLA_XDP_PROG_ID, &id.to_ne_bytes()).unwrap();
            push_attribute(&mut m, IFLA_XDP | 0x8000, &x).unwrap();
        }
        m
    }

    #[test]
    fn a_link_message_is_read() {
        let got = parse_interface(&link("eth0", Some((2, 99)))).unwrap();
        assert_eq!(
            got,
            Interface {
                index: 7,
                name: "eth0".into(),
                mtu: 1500,
                up: true,
                hook: Some(Hook {
                    mode: HookMode::Generic,
                    program: 99
                }),
            }
        );
        assert_eq!(
            parse_interface(&link("x", Some((0, 0)))).unwrap().hook,
            None
        );
    }

    #[test]
    fn no_truncation_of_a_message_panics() {
        let whole = link("eth0", Some((1, 3)));
        for end in 0..whole.len() {
            let _ = parse_interface(&whole[..end]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 0xff] {
                let mut m = whole.clone();
                m[at] = value;
                let _ = parse_interface(&m);
                assert!(Messages(&m).count() <= m.len());
            }
        }
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

    #[test]
    fn the_loopback_interface_is_found() {
        let lo = interface("lo").unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.index), ("lo", 1));
        assert_eq!(interface("no-such-if").unwrap(), None);
        assert!(interfaces().unwrap().contains(&lo));
    }
}
