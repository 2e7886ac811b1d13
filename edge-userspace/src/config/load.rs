//! Reading the configuration file: the one place of `config` that does I/O.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::{Checked, ConfigError, Finding, MAX_FILE_BYTES, balance::Forward, parse};

/// Reads a file and checks it, as [`parse`] does.
///
/// # Errors
/// [`ConfigError`]: it cannot be read, or everything that is wrong with it.
pub fn load(path: &Path, tick_ns: u64) -> Result<Checked, ConfigError> {
    let (text, mode) = read(path)?;
    let mut checked = parse(&text, path, tick_ns)?;
    for service in &checked.model.services {
        let Some(balance) = &service.balance else {
            continue;
        };
        if balance.forward == Forward::Nat {
            return Err(ConfigError::NotBuilt {
                path: path.to_path_buf(),
                service: service.name.clone(),
                key: "forward = \"nat\"",
            });
        }
    }
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
    Ok(checked)
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
                        address = '10.0.0.1'\n[balance]\nsnat = ['192.0.2.1']\n";
        let refused = load(&file("nat.toml", balanced.as_bytes()), TICK_NS).unwrap_err();
        assert!(
            refused.to_string().contains("is not built yet"),
            "{refused}"
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
