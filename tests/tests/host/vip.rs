//! A service of this host whose address is also that of a listener: its packets go through the
//! defence to the proxy.

use std::net::IpAddr;

use edge_tests::daemon::Installation;
use edge_tests::lab::Lab;
use edge_tests::server::Nginx;
use edge_tests::wait;

use crate::proxy::curl;
use crate::services::{counter, wait_ready};

const VIPS: [&str; 2] = ["10.99.0.1", "fd99::1"];
const PORT: u16 = 80;

#[test]
fn a_local_address_of_a_service_leads_to_the_listener_on_it() {
    let lab = Lab::new(2);
    let link = lab.link();
    let _server = Nginx::start(&lab.links[1].outside);
    lab.host.ip(&format!("addr add {}/32 dev lo", VIPS[0]));
    lab.host
        .ip(&format!("addr add {}/128 dev lo nodad", VIPS[1]));
    link.outside
        .ip(&format!("route add {}/32 via {}", VIPS[0], link.v4(1)));
    link.outside
        .ip(&format!("-6 route add {}/128 via {}", VIPS[1], link.v6(1)));
    let with = |syn: &str| {
        format!(
            "[[service]]\nname = \"vip\"\naddresses = [\"{0}\", \"{1}\"]\nports = [{PORT}]\n\
             syn = \"{syn}\"\n\
             [[listener]]\nname = \"web\"\naddresses = [\"{0}:{PORT}\", \"[{1}]:{PORT}\"]\n\
             [[upstream]]\nname = \"app\"\n[[upstream.server]]\naddress = \"{2}:80\"\n\
             [[route]]\nname = \"all\"\nupstream = \"app\"\n",
            VIPS[0],
            VIPS[1],
            lab.links[1].v4(2)
        )
    };
    let edge = Installation::new(&lab.host, &["eth0"], &with("always"));
    let _daemon = edge.start();
    wait_ready(&edge, "vip", 2, 2);
    let clients: [(IpAddr, String); 2] = [
        (link.v4(2), format!("http://{}:{PORT}/", VIPS[0])),
        (link.v6(2), format!("http://[{}]:{PORT}/", VIPS[1])),
    ];
    let get = |times: u64| {
        for (source, url) in &clients {
            for _ in 0..times {
                let got = curl(link, *source, url, &["--globoff"]);
                assert_eq!(got, (200, "protected by Edge\n".to_owned()), "{url}");
            }
        }
    };
    let requests = || {
        let status = edge.status();
        let listener = &status["proxy"]["listeners"][0]["requests"]["classes"];
        listener[1].as_u64().unwrap()
    };
    // Each handshake is one of the defence's.
    get(3);
    wait::until("the count of requests", || requests() == 6);
    wait::until("the count of handshakes", || {
        counter(&edge, "vip", "cookies_valid") >= 6
    });
    // Without a defence they come as well.
    edge.configure(&["eth0"], &with("off"));
    edge.ok(&["reload"]);
    let cookies = || {
        let valid = counter(&edge, "vip", "cookies_valid");
        (edge.packets("reply_syn_cookie", "ended"), valid)
    };
    let before = cookies();
    assert!(before.0 >= 6, "{before:?}");
    get(2);
    wait::until("the count of requests", || requests() == 10);
    assert_eq!(cookies(), before);
    // The firewall is before it.
    edge.ok(&["blacklist", "add", "10.77.0.3"]);
    let (status, _) = curl(link, link.v4(3), &clients[0].1, &["--max-time", "2"]);
    assert_eq!(status, 0);
}
