//! A real nginx on the loopback address.

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use super::PATIENCE;

pub(crate) const V3: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/health/tls/v3.pem");
pub(crate) const V1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/health/tls/v1.pem");
pub(crate) const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/health/tls/key.pem");

/// nginx, until it is dropped.
pub(crate) struct Nginx {
    master: Child,
    directory: tempfile::TempDir,
    /// Where it speaks HTTP.
    pub(crate) http: SocketAddr,
    /// Where it speaks TLS.
    pub(crate) https: SocketAddr,
}

impl Nginx {
    /// Starts it, with `certificate` and with `tls` as further directives for TLS.
    ///
    /// The ports are the kernel's choice: the sockets are made here, and nginx takes them
    /// over as it does those of its predecessor in an upgrade (`NGINX`). In a process
    /// alone, without a master, it cannot.
    pub(crate) fn start(certificate: &str, tls: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [http, https] = listeners.each_ref().map(|l| l.local_addr().unwrap());
        let configuration = configuration(directory.path(), http, https, certificate, tls);
        let file = directory.path().join("nginx.conf");
        fs::write(&file, configuration).unwrap();
        write_files(directory.path());
        let [first, second] = listeners.map(OwnedFd::from);
        let mut master = Command::new("nginx")
            .env("NGINX", "0;1;")
            .arg("-p")
            .arg(directory.path())
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(directory.path().join("error.log"))
            .stdin(first)
            .stdout(second)
            .stderr(Stdio::piped())
            .spawn()
            .expect("nginx starts (cargo xtask setup fetches it)");
        // The sockets listen already; it must not end, and it must answer.
        let deadline = Instant::now() + PATIENCE;
        while !answers(http) {
            if let Ok(Some(status)) = master.try_wait() {
                let mut said = String::new();
                master.stderr.unwrap().read_to_string(&mut said).unwrap();
                let log = fs::read_to_string(directory.path().join("error.log"));
                panic!("nginx: {status}: {said}{}", log.unwrap_or_default());
            }
            assert!(Instant::now() < deadline, "nginx does not answer");
        }
        Self {
            master,
            directory,
            http,
            https,
        }
    }

    /// What it has logged, of levels from "info" on.
    pub(crate) fn error_log(&self) -> String {
        fs::read_to_string(self.directory.path().join("error.log")).unwrap()
    }

    /// One line for each request: status, method, URI, client.
    pub(crate) fn access_log(&self) -> String {
        fs::read_to_string(self.directory.path().join("access.log")).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Not killed: its worker would stay.
        let pid = i32::try_from(self.master.id()).unwrap();
        // SAFETY: no pointers are passed; the child is ours and not waited for yet.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let _ = self.master.wait();
    }
}

fn answers(at: SocketAddr) -> bool {
    use std::io::Write as _;
    let Ok(mut stream) = TcpStream::connect(at) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(super::SOON));
    let asked = stream.write_all(b"HEAD /ready HTTP/1.0\r\n\r\n");
    asked.is_ok() && stream.read(&mut [0; 16]).is_ok_and(|got| got > 0)
}

/// Files to be served: where "needle" stands, in bytes.
fn write_files(directory: &Path) {
    for (name, at, length) in [
        ("first", 0, 100),
        ("edge", (64 << 10) - 6, 100 << 10),
        ("across", (64 << 10) - 5, 100 << 10),
        ("far", 90 << 10, 100 << 10),
    ] {
        let mut text = vec![b'.'; length];
        text[at..at + 6].copy_from_slice(b"needle");
        fs::write(directory.join(name), text).unwrap();
    }
}

fn configuration(
    directory: &Path,
    http: SocketAddr,
    https: SocketAddr,
    certificate: &str,
    tls: &str,
) -> String {
    let at = directory.display();
    format!(
        "daemon off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log info;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           default_type text/html;\n\
           log_format line '$status $request_method $request_uri $http_user_agent';\n\
           access_log {at}/access.log line;\n\
           client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
           fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi;\n\
           scgi_temp_path {at}/scgi;\n\
           server {{\n\
             listen {http} default_server;\n\
             location / {{ return 200 \"host=$http_host; all is well\\n\"; }}\n\
             location /overloaded {{ return 503; }}\n\
             location /empty {{ return 204; }}\n\
             location /moved {{ return 302 /; }}\n\
             location /files/ {{ alias {at}/; }}\n\
             location /chunked/ {{ alias {at}/; sub_filter never ever; }}\n\
           }}\n\
           server {{\n\
             listen {http}; server_name www.example.org;\n\
             return 418 \"by name\";\n\
           }}\n\
           server {{\n\
             listen {https} ssl;\n\
             ssl_certificate {certificate}; ssl_certificate_key {KEY}; {tls}\n\
             location / {{\n\
               return 200 \"sni=$ssl_server_name; host=$http_host; $ssl_protocol; \
                            alpn=$ssl_alpn_protocol;\\n\";\n\
             }}\n\
             location /overloaded {{ return 503; }}\n\
           }}\n\
         }}\n"
    )
}
