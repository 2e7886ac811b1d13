//! `edge upstream` and `edge routes`.

use std::path::Path;

use edge_userspace::control::protocol::ServerChange;

use crate::command_line::{ROUTES, json, rig, run};

#[test]
fn upstreams_are_listed_and_their_servers_changed() {
    let rig = rig();
    let socket = &rig.path();
    let (code, out, _) = run(socket, "upstream list");
    assert_eq!(code, 0);
    assert!(out.contains("10.0.0.1:80  up"), "{out}");
    let all = json(socket, "upstream list app");
    assert_eq!(all[0]["servers"][0]["address"], "10.0.0.1:80");
    let (code, out, err) = run(socket, "upstream list shop");
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("\"shop\"; there are: app"), "{err}");

    let (code, out, _) = run(socket, "upstream drain app 10.0.0.1:80");
    let told = "app 10.0.0.1:80: gets no new requests; 3 are under way\n";
    assert_eq!((code, out.as_str()), (0, told));
    let (_, out, _) = run(socket, "upstream drain app 10.0.0.1:80 --undo");
    assert_eq!(out, "app 10.0.0.1:80: weight 1, up\n");
    let changed = json(socket, "upstream weight app 10.0.0.1:80 5");
    assert_eq!(changed[0]["servers"][0]["weight"], 5);
    assert_eq!(
        *rig.engine.changes.lock().unwrap(),
        [
            ServerChange::Drain {},
            ServerChange::Undrain {},
            ServerChange::Weight { weight: 5 }
        ]
    );
    let (code, _, err) = run(socket, "upstream drain app 10.0.0.9:80");
    assert_eq!(code, 2, "{err}");
    assert_eq!(rig.count("upstream"), (3, 1));
}

#[test]
fn routes_are_listed_and_tried() {
    let rig = rig();
    let socket = &rig.path();
    let (code, out, _) = run(socket, "routes list");
    assert_eq!((code, out.lines().count()), (0, 2), "{out}");
    let listed = json(socket, "routes list");
    assert_eq!(listed[0]["route"], "api");
    assert_eq!(listed[0]["requests"]["classes"][1], 7);

    let url = "http://example.com/api/users?id=7";
    let (code, out, err) = run(socket, &format!("routes test {url} --method POST"));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("route           api\n"), "{out}");
    assert!(out.contains("server sees     /users?id=7\n"), "{out}");
    assert!(out.contains("upstream        app\n"), "{out}");
    // No route has it: a refusal is told, and is no success.
    let (code, out, err) = run(socket, &format!("routes test {url}"));
    assert_eq!((code, err.as_str()), (1, ""));
    assert!(out.contains("refused         404, no_route"), "{out}");
    let (code, _, err) = run(socket, "routes test example.com");
    assert_eq!(code, 2);
    assert!(err.contains("http://host/path"), "{err}");
    assert_eq!(rig.count("route_test"), (2, 1));
}

#[test]
fn a_file_is_asked_without_a_daemon() {
    let nowhere = Path::new("/nonexistent/edge.sock");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    std::fs::write(&file, ROUTES).unwrap();
    let test = format!(
        "routes test -c {} --method POST http://a/api/",
        file.display()
    );
    let answers = json(nowhere, &test);
    assert_eq!(answers[0]["route"], "api");
    assert_eq!(answers[0]["outcome"]["forward"]["target"], "/");
    let (code, _, err) = run(nowhere, &format!("{test} --listener other"));
    assert_eq!(code, 2);
    assert!(err.contains("there are: web"), "{err}");
    std::fs::write(&file, "interfaces = ['eth0']\n").unwrap();
    let (code, _, err) = run(nowhere, &test);
    assert_eq!(code, 2);
    assert!(err.contains("[[listener]]"), "{err}");
}
