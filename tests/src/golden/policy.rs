//! Lists, management addresses and bogons, through the real tables.

use super::{
    Row, Table, V4, V4_DEST, V6, V6_DEST,
    table::{row, stamp_after},
    v4, v6,
};
use crate::packet::{ACK, ETH, Edit as _, Extension::HopByHop, FIN, IPV6, Ip, SYN, ip};
use edge_common::{
    abi::Mode,
    reason::Reason::{
        self, Blacklisted, Bogon, FragmentBeyondEnd, Ipv4BadIhl, Ipv6BadLength, Ipv6BadVersion,
        Ipv6ExtOrder, Land, Pass, PassAllowlisted, PassManagement, TcpTruncated,
    },
    table::STAMP_SHIFT,
};

pub(super) fn tables() -> Vec<Table> {
    vec![
        hosts(),
        prefixes(),
        everything(),
        expiry(),
        precedence(),
        exempt(),
        before_the_rest(),
        before_the_rest().in_mode(Mode::DryRun),
        before_the_rest().in_mode(Mode::Off),
        bogons(),
        unspecified(),
    ]
}

fn from(source: &str) -> Ip {
    let dest = if source.contains(':') {
        V6_DEST
    } else {
        V4_DEST
    };
    ip(source, dest).udp(8)
}

/// Sources, and what becomes of a packet from each.
fn sources(cases: &[(&str, Reason)]) -> Vec<Row> {
    cases
        .iter()
        .map(|(source, ends)| row(&format!("from {source}"), from(source), *ends))
        .collect()
}

fn hosts() -> Table {
    let mut rows = sources(&[
        (V4, Blacklisted),
        ("198.51.100.6", Pass),
        ("198.51.100.8", Pass),
        ("7.100.51.198", Pass),
        (V6, Blacklisted),
        ("2001:db8:1:2::6", Pass),
        ("2001:db8:1:2:8000::7", Pass),
        ("2001:db8:1:3::7", Pass),
        // IPv4 and IPv6 of the same bits are different hosts.
        ("::198.51.100.7", Pass),
        ("::ffff:198.51.100.7", Pass),
        ("0.0.0.0", Blacklisted),
        ("255.255.255.255", Blacklisted),
        ("::", Blacklisted),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Blacklisted),
    ]);
    rows.extend([
        row("IPv4, TCP", v4().tcp(SYN), Blacklisted),
        row("IPv4, ICMP in a VLAN", v4().icmp(8, 0).vlan(5), Blacklisted),
        row(
            "IPv4, a later fragment",
            v4().fragment(800, false).payload(17, [0; 9]),
            Blacklisted,
        ),
        row("IPv4, behind options", v4().options(12).udp(8), Blacklisted),
        row(
            "IPv4, only the destination is listed",
            ip("192.0.2.1", V4).udp(8),
            Pass,
        ),
        row("IPv4, in several buffers", v4().udp(8000), Blacklisted),
        row("IPv6, TCP", v6().tcp(ACK), Blacklisted),
        row(
            "IPv6, behind options in two VLANs",
            v6().extension(HopByHop(8)).udp(8).vlan(6).vlan(5),
            Blacklisted,
        ),
        row(
            "IPv6, a later fragment",
            v6().fragment(800, false).payload(17, [0; 9]),
            Blacklisted,
        ),
        row(
            "IPv6, only the destination is listed",
            ip("2001:db8::9", V6).udp(8),
            Pass,
        ),
        row("IPv6, in several buffers", v6().udp(8000), Blacklisted),
        row("a hundred in a row", v4().udp(8), Blacklisted).times(100),
    ]);
    Table::enforced("blacklisted hosts", rows)
        .black(V4)
        .black(V6)
        .black("0.0.0.0")
        .black("255.255.255.255")
        .black("::")
        .black("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
}

