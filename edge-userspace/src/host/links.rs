//! Network interfaces, by rtnetlink(7).

use std::{collections::BTreeMap, io};

use crate::netlink::{Attributes, Reply, Socket, push_attribute, request, text, u16_at, u32_at};

/// `struct ifinfomsg`, bytes.
pub(super) const IFINFO: usize = 16;

/// `linux/if_link.h`: what the kind `vlan` says of itself.
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;

/// `IFLA_EXT_MASK` value that leaves the statistics out of a reply.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The largest payload of a frame, bytes.
    pub mtu: u32,
    /// Whether what it sends comes back.
    pub loopback: bool,
    /// Its MAC address; `None` when it is no Ethernet.
    pub mac: Option<[u8; 6]>,
    /// What makes it (`veth`, `bridge` and so on); `None` for most hardware.
    pub kind: Option<String>,
    /// What it is as a VLAN device.
    pub vlan: Option<Vlan>,
    /// Index of the bridge or bond that it is a part of.
    pub master: Option<u32>,
    /// Index of the interface that it stands on, when it takes frames from there: of a VLAN or
    /// a macvlan, in this network namespace.
    pub lower: Option<u32>,
}

/// A VLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vlan {
    /// Of its tag.
    pub id: u16,
    /// Ethernet type of its tag.
    pub protocol: u16,
    /// Index of the interface that it is on; `None` when that is in another network
    /// namespace.
    pub parent: Option<u32>,
}

