//! What clients of balanced services send and get, in numbers.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use edge_tests::lab::Lab;
use edge_tests::wait;

/// Bytes that do not compress, nor repeat within a packet.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    let mut all = Vec::with_capacity(bytes + 8);
    while all.len() < bytes {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        all.extend(word.to_le_bytes());
    }
    all.truncate(bytes);
    all
}

/// A request on each of so many connections that are all open at once.
pub(crate) fn all_at_once(lab: &Lab, (vip, port): (&str, u16), count: usize) {
    let at = SocketAddr::new(vip.parse().unwrap(), port);
    let client = &lab.link().outside;
    let connect = || -> io::Result<Vec<TcpStream>> {
        let all = (0..count).map(|_| TcpStream::connect_timeout(&at, wait::PATIENCE));
        all.collect()
    };
    let mut open = client.inside(connect).unwrap();
    for stream in &mut open {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n")
            .unwrap();
    }
    for stream in &mut open {
        stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        let mut got = Vec::new();
        let mut bytes = [0; 1024];
        while !got.ends_with(b"protected by Edge\n") {
            let n = stream.read(&mut bytes).unwrap();
            assert_ne!(n, 0, "{}", String::from_utf8_lossy(&got));
            got.extend(&bytes[..n]);
        }
    }
}

/// Gets the file `large` of nginx, with curl, and compares it.
pub(crate) fn download(lab: &Lab, (vip, port): (&str, u16), directory: &Path, content: &[u8]) {
    let got = directory.join("got");
    let host = if vip.contains(':') {
        format!("[{vip}]")
    } else {
        vip.to_owned()
    };
    let url = format!("http://{host}:{port}/files/large");
    let got_at = got.to_str().unwrap();
    let arguments = [
        "--silent",
        "--show-error",
        "--fail",
        "--globoff",
        "--noproxy",
        "*",
    ];
    let arguments = [
        &arguments[..],
        &["--max-time", "120", "--output", got_at, &url],
    ]
    .concat();
    lab.link().outside.run("curl", &arguments);
    assert!(
        fs::read(&got).unwrap() == content,
        "another content from {vip}"
    );
}