fn prefixes() -> Table {
    let rows = sources(&[
        ("10.0.0.0", Blacklisted),
        ("10.255.255.255", Blacklisted),
        ("9.255.255.255", Pass),
        ("11.0.0.0", Pass),
        ("192.0.2.0", Blacklisted),
        ("192.0.2.255", Blacklisted),
        ("192.0.1.255", Pass),
        ("192.0.3.0", Pass),
        ("203.0.113.8", Blacklisted),
        ("203.0.113.9", Blacklisted),
        ("203.0.113.7", Pass),
        ("203.0.113.10", Pass),
        ("172.16.0.0", Blacklisted),
        ("172.31.255.255", Blacklisted),
        ("172.15.255.255", Pass),
        ("172.32.0.0", Pass),
        ("2001:db8::", Blacklisted),
        ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Blacklisted),
        ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", Pass),
        ("2001:db9::", Pass),
        ("2400:cb00:2048:1::5", Blacklisted),
        ("2400:cb00:2048:1:ffff::5", Blacklisted),
        ("2400:cb00:2048:2::5", Pass),
        ("2400:cb00:2048::5", Pass),
        ("2400:cb00:9:9::aaaa:0", Blacklisted),
        ("2400:cb00:9:9::aaaa:ffff", Blacklisted),
        ("2400:cb00:9:9::aaab:0", Pass),
        ("2400:cb00:9:9::aaa9:ffff", Pass),
        ("2400:dead::2", Blacklisted),
        ("2400:dead::3", Blacklisted),
        ("2400:dead::4", Pass),
        ("2400:dead::1", Pass),
        ("4000::", Blacklisted),
        ("5fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Blacklisted),
        ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Pass),
        ("6000::", Pass),
    ]);
    Table::enforced("blacklisted prefixes", rows)
        .black("10.0.0.0/8")
        .black("192.0.2.0/24")
        .black("203.0.113.8/31")
        .black("172.16.0.0/12")
        .black("2001:db8::/32")
        .black("2400:cb00:2048:1::/64")
        .black("2400:cb00:9:9::aaaa:0/112")
        .black("2400:dead::2/127")
        .black("4000::/3")
}

fn everything() -> Table {
    let rows = sources(&[
        ("0.0.0.0", Blacklisted),
        ("255.255.255.255", Blacklisted),
        (V4, Blacklisted),
        ("192.0.2.1", PassAllowlisted),
        ("192.0.2.2", Blacklisted),
        ("::", Blacklisted),
        ("7fff::", Blacklisted),
        ("8000::", Blacklisted),
        ("ffff::1", Blacklisted),
        ("2001:db8:a::1", PassAllowlisted),
        ("2001:db8:b::1", Blacklisted),
    ]);
    Table::enforced("everything is blacklisted but a few", rows)
        .black("0.0.0.0/0")
        .allow("192.0.2.1")
        .black("::/0")
        .allow("2001:db8:a::/48")
}

fn expiry() -> Table {
    /// Milliseconds after which a stamp has passed, from the step before.
    const STEP_MS: u64 = (1 << STAMP_SHIFT) / 1_000_000 + 1;
    let at = |source: &str, ends| row(&format!("from {source}"), from(source), ends);
    let rows = vec![
        at("192.0.2.1", Pass),
        at("2001:db8::1", Pass),
        at("192.0.2.2", Pass),
        at("192.0.2.3", Blacklisted),
        at("2001:db8::3", Blacklisted),
        at("192.0.2.4", PassAllowlisted),
        at("10.1.2.3", Blacklisted),
        at("10.1.2.4", Blacklisted),
        at("10.2.0.1", PassAllowlisted),
        at("2400:1:2::1", Blacklisted),
        at("2400:1:3::1", Blacklisted),
        // One step later what was to end then has ended.
        at("192.0.2.3", Pass).after_ms(STEP_MS),
        at("2001:db8::3", Pass),
        // The allowlisting is over, and the blacklisting is not.
        at("192.0.2.4", Blacklisted),
        // The /16 has ended, and the host and the /8 have not.
        at("10.1.2.3", Blacklisted),
        at("10.1.2.4", Blacklisted),
        at("10.2.0.1", Blacklisted),
        // The /32 has ended, the /48 has not.
        at("2400:1:2::1", Blacklisted),
        at("2400:1:3::1", Pass),
        at("192.0.2.4", Pass).after_ms(STEP_MS),
        at("10.1.2.3", Blacklisted),
        at("10.1.2.4", Pass),
        at("10.2.0.1", Pass),
        at("2400:1:2::1", Pass),
        // Nothing but what has no expiry lasts.
        at("192.0.2.5", Blacklisted).after_ms(18 * 365 * 86_400_000),
        at("10.1.2.3", Pass),
    ];
    Table::enforced("expiry", rows)
        .black_until("192.0.2.1", 1)
        .black_until("2001:db8::1", 1)
        .black_until("192.0.2.2", stamp_after(0))
        .black_until("192.0.2.3", stamp_after(1))
        .black_until("2001:db8::3", stamp_after(1))
        .black_until("192.0.2.4", stamp_after(2))
        .allow_until("192.0.2.4", stamp_after(1))
        .black("192.0.2.5")
        .black_until("10.1.2.3", stamp_after(3))
        .black_until("10.1.0.0/16", stamp_after(1))
        .black_until("10.0.0.0/8", stamp_after(2))
        .allow_until("10.2.0.0/16", stamp_after(1))
        .black_until("2400:1::/32", stamp_after(1))
        .black_until("2400:1:2::/48", stamp_after(2))
}

