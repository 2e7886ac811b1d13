//! What interfaces can and cannot do, and who holds them.

use edge_tests::daemon::{self, Installation};
use edge_tests::lab::{Lab, Link};

#[test]
fn a_hook_that_another_program_holds_is_named() {
    let lab = Lab::new(1);
    let first = Installation::new(&lab.host, &["eth0"], "lists.blacklist = [\"10.66.0.1\"]\n");
    let _daemon = first.start();
    let second = Installation::new(&lab.host, &["eth0"], "");
    // Metrics of both on one host would be another error.
    let text = std::fs::read_to_string(second.config()).unwrap();
    std::fs::write(second.config(), text.replace("9273", "9274")).unwrap();
    let refused = second.try_start().unwrap_err();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("eth0") && refused.stderr.contains("edge_xdp"),
        "{}",
        refused.stderr
    );
    assert!(!lab.link().passes_from("10.66.0.1".parse().unwrap()));
    // Two on the same state are told apart, too.
    let twin = daemon::outcome(first.edge(&["run", "-c"]).arg(first.config()));
    assert_eq!(twin.code, 1, "{twin:?}");
    assert!(twin.stderr.contains("edge"), "{}", twin.stderr);
    assert!(!first.status().is_null());
}

#[test]
fn generic_mode_only_where_it_is_allowed() {
    let lab = Lab::new(0);
    // Loopback has no native XDP.
    let edge = Installation::new(&lab.host, &["lo"], "");
    let refused = edge.try_start().unwrap_err();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("allow_generic"),
        "{}",
        refused.stderr
    );
    edge.configure(
        &["lo"],
        "xdp.allow_generic = true\nchecks.bogons = \"off\"\nchecks.land = \"off\"\n",
    );
    let daemon = edge.start();
    assert_eq!(edge.status()["interfaces"][0]["mode"], "generic");
    assert!(daemon.log().contains("GENERIC"), "{}", daemon.log());
    assert!(edge.ok(&["status"]).contains("GENERIC"));
    // And it works.
    edge.ok(&["blacklist", "add", "127.0.0.7"]);
    let ping = |from: &str| {
        let socket = lab
            .host
            .inside(|| std::net::UdpSocket::bind((from, 0)).unwrap());
        let to = lab
            .host
            .inside(|| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.send_to(b"x", to.local_addr().unwrap()).unwrap();
        to.set_read_timeout(Some(std::time::Duration::from_secs(1)))
            .unwrap();
        to.recv(&mut [0; 8]).is_ok()
    };
    assert!(ping("127.0.0.6"));
    assert!(!ping("127.0.0.7"));
}

#[test]
fn a_large_mtu_takes_the_native_program() {
    let mut lab = Lab::new(0);
    lab.links.push(Link::new(&lab.host, 0, 9000));
    let edge = Installation::new(&lab.host, &["eth0"], "lists.blacklist = [\"10.66.0.1\"]\n");
    let _daemon = edge.start();
    assert_eq!(edge.status()["interfaces"][0]["mode"], "native");
    let link = lab.link();
    for (source, passes) in [("10.66.0.1", false), ("10.66.0.2", true)] {
        let frame = edge_tests::frames::sized(
            link.macs(),
            source.parse().unwrap(),
            link.v4(1),
            edge_tests::frames::Payload::Udp(9),
            8900,
        );
        assert_eq!(link.passes(&frame), passes, "{source}");
    }
}

#[test]
fn an_interface_that_does_not_exist_is_named() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth5"], "");
    let refused = edge.try_start().unwrap_err();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("eth5") && refused.stderr.contains("eth0"),
        "{}",
        refused.stderr
    );
}
