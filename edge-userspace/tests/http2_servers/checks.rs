//! Health checks of servers that speak HTTP/2.

use super::{
    rig::{Rig, Setup, until},
    server::Server,
    streams::tls,
};

#[test]
fn servers_are_checked_by_what_they_speak() {
    for (keys, is_secure, is_up) in [
        ("kind = 'http', path = '/seen'", false, true),
        ("kind = 'http', path = '/early'", false, false),
        ("kind = 'http', body = 'nowhere in it'", false, false),
        (
            "kind = 'https', path = '/seen', body = 'user-agent'",
            true,
            true,
        ),
        ("kind = 'grpc'", false, true),
        ("kind = 'grpc'", true, true),
        ("kind = 'grpc', service = 'x'", true, true),
    ] {
        let (server, tls) = match is_secure {
            true => (Server::tls(tls(&[b"h2"])), "tls.verify = false"),
            false => (Server::start(), ""),
        };
        let mut setup = Setup::new(&[]).upstream(format!(
            "protocol = 'http2'\n{tls}\n\
             health = {{ interval = '500ms', timeout = '450ms', fall = 1, rise = 1, {keys} }}"
        ));
        setup.servers = vec![server.address.clone()];
        let rig = Rig::new(&setup);
        until("checks have come", || server.requests() > 2);
        until(keys, || rig.app().servers[0].up == is_up);
    }
}
