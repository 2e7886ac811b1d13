//! Runs the golden packets on the kernel of this machine and prints what became of them; exits
//! with 1 when any differed. Needs root.

use std::process::ExitCode;

fn main() -> ExitCode {
    let report = edge_tests::golden::run_all();
    println!("{report}");
    if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
