//! Golden packets: tables of frames and what must become of each, run through
//! the real program.
//!
//! A row says which one reason the packet ends with; verdict, counters in
//! packets and bytes, the reasons a dry run reports, samples, and the frame
//! afterwards follow from it and are all checked. The tables of header and
//! sanity checks are run five times: as they are, with one and two VLAN tags in
//! front of the packet, with every check in dry run, and with every check off.

mod balance;
mod decap;
mod defence;
mod floods;
mod fragments;
mod ipv4;
mod ipv6;
mod limits;
mod link;
mod modes;
mod policy;
mod regressions;
mod run;
mod samples;
mod sanity;
mod table;
mod transport;

pub use balance::REASONS as BALANCE_REASONS;
pub use defence::REASONS as DEFENCE_REASONS;
pub use floods::REASONS as FLOOD_REASONS;
pub use regressions::tables as regressions;
pub use run::{Report, TableReport, run_all};
pub use table::{Row, Table};

use crate::packet::{Ip, ip};
use edge_common::abi::Mode;

/// An ordinary IPv4 source, on no list.
pub const V4: &str = "198.51.100.7";
/// An IPv4 destination.
pub const V4_DEST: &str = "203.0.113.1";
/// An ordinary IPv6 source, on no list.
pub const V6: &str = "2001:db8:1:2::7";
/// An IPv6 destination.
pub const V6_DEST: &str = "2001:db8:ffff::1";

/// An IPv4 packet from [`V4`].
pub fn v4() -> Ip {
    ip(V4, V4_DEST)
}

/// An IPv6 packet from [`V6`].
pub fn v6() -> Ip {
    ip(V6, V6_DEST)
}

/// What becomes of SYN cookies as they age, on the kernel of this machine. It waits for the
/// kernel's own count of minutes, so it is none of [`run_all`].
pub fn cookies_age() -> TableReport {
    defence::age_report()
}

/// Every table.
pub fn tables() -> Vec<Table> {
    let mut all = Vec::new();
    // Where the tags are the subject, more of them would change it.
    let link = link::tables();
    for table in &link {
        all.extend([table.in_mode(Mode::DryRun), table.in_mode(Mode::Off)]);
    }
    all.extend(link);
    let checks = [
        ipv4::tables(),
        ipv6::tables(),
        transport::tables(),
        fragments::tables(),
        sanity::tables(),
    ];
    for table in checks.into_iter().flatten() {
        all.extend([
            table.tagged(1),
            table.tagged(2),
            table.in_mode(Mode::DryRun),
            table.in_mode(Mode::Off),
            table,
        ]);
    }
    all.extend(modes::tables());
    all.extend(policy::tables());
    all.extend(limits::tables());
    all.extend(samples::tables());
    all.extend(regressions::tables());
    all
}
