//! Packets that once met a bug, on the host: the parser finds them as malformed as the file says,
//! and everything else that must hold of any frame holds. The golden test runs them through the
//! real program.

#[path = "../../edge-common/tests/parser/oracle.rs"]
mod oracle;

use edge_common::parse;
use edge_tests::golden;

#[test]
fn the_parser_on_every_packet_that_once_met_a_bug() {
    let tables = golden::regressions();
    assert!(!tables.is_empty());
    for table in &tables {
        for row in &table.rows {
            let name = format!("{}, {}", table.name, row.what);
            println!("{name}");
            let found = parse::parse(&row.frame[..]);
            let expected = row.ends.is_malformed().then_some(row.ends);
            assert_eq!(found.err(), expected, "{name}");
            oracle::check(&row.frame);
            for len in 0..=row.frame.len() {
                oracle::check_cut(&row.frame, len);
            }
        }
    }
}
