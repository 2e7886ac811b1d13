//! nginx as a server of HTTP/2.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use hyper::Method;

use super::{
    client::{answer, ask, connect},
    rig::{Rig, Setup, until},
    server::pattern,
};

struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nginx_answers() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().display();
    fs::write(directory.path().join("large"), pattern(2_000_000)).unwrap();
    // Other users have to find it, should nginx be started by root.
    let configuration = format!(
        "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;\n\
         events {{}}\n\
         http {{ access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
         server {{ listen unix:{root}/app.sock http2; keepalive_requests 20;\n\
         location / {{ root {root}; }}\n\
         location /seen {{ default_type text/plain;\n\
         return 200 \"$server_protocol $host $http_x_forwarded_for\"; }} }} }}\n"
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let started = Command::new("nginx")
        .arg("-p")
        .arg(directory.path())
        .arg("-c")
        .arg(&file)
        .arg("-e")
        .arg(directory.path().join("error.log"))
        .stderr(Stdio::null())
        .spawn();
    let _nginx = Nginx(started.expect("nginx starts (cargo xtask setup fetches it)"));
    let socket = directory.path().join("app.sock");
    until("it listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let mut setup = Setup::new(&[])
        .listener("http2 = true")
        .upstream("protocol = 'http2'");
    setup.servers = vec![format!("unix:{}", socket.display())];
    let rig = Rig::new(&setup);
    let client = connect(rig.port.at).await;
    // Every twenty requests it says good-bye.
    for _ in 0..100 {
        let (head, body, _) = answer(&client, ask(Method::POST, "/seen")).await;
        let seen = String::from_utf8(body).unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(seen, "HTTP/2.0 a.example 127.0.0.1");
    }
    let (_, body, _) = answer(&client, ask(Method::GET, "/large")).await;
    assert!(body == pattern(2_000_000), "{} bytes", body.len());
    assert_eq!(rig.app().retries, 0);
}
