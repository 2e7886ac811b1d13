//! Programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

const TARGET: &str = "127.0.0.1:4321";

fn exec(command: &str, arguments: &[&str]) -> Probe {
    Probe::Exec {
        command: PathBuf::from(command),
        arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
    }
}

/// A script whose first two arguments are the address and the port, and the words of
/// `more` those before.
fn script(text: &str, more: &[&str]) -> Probe {
    exec("/bin/sh", &[&["-c", text, "sh"], more].concat())
}

async fn run(probe: Probe) -> Result<(), String> {
    ask(probe, TARGET.parse().unwrap()).await
}

#[tokio::test]
async fn the_exit_status_decides() {
    assert_eq!(run(exec("/bin/true", &[])).await, Ok(()));
    assert_eq!(run(exec("/bin/false", &[])).await, failed("exit status 1"));
    assert_eq!(run(script("exit 42", &[])).await, failed("exit status 42"));
    assert_eq!(
        run(script("kill -9 $$", &[])).await,
        failed("killed by signal 9")
    );
}

#[tokio::test]
async fn it_gets_its_arguments_and_then_the_address_and_port() {
    let arguments = script(r#"test "$*" = "one two 127.0.0.1 4321""#, &["one", "two"]);
    assert_eq!(run(arguments).await, Ok(()));
    let v6 = script(r#"test "$*" = "2001:db8::1 53""#, &[]);
    let target = "[2001:db8::1]:53".parse().unwrap();
    assert_eq!(ask(v6, target).await, Ok(()));
}

#[tokio::test]
async fn it_gets_nothing_else() {
    // What the shell adds for itself is not in there.
    let environment = r#"test "$(tr '\0' '\n' < /proc/$$/environ)" = "PATH=$PATH""#;
    assert_eq!(run(script(environment, &[])).await, Ok(()));
    let input = r#"test -z "$(cat)" && test "$(readlink /proc/$$/fd/1)" = /dev/null"#;
    assert_eq!(run(script(input, &[])).await, Ok(()));
    assert_eq!(run(script(r#"test "$PWD" = /"#, &[])).await, Ok(()));
    // And its group is its own: it is that of its own number.
    let group = r#"test "$(cut -d ' ' -f 5 /proc/$$/stat)" = $$"#;
    assert_eq!(run(script(group, &[])).await, Ok(()));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_no_answer() {
    assert_eq!(
        run(exec("/no/such/program", &[])).await,
        failed("not asked: program: no such file or directory")
    );
}

/// Writes its number and that of a child of its own, one a line, and goes on.
const TWO_PROCESSES: &str = "sleep 1000 & echo $$ $! > $1.new && mv $1.new $1; ";

/// The numbers that a script has written, when it has.
fn numbers(file: &Path) -> Option<Vec<u32>> {
    let text = fs::read_to_string(file).ok()?;
    let numbers: Vec<u32> = text
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    assert_eq!(numbers.len(), 2, "{text}");
    Some(numbers)
}

/// Waits until none of them is there; the first is ours, and must not be left as a
/// zombie either.
async fn until_gone(numbers: &[u32]) {
    let gone = |at: usize| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", numbers[at]));
        match stat {
            Ok(stat) => at > 0 && stat.rsplit(')').next().unwrap().starts_with(" Z"),
            Err(_) => true,
        }
    };
    let all = async {
        while !(0..numbers.len()).all(gone) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, all).await;
    waited.unwrap_or_else(|_| panic!("still there: {numbers:?}"));
}

#[tokio::test]
async fn one_that_hangs_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("numbers");
    let hang = script(&format!("{TWO_PROCESSES} wait"), &[file.to_str().unwrap()]);
    let target = TARGET.parse().unwrap();
    // Long enough for the script to have begun, which is long on a busy machine.
    let mut patience = SOON;
    let numbers = loop {
        let said = ask_within(patience, hang.clone(), target)
            .await
            .unwrap_err();
        assert_eq!(said, format!("not finished within {patience:?}"));
        match numbers(&file) {
            Some(numbers) => break numbers,
            None => patience *= 2,
        }
        assert!(patience < PATIENCE, "the script does not begin");
    };
    until_gone(&numbers).await;
}

#[tokio::test]
async fn nothing_is_left_of_a_check_that_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("numbers");
    let hang = script(&format!("{TWO_PROCESSES} wait"), &[file.to_str().unwrap()]);
    let check = tokio::spawn(run(hang));
    let begun = async {
        loop {
            if let Some(numbers) = numbers(&file) {
                return numbers;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let numbers = tokio::time::timeout(PATIENCE, begun).await.unwrap();
    check.abort();
    assert!(check.await.unwrap_err().is_cancelled());
    until_gone(&numbers).await;
}

#[tokio::test]
async fn nothing_is_left_of_one_that_leaves_children_behind() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("numbers");
    let leave = script(
        &format!("{TWO_PROCESSES} exit 0"),
        &[file.to_str().unwrap()],
    );
    assert_eq!(run(leave).await, Ok(()));
    until_gone(&numbers(&file).unwrap()).await;
}
