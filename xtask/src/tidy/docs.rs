//! That documents name things that exist: links, anchors, paths of the tree, xtask commands.

use std::path::{Component, Path, PathBuf};

use super::{Finding, Source};

pub(super) fn check(sources: &[Source], root: &Path, subcommands: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| is_markdown(&source.path)) {
        for line in lines(&source.text) {
            let mut report = |message: String| {
                findings.push(Finding::new(&source.path, line.number, message));
            };
            for command in xtask_commands(line.text) {
                if !subcommands.iter().any(|known| known == command) {
                    report(format!("there is no `cargo xtask {command}`"));
                }
            }
            if line.fenced {
                continue;
            }
            for target in links(line.text) {
                if let Some(message) = broken_link(source, target, sources, root) {
                    report(message);
                }
            }
            for path in code_spans(line.text).filter(|span| looks_like_path(span, root)) {
                if !root.join(path.trim_end_matches('/')).exists() {
                    report(format!("`{path}` does not exist"));
                }
            }
        }
    }
    findings
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext == "md")
}

struct Line<'a> {
    number: usize,
    text: &'a str,
    /// Inside of a code block.
    fenced: bool,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut fenced = false;
    text.lines().enumerate().map(move |(at, text)| {
        let fence = text.trim_start().starts_with("```");
        if fence {
            fenced = !fenced;
        }
        Line {
            number: at + 1,
            text,
            fenced: fenced || fence,
        }
    })
}

/// Targets of `[text](target)`, images included.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(at, open)| {
        let rest = &line[at + open.len()..];
        let target = &rest[..rest.find(')')?];
        // A title may follow after a space.
        target.split_whitespace().next()
    })
}

/// Contents of `code`.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The word after each `cargo xtask`.
fn xtask_commands(line: &str) -> impl Iterator<Item = &str> {
    line.split("cargo xtask ").skip(1).filter_map(|rest| {
        let end = rest
            .find(|c: char| !c.is_ascii_lowercase() && c != '-')
            .unwrap_or(rest.len());
        Some(rest[..end].trim_matches('-')).filter(|word| !word.is_empty())
    })
}

/// A code span is taken for a path of the tree when its first component is in the tree and it is
/// spelled like a path; `aya::Bpf/x` or `<name>/y` is none.
fn looks_like_path(span: &str, root: &Path) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    span.contains('/')
        && !span.starts_with('/')
        && span.chars().all(plain)
        && Path::new(span)
            .components()
            .next()
            .is_some_and(|first| match first {
                Component::Normal(name) => name != "target" && root.join(name).exists(),
                _ => false,
            })
}

fn broken_link(source: &Source, target: &str, sources: &[Source], root: &Path) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() {
        source.path.clone()
    } else {
        let dir = source.path.parent().unwrap_or(Path::new(""));
        match normal(&dir.join(file)) {
            Some(path) => path,
            None => return Some(format!("the link `{target}` leads out of the tree")),
        }
    };
    if !root.join(&path).exists() {
        return Some(format!("the link `{target}` leads to nothing"));
    }
    if !anchor.is_empty() && is_markdown(&path) {
        let document = sources.iter().find(|other| other.path == path)?;
        if !headings(&document.text).any(|heading| heading == anchor) {
            return Some(format!("{} has no heading for `#{anchor}`", path.display()));
        }
    }
    None
}

/// Resolves `.` and `..` without the file system; `None` when it leaves the tree.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            Component::Normal(name) => out.push(name),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

/// Anchors of a document's headings, as forges make them: lower case, spaces to hyphens,
/// punctuation gone.
fn headings(text: &str) -> impl Iterator<Item = String> + '_ {
    lines(text)
        .filter(|line| !line.fenced && line.text.starts_with('#'))
        .map(|line| {
            line.text
                .trim_start_matches('#')
                .trim()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .flat_map(char::to_lowercase)
                .collect()
        })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn messages(text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("docs")).unwrap();
        fs::write(dir.path().join("docs/real.md"), "").unwrap();
        let source = |path: &str, text: &str| Source {
            path: PathBuf::from(path),
            text: text.to_owned(),
        };
        let sources = [
            source("docs/page.md", text),
            source(
                "docs/real.md",
                "# A `real` Thing, here\n```\n# no heading\n```\n",
            ),
        ];
        fs::write(dir.path().join("docs/page.md"), text).unwrap();
        check(&sources, dir.path(), &["build".to_owned()])
            .into_iter()
            .map(|finding| format!("{}: {}", finding.line, finding.message))
            .collect()
    }

    #[test]
    fn good_references_pass() {
        let text = "[a](real.md) [b](../docs/real.md#a-real-thing-here) [c](https://x.y/z) [d](#top)\n\
            # Top\n`docs/real.md` `docs/` `cargo xtask build --debug` `other/thing` `docs/*.md` `/docs/x`\n";
        assert_eq!(messages(text), Vec::<String>::new());
    }

    #[test]
    fn broken_links_and_anchors_are_found() {
        let found =
            messages("\n[a](gone.md)\n[b](real.md#no-heading)\n[c](../../x)\n[d](#nowhere)\n");
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].starts_with("2: ") && found[0].contains("leads to nothing"));
        assert!(found[1].contains("no heading"));
        assert!(found[2].contains("out of the tree"));
        assert!(found[3].contains("no heading"));
    }

    #[test]
    fn paths_and_commands_that_do_not_exist_are_found() {
        let found = messages("see `docs/gone.rs`\n```\ncargo xtask fly\n```\n");
        assert_eq!(
            found,
            [
                "1: `docs/gone.rs` does not exist",
                "3: there is no `cargo xtask fly`"
            ]
        );
    }
}
