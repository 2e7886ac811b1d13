//! `cargo xtask tidy`: what the compiler does not check about this tree.
//!
//! Which module may know which (`layers`), how files look (`files`), and that the documents name
//! things that exist (`docs`).

mod docs;
mod files;
mod layers;
mod lexer;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

/// Directories that hold nothing written by a person.
const SKIPPED_DIRS: [&str; 5] = [
    ".git",
    "target",
    "artifacts",
    "corpus",
    "proptest-regressions",
];

/// A source or document of the tree.
struct Source {
    /// Path relative to the tree.
    path: PathBuf,
    /// Its text.
    text: String,
}

/// Something that is not as the house rules want it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Path relative to the tree.
    path: PathBuf,
    /// Counted from 1; 0 when the file as a whole is meant.
    line: usize,
    /// What is wrong and what to do instead.
    message: String,
}

impl Finding {
    fn new(path: &Path, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_path_buf(),
            line,
            message: message.into(),
        }
    }
}

/// Runs the command. `subcommands` are the names that documents may use after `cargo xtask`.
pub(crate) fn run(workspace: &Workspace, subcommands: &[String]) -> Result<()> {
    let sources = read_tree(&workspace.root)?;
    let mut findings = layers::check(&sources);
    findings.extend(files::check(&sources));
    findings.extend(docs::check(&sources, &workspace.root, subcommands));
    findings.sort();
    // One line may name the same thing several times.
    findings.dedup();
    for Finding {
        path,
        line,
        message,
    } in &findings
    {
        match line {
            0 => println!("{}: {message}", path.display()),
            _ => println!("{}:{line}: {message}", path.display()),
        }
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings", findings.len());
    }
    println!("tidy: {} files, no findings", sources.len());
    Ok(())
}

/// Every Rust source and Markdown document of the tree.
fn read_tree(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries = dir
            .read_dir()
            .with_context(|| format!("cannot read {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
            let path = entry.path();
            let kind = entry
                .file_type()
                .with_context(|| format!("cannot read {}", path.display()))?;
            if kind.is_dir() {
                let name = entry.file_name();
                if !SKIPPED_DIRS.iter().any(|skipped| name == *skipped) {
                    pending.push(path);
                }
            } else if kind.is_file()
                && path
                    .extension()
                    .is_some_and(|ext| ext == "rs" || ext == "md")
            {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let path = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_directories_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["src/a.rs", "target/b.rs", "docs/c.md", "docs/d.txt"] {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "x").unwrap();
        }
        let paths: Vec<PathBuf> = read_tree(dir.path())
            .unwrap()
            .into_iter()
            .map(|source| source.path)
            .collect();
        assert_eq!(
            paths,
            [PathBuf::from("docs/c.md"), PathBuf::from("src/a.rs")]
        );
    }
}
