//! Reading the configuration file.

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::{Checked, ConfigError, Finding, MAX_FILE_BYTES, Model, files, parse_with};

/// Reads a file and checks it, as [`super::parse`] does, and the files of TLS that it names.
///
/// # Errors
/// [`ConfigError`]: it cannot be read, or everything that is wrong with it.
pub fn load(path: &Path, tick_ns: u64) -> Result<Checked, ConfigError> {
    Ok(load_text(path, tick_ns)?.1)
}

/// The same, with the text of the file.
///
/// # Errors
/// As [`load`].
pub fn load_text(path: &Path, tick_ns: u64) -> Result<(String, Checked), ConfigError> {
    let (text, mode) = read(path)?;
    let mut checked = parse_with(&text, path, tick_ns, files::check)?;
    checked
        .warnings
        .extend(not_here(&checked.model, &text, path));
    if mode & 0o002 != 0 {
        let warning = Finding {
            file: path.display().to_string().into(),
            line: 1,
            key: String::new(),
            value: None,
            message: "every user of this host can write this file; chmod o-w".to_owned(),
        };
        checked.warnings.insert(0, warning);
    }
    Ok((text, checked))
}

/// Tells of source addresses of NAT that this host does not have. Somebody else may route them
/// here, so that is no error.
fn not_here(model: &Model, text: &str, path: &Path) -> Vec<Finding> {
    // A socket is bound, and sends nothing.
    let is_missing = |address: &&IpAddr| {
        let bound = UdpSocket::bind((**address, 0));
        bound.is_err_and(|e| e.kind() == io::ErrorKind::AddrNotAvailable)
    };
    if model.nat_sources() == 0 {
        return Vec::new();
    }
    let line = text.lines().position(|l| {
        l.trim_start()
            .trim_start_matches("balance.")
            .starts_with("snat")
    });
    let finding = |address: &IpAddr| Finding {
        file: path.display().to_string().into(),
        line: u32::try_from(line.unwrap_or_default() + 1).unwrap_or(u32::MAX),
        key: "balance.snat".to_owned(),
        value: Some(format!("\"{address}\"")),
        message: "no address of this host; add it to an interface, or see that whatever backends \
                  answer to it is routed here"
            .to_owned(),
    };
    let all = model.balancing.snat.iter();
    all.filter(is_missing).map(finding).collect()
}

/// The text of the file and its permissions.
fn read(path: &Path) -> Result<(String, u32), ConfigError> {
    let failed = |source: io::Error| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    };
    // Before it is opened: opening a pipe would wait for somebody to write.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(ConfigError::NotAFile {
            path: path.to_path_buf(),
        });
    }
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_path_buf(),
            limit: MAX_FILE_BYTES,
        });
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = e.as_bytes().iter().take(e.utf8_error().valid_up_to());
        let line = 1 + valid.filter(|&&b| b == b'\n').count();
        ConfigError::NotText {
            path: path.to_path_buf(),
            line: u32::try_from(line).unwrap_or(u32::MAX),
        }
    })?;
    Ok((text, mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test::{TICK_NS, model};

    #[test]
    fn files_are_read_with_suspicion() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let good = file("good.toml", b"interfaces = ['eth0']");
        let checked = load(&good, TICK_NS).unwrap();
        assert_eq!(checked.model, model());
        assert!(!checked.warnings.iter().any(|w| w.message.contains("chmod")));
        std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o646)).unwrap();
        let writable = &load(&good, TICK_NS).unwrap().warnings[0];
        assert!(
            writable.to_string().contains("good.toml:1: every user"),
            "{writable}"
        );
        let balanced = "interfaces = ['eth0']\n[[service]]\nname = 'web'\naddresses = ['203.0.113.1']\n\
                        ports = [80]\nforward = 'nat'\n[[service.backend]]\nname = 'a'\n\
                        address = '10.0.0.1'\n[balance]\nsnat = ['127.0.0.1']\n";
        // Of this host, and of nobody's (RFC 5737).
        let here = balanced.replace("127.0.0.1", "192.0.2.1");
        let missing = load(&file("nat.toml", here.as_bytes()), TICK_NS).unwrap();
        let warned = missing.warnings.iter().map(ToString::to_string);
        let warned: Vec<String> = warned.filter(|w| w.contains("snat")).collect();
        assert!(
            matches!(&warned[..], [one] if one.contains("nat.toml:11: balance.snat = \"192.0.2.1\": no address of this host")),
            "{warned:?}"
        );
        let missing = load(&dir.path().join("missing.toml"), TICK_NS).unwrap_err();
        assert!(
            missing.to_string().contains("missing.toml: cannot read"),
            "{missing}"
        );
        assert!(matches!(
            load(dir.path(), TICK_NS),
            Err(ConfigError::NotAFile { .. })
        ));
        let binary = load(&file("binary.toml", b"a = 1\nb = '\xff'\n"), TICK_NS).unwrap_err();
        assert!(
            binary.to_string().contains("binary.toml:2: not UTF-8"),
            "{binary}"
        );
        let large = vec![b'#'; MAX_FILE_BYTES as usize + 1];
        assert!(matches!(
            load(&file("l.toml", &large), TICK_NS),
            Err(ConfigError::TooLarge { .. })
        ));
        let largest = load(&file("m.toml", &large[1..]), TICK_NS);
        assert!(matches!(largest, Err(ConfigError::Invalid(_))));
    }
}