fn precedence() -> Table {
    let rows = sources(&[
        // The shorter prefix, the longer one and the host, in all orders.
        ("10.1.1.1", PassAllowlisted),
        ("10.1.1.2", PassAllowlisted),
        ("10.1.2.1", Blacklisted),
        ("10.2.0.1", PassAllowlisted),
        ("10.2.0.2", PassAllowlisted),
        ("10.3.0.1", PassManagement),
        ("10.3.0.2", Blacklisted),
        ("192.0.2.1", PassManagement),
        ("192.0.2.2", PassManagement),
        ("192.0.2.3", PassManagement),
        ("198.18.0.1", PassAllowlisted),
        ("2001:db8:1::1", PassAllowlisted),
        ("2001:db8:1::2", PassAllowlisted),
        ("2001:db8:2::1", Blacklisted),
        ("2001:db8:3::1", PassManagement),
        ("2001:db8:3::2", PassManagement),
        ("2001:db8:4::1", PassManagement),
        ("2001:db8:4::2", Blacklisted),
    ]);
    Table::enforced("allow beats black, management beats all", rows)
        .black("10.0.0.0/8")
        .allow("10.1.1.0/24")
        .black("10.1.1.2")
        .allow("10.2.0.0/16")
        .black("10.2.0.0/24")
        .allow("10.2.0.2")
        .management("10.3.0.1")
        .management("192.0.2.0/24")
        .black("192.0.2.2")
        .allow("192.0.2.3")
        .bogon("198.18.0.0/15")
        .allow("198.18.0.1")
        .black("2001:db8::/32")
        .allow("2001:db8:1::/48")
        .black("2001:db8:1::2")
        .management("2001:db8:3::/48")
        .black("2001:db8:3::2")
        .bogon("2001:db8:3::2")
        .management("2001:db8:4::1")
}

/// Management and allowlisted sources are not checked further, but their
/// packets must be well formed.
fn exempt() -> Table {
    let mut rows = Vec::new();
    for (source, ends) in [
        ("192.0.2.1", PassManagement),
        ("192.0.2.2", PassAllowlisted),
        ("2001:db8::1", PassManagement),
        ("2001:db8::2", PassAllowlisted),
    ] {
        let own = || ip(source, source);
        let mut add = |what: &str, frame: Vec<u8>, ends| {
            rows.push(row(&format!("from {source}, {what}"), frame, ends));
        };
        add("LAND", own().udp(8).build(), ends);
        add("SYN FIN", from(source).tcp(SYN | FIN).build(), ends);
        add(
            "tiny fragment",
            from(source).tcp_with(SYN, 0, 80).piece(0..8).build(),
            ends,
        );
        let malformed = if source.contains(':') {
            Ipv6BadVersion
        } else {
            Ipv4BadIhl
        };
        add(
            "malformed",
            from(source).build().with(ETH, &[0x40]),
            malformed,
        );
    }
    rows.push(row(
        "from another one, LAND",
        ip("192.0.2.3", "192.0.2.3").udp(8),
        Land,
    ));
    Table::enforced("exempt from checks", rows)
        .management("192.0.2.1")
        .allow("192.0.2.2")
        .management("2001:db8::1")
        .allow("2001:db8::2")
}

