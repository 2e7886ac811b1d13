//! What a guest said, and the table of all guests.

use std::fmt::Write as _;
use std::time::Duration;

/// Starts the lines that `tests/vm/init` writes.
const MARK: &str = "EDGE-GUEST ";
/// Starts the lines of the program that loads every configuration.
const LOAD: &str = "edge-load: ";
/// Starts the last line of the golden packets.
const GOLDEN: &str = "edge-golden: ";

/// How one kernel took one configuration of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Load {
    /// Name of the configuration.
    pub(crate) case: String,
    /// Instructions that the verifier went through.
    pub(crate) verified: u64,
    /// From the start of the load to its end, maps included.
    pub(crate) time: Duration,
}

/// What the guest's serial port carried.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// The kernel's release.
    pub(crate) kernel: Option<String>,
    /// Steps that began, with their exit codes if they ended.
    pub(crate) steps: Vec<(String, Option<i32>)>,
    /// Loads that worked.
    pub(crate) loads: Vec<Load>,
    /// How many golden packets (rows of the tables) were run.
    pub(crate) golden: Option<u64>,
    /// Whether the guest came to its end by itself.
    pub(crate) done: bool,
}

/// Reads the serial port.
pub(crate) fn read(serial: &str) -> Said {
    let mut said = Said::default();
    for line in serial.lines().map(str::trim_end) {
        // A program may have died in the middle of a line.
        if let Some(at) = line.find(MARK) {
            mark(&mut said, &line[at + MARK.len()..]);
        } else if let Some(load) = line.strip_prefix(LOAD).and_then(load) {
            said.loads.push(load);
        } else if let Some(golden) = line.strip_prefix(GOLDEN) {
            said.golden = golden
                .split_whitespace()
                .find_map(|word| word.strip_prefix("rows=")?.parse().ok());
        }
    }
    said
}

fn mark(said: &mut Said, mark: &str) {
    let words: Vec<&str> = mark.split_whitespace().collect();
    match words[..] {
        ["kernel", release] => said.kernel = Some(release.to_owned()),
        ["begin", step] => said.steps.push((step.to_owned(), None)),
        ["end", step, code] => {
            if let Some(known) = said.steps.iter_mut().find(|(name, _)| name == step) {
                known.1 = code.parse().ok();
            }
        }
        ["done"] => said.done = true,
        _ => {}
    }
}

fn load(line: &str) -> Option<Load> {
    let mut words = line.split_whitespace();
    let case = words.next()?.to_owned();
    let mut number = |key: &str| words.next()?.strip_prefix(key)?.parse().ok();
    Some(Load {
        case,
        verified: number("verified=")?,
        time: Duration::from_micros(number("micros=")?),
    })
}

impl Said {
    /// Why the guest did not do all of `steps` well; `None` when it did.
    pub(crate) fn complaint(&self, steps: &[&str]) -> Option<String> {
        if self.kernel.is_none() {
            return Some("the guest never got to its first program".to_owned());
        }
        for &step in steps {
            match self.steps.iter().find(|(name, _)| name == step) {
                Some((_, Some(0))) => {}
                Some((_, Some(code))) => return Some(format!("{step} ended with {code}")),
                Some((_, None)) => return Some(format!("the guest ended during {step}")),
                None => return Some(format!("{step} did not run")),
            }
        }
        if steps.contains(&"load") && self.loads.is_empty() {
            return Some("load told of no load".to_owned());
        }
        if steps.contains(&"golden") && self.golden.unwrap_or_default() == 0 {
            return Some("golden told of no packets".to_owned());
        }
        (!self.done).then(|| "the guest did not come to its end".to_owned())
    }
}

/// What became of one kernel.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All steps ended well.
    Passed,
    /// The reason.
    Failed(String),
    /// The reason.
    Skipped(String),
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    /// What was asked for.
    pub(crate) asked: String,
    /// What became of it.
    pub(crate) outcome: Outcome,
    /// What the guest said, if it ran.
    pub(crate) said: Said,
    /// From the start of the emulator to its end.
    pub(crate) time: Duration,
}

