//! Runs the golden packets on the kernel of this machine: a line for each table as soon as it is
//! done, and at the end `edge-golden: tables=N rows=N failures=N loads=N`. Exits with 1 when any
//! packet differed. Needs root.

use std::process::ExitCode;

fn main() -> ExitCode {
    let report = edge_tests::golden::run_all(|table| println!("{table}"));
    println!("edge-golden: {report}");
    if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
