//! `edge upstream` and `edge routes`.

use std::path::Path;

use edge_userspace::{
    config::{self, RouteDescription},
    control::protocol::{Failure, FailureKind, Request, Response, ServerChange},
    l7::proxy::explain,
    status::{
        proxy::{RequestCounts, ServerStatus, UpstreamStatus},
        route::RouteEntry,
    },
};

use crate::command_line::{json, rig, run};

/// A configuration with a route.
const ROUTES: &str = "\
interfaces = ['eth0']
[[listener]]
name = 'web'
addresses = ['127.0.0.1:80']
[[upstream]]
name = 'app'
[[upstream.server]]
address = '10.0.0.1:80'
[[route]]
name = 'api'
path = { prefix = '/api/' }
methods = ['POST']
upstream = 'app'
rewrite = { prefix = '/' }
";

/// What the engine answers of the proxy.
pub(crate) fn answer(
    request: Request,
    changes: &mut Vec<ServerChange>,
) -> Result<Response, Failure> {
    let invalid = |text: String| Failure::new(FailureKind::Invalid, text);
    match request {
        Request::Upstream { server, change, .. } => {
            let upstream = upstream(change);
            if server != upstream.servers[0].address {
                return Err(invalid("there is no such server".to_owned()));
            }
            changes.push(change);
            Ok(Response::Upstream(Box::new(upstream)))
        }
        Request::RouteTest(question) => {
            let checked = config::parse(ROUTES, Path::new("edge.toml"), 4_000_000).unwrap();
            let answers = explain::answer_of(&checked.model.proxy, &question);
            let answers = answers.map_err(|e| invalid(e.to_string()))?;
            Ok(Response::RouteTest(answers))
        }
        _ => Ok(Response::Routes(vec![RouteEntry {
            route: RouteDescription {
                route: "api".to_owned(),
                listeners: vec!["web".to_owned()],
                path: "/api/".to_owned(),
                action: "app".to_owned(),
                ..RouteDescription::default()
            },
            requests: RequestCounts {
                classes: [0, 7, 0, 0, 2, 0],
                ..RequestCounts::default()
            },
        }])),
    }
}

/// The upstream after a change.
pub(crate) fn upstream(change: ServerChange) -> UpstreamStatus {
    UpstreamStatus {
        name: "app".to_owned(),
        balance: "round-robin".to_owned(),
        servers: vec![ServerStatus {
            address: "10.0.0.1:80".to_owned(),
            weight: match change {
                ServerChange::Weight { weight } => weight.into(),
                _ => 1,
            },
            up: true,
            draining: change == ServerChange::Drain {},
            active: 3,
            ..ServerStatus::default()
        }],
        ..UpstreamStatus::default()
    }
}

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
    // The word of who connects counts where the file says so.
    let proto = ROUTES
        .replace(
            "['127.0.0.1:80']\n",
            "['127.0.0.1:80']\ntrusted_proxies = ['10.0.0.0/8']\n",
        )
        .replace(
            "methods",
            "headers = [{ name = 'x-forwarded-proto', value = 'https' }]\nmethods",
        );
    std::fs::write(&file, proto).unwrap();
    let ask = format!("{test} --header X-Forwarded-Proto:https");
    let (code, out, _) = run(nowhere, &ask);
    assert!(code == 1 && out.contains("no_route"), "{out}");
    let answers = json(nowhere, &format!("{ask} --from 10.0.0.1"));
    assert_eq!(answers[0]["route"], "api");
    assert_eq!(answers[0]["trusted"], true);
    let (_, out, _) = run(nowhere, &format!("{ask} --from 10.0.0.1"));
    assert!(out.contains("from            a trusted proxy\n"), "{out}");
    let (code, out, _) = run(nowhere, &format!("{ask} --from 192.0.2.1"));
    assert_eq!(code, 1, "{out}");
    std::fs::write(&file, ROUTES).unwrap();
    let (code, _, err) = run(nowhere, &format!("{test} --listener other"));
    assert_eq!(code, 2);
    assert!(err.contains("there are: web"), "{err}");
    std::fs::write(&file, "interfaces = ['eth0']\n").unwrap();
    let (code, _, err) = run(nowhere, &test);
    assert_eq!(code, 2);
    assert!(err.contains("[[listener]]"), "{err}");
}
