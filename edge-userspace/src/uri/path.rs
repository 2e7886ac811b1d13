//! Paths of requests in one form, so that what is matched is what the upstream sees.
//!
//! * Escapes of unreserved characters are decoded, hexadecimal digits of others are in upper case
//!   (RFC 3986, 6.2.2).
//! * Dot segments are removed, `%2e` being a dot (RFC 3986, 5.2.4).
//! * Refused are: paths that climb above the root; zeros, escaped or not; control characters,
//!   blanks, backslashes, `#` and `?` that are not escaped; escapes without two hexadecimal digits.
//! * An escaped slash or backslash (`%2F`, `%5C`) stays as it is and parts no segments. It is
//!   refused where it would part dot segments, for an upstream that decodes it would climb;
//!   `..;x` is refused for the same reason (servers of servlets drop what follows the semicolon).
//! * Empty segments (`//`) stay: they mean something else than one slash.

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a slash.
    #[error("the path does not begin with a slash")]
    NoSlash,
    /// A character that must be escaped, or is never allowed.
    #[error("the path has a character that must be escaped")]
    Character,
    /// A percent sign without two hexadecimal digits.
    #[error("the path has an escape without two hexadecimal digits")]
    Escape,
    /// An escaped zero.
    #[error("the path has an escaped zero")]
    Zero,
    /// It leads above the root.
    #[error("the path leads above the root")]
    AboveRoot,
    /// Some upstreams would find dot segments in it that others do not.
    #[error("the path has dot segments that not all servers would see")]
    Ambiguous,
}

/// The normal form of a path, which is that of a request's target without its query. It is the
/// path itself where nothing changes; else it is written into `buffer`, whose content is lost.
/// It is never longer than the path, and its own normal form.
///
/// # Errors
/// [`PathError`]; the request is malformed then.
pub fn normalise<'a>(path: &'a [u8], buffer: &'a mut Vec<u8>) -> Result<&'a [u8], PathError> {
    if path.first() != Some(&b'/') {
        return Err(PathError::NoSlash);
    }
    if is_plain(path) {
        return Ok(path);
    }
    buffer.clear();
    buffer.extend_from_slice(path);
    normalise_in_place(buffer)?;
    Ok(buffer)
}

/// Whether it is seen at first sight that nothing changes.
fn is_plain(path: &[u8]) -> bool {
    let mut last = 0;
    for &byte in path {
        if byte == b'%' || !is_allowed(byte) || (byte == b'.' && last == b'/') {
            return false;
        }
        last = byte;
    }
    true
}

