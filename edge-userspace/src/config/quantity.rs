//! Amounts and rates as people write them: `250000`, `"250k"`, `"10MiB"`,
//! `"2.5Gbit/s"`.
//!
//! A number alone counts packets, entries or bytes. `k`, `M` and `G` are
//! powers of 1000, `Ki`, `Mi` and `Gi` powers of 1024. Bytes and bits are never
//! guessed: text must say `B` or `bit`, and a `b` alone is refused.
//!
//! Spans of time have units of their own: [`seconds`], [`duration`].

use std::time::Duration;

use super::{
    reader::{FromToml, Node, parsed, place, wrong_type},
    report::Report,
};

/// What an amount counts, and so which units it may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things: entries, packets.
    Count,
    /// Things a second.
    CountRate,
    /// Bytes.
    Bytes,
    /// Bytes a second; also written in bits a second.
    ByteRate,
}

impl Unit {
    /// What may be written, for an error.
    const fn expected(self) -> &'static str {
        match self {
            Self::Count => "a whole number such as 250000 or \"250k\" (k, M, G: powers of 1000)",
            Self::CountRate => {
                "a whole number a second such as 250000 or \"250k\" (k, M, G: powers of 1000)"
            }
            Self::Bytes => "a number of bytes such as 1048576, \"1MiB\" or \"10MB\"",
            Self::ByteRate => {
                "a number of bytes a second such as 12500000, \"12.5MB\", \"10MiB\" or \"100Mbit\""
            }
        }
    }

    const fn is_rate(self) -> bool {
        matches!(self, Self::CountRate | Self::ByteRate)
    }

    /// Multiplier and divisor of a unit's name.
    fn scale(self, name: &str) -> Option<(u64, u64)> {
        let (prefix, divisor) = match self {
            Self::Count | Self::CountRate => return Some((decimal(name)?, 1)),
            Self::Bytes => (name.strip_suffix('B')?, 1),
            Self::ByteRate => match name.strip_suffix("bit") {
                Some(prefix) => (prefix, 8),
                None => (name.strip_suffix('B')?, 1),
            },
        };
        Some((decimal(prefix).or_else(|| binary(prefix))?, divisor))
    }
}

fn decimal(prefix: &str) -> Option<u64> {
    match prefix {
        "" => Some(1),
        "k" | "K" => Some(1_000),
        "M" => Some(1_000_000),
        "G" => Some(1_000_000_000),
        _ => None,
    }
}

fn binary(prefix: &str) -> Option<u64> {
    match prefix {
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        _ => None,
    }
}

/// Why a text is no amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No number, or no unit that belongs to it.
    #[error("not an amount; expected {}", .0.expected())]
    Syntax(Unit),
    /// A number of bytes without `B`.
    #[error("bytes or bits? Write B for bytes or, in rates, bit for bits: {}", .0.expected())]
    ByteOrBit(Unit),
    /// A fraction that is no whole number of packets, entries or bytes.
    #[error("not a whole number once the unit is applied; expected {}", .0.expected())]
    Fraction(Unit),
    /// More than 64 bits hold.
    #[error("too large; expected {}", .0.expected())]
    TooLarge(Unit),
}

