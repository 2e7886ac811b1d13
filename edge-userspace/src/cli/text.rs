//! Numbers, times and tables for people.

use std::fmt::Write as _;

/// Digits in groups of three: `1,234,567`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Three digits with a power of 1000 and the unit: `1.23 GB`, `17.0 kB`.
pub(super) fn scaled(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let (mut v, mut i) = (value, 0);
    // What rounds to 1000 moves on to the next prefix.
    while v >= 999.5 && i + 1 < PREFIXES.len() {
        v /= 1000.0;
        i += 1;
    }
    let decimals = match (i, v) {
        (0, v) if v.fract() == 0.0 => 0,
        (_, v) if v < 9.995 => 2,
        (_, v) if v < 99.95 => 1,
        _ => 0,
    };
    format!("{v:.decimals$} {}{unit}", PREFIXES[i])
        .trim_end()
        .to_owned()
}

/// The two largest units of a time span: `3d 4h`, `59m 58s`, `12s`.
pub(super) fn span(ms: u64) -> String {
    let s = ms / 1000;
    let units = [
        (s / 86_400, "d"),
        (s / 3600 % 24, "h"),
        (s / 60 % 60, "m"),
        (s % 60, "s"),
    ];
    let first = units.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    units
        .iter()
        .skip(first)
        .take(2)
        .filter(|(n, unit)| *n > 0 || *unit == "s")
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Unix milliseconds as UTC: year, month, day and milliseconds of the day.
fn civil(unix_ms: u64) -> (u64, u64, u64, u64) {
    const DAY_MS: u64 = 86_400_000;
    // Days from 0000-03-01: years then begin in March, and the leap day is the
    // last of its year, so that one formula gives the months.
    let days = unix_ms / DAY_MS + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day, unix_ms % DAY_MS)
}

/// `2026-11-22 05:31:43 UTC`.
pub(super) fn date_time(unix_ms: u64) -> String {
    let (year, month, day, ms) = civil(unix_ms);
    let s = ms / 1000;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC")
}

/// `2026-11-22T05:31:43.123Z` (RFC 3339).
pub(super) fn timestamp(unix_ms: u64) -> String {
    let (year, month, day, ms) = civil(unix_ms);
    let (s, ms) = (ms / 1000, ms % 1000);
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// Rows under a header, each column as wide as it has to be.
pub(super) struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) const fn new(columns: [Column; N]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table, with a newline behind each row. `widths` are the least
    /// widths, and are raised to those used: tables that follow each other
    /// keep their columns.
    pub(super) fn render(&self, widths: &mut [usize; N], with_header: bool) -> String {
        let header = self.columns.map(|c| match c {
            Column::Left(h) | Column::Right(h) => h.to_owned(),
        });
        for row in self.rows.iter().chain(with_header.then_some(&header)) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        for row in with_header.then_some(&header).into_iter().chain(&self.rows) {
            let mut line = String::new();
            for ((cell, column), width) in row.iter().zip(&self.columns).zip(widths.iter()) {
                // Writing to a string cannot fail.
                let _ = match column {
                    Column::Left(_) => write!(line, "{cell:<width$}  "),
                    Column::Right(_) => write!(line, "{cell:>width$}  "),
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    /// The table alone, with its header.
    pub(super) fn text(&self) -> String {
        self.render(&mut [0; N], true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_in_groups() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn three_digits_and_a_prefix() {
        for (v, text) in [
            (0.0, "0 B"),
            (0.25, "0.25 B"),
            (999.0, "999 B"),
            (999.7, "1.00 kB"),
            (1500.0, "1.50 kB"),
            (12_345.0, "12.3 kB"),
            (999_999.0, "1.00 MB"),
            (u64::MAX as f64, "18.4 EB"),
        ] {
            assert_eq!(scaled(v, "B"), text);
        }
        assert_eq!(scaled(7.0, ""), "7");
    }

    #[test]
    fn spans_in_two_units() {
        for (ms, text) in [
            (0, "0s"),
            (999, "0s"),
            (12_000, "12s"),
            (60_000, "1m 0s"),
            (3_598_000, "59m 58s"),
            (3_600_000, "1h"),
            (273_600_000, "3d 4h"),
            (u64::MAX, "213503982334d 14h"),
        ] {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn dates() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (1_735_689_600_000, "2025-01-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(ms), text);
        }
        assert_eq!(date_time(1_795_325_503_123), "2026-11-22 05:31:43 UTC");
        // The end of time must not be the end of the program.
        assert!(timestamp(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn columns_are_aligned() {
        let mut t = Table::new([Column::Left("NAME"), Column::Right("N"), Column::Left("X")]);
        t.row(["a".into(), "10".into(), String::new()]);
        t.row(["bcdef".into(), "9".into(), "y".into()]);
        assert_eq!(t.text(), "NAME    N  X\na      10\nbcdef   9  y\n");
    }
}
