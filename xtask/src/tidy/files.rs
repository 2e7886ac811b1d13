//! How a source file looks: its size, and what must not be left in it.

use super::{Finding, Source};

/// Longer files need a reason.
const MAX_LINES: usize = 800;

/// A line that starts so gives the reason why a file is long.
const REASON: &str = "//! Long because: ";

/// Notes to oneself; put together here so that this file does not hold them.
const NOTES: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    sources
        .iter()
        .filter(|source| source.path.extension().is_some_and(|ext| ext == "rs"))
        .flat_map(check_one)
        .collect()
}

fn check_one(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = source.text.lines().count();
    let has_reason = source.text.lines().any(|line| {
        line.strip_prefix(REASON)
            .is_some_and(|reason| !reason.trim().is_empty())
    });
    if lines > MAX_LINES && !has_reason {
        findings.push(Finding::new(
            &source.path,
            0,
            format!(
                "{lines} lines, more than {MAX_LINES}: split it, or say why in a line `{REASON}…`"
            ),
        ));
    }
    for (number, line) in source.text.lines().enumerate() {
        if let Some(note) = NOTES.iter().find(|note| has_word(line, note)) {
            findings.push(Finding::new(
                &source.path,
                number + 1,
                format!("{note}: finish it, or say plainly what it cannot do"),
            ));
        }
        if line.trim_start().starts_with("#[ignore") {
            findings.push(Finding::new(
                &source.path,
                number + 1,
                "an ignored test proves nothing: make it run or remove it",
            ));
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_inside = |c: char| c.is_alphanumeric() || c == '_';
        !line[..at].chars().next_back().is_some_and(is_inside)
            && !line[at + word.len()..]
                .chars()
                .next()
                .is_some_and(is_inside)
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn findings(text: &str) -> Vec<Finding> {
        check(&[Source {
            path: PathBuf::from("a.rs"),
            text: text.to_owned(),
        }])
    }

    #[test]
    fn long_files_need_a_reason() {
        let long = "\n".repeat(MAX_LINES + 1);
        assert_eq!(findings(&long).len(), 1);
        assert_eq!(findings(&"\n".repeat(MAX_LINES)).len(), 0);
        assert_eq!(
            findings(&format!("//! Long because: one table.{long}")).len(),
            0
        );
        assert_eq!(findings(&format!("//! Long because: {long}")).len(), 1);
    }

    #[test]
    fn notes_and_ignored_tests_are_found() {
        let note = NOTES[0];
        assert_eq!(findings(&format!("// {note}: later"))[0].line, 1);
        assert_eq!(findings(&format!("let my{note}s = 1;")).len(), 0);
        assert_eq!(findings("#[test]\n    #[ignore = \"slow\"]\n")[0].line, 2);
    }
}