/// The amount that a text stands for.
///
/// # Errors
/// [`QuantityError`], which names what may be written.
pub fn parse(text: &str, unit: Unit) -> Result<u64, QuantityError> {
    let amount = match text.strip_suffix("/s") {
        Some(amount) if unit.is_rate() => amount,
        _ => text,
    };
    let end = amount
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(amount.len());
    let (number, name) = amount.split_at(end);
    let name = name.strip_prefix(' ').unwrap_or(name);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = digits(whole, unit)?;
    let places = u32::try_from(fraction.len()).unwrap_or(u32::MAX);
    let ten = 10u128
        .checked_pow(places)
        .filter(|&t| t <= 1_000_000_000_000);
    let ten = ten.ok_or(QuantityError::Fraction(unit))?;
    let fraction = digits(fraction, unit)?;
    let (multiplier, divisor) = match unit.scale(name) {
        Some(scale) => scale,
        None if matches!(unit, Unit::Bytes | Unit::ByteRate)
            && (name.ends_with('b') || name.ends_with("bps") || decimal(name).is_some()) =>
        {
            return Err(QuantityError::ByteOrBit(unit));
        }
        None => return Err(QuantityError::Syntax(unit)),
    };
    // At most 2^64 × 10^12 × 10^9, which 128 bits do not hold: hence checked.
    let scaled = (whole.checked_mul(ten))
        .and_then(|w| w.checked_add(fraction))
        .and_then(|n| n.checked_mul(u128::from(multiplier)))
        .ok_or(QuantityError::TooLarge(unit))?;
    let divisor = ten * u128::from(divisor);
    if !scaled.is_multiple_of(divisor) {
        return Err(QuantityError::Fraction(unit));
    }
    u64::try_from(scaled / divisor).map_err(|_| QuantityError::TooLarge(unit))
}

/// Digits, which single underscores may group.
fn digits(text: &str, unit: Unit) -> Result<u128, QuantityError> {
    let grouped = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    let plain: String = text.chars().filter(|&c| c != '_').collect();
    if !grouped || plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_digit()) {
        return Err(QuantityError::Syntax(unit));
    }
    let value = plain.parse::<u64>();
    value
        .map(u128::from)
        .map_err(|_| QuantityError::TooLarge(unit))
}

/// An amount from an integer or a string.
fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>, unit: Unit) -> Option<u64> {
    let value = node.get_ref();
    let result = if let Some(integer) = value.as_integer() {
        // i128: a sign must not look like a wrong digit.
        match i128::from_str_radix(integer.as_str(), integer.radix()).map(u64::try_from) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) if integer.as_str().starts_with('-') => Err(QuantityError::Syntax(unit)),
            _ => Err(QuantityError::TooLarge(unit)),
        }
    } else if let Some(text) = value.as_str() {
        parse(text, unit)
    } else {
        wrong_type(node, key, unit.expected(), report);
        return None;
    };
    match result {
        Ok(amount) => Some(amount),
        Err(error) => {
            report.problem(&place(node, key), error);
            None
        }
    }
}

macro_rules! amounts {
    ($( $(#[$doc:meta])* $name:ident, $unit:ident; )*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) struct $name(pub(super) u64);

        impl FromToml for $name {
            fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
                from_toml(node, key, report, Unit::$unit).map(Self)
            }
        }
    )* };
}

amounts! {
    /// A number of things.
    Count, Count;
    /// Things a second.
    CountRate, CountRate;
    /// Bytes.
    Bytes, Bytes;
    /// Bytes a second.
    ByteRate, ByteRate;
}

/// A share of a whole, in thousandths: written as a number from 0 to 1 with at most three digits
/// behind the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(pub(super) u32);

impl Share {
    /// The share as it is written.
    pub(super) fn spelt(permille: u32) -> String {
        let digits = format!("{}.{:03}", permille / 1000, permille % 1000);
        let short = digits.trim_end_matches('0').trim_end_matches('.');
        short.to_owned()
    }
}

impl FromToml for Share {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "a share from 0 to 1 such as 0.5, in steps of 0.001";
        let value = node.get_ref();
        let text = match (value.as_float(), value.as_integer()) {
            (Some(number), _) => number.as_str(),
            (_, Some(number)) if number.radix() == 10 => number.as_str(),
            _ => {
                wrong_type(node, key, EXPECTED, report);
                return None;
            }
        };
        let share = share(text);
        if share.is_none() {
            report.problem(
                &place(node, key),
                format_args!("no share; expected {EXPECTED}"),
            );
        }
        share.map(Self)
    }
}