/// The table, with a line below it for each row that did not pass.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut cells = vec![
        [
            "kernel",
            "release",
            "result",
            "time",
            "golden packets",
            "verified instructions",
            "load time",
        ]
        .map(str::to_owned),
    ];
    for row in rows {
        let (result, _) = row.outcome.shown();
        let worst = row.said.loads.iter().max_by_key(|load| load.verified);
        cells.push([
            row.asked.clone(),
            row.said.kernel.clone().unwrap_or_else(|| "-".to_owned()),
            result.to_owned(),
            match row.outcome {
                Outcome::Skipped(_) => "-".to_owned(),
                _ => format!("{:.0} s", row.time.as_secs_f64()),
            },
            row.said.golden.map_or("-".to_owned(), grouped),
            worst.map_or("-".to_owned(), |load| {
                format!("{} ({})", grouped(load.verified), load.case)
            }),
            worst.map_or("-".to_owned(), |load| {
                format!("{:.2} s", load.time.as_secs_f64())
            }),
        ]);
    }
    let mut text = lines(&cells);
    for row in rows {
        if let (result, Some(why)) = row.outcome.shown() {
            let _ = writeln!(text, "{} {result}: {why}", row.asked);
        }
    }
    text
}

/// Columns as wide as their widest cell.
fn lines<const N: usize>(cells: &[[String; N]]) -> String {
    let width = |at: usize| cells.iter().map(|row| row[at].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|at| width(at).unwrap_or_default());
    let mut text = String::new();
    for row in cells {
        let padded = row.iter().zip(widths);
        let line: Vec<String> = padded
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

impl Outcome {
    fn shown(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Passed => ("passed", None),
            Self::Failed(why) => ("FAILED", Some(why)),
            Self::Skipped(why) => ("SKIPPED", Some(why)),
        }
    }
}

/// A number with a comma at every thousand.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "EDGE-GUEST kernel 6.1.0-56-cloud-amd64\r\n\
        EDGE-GUEST begin load\r\n\
        edge-load: dry-run verified=445955 micros=8445000\r\n\
        edge-load: off verified=56701 micros=1518000\r\n\
        EDGE-GUEST end load 0\r\n\
        EDGE-GUEST begin golden\r\n\
        ok     IPv4 header (61 rows)\r\n\
        edge-golden: tables=121 rows=3005 failures=0 loads=45\r\n\
        half a lineEDGE-GUEST end golden 3\r\n\
        EDGE-GUEST done\r\n";

    #[test]
    fn results_are_read() {
        let said = read(GOOD);
        assert_eq!(said.kernel.as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(
            said.steps,
            [("load".to_owned(), Some(0)), ("golden".to_owned(), Some(3))]
        );
        assert_eq!(said.loads.len(), 2);
        assert_eq!(said.loads[0].verified, 445_955);
        assert_eq!(said.golden, Some(3005));
        assert_eq!(said.complaint(&["load"]), None);
        assert_eq!(
            said.complaint(&["load", "golden"]).unwrap(),
            "golden ended with 3"
        );
        assert_eq!(said.complaint(&["smoke"]).unwrap(), "smoke did not run");
    }

    #[test]
    fn no_marker_is_a_failure() {
        assert!(read("").complaint(&[]).is_some());
        let cut = GOOD.split("EDGE-GUEST end load").next().unwrap();
        assert_eq!(
            read(cut).complaint(&["load"]).unwrap(),
            "the guest ended during load"
        );
        let cut = GOOD.replace("EDGE-GUEST done", "");
        assert!(read(&cut).complaint(&["load"]).is_some());
        let cut = GOOD.replace("end load 0", "end load x");
        assert!(read(&cut).complaint(&["load"]).is_some());
        let good = GOOD.replace("end golden 3", "end golden 0");
        assert_eq!(read(&good).complaint(&["load", "golden"]), None);
        for (without, step) in [("edge-load: ", "load"), ("edge-golden: ", "golden")] {
            let cut = good.replace(without, "");
            assert!(read(&cut).complaint(&[step]).is_some(), "{step}");
        }
        let cut = good.replace("rows=3005", "rows=0");
        assert!(read(&cut).complaint(&["golden"]).is_some());
    }

    #[test]
    fn the_table_shows_the_costliest_load_and_every_reason() {
        let rows = [
            Row {
                asked: "6.1".to_owned(),
                outcome: Outcome::Passed,
                said: read(GOOD),
                time: Duration::from_millis(61_400),
            },
            Row {
                asked: "newest".to_owned(),
                outcome: Outcome::Skipped("no network".to_owned()),
                said: Said::default(),
                time: Duration::ZERO,
            },
        ];
        assert_eq!(
            table(&rows),
            "kernel  release               result   time  golden packets  verified instructions  load time\n\
             6.1     6.1.0-56-cloud-amd64  passed   61 s  3,005           445,955 (dry-run)      8.45 s\n\
             newest  -                     SKIPPED  -     -               -                      -\n\
             newest SKIPPED: no network\n"
        );
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(0), "0");
    }
}
