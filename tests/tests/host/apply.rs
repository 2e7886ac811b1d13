//! What a change of balanced services would do, and `edge apply`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use edge_tests::daemon::Installation;
use edge_tests::lab::Lab;
use edge_tests::wait;

/// A service over three neighbours of the host.
fn settings(lab: &Lab) -> String {
    let backends: String = (2..5)
        .map(|n| {
            let address = lab.link().v4(n);
            format!("[[service.backend]]\nname = \"web-{n}\"\naddress = \"{address}\"\n")
        })
        .collect();
    format!(
        "[[service]]\nname = \"web\"\naddresses = [\"10.99.0.1\"]\nports = [80]\nsyn = \"off\"\n\
         forward = \"l2\"\n{backends}"
    )
}

fn without_the_last(text: &str) -> String {
    let at = text
        .rfind("[[service.backend]]")
        .expect("there is a backend");
    text[..at].to_owned()
}

#[test]
fn what_a_change_moves_is_told_before_it_is_applied() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab));
    let _daemon = edge.start();
    let names = || -> Vec<String> {
        let status = edge.status();
        let backends = status["balance"]["services"][0]["backends"].as_array();
        let used = backends.into_iter().flatten();
        used.filter(|b| b["weight"] != 0)
            .map(|b| b["name"].as_str().unwrap().to_owned())
            .collect()
    };
    wait::until("all backends are used", || names().len() == 3);
    let own = fs::read_to_string(edge.config()).unwrap();
    let next = edge.file("next.toml");
    let file = next.to_str().unwrap();
    let smaller = without_the_last(&own);
    fs::write(&next, &smaller).unwrap();

    let moves = "web: removing web-4 moves 33.";
    let told = edge.ok(&["apply", "-c", file, "--dry-run"]);
    assert!(
        told.contains(moves) && told.contains(" % of slots"),
        "{told}"
    );
    assert!(told.contains(" needlessly"), "{told}");
    assert!(told.contains("no live flow loses its backend"), "{told}");
    assert!(told.ends_with("Nothing is changed: a dry run.\n"), "{told}");
    let checked = edge.ok(&["check", "-c", file]);
    assert!(
        checked.contains("against what is in force here:"),
        "{checked}"
    );
    assert!(checked.contains(moves), "{checked}");
    let json = edge.json(&["apply", "-c", file, "--dry-run"]).remove(0);
    let service = &json["services"][0];
    let moved = service["moved_slots"].as_array().unwrap();
    let [moved, slots] = [&moved[0], &moved[1]].map(|n| n.as_u64().unwrap());
    let needless = service["needless_slots"].as_u64().unwrap();
    assert_eq!(
        (slots, &json["generation"]),
        (65_537, &serde_json::Value::Null)
    );
    assert!(moved > slots * 33 / 100 && needless < moved / 50, "{json}");
    assert_eq!(service["lost_flows"], 0);
    assert_eq!(names().len(), 3);
    assert_eq!(edge.status()["config"]["generation"], 1);

    fs::set_permissions(edge.config(), fs::Permissions::from_mode(0o640)).unwrap();
    let applied = edge.ok(&["apply", "-c", file]);
    assert!(applied.contains(moves), "{applied}");
    assert!(
        applied.ends_with("Generation 2 is in force.\n"),
        "{applied}"
    );
    assert_eq!(fs::read_to_string(edge.config()).unwrap(), smaller);
    let mode = edge.config().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    wait::until("the others are used", || names() == ["web-2", "web-3"]);

    // What cannot come into force changes nothing, at whatever step that shows.
    for (text, why) in [
        ("interfaces = 7".to_owned(), "next.toml:1: interfaces = 7"),
        (
            format!("balance.slots = 251\n{smaller}"),
            "balance.slots cannot change while the daemon runs",
        ),
        (smaller.replace("\"eth0\"", "\"eth0\", \"eth9\""), "eth9"),
    ] {
        fs::write(&next, text).unwrap();
        let refused = edge.outcome(&["apply", "-c", file]);
        assert_ne!(refused.code, 0, "{why}");
        assert!(refused.stderr.contains(why), "{why}: {}", refused.stderr);
        assert_eq!(fs::read_to_string(edge.config()).unwrap(), smaller);
        assert_eq!(edge.status()["config"]["generation"], 2);
        assert_eq!(names(), ["web-2", "web-3"]);
    }

    // The file as it is now, under another name or none.
    fs::write(edge.config(), &own).unwrap();
    let told = edge.ok(&["reload"]);
    assert!(told.contains("web: adding web-4 moves 33."), "{told}");
}