/// Thousandths of a number from 0 to 1.
fn share(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.len() <= 3 && fraction.bytes().all(|b| b.is_ascii_digit());
    if !digits || !matches!(whole, "0" | "1") {
        return None;
    }
    let thousandths: u32 = format!("{whole}{fraction:0<3}").parse().ok()?;
    (thousandths <= 1000).then_some(thousandths)
}

/// Units of time and their milliseconds, the largest first.
const TIME_UNITS: [(&str, u64); 6] = [
    ("w", 7 * 24 * 60 * 60 * 1000),
    ("d", 24 * 60 * 60 * 1000),
    ("h", 60 * 60 * 1000),
    ("m", 60 * 1000),
    ("s", 1000),
    ("ms", 1),
];

/// The seconds that a span such as `90s` or `1h30m` stands for: numbers with
/// units, the larger first. `None` when it is none, or does not fit 64 bits.
pub fn seconds(text: &str) -> Option<u64> {
    span(text, 1000)
}

/// The span of time that a text such as `500ms` or `1m30s` stands for, likewise.
pub fn duration(text: &str) -> Option<Duration> {
    span(text, 1).map(Duration::from_millis)
}

/// A span of whole milliseconds as [`duration`] reads it, in the largest unit that needs no
/// other one beside it.
pub fn spelt(span: Duration) -> String {
    let ms = span.as_millis();
    let units = TIME_UNITS
        .into_iter()
        .map(|(unit, ms)| (unit, u128::from(ms)));
    match units.into_iter().find(|&(_, unit)| ms.is_multiple_of(unit)) {
        Some((name, unit)) if ms > 0 => format!("{}{name}", ms / unit),
        _ => "0s".to_owned(),
    }
}

