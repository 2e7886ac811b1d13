//! A real nginx in a namespace.

use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::netns::Namespace;
use crate::wait;

/// The port of HTTP/2, without TLS.
pub const HTTP2: u16 = 8281;

/// nginx on port 80 of all addresses of a namespace, and on that of HTTP/2 of its IPv4 ones, until
/// it is dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    /// Its configuration and files.
    _directory: tempfile::TempDir,
}

impl Nginx {
    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace) -> Self {
        Self::with(namespace, "protected by Edge", None)
    }

    /// The same, with the files of a directory below `/files/`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn serving(namespace: &Namespace, files: &Path) -> Self {
        Self::with(namespace, "protected by Edge", Some(files))
    }

    /// The same with another text for every request, which must have no quotes.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn saying(namespace: &Namespace, text: &str) -> Self {
        Self::with(namespace, text, None)
    }

    #[track_caller]
    fn with(namespace: &Namespace, text: &str, files: Option<&Path>) -> Self {
        let files = files.map_or_else(String::new, |path| {
            format!("location /files/ {{ alias {}/; }}\n", path.display())
        });
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = directory.path().display();
        // Tests leave heads half sent while other things take their time.
        let configuration = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             worker_rlimit_nofile 8192; events {{ worker_connections 4096; }}\n\
             http {{\n\
               access_log off; default_type text/plain; client_header_timeout 10m;\n\
               client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
               fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi;\n\
               scgi_temp_path {at}/scgi;\n\
               server {{\n\
                 listen 80; listen [::]:80; listen {HTTP2} http2;\n\
                 {files}\
                 location / {{ return 200 \"{text}\\n\"; }}\n\
               }}\n\
             }}\n"
        );
        let file = directory.path().join("nginx.conf");
        fs::write(&file, configuration).expect("the configuration is written");
        let mut child = namespace
            .command("nginx")
            .arg("-p")
            .arg(directory.path())
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(directory.path().join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nginx starts (cargo xtask setup fetches it)");
        let here = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80);
        wait::until("nginx listens", || {
            if let Ok(Some(status)) = child.try_wait() {
                let mut said = String::new();
                if let Some(stderr) = &mut child.stderr {
                    let _ = stderr.read_to_string(&mut said);
                }
                let log = fs::read_to_string(directory.path().join("error.log"));
                panic!(
                    "nginx ended with {status}: {said}{}",
                    log.unwrap_or_default()
                );
            }
            namespace.inside(|| TcpStream::connect(here)).is_ok()
        });
        Self {
            child,
            _directory: directory,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