/// All interfaces by index.
///
/// # Errors
/// Whatever the kernel returns.
pub(super) fn links() -> io::Result<BTreeMap<u32, Link>> {
    let body = question(0)?;
    match request(
        libc::NETLINK_ROUTE,
        libc::RTM_GETLINK,
        libc::NLM_F_DUMP,
        &body,
    )? {
        Reply::Messages(messages) => {
            let links = messages.iter().filter_map(|message| parse(message));
            Ok(links.map(|link| (link.index, link)).collect())
        }
        Reply::Error { code, .. } => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The interface with an index; `None` when there is none.
///
/// # Errors
/// Whatever the kernel returns.
pub(super) fn link(socket: &mut Socket, index: u32) -> io::Result<Option<Link>> {
    match socket.request(libc::RTM_GETLINK, 0, &question(index)?)? {
        Reply::Messages(messages) => Ok(messages.first().and_then(|message| parse(message))),
        Reply::Error { code, .. } if code == libc::ENODEV => Ok(None),
        Reply::Error { code, .. } => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The question for the interface with an index; 0 for all.
fn question(index: u32) -> io::Result<Vec<u8>> {
    let mut body = vec![0; IFINFO];
    if let Some(field) = body.get_mut(4..8) {
        field.copy_from_slice(&index.to_ne_bytes());
    }
    let mask = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
    push_attribute(&mut body, libc::IFLA_EXT_MASK, &mask)?;
    Ok(body)
}

pub(super) fn parse(message: &[u8]) -> Option<Link> {
    let (hardware, index, flags) = (
        u16_at(message, 2)?,
        u32_at(message, 4)?,
        u32_at(message, 8)?,
    );
    let mut link = Link {
        index,
        name: String::new(),
        mtu: 0,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        mac: None,
        kind: None,
        vlan: None,
        master: None,
        lower: None,
    };
    let (mut below, mut elsewhere) = (None, false);
    for (kind, value) in Attributes(message.get(IFINFO..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_ADDRESS if hardware == libc::ARPHRD_ETHER => {
                link.mac = value.try_into().ok();
            }
            libc::IFLA_MASTER => link.master = u32_at(value, 0),
            libc::IFLA_LINK => below = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => elsewhere = true,
            libc::IFLA_LINKINFO => (link.kind, link.vlan) = parse_info(value),
            _ => {}
        }
    }
    let below = below.filter(|_| !elsewhere);
    if let Some(vlan) = &mut link.vlan {
        vlan.parent = below;
    }
    // Of a veth pair, for one, it is the other end.
    if matches!(link.kind.as_deref(), Some("vlan" | "macvlan")) {
        link.lower = below;
    }
    Some(link)
}

/// The kind, and what it says of itself. The parent is told elsewhere.
fn parse_info(info: &[u8]) -> (Option<String>, Option<Vlan>) {
    let (mut name, mut data) = (None, &[][..]);
    for (kind, value) in Attributes(info) {
        match kind {
            libc::IFLA_INFO_KIND => name = Some(text(value)),
            libc::IFLA_INFO_DATA => data = value,
            _ => {}
        }
    }
    if name.as_deref() != Some("vlan") {
        return (name, None);
    }
    let (mut id, mut protocol) = (None, libc::ETH_P_8021Q as u16);
    for (kind, value) in Attributes(data) {
        match kind {
            IFLA_VLAN_ID => id = u16_at(value, 0),
            IFLA_VLAN_PROTOCOL => protocol = u16_at(value, 0).map_or(0, u16::from_be),
            _ => {}
        }
    }
    let vlan = id.map(|id| Vlan {
        id,
        protocol,
        parent: None,
    });
    (name, vlan)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message as the kernel sends it for a VLAN device of index 9 over one of index 3.
    pub(in crate::host) fn vlan_message(id: u16, protocol: u16) -> Vec<u8> {
        let mut message = vec![0; IFINFO];
        message[2..4].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        message[4..8].copy_from_slice(&9u32.to_ne_bytes());
        let mut data = Vec::new();
        push_attribute(&mut data, IFLA_VLAN_PROTOCOL, &protocol.to_be_bytes()).unwrap();
        push_attribute(&mut data, IFLA_VLAN_ID, &id.to_ne_bytes()).unwrap();
        // IFLA_VLAN_FLAGS
        push_attribute(&mut data, 2, &[1, 0, 0, 0, 255, 255, 255, 255]).unwrap();
        let mut info = Vec::new();
        push_attribute(&mut info, libc::IFLA_INFO_KIND, b"vlan\0").unwrap();
        push_attribute(&mut info, libc::IFLA_INFO_DATA, &data).unwrap();
        let mut push = |kind, value: &[u8]| push_attribute(&mut message, kind, value).unwrap();
        push(libc::IFLA_IFNAME, b"eth0.5\0");
        push(libc::IFLA_MTU, &1496u32.to_ne_bytes());
        push(libc::IFLA_LINK, &3u32.to_ne_bytes());
        push(libc::IFLA_ADDRESS, &[2, 0xed, 0, 0, 0, 9]);
        push(libc::IFLA_LINKINFO, &info);
        message
    }

    #[test]
    fn a_vlan_device_is_read() {
        let mut message = vlan_message(5, 0x8100);
        let vlan = Vlan {
            id: 5,
            protocol: 0x8100,
            parent: Some(3),
        };
        let link = Link {
            index: 9,
            name: "eth0.5".to_owned(),
            mtu: 1496,
            loopback: false,
            mac: Some([2, 0xed, 0, 0, 0, 9]),
            kind: Some("vlan".to_owned()),
            vlan: Some(vlan),
            master: None,
            lower: Some(3),
        };
        assert_eq!(parse(&message), Some(link));
        let vlan = |message: &[u8]| parse(message).unwrap().vlan.unwrap();
        assert_eq!(vlan(&vlan_message(7, 0x88a8)).protocol, 0x88a8);
        // An index of another namespace is none here.
        push_attribute(&mut message, libc::IFLA_LINK_NETNSID, &[0; 4]).unwrap();
        assert_eq!(vlan(&message).parent, None);
    }

    #[test]
    fn only_ethernet_has_a_mac() {
        let mut message = vlan_message(5, 0x8100);
        // ARPHRD_INFINIBAND, and an address of another length.
        message[2..4].copy_from_slice(&32u16.to_ne_bytes());
        assert_eq!(parse(&message).unwrap().mac, None);
        let mut message = vec![0; IFINFO];
        message[2..4].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        push_attribute(&mut message, libc::IFLA_ADDRESS, &[1; 8]).unwrap();
        assert_eq!(parse(&message).unwrap().mac, None);
    }

    #[test]
    fn the_loopback_interface_is_found() {
        let mut socket = Socket::open(libc::NETLINK_ROUTE).unwrap();
        let lo = link(&mut socket, 1).unwrap().unwrap();
        assert!(lo.loopback && lo.name == "lo", "{lo:?}");
        assert_eq!(links().unwrap().get(&1), Some(&lo));
        assert_eq!(link(&mut socket, i32::MAX as u32).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            end in any::<prop::sample::Index>(),
        ) {
            let _ = parse(&noise);
            let mut message = vlan_message(5, 0x8100);
            let _ = parse(&message[..end.index(message.len())]);
            let at = at.index(message.len());
            for (to, byte) in message[at..].iter_mut().zip(noise) {
                *to = byte;
            }
            let _ = parse(&message);
        }
    }
}
