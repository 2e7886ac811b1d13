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

    #[test]
    fn files_of_tls_are_looked_into() {
        use rcgen::{CertifiedKey, generate_simple_self_signed};
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let pair = || generate_simple_self_signed(["example.org".to_owned()]).unwrap();
        let CertifiedKey { cert, signing_key } = pair();
        let cert = write("a.pem", &cert.pem());
        let key = write("a.key", &signing_key.serialize_pem());
        let other = write("b.key", &pair().signing_key.serialize_pem());
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let broken = write("broken.pem", broken);
        let empty = write("empty.pem", "");
        let text = |cert: &str, key: &str, ca: &str, upstream: &str| {
            format!(
                "interfaces = ['eth0']\n[[listener]]\nname = 'web'\naddresses = ['127.0.0.1:443']\n\
                 [listener.tls]\ncertificates = [{{ cert = '{cert}', key = '{key}' }}]\n\
                 client_auth = 'optional'\nclient_ca = '{ca}'\n[[upstream]]\nname = 'app'\ntls = {{ {upstream} }}\n\
                 [[upstream.server]]\naddress = '127.0.0.1:80'\n[[route]]\nname = 'app'\nupstream = 'app'\n"
            )
        };
        let load = |cert: &str, key: &str, ca: &str, upstream: &str| {
            let config = write("edge.toml", &text(cert, key, ca, upstream));
            load(Path::new(&config), TICK_NS)
        };
        let good = load(
            &cert,
            &key,
            &cert,
            &format!("cert = '{cert}', key = '{key}', ca = '{cert}'"),
        );
        let warned = good.unwrap().warnings;
        assert!(
            warned.iter().all(|w| w.key.starts_with("lists")),
            "{warned:?}"
        );
        let missing = dir.path().join("none.pem").display().to_string();
        for (cert, key, ca, upstream, line, at, want) in [
            (
                &missing,
                &key,
                &cert,
                "",
                6,
                "listener[0].tls.certificates[0].cert",
                "cannot be read (No such file",
            ),
            (
                &cert,
                &missing,
                &cert,
                "",
                6,
                "listener[0].tls.certificates[0].key",
                "cannot be read",
            ),
            (
                &empty,
                &key,
                &cert,
                "",
                6,
                "listener[0].tls.certificates[0].cert",
                "holds no certificate",
            ),
            (
                &broken,
                &key,
                &cert,
                "",
                6,
                "listener[0].tls.certificates[0].cert",
                "first certificate cannot be read",
            ),
            (
                &cert,
                &cert,
                &cert,
                "",
                6,
                "listener[0].tls.certificates[0].key",
                "holds no private key",
            ),
            (
                &cert,
                &other,
                &cert,
                "",
                6,
                "listener[0].tls.certificates[0].key",
                "not the key of the first certificate",
            ),
            (
                &cert,
                &key,
                &key,
                "",
                8,
                "listener[0].tls.client_ca",
                "holds no certificate",
            ),
            (
                &cert,
                &key,
                &broken,
                "",
                8,
                "listener[0].tls.client_ca",
                "certificate 1 cannot be read",
            ),
            (
                &cert,
                &key,
                &cert,
                "ca = '/'",
                11,
                "upstream[0].tls.ca",
                "the root directory",
            ),
            (
                &cert,
                &key,
                &cert,
                "ca = '/dev/null'",
                11,
                "upstream[0].tls.ca",
                "no file",
            ),
        ] {
            let Err(ConfigError::Invalid(found)) = load(cert, key, ca, upstream) else {
                panic!("{want}");
            };
            assert_eq!(found.list.len(), 1, "{found}");
            let found = &found.list[0];
            assert_eq!((found.line, found.key.as_str()), (line, at), "{found}");
            assert!(found.message.contains(want), "{found}");
        }
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let warned = load(&cert, &key, &cert, "").unwrap().warnings;
        assert!(
            warned
                .iter()
                .any(|w| w.message.contains("can read this private key")),
            "{warned:?}"
        );
    }
}
