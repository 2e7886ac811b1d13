//! What of a request says which server of an upstream it is for.

use std::net::{IpAddr, SocketAddr};

use super::{exchange::Exchange, front::Front, group::Group, worker::Worker};
use crate::{
    config::proxy::upstream::{self, HashKey},
    l7::{
        balance::{self, address_key},
        head::{Known, Request},
        route,
    },
};

/// The server to which a session of the client belongs.
pub(super) fn session<F: Front>(
    exchange: &Exchange<'_>,
    front: &F,
    request: &Request,
    group: &Group,
) -> Option<u64> {
    let (name, signer) = group.sticky.as_ref()?;
    let value = cookie(request, front.bytes(), name)?;
    let now = exchange.conn.worker.unix_ms(Worker::now()) / 1000;
    signer.parse(value, now).ok()
}

/// What a request is hashed by.
pub(super) fn hash_key<F: Front>(
    exchange: &Exchange<'_>,
    front: &F,
    request: &Request,
    group: &Group,
) -> Option<u64> {
    let bytes = front.bytes();
    let value = match &group.config.balance {
        upstream::Balance::IpHash => {
            let client: SocketAddr = exchange.facts.client.unwrap_or(exchange.conn.peer);
            let client: IpAddr = client.ip();
            return Some(address_key(&group.seed, client));
        }
        // As for conditions, there is one, be it a field or not.
        upstream::Balance::ConsistentHash(HashKey::Header(name)) if name == "host" => {
            let authority = request.authority.whole.of(bytes);
            (!authority.is_empty()).then_some(authority)?
        }
        upstream::Balance::ConsistentHash(HashKey::Header(name)) => {
            request.values(bytes, name.as_bytes()).next()?
        }
        upstream::Balance::ConsistentHash(HashKey::Cookie(name)) => {
            cookie(request, bytes, name.as_bytes())?
        }
        upstream::Balance::ConsistentHash(HashKey::Query(name)) => {
            let query = request.query(bytes)?;
            let mut buffer = exchange.conn.worker.out();
            let value = route::parameter(query, name.as_bytes(), &mut buffer);
            let key = value.map(|value| balance::key(&group.seed, value));
            exchange.conn.worker.give_out(buffer);
            return key;
        }
        _ => return None,
    };
    Some(balance::key(&group.seed, value))
}

/// The value of a cookie (RFC 6265, section 5.4).
fn cookie<'a>(request: &'a Request, bytes: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    request.known(bytes, Known::Cookie).find_map(|field| {
        field.split(|b| *b == b';').find_map(|pair| {
            let rest = pair.trim_ascii().strip_prefix(name)?;
            rest.strip_prefix(b"=")
        })
    })
}
