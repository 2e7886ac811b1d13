//! What the kernel knows of its network interfaces, asked over rtnetlink(7).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::netlink::{Attributes, Reply, bad, push_attribute, text, u32_at};

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

const IFINFO: usize = 16;

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

fn request(kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<Reply> {
    crate::netlink::request(libc::NETLINK_ROUTE, kind, flags, body)
}

/// A `struct ifinfomsg` for an interface; index 0 for any.
fn ifinfo(index: u32) -> Vec<u8> {
    let mut body = vec![0; IFINFO];
    if let Some(field) = body.get_mut(4..8) {
        field.copy_from_slice(&index.to_ne_bytes());
    }
    body
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
            }
        }
    }

    #[test]
    fn the_loopback_interface_is_found() {
        let lo = interface("lo").unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.index), ("lo", 1));
        assert_eq!(interface("no-such-if").unwrap(), None);
        assert!(interfaces().unwrap().contains(&lo));
    }
}