/// A span of time in steps of so many milliseconds, which no unit may be shorter than.
fn span(text: &str, step: u64) -> Option<u64> {
    let (mut rest, mut total, mut largest) = (text, 0u64, u64::MAX);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let number: u64 = number.parse().ok()?;
        let end = after.find(|c: char| c.is_ascii_digit());
        let (name, after) = after.split_at(end.unwrap_or(after.len()));
        let (_, unit) = TIME_UNITS
            .into_iter()
            .find(|&(unit, ms)| unit == name && (step..largest).contains(&ms))?;
        largest = unit;
        total = total.checked_add(number.checked_mul(unit / step)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

/// A span of whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seconds(pub(super) u64);

impl FromToml for Seconds {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "a span of time such as \"10s\", \"90s\" or \"1h30m\"";
        parsed(node, key, EXPECTED, report, |text| {
            seconds(text)
                .map(Self)
                .ok_or_else(|| format!("no span of time; expected {EXPECTED}"))
        })
    }
}

impl FromToml for Duration {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "a span of time such as \"500ms\", \"2s\" or \"1h30m\"";
        parsed(node, key, EXPECTED, report, |text| {
            duration(text).ok_or_else(|| format!("no span of time; expected {EXPECTED}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, unit, want) in [
            ("0", Unit::Count, 0),
            ("250k", Unit::Count, 250_000),
            ("250_000", Unit::Count, 250_000),
            ("1.5M", Unit::CountRate, 1_500_000),
            ("100K/s", Unit::CountRate, 100_000),
            ("2G", Unit::Count, 2_000_000_000),
            ("64KiB", Unit::Bytes, 65_536),
            ("10MB", Unit::Bytes, 10_000_000),
            ("10 MiB", Unit::Bytes, 10 << 20),
            ("512B", Unit::Bytes, 512),
            ("100Mbit", Unit::ByteRate, 12_500_000),
            ("2.5Gbit/s", Unit::ByteRate, 312_500_000),
            ("1Gibit", Unit::ByteRate, 1 << 27),
            ("12.5MB/s", Unit::ByteRate, 12_500_000),
            ("18446744073709551615", Unit::Count, u64::MAX),
        ] {
            assert_eq!(parse(text, unit), Ok(want), "{text}");
        }
    }

    #[test]
    fn spans_have_units_the_larger_first() {
        for (text, ms) in [
            ("100ms", 100),
            ("1s500ms", 1500),
            ("1m1ms", 60_001),
            ("0s", 0),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "", "1", "ms", "1ms1s", "1s1s", "1.5s", "1us", "-1s", "1 s", "1é",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
        for (text, want) in [
            ("0ms", "0s"),
            ("1ms", "1ms"),
            ("1s500ms", "1500ms"),
            ("90s", "90s"),
            ("60m", "1h"),
            ("36h", "36h"),
            ("48h", "2d"),
        ] {
            assert_eq!(spelt(duration(text).unwrap()), want);
        }
        assert_eq!((seconds("1m1s"), seconds("1m500ms")), (Some(61), None));
        let most = format!("{}s", u64::MAX);
        assert_eq!((seconds(&most), duration(&most)), (Some(u64::MAX), None));
    }

    #[test]
    fn shares_are_thousandths() {
        for (text, want) in [
            ("0", 0),
            ("1", 1000),
            ("0.5", 500),
            ("0.125", 125),
            ("1.0", 1000),
            ("0.001", 1),
        ] {
            assert_eq!(share(text), Some(want), "{text}");
            assert_eq!(share(&Share::spelt(want)), Some(want));
        }
        for bad in [
            "", "2", "1.001", "-0.5", "0.0001", ".5", "5e-1", "0.+5", "nan", "inf", "00.5",
        ] {
            assert_eq!(share(bad), None, "{bad}");
        }
        assert_eq!(
            (Share::spelt(0), Share::spelt(50), Share::spelt(1000)),
            ("0".into(), "0.05".into(), "1".into())
        );
    }

    #[test]
    fn refuses_what_could_mean_two_things() {
        for (text, unit) in [
            ("10M", Unit::Bytes),
            ("10", Unit::ByteRate),
            ("10Mb", Unit::ByteRate),
            ("10Mbps", Unit::ByteRate),
            ("10b", Unit::Bytes),
        ] {
            assert_eq!(
                parse(text, unit),
                Err(QuantityError::ByteOrBit(unit)),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_amount() {
        use QuantityError::{Fraction, Syntax, TooLarge};
        for (text, unit, want) in [
            ("", Unit::Count, Syntax(Unit::Count)),
            ("k", Unit::Count, Syntax(Unit::Count)),
            ("-1", Unit::Count, Syntax(Unit::Count)),
            ("+1", Unit::Count, Syntax(Unit::Count)),
            ("1.", Unit::Count, Syntax(Unit::Count)),
            (".5k", Unit::Count, Syntax(Unit::Count)),
            ("1.2.3k", Unit::Count, Syntax(Unit::Count)),
            ("1__0", Unit::Count, Syntax(Unit::Count)),
            ("1 000", Unit::Count, Syntax(Unit::Count)),
            ("10/s", Unit::Count, Syntax(Unit::Count)),
            ("10Mbit", Unit::Bytes, Syntax(Unit::Bytes)),
            ("10KiB", Unit::Count, Syntax(Unit::Count)),
            ("1m", Unit::Count, Syntax(Unit::Count)),
            ("0.5", Unit::Count, Fraction(Unit::Count)),
            ("1.0001k", Unit::Count, Fraction(Unit::Count)),
            ("1bit", Unit::ByteRate, Fraction(Unit::ByteRate)),
            ("18446744073709551616", Unit::Count, TooLarge(Unit::Count)),
            ("18446744073709551615G", Unit::Count, TooLarge(Unit::Count)),
        ] {
            assert_eq!(parse(text, unit), Err(want), "{text:?}");
        }
        let long = format!("0.{}", "0".repeat(100_000));
        assert_eq!(parse(&long, Unit::Count), Err(Fraction(Unit::Count)));
    }
}
