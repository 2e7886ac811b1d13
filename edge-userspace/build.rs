//! Puts the eBPF objects where the datapath module embeds them from: `$OUT_DIR/edge.o` and
//! `$OUT_DIR/edge-decap.o`.
//!
//! The objects are built by `cargo xtask build` (this script does not run a second cargo: it would
//! need another toolchain and a linker, which only xtask finds). The first is looked for at
//! `EDGE_BPF_OBJECT`, else as `bpf/edge.o` in the target directory that this build uses, else in
//! `target` of the workspace; the second lies beside it.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

const OBJECT_VAR: &str = "EDGE_BPF_OBJECT";
const IN_TARGET: &str = "bpf/edge.o";
const DECAP: &str = "edge-decap.o";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={OBJECT_VAR}");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let manifest_dir =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let object = match env::var_os(OBJECT_VAR) {
        Some(path) => PathBuf::from(path),
        None => find(&out_dir, &manifest_dir).ok_or(
            "the eBPF object is not built yet. Run `cargo xtask build --ebpf-only` once (it also \
             fetches the toolchain for it), then build again",
        )?,
    };
    let beside = object.with_file_name(DECAP);
    for (name, file) in [("edge.o", object), (DECAP, beside)] {
        println!("cargo::rerun-if-changed={}", file.display());
        fs::copy(&file, out_dir.join(name)).map_err(|error| {
            format!(
                "cannot read the eBPF object {}: {error}; `cargo xtask build --ebpf-only` makes it",
                file.display()
            )
        })?;
    }
    Ok(())
}

/// The output directory lies inside the target directory, however that was chosen.
fn find(out_dir: &Path, manifest_dir: &Path) -> Option<PathBuf> {
    out_dir
        .ancestors()
        .map(|dir| dir.join(IN_TARGET))
        .chain([manifest_dir.join("../target").join(IN_TARGET)])
        .find(|file| file.is_file())
}
