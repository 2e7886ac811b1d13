//! Links in the network namespace of this thread, and commands that set them up.

use std::{
    ffi::CStr,
    fs,
    io::{Error, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// The end of the pair that the flood leaves.
pub(crate) const NEAR: &CStr = c"bench-near";
/// The end that receives it.
pub(crate) const FAR: &CStr = c"bench-far";

/// A veth pair in the network namespace of this thread, with which it vanishes.
pub(crate) struct Pair {
    /// Index of the end that floods leave.
    pub(crate) near: u32,
    /// Index of the end that receives them.
    pub(crate) far: u32,
}

impl Pair {
    /// Makes it.
    pub(crate) fn new() -> Result<Self> {
        let (near, far) = (NEAR.to_str()?, FAR.to_str()?);
        call(
            "ip",
            &["link", "add", near, "type", "veth", "peer", "name", far],
            "",
        )?;
        // Without a program, too, the far end receives as a NIC's driver does: frames
        // that XDP sends, in NAPI.
        call("ethtool", &["-K", far, "gro", "on"], "")?;
        for end in [far, near] {
            // No traffic of its own.
            call(
                "ip",
                &["link", "set", end, "addrgenmode", "none", "arp", "off"],
                "",
            )?;
            call("ip", &["link", "set", end, "up"], "")?;
        }
        Ok(Self {
            near: index(NEAR)?,
            far: index(FAR)?,
        })
    }
}

/// Frames that an interface has received, whatever became of them.
pub(crate) fn received(interface: &CStr) -> Result<u64> {
    let name = interface.to_str()?;
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    // Name, bytes, packets, and more.
    let line = table.lines().find_map(|l| l.trim().strip_prefix(name));
    line.and_then(|l| l.strip_prefix(':')?.split_whitespace().nth(1)?.parse().ok())
        .with_context(|| format!("{name} has no statistics"))
}

/// Index of an interface.
pub(crate) fn index(interface: &CStr) -> Result<u32> {
    // SAFETY: a valid C string.
    let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
    ensure!(index != 0, "{interface:?}: {}", Error::last_os_error());
    Ok(index)
}

/// Runs a program to its end, and returns what it prints.
pub(crate) fn call(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} does not start (cargo xtask setup fetches it)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
