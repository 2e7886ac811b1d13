//! Files that the configuration names: certificates, keys, who signs them, and headers that may be
//! secret.

use std::{
    fs::{self, File, Metadata},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use hyper::header::{HeaderName, HeaderValue};
use tokio_rustls::rustls::{
    RootCertStore,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::{
    raw::Root,
    report::{At, Report},
};

/// The largest file of TLS, bytes.
const MAX_BYTES: u64 = 1 << 22;

/// Why a certificate cannot be used with a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The file of the chain; what is wrong with it, and the remedy.
    #[error("{0}")]
    Certificate(String),
    /// The file of the key, likewise.
    #[error("{0}")]
    Key(String),
}

/// Reads a chain and its private key from PEM files, and sees that they belong together.
///
/// # Errors
/// [`FileError`].
pub fn certified_key(cert: &Path, key: &Path) -> Result<CertifiedKey, FileError> {
    let chain = certificates(cert).map_err(FileError::Certificate)?;
    let text = read(key).map_err(FileError::Key)?;
    let der = PrivateKeyDer::from_pem_slice(&text).map_err(|e| {
        FileError::Key(format!(
            "holds no private key ({e}); name a PEM file with one that has no password"
        ))
    })?;
    let key = any_supported_type(&der).map_err(|e| {
        FileError::Key(format!(
            "the private key cannot be used ({e}); choose ECDSA or RSA"
        ))
    })?;
    let pair = CertifiedKey::new(chain, key);
    pair.keys_match().map_err(|e| match e {
        tokio_rustls::rustls::Error::InconsistentKeys(_) => FileError::Key(
            "not the key of the first certificate of the chain; name the one that belongs to it"
                .to_owned(),
        ),
        e => FileError::Certificate(format!(
            "the first certificate cannot be read ({e}); name a PEM file with that of the server first"
        )),
    })?;
    Ok(pair)
}

/// Reads certificates of those who sign others from a PEM file.
///
/// # Errors
/// What is wrong with the file, and the remedy.
pub fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for (i, certificate) in certificates(path)?.into_iter().enumerate() {
        store.add(certificate).map_err(|e| {
            format!(
                "certificate {} cannot be read ({e}); remove it from the file",
                i + 1
            )
        })?;
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|e| format!("no PEM file ({e}); write the certificate anew"))?;
    if all.is_empty() {
        return Err("holds no certificate; name a PEM file with one".to_owned());
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_file(path, MAX_BYTES).map(|(text, _)| text)
}

/// What is in a file of so many bytes at the most, and what the file is.
fn read_file(path: &Path, most: u64) -> Result<(Vec<u8>, Metadata), String> {
    let failed = |e| format!("cannot be read ({e}); name a file that this user may read");
    // Of what else there is, opening may wait for somebody.
    let is_file = |meta: &Metadata| meta.is_file() && meta.len() <= most;
    let no_file = || format!("no file of at most {most} bytes; name one");
    if !is_file(&fs::metadata(path).map_err(failed)?) {
        return Err(no_file());
    }
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let mut text = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut text).map_err(failed)?;
    if !is_file(&meta) || read as u64 > most {
        return Err(no_file());
    }
    Ok((text, meta))
}

/// Reads headers: lines of `Name: value`, empty ones, and comments behind `#`. Only its owner may
/// read the file, and nothing of what is in it is told.
///
/// # Errors
/// What is wrong with the file, and the remedy.
pub fn headers(path: &Path) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    /// Those that say where a message goes, what it is and where it ends.
    const OWN: [&str; 9] = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    /// Of the file, and how many there may be.
    const MOST: (u64, usize) = (16 << 10, 64);
    let (text, meta) = read_file(path, MOST.0)?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(
            "others than its owner may read it; chmod 600, and have other secrets made".into(),
        );
    }
    let mut headers = Vec::new();
    let lines = text.split(|byte| *byte == b'\n').zip(1..);
    for (line, number) in lines.map(|(line, number)| (line.trim_ascii(), number)) {
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let parts = colon.and_then(|at| line.split_at_checked(at));
        let header = parts.and_then(|(name, value)| {
            let name = HeaderName::from_bytes(name).ok()?;
            let mut value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        let Some((name, value)) = header else {
            return Err(format!("line {number} is no header; write Name: value"));
        };
        if OWN.contains(&name.as_str()) {
            return Err(format!(
                "line {number}: {name} is what edge says itself; remove it"
            ));
        }
        headers.push((name, value));
    }
    if headers.len() > MOST.1 {
        return Err(format!("more than {} headers; remove some", MOST.1));
    }
    Ok(headers)
}

/// Looks at all of these files that a configuration names.
pub(super) fn check(raw: &Root, report: &mut Report<'_>) {
    if let Some(traces) = raw.proxy.as_ref().and_then(|proxy| proxy.traces.as_ref()) {
        check_roots(traces.ca.as_ref(), report);
        if let Some(at) = &traces.headers_file
            && let Err(why) = headers(Path::new(&at.value))
        {
            report.problem(&at.place, why);
        }
    }
    for listener in raw.listeners.iter().flatten() {
        let Some(tls) = &listener.tls else { continue };
        for pair in tls.certificates.iter().flat_map(|at| &at.value) {
            check_pair(pair.cert.as_ref(), pair.key.as_ref(), report);
        }
        check_roots(tls.client_ca.as_ref(), report);
    }
    for upstream in raw.upstreams.iter().flatten() {
        let Some(tls) = &upstream.tls else { continue };
        check_pair(tls.cert.as_ref(), tls.key.as_ref(), report);
        check_roots(tls.ca.as_ref(), report);
    }
}

fn check_pair(cert: Option<&At<String>>, key: Option<&At<String>>, report: &mut Report<'_>) {
    let (Some(cert), Some(key)) = (cert, key) else {
        return;
    };
    match certified_key(Path::new(&cert.value), Path::new(&key.value)) {
        Err(FileError::Certificate(why)) => report.problem(&cert.place, why),
        Err(FileError::Key(why)) => report.problem(&key.place, why),
        Ok(_) => {}
    }
    let mode = fs::metadata(&key.value).map(|m| m.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o004 != 0) {
        report.warn(
            &key.place,
            "every user of this host can read this private key; chmod o-r",
        );
    }
}

fn check_roots(at: Option<&At<String>>, report: &mut Report<'_>) {
    if let Some(at) = at
        && let Err(why) = roots(Path::new(&at.value))
    {
        report.problem(&at.place, why);
    }
}