/// The blacklist is asked before what the IP header carries is looked at, and after the
/// header itself; who is on no list that drops gets to hear of the rest first.
fn before_the_rest() -> Table {
    let cut = |source: &str| from(source).payload(6, [0; 19]);
    let mut rows = Vec::new();
    for source in [V4, V6] {
        let mut add = |what: &str, frame: Vec<u8>, ends, also: &[Reason]| {
            rows.push(row(&format!("from {source}, {what}"), frame, ends).also(also));
        };
        let (header, bad) = if source == V4 {
            (from(source).build().with(ETH, &[0x40]), Ipv4BadIhl)
        } else {
            let longer = from(source).build().with(ETH + 4, &[0xff]);
            (longer, Ipv6BadLength)
        };
        add("a bad header", header, bad, &[]);
        add(
            "a cut TCP header",
            cut(source).build(),
            Blacklisted,
            &[TcpTruncated],
        );
        add(
            "the same in VLANs",
            cut(source).vlan(6).vlan(5).build(),
            Blacklisted,
            &[TcpTruncated],
        );
        add(
            "a fragment beyond the largest packet",
            from(source)
                .fragment(65_528, false)
                .payload(17, [0; 16])
                .build(),
            Blacklisted,
            &[FragmentBeyondEnd],
        );
    }
    rows.push(row(
        "from a listed IPv6 source, another version",
        from(V6).build().with(ETH, &[0x40]),
        Ipv6BadVersion,
    ));
    let many = from(V6)
        .extension(HopByHop(8))
        .extension(HopByHop(8))
        .udp(8);
    rows.push(
        row(
            "from a listed IPv6 source, headers out of order",
            many,
            Blacklisted,
        )
        .also(&[Ipv6ExtOrder]),
    );
    for source in [
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.3",
        "127.0.0.1",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8::3",
        "100::1",
    ] {
        let what = format!("from {source}, a cut TCP header");
        rows.push(row(&what, cut(source), TcpTruncated));
    }
    Table::enforced("the blacklist before the rest", rows)
        .black(V4)
        .black(V6)
        .management("192.0.2.1")
        .black("192.0.2.1")
        .allow("192.0.2.2")
        .black("192.0.2.2")
        .bogon("127.0.0.0/8")
        .management("2001:db8::1")
        .black("2001:db8::1")
        .allow("2001:db8::2")
        .black("2001:db8::2")
        .bogon("100::/64")
}

fn bogons() -> Table {
    let icmpv6 = |source: &str| ip(source, V6_DEST).icmp(135, 16);
    let mut rows = sources(&[
        ("127.0.0.1", Bogon),
        ("127.255.255.255", Bogon),
        ("128.0.0.0", Pass),
        ("240.0.0.1", Bogon),
        ("100::1", Bogon),
        ("100:0:0:1::1", Pass),
        ("ff02::1", Bogon),
    ]);
    rows.extend([
        row("IPv4, ICMP", ip("127.0.0.1", V4_DEST).icmp(8, 0), Bogon),
        row(
            "IPv4, ICMPv6",
            ip("127.0.0.1", V4_DEST).payload(58, [0; 8]),
            Bogon,
        ),
        row("IPv6, ICMPv6 is no excuse", icmpv6("100::1"), Bogon),
        row("IPv6, ICMPv6 from multicast", icmpv6("ff02::1"), Bogon),
        row("LAND, too", ip("127.0.0.1", "127.0.0.1").udp(8), Bogon).also(&[Land]),
    ]);
    Table::enforced("bogons", rows)
        .bogon("127.0.0.0/8")
        .bogon("240.0.0.0/4")
        .bogon("100::/64")
        .bogon("ff00::/8")
}

/// The unspecified IPv6 address is a bogon, and neighbour discovery and
/// multicast listener reports come from it all the same.
fn unspecified() -> Table {
    let to = |dest: &str| ip("::", dest);
    let rows = vec![
        row(
            "duplicate address detection",
            to("ff02::1:ff00:7").icmp(135, 16),
            Pass,
        ),
        row("router solicitation", to("ff02::2").icmp(133, 0), Pass),
        row(
            "multicast listener report",
            to("ff02::16").extension(HopByHop(8)).icmp(143, 20),
            Pass,
        ),
        row(
            "the same in a VLAN",
            to("ff02::1:ff00:7").icmp(135, 16).vlan(5),
            Pass,
        ),
        row("UDP", to("ff02::1").udp(8), Bogon),
        row("TCP", to(V6_DEST).tcp(SYN), Bogon),
        row("ICMP of IPv4", to(V6_DEST).payload(1, [0; 8]), Bogon),
        row("ICMPv6 from ::1", ip("::1", V6_DEST).icmp(135, 16), Bogon),
        row(
            "ICMPv6 from 0:0:0:1::",
            ip("0:0:0:1::", V6_DEST).icmp(135, 16),
            Bogon,
        ),
        row("no protocol", to(V6_DEST).build().cut(ETH + IPV6), Bogon),
    ];
    Table::enforced("the unspecified address", rows).bogon("::/48")
}
