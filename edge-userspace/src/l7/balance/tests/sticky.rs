//! The cookies of sessions.

use super::super::sticky::{LENGTH, Refused, Signer};

const SECRET: [u8; 32] = [7; 32];
const ID: u64 = 0xfedc_ba98_0123_4567;

#[test]
fn a_cookie_names_its_server_until_it_ends() {
    let signer = Signer::new(&SECRET, "app");
    let cookie = signer.mint(ID, 1000);
    assert!(cookie.iter().all(u8::is_ascii_alphanumeric));
    assert_eq!(signer.parse(&cookie, 999), Ok(ID));
    assert_eq!(signer.parse(&cookie, 1000), Err(Refused::Expired));
    // The signature is that of Python's hmac. What clients have must stay valid.
    let known = b"fedcba980123456700000000000003e8f4dfe7f6ac625d9f710bb58444148a33";
    assert_eq!(&cookie, known);
}

#[test]
fn no_other_cookie_does() {
    let signer = Signer::new(&SECRET, "app");
    let cookie = signer.mint(ID, 1000);
    for at in 0..LENGTH {
        for digit in *b"0123456789abcdef" {
            let mut other = cookie;
            other[at] = digit;
            if other != cookie {
                assert_eq!(signer.parse(&other, 1), Err(Refused::Forged), "{at}");
            }
        }
        let mut other = cookie;
        for byte in [b'g', b'A', b' ', 0, 0xff] {
            other[at] = byte;
            assert_eq!(signer.parse(&other, 1), Err(Refused::Malformed));
        }
        assert_eq!(signer.parse(&cookie[..at], 1), Err(Refused::Malformed));
    }
    let longer = [&cookie[..], b"0"].concat();
    assert_eq!(signer.parse(&longer, 1), Err(Refused::Malformed));
    for other in [
        Signer::new(&SECRET, "app2"),
        Signer::new(&SECRET, ""),
        Signer::new(&[8; 32], "app"),
    ] {
        assert_eq!(other.parse(&cookie, 1), Err(Refused::Forged));
    }
}
