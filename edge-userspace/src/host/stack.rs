//! Interfaces that belong together: what comes in on one of them may arrive on another.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use super::{
    addresses::by_interface,
    links::{Link, links},
};

/// Interfaces, and what belongs to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Names: those asked for as far as they exist, the VLANs and macvlans on them, and
    /// the bridges and bonds that they are parts of.
    pub interfaces: BTreeSet<String>,
    /// Addresses of all of these.
    pub addresses: BTreeSet<IpAddr>,
}

/// Where what comes in on these interfaces arrives.
///
/// # Errors
/// Whatever the kernel returns.
pub fn stack(interfaces: &[String]) -> io::Result<Stack> {
    let links = links()?;
    let members = members(&links, interfaces);
    let mut stack = Stack::default();
    for index in &members {
        stack
            .interfaces
            .extend(links.get(index).map(|l| l.name.clone()));
    }
    let found = by_interface()?.filter(|(index, _)| members.contains(index));
    stack.addresses.extend(found.map(|(_, address)| address));
    Ok(stack)
}

/// Indices of the links with these names, and of all that stands on them.
fn members(links: &BTreeMap<u32, Link>, names: &[String]) -> BTreeSet<u32> {
    let named = links.iter().filter(|(_, l)| names.contains(&l.name));
    let mut members: BTreeSet<u32> = named.map(|(index, _)| *index).collect();
    loop {
        let masters = members.iter().filter_map(|i| links.get(i)?.master);
        let uppers = links
            .iter()
            .filter(|(_, l)| l.lower.is_some_and(|i| members.contains(&i)));
        let more: BTreeSet<u32> = masters.chain(uppers.map(|(index, _)| *index)).collect();
        if more.is_subset(&members) {
            return members;
        }
        members.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::links::{IFINFO, parse},
        *,
    };
    use crate::netlink::push_attribute;

    fn parsed(message: &[u8]) -> Option<(u32, Link)> {
        parse(message).map(|link| (link.index, link))
    }

    /// A message about a link: its attributes, and its kind.
    fn message(index: u32, attributes: &[(u16, &[u8])], kind: &str) -> Vec<u8> {
        let mut message = vec![0; IFINFO];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        for (attribute, value) in attributes {
            push_attribute(&mut message, *attribute, value).unwrap();
        }
        let mut info = Vec::new();
        push_attribute(&mut info, libc::IFLA_INFO_KIND, kind.as_bytes()).unwrap();
        push_attribute(&mut message, libc::IFLA_LINKINFO | 0x8000, &info).unwrap();
        message
    }

    #[test]
    fn what_stands_on_an_interface_belongs_to_it() {
        let name = |name: &'static str| (libc::IFLA_IFNAME, name.as_bytes());
        let on = |index: &'static [u8; 4]| (libc::IFLA_LINK, &index[..]);
        let part_of = |index: &'static [u8; 4]| (libc::IFLA_MASTER, &index[..]);
        let messages = [
            message(
                2,
                &[name("eth0"), part_of(&[4, 0, 0, 0]), on(&[3, 0, 0, 0])],
                "veth",
            ),
            message(3, &[name("peer"), on(&[2, 0, 0, 0])], "veth"),
            message(4, &[name("bond0")], "bond"),
            message(5, &[name("bond0.5"), on(&[4, 0, 0, 0])], "vlan"),
            message(6, &[name("mv0"), on(&[5, 0, 0, 0])], "macvlan"),
            message(7, &[name("vx0"), on(&[2, 0, 0, 0])], "vxlan"),
            message(8, &[name("eth1")], "veth"),
            // On a link in another namespace that has the same number.
            message(
                9,
                &[
                    name("moved"),
                    on(&[4, 0, 0, 0]),
                    (libc::IFLA_LINK_NETNSID, &[0; 4]),
                ],
                "vlan",
            ),
        ];
        let links: BTreeMap<_, _> = messages.iter().filter_map(|m| parsed(m)).collect();
        let of = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
            members(&links, &names)
        };
        assert_eq!(of(&["eth0"]), [2, 4, 5, 6].into());
        assert_eq!(of(&["eth1", "bond0.5"]), [5, 6, 8].into());
        assert_eq!(of(&["peer", "none"]), [3].into());
        for message in messages {
            for end in 0..message.len() {
                let _ = parse(&message[..end]);
            }
        }
    }

    #[test]
    fn the_loopback_interface_has_its_addresses() {
        let got = stack(&["lo".to_owned(), "no-such-if".to_owned()]).unwrap();
        assert_eq!(got.interfaces, ["lo".to_owned()].into());
        assert!(got.addresses.iter().all(|a| !a.is_unspecified()));
        assert!(got.addresses.contains(&IpAddr::from([127, 0, 0, 1])));
    }
}
