//! Headers of the PROXY protocol made of any bytes, and what is written of those that are read.
#![no_main]

#[path = "../../../edge-userspace/src/l7/proxy_protocol.rs"]
#[allow(dead_code, unreachable_pub)]
mod proxy_protocol;

use libfuzzer_sys::fuzz_target;
use proxy_protocol::{parse, write_v1, write_v2};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(header)) = parse(bytes) else {
        return;
    };
    assert!(header.len <= bytes.len());
    assert_eq!(parse(&bytes[..header.len]), Ok(Some(header)));
    assert_eq!(parse(&bytes[..header.len - 1]), Ok(None));
    for write in [write_v1, write_v2] {
        let mut out = Vec::new();
        write(&mut out, header.addresses.as_ref());
        let again = parse(&out);
        assert_eq!(
            again.map(|again| again.map(|again| again.len)),
            Ok(Some(out.len()))
        );
        let same_family = header
            .addresses
            .is_none_or(|ends| ends.source.is_ipv4() == ends.destination.is_ipv4());
        if same_family {
            let addresses = again.ok().flatten().and_then(|again| again.addresses);
            assert_eq!(addresses, header.addresses);
        }
    }
});
