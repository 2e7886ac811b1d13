//! Lists the files of `regressions/`, so that whatever is put there is replayed, on other kernels
//! too, where only the test program is.

use std::{env, error::Error, fmt::Write as _, fs, path::Path};

const DIRECTORY: &str = "regressions";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={DIRECTORY}");
    let mut paths = fs::read_dir(DIRECTORY)?
        .map(|entry| fs::canonicalize(entry?.path()))
        .collect::<Result<Vec<_>, std::io::Error>>()?;
    paths.sort();
    let mut list = String::from("&[\n");
    for path in paths {
        let name = path.file_name().unwrap_or_default();
        writeln!(list, "({name:?}, include_str!({path:?})),")?;
    }
    list.push(']');
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    fs::write(Path::new(&out).join("regressions.rs"), list)?;
    Ok(())
}
