//! Command line of Edge.
fn main() {}