/// Whether a byte may stand in a path without an escape. More than RFC 3986 allows: browsers send
/// brackets, quotes and bars as they are.
const fn is_allowed(byte: u8) -> bool {
    !matches!(byte, 0..=b' ' | 0x7f | b'\\' | b'#' | b'?')
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// What the escape at the beginning of a text stands for (RFC 3986, 2.1); `None`: there is none.
pub fn escaped(text: &[u8]) -> Option<u8> {
    match text {
        [b'%', high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

/// As [`normalise`], in place, of a path that begins with a slash.
///
/// # Errors
/// [`PathError`]; what the path is then means nothing.
pub fn normalise_in_place(path: &mut Vec<u8>) -> Result<(), PathError> {
    if path.first() != Some(&b'/') {
        return Err(PathError::NoSlash);
    }
    // What is written never overtakes what is read.
    let (mut read, mut written) = (1, 1);
    loop {
        // A segment, up to the slash behind it or to the end.
        let start = written;
        let (mut has_escape, mut has_semicolon) = (false, false);
        while let Some(&byte) = path.get(read).filter(|&&b| b != b'/') {
            if byte == b'%' {
                let decoded = escaped(&path[read..]).ok_or(PathError::Escape)?;
                read += 3;
                if decoded == 0 {
                    return Err(PathError::Zero);
                }
                if is_unreserved(decoded) {
                    path[written] = decoded;
                    written += 1;
                } else {
                    let (high, low) = (path[read - 2], path[read - 1]);
                    path[written] = b'%';
                    path[written + 1] = high.to_ascii_uppercase();
                    path[written + 2] = low.to_ascii_uppercase();
                    written += 3;
                    has_escape = true;
                }
            } else if is_allowed(byte) {
                path[written] = byte;
                read += 1;
                written += 1;
                has_semicolon |= byte == b';';
            } else {
                return Err(PathError::Character);
            }
        }
        let is_last = read >= path.len();
        match &path[start..written] {
            b"." => written = start,
            b".." => {
                // The slash before this segment is that behind the one that goes.
                let before = path[..start - 1].iter().rposition(|&b| b == b'/');
                written = before.ok_or(PathError::AboveRoot)? + 1;
            }
            segment => {
                if (has_escape || has_semicolon) && is_ambiguous(segment) {
                    return Err(PathError::Ambiguous);
                }
                if !is_last {
                    path[written] = b'/';
                    written += 1;
                }
            }
        }
        if is_last {
            path.truncate(written);
            return Ok(());
        }
        read += 1;
    }
}

/// Whether a server that decodes slashes, or drops what follows a semicolon, would find a dot
/// segment in a segment that is none.
fn is_ambiguous(segment: &[u8]) -> bool {
    let mut rest = segment;
    loop {
        let slash = rest.windows(3).position(|w| matches!(w, b"%2F" | b"%5C"));
        let part = &rest[..slash.unwrap_or(rest.len())];
        let name = part
            .iter()
            .position(|&b| b == b';')
            .into_iter()
            .chain(part.windows(3).position(|w| w == b"%3B"))
            .min();
        if matches!(&part[..name.unwrap_or(part.len())], b"." | b"..") {
            return true;
        }
        match slash {
            Some(slash) => rest = &rest[slash + 3..],
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(path: &str) -> Result<String, PathError> {
        let mut buffer = Vec::new();
        let normal = normalise(path.as_bytes(), &mut buffer)?;
        Ok(String::from_utf8(normal.to_vec()).unwrap())
    }

    #[test]
    fn paths_have_one_form() {
        for (path, want) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/.", "/"),
            ("/./", "/"),
            ("/a/.", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/a/../", "/"),
            ("/a/b/../../c", "/c"),
            ("/a/b/..", "/a/"),
            ("/a/b/../", "/a/"),
            ("/a//../b", "/a/b"),
            ("//", "//"),
            ("/a//b", "/a//b"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/..a/b..", "/..a/b.."),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e", "/"),
            ("/%2E", "/"),
            ("/%61%2D%7e%5f", "/a-~_"),
            ("/%c3%a9", "/%C3%A9"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%5cb", "/a%5Cb"),
            ("/a%2f", "/a%2F"),
            ("/a%252e%252e", "/a%252e%252e"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a;..", "/a;.."),
            ("/a..;b", "/a..;b"),
            ("/é|[\"'", "/é|[\"'"),
            ("/a:b@c", "/a:b@c"),
            ("/%0d%0a", "/%0D%0A"),
        ] {
            assert_eq!(of(path).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn what_servers_would_read_differently_is_refused() {
        use PathError::*;
        for (path, want) in [
            ("", NoSlash),
            ("*", NoSlash),
            ("a/b", NoSlash),
            ("http://a/", NoSlash),
            ("/..", AboveRoot),
            ("/../", AboveRoot),
            ("/a/../..", AboveRoot),
            ("/a/%2e%2e/%2e%2e/b", AboveRoot),
            ("/./..", AboveRoot),
            ("/%", Escape),
            ("/%4", Escape),
            ("/%4/1", Escape),
            ("/%u002e", Escape),
            ("/%g1", Escape),
            ("/%+1", Escape),
            ("/%00", Zero),
            ("/a%00.png", Zero),
            ("/a\0", Character),
            ("/a b", Character),
            ("/a\tb", Character),
            ("/a\r\nb", Character),
            ("/a\x7f", Character),
            ("/a\\..\\b", Character),
            ("/a#b", Character),
            ("/a?b", Character),
            ("/..%2f", Ambiguous),
            ("/..%2Fetc", Ambiguous),
            ("/a%2f..", Ambiguous),
            ("/a%2f..%2fb", Ambiguous),
            ("/a%2F%2e%2e", Ambiguous),
            ("/..%5cb", Ambiguous),
            ("/a%5c.%5Cb", Ambiguous),
            ("/..;/a", Ambiguous),
            ("/..;x=1/a", Ambiguous),
            ("/a/..%3bx/b", Ambiguous),
            ("/.;/a", Ambiguous),
            ("/a%2f..;b", Ambiguous),
        ] {
            assert_eq!(of(path), Err(want), "{path}");
        }
    }

    #[test]
    fn nothing_is_written_where_nothing_changes() {
        let mut buffer = Vec::new();
        let path = b"/a/b.html";
        let normal = normalise(path, &mut buffer).unwrap();
        assert_eq!(normal.as_ptr(), path.as_ptr());
        assert_eq!(buffer.capacity(), 0);
    }

    /// Another way to the same: all at once, with segments in a list.
    fn naive(path: &[u8]) -> Option<Vec<u8>> {
        let text = path.strip_prefix(b"/")?;
        let mut segments: Vec<Vec<u8>> = Vec::new();
        let all: Vec<&[u8]> = text.split(|&b| b == b'/').collect();
        for (i, raw) in all.iter().enumerate() {
            let mut out = Vec::new();
            let mut rest = *raw;
            while let Some((&byte, after)) = rest.split_first() {
                rest = after;
                if byte != b'%' {
                    if byte <= b' ' || b"\\#?\x7f".contains(&byte) {
                        return None;
                    }
                    out.push(byte);
                    continue;
                }
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return None;
                }
                rest = &rest[2..];
                match u8::from_str_radix(digits, 16).ok()? {
                    0 => return None,
                    b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => out.push(b),
                    b => out.extend(format!("%{b:02X}").bytes()),
                }
            }
            let is_last = i + 1 == all.len();
            match &out[..] {
                b"." if is_last => segments.push(Vec::new()),
                b"." => {}
                b".." => {
                    segments.pop()?;
                    if is_last {
                        segments.push(Vec::new());
                    }
                }
                other => {
                    let text = String::from_utf8_lossy(other).replace("%5C", "%2F");
                    let hidden = text.split("%2F").any(|part| {
                        let name = part.split(';').next().and_then(|p| p.split("%3B").next());
                        name == Some(".") || name == Some("..")
                    });
                    if hidden {
                        return None;
                    }
                    segments.push(out);
                }
            }
        }
        Some([b"/", &segments.join(&b'/')[..]].concat())
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_naive_reading(path in "(/|\\.|\\.\\.|%2[eEfF]|%5c|;|%3b|a|%41|%|%00|\\\\| ){0,14}") {
            let path = format!("/{path}");
            prop_assert_eq!(of(&path).ok().map(String::into_bytes), naive(path.as_bytes()));
        }

        #[test]
        fn the_normal_form_is_its_own(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let path = [b"/", &path[..]].concat();
            let (mut buffer, mut again) = (Vec::new(), Vec::new());
            if let Ok(normal) = normalise(&path, &mut buffer) {
                prop_assert!(normal.len() <= path.len());
                prop_assert_eq!(normalise(normal, &mut again), Ok(normal));
            }
        }
    }
}
