//! Quantities as people write them: sizes, rates and durations, in both directions.
//!
//! Invariant: a text means one exact number or is refused. Nothing is rounded, wrapped or cut off, `GiB`
//! and `GB` differ, and what `format_*` writes, `parse_*` reads back as the same value.

use std::fmt;
use std::time::Duration;

/// Why a text is not a value, and what would be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong with the text.
    pub message: String,
    /// What is accepted instead.
    pub help: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.help)
    }
}

impl std::error::Error for Invalid {}

/// A unit's name and how many of the smallest unit it holds, largest first in every table.
type Unit = (&'static str, u64);

const SIZE_UNITS: &[Unit] = &[
    ("EiB", 1 << 60),
    ("EB", 1_000_000_000_000_000_000),
    ("PiB", 1 << 50),
    ("PB", 1_000_000_000_000_000),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

const NANOSECOND_UNITS: &[Unit] = &[
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

const SIZE_HELP: &str = "a size is a number of bytes, or a string such as \"10GiB\": KiB, MiB, GiB, TiB, PiB and \
                         EiB are powers of 1024; kB, MB, GB, TB, PB and EB are powers of 1000; B is bytes";
const RATE_HELP: &str = "a rate is a number of bytes a second, or a size with `/s`, such as \"100MiB/s\"";
const DURATION_HELP: &str = "a duration is a string such as \"30s\", \"250ms\" or \"5min\"; the units are ns, us, ms, s, min, h and d";

/// Bytes: `"10GiB"`, `"10GB"`, `"1.5MiB"`, `"512"`.
///
/// # Errors
/// A unit that is missing from the table or unclear, a fraction of a byte, or 2^64 bytes and more.
pub fn parse_size(text: &str) -> Result<u64, Invalid> {
    let (number, unit) = split(text);
    let fail = |message| Invalid { message, help: SIZE_HELP.to_string() };
    if unit.is_empty() {
        return exact(number, 1).map_err(|why| fail(format!("`{text}` {why}")));
    }
    match SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
        Some(&(_, bytes)) => exact(number, bytes).map_err(|why| fail(format!("`{text}` {why}"))),
        None if number.is_empty() => Err(fail(format!("`{text}` is not a size"))),
        None => Err(unknown_size_unit(text, number, unit)),
    }
}

/// Bytes a second: `"100MiB/s"`, `"1GB/s"`.
///
/// # Errors
/// A text that does not end in `/s`, and whatever [`parse_size`] refuses.
pub fn parse_rate(text: &str) -> Result<u64, Invalid> {
    let bits = text.ends_with("bps") || text.contains("bit");
    let Some(size) = text.strip_suffix("/s").filter(|_| !bits) else {
        let message = if bits {
            format!("`{text}` counts bits, and rates are in bytes")
        } else {
            format!("`{text}` is not a rate")
        };
        let help = match parse_size(text) {
            Ok(bytes) if !bits => format!("did you mean \"{}\"?", format_rate(bytes)),
            _ => RATE_HELP.to_string(),
        };
        return Err(Invalid { message, help });
    };
    parse_size(size.trim_end_matches(' ')).map_err(|why| Invalid { help: RATE_HELP.to_string(), ..why })
}

/// A length of time: `"30s"`, `"250ms"`, `"1.5h"`.
///
/// # Errors
/// A missing or unknown unit, a fraction of a nanosecond, or more than 2^64 nanoseconds (584 years).
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    let (number, unit) = split(text);
    let fail = |message| Invalid { message, help: DURATION_HELP.to_string() };
    match NANOSECOND_UNITS.iter().find(|(name, _)| *name == unit) {
        Some(&(_, nanoseconds)) => exact(number, nanoseconds)
            .map(Duration::from_nanos)
            .map_err(|why| fail(format!("`{text}` {why}"))),
        None if number.is_empty() => Err(fail(format!("`{text}` is not a duration"))),
        None if unit.is_empty() => Err(fail(format!("`{text}` has no unit"))),
        None => Err(fail(format!("`{text}` has the unknown unit `{unit}`"))),
    }
}

/// The shortest exact spelling of a number of bytes that [`parse_size`] reads back.
pub fn format_size(bytes: u64) -> String {
    spell(bytes, SIZE_UNITS)
}

/// The shortest exact spelling of a number of bytes a second that [`parse_rate`] reads back.
pub fn format_rate(bytes_per_second: u64) -> String {
    format_size(bytes_per_second) + "/s"
}

/// The shortest exact spelling of a duration that [`parse_duration`] reads back.
///
/// A duration beyond 2^64 nanoseconds, which no configuration can hold, is written as that bound.
pub fn format_duration(duration: Duration) -> String {
    match u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX) {
        0 => "0s".to_string(),
        nanoseconds => spell(nanoseconds, NANOSECOND_UNITS),
    }
}

/// Takes the unit that needs the fewest digits; powers of 1024 win where both are exact.
fn spell(value: u64, units: &[Unit]) -> String {
    units
        .iter()
        .filter(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .map(|(name, factor)| format!("{}{name}", value / factor))
        .min_by_key(String::len)
        .unwrap_or_else(|| format!("0{}", units[units.len() - 1].0))
}

/// The number in front and the unit behind it, blanks between them removed.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start_matches(' '))
}

/// A decimal number times a factor, if that is a whole number below 2^64.
fn exact(number: &str, factor: u64) -> Result<u64, &'static str> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err("does not start with a number");
    }
    let whole = match whole.trim_start_matches('0') {
        "" => 0,
        whole => whole.parse::<u64>().map_err(|_| TOO_LARGE)?,
    };
    // Up to 18 decimal places times any factor stays below 2^128.
    let fraction = fraction.trim_end_matches('0');
    let Ok(places @ 0..=18) = u32::try_from(fraction.len()) else {
        return Err("has too many decimal places");
    };
    let parts = if places == 0 { 0 } else { fraction.parse::<u128>().map_err(|_| TOO_LARGE)? };
    let scale = 10u128.pow(places);
    if !(parts * u128::from(factor)).is_multiple_of(scale) {
        return Err("is not a whole number of the smallest unit");
    }
    let value = u128::from(whole) * u128::from(factor) + parts * u128::from(factor) / scale;
    u64::try_from(value).map_err(|_| TOO_LARGE)
}

const TOO_LARGE: &str = "is too large: 2^64 and more do not fit";

/// Names what may have been meant by a unit that is nearly one.
fn unknown_size_unit(text: &str, number: &str, unit: &str) -> Invalid {
    let stem = unit.trim_end_matches(['b', 'B', 'i', 'I']).to_uppercase();
    let meant: Vec<String> = SIZE_UNITS
        .iter()
        .filter(|(name, _)| *name != "KB" && *name != "B" && name.to_uppercase().starts_with(&stem))
        .map(|(name, _)| format!("\"{number}{name}\""))
        .collect();
    match &meant[..] {
        [binary, decimal] if !stem.is_empty() => Invalid {
            message: format!("`{text}` has the unclear unit `{unit}`"),
            help: format!("write {binary} (powers of 1024) or {decimal} (powers of 1000)"),
        },
        _ => Invalid {
            message: format!("`{text}` has the unknown unit `{unit}`"),
            help: SIZE_HELP.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn binary_and_decimal_suffixes_differ() {
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("10GB"), Ok(10_000_000_000));
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("7 B"), Ok(7));
        assert_eq!(parse_size("1kB"), parse_size("1KB"));
    }

    #[test]
    fn fractions_are_exact_or_refused() {
        assert_eq!(parse_size("1.5MiB"), Ok(3 << 19));
        assert_eq!(parse_size("0.001kB"), Ok(1));
        assert!(parse_size("0.1KiB").unwrap_err().message.contains("whole number"));
        assert!(parse_size("1.").is_err());
        assert!(parse_size(".5GiB").is_err());
        assert!(parse_size("0.1234567890123456789EB").unwrap_err().message.contains("decimal places"));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_never_cut_off() {
        assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
        assert!(parse_size("18446744073709551616").unwrap_err().message.contains("too large"));
        assert!(parse_size("16EiB").unwrap_err().message.contains("too large"));
        assert!(parse_duration("213504d").unwrap_err().message.contains("too large"));
    }

    #[test]
    fn an_unclear_unit_names_both_meanings() {
        let why = parse_size("10G").unwrap_err();
        assert_eq!(why.message, "`10G` has the unclear unit `G`");
        assert_eq!(why.help, "write \"10GiB\" (powers of 1024) or \"10GB\" (powers of 1000)");
        assert_eq!(parse_size("10gb").unwrap_err().help, why.help);
        assert!(parse_size("10 parsecs").unwrap_err().message.contains("unknown unit `parsecs`"));
        assert_eq!(parse_size("big").unwrap_err().message, "`big` is not a size");
        assert_eq!(parse_size("").unwrap_err().message, "`` does not start with a number");
    }

    #[test]
    fn a_rate_ends_in_per_second_and_counts_bytes() {
        assert_eq!(parse_rate("100MiB/s"), Ok(100 << 20));
        assert_eq!(parse_rate("100MiB").unwrap_err().help, "did you mean \"100MiB/s\"?");
        assert_eq!(parse_rate("7 MiB /s"), Ok(7 << 20));
        assert!(parse_rate("7MiB\n/s").is_err(), "only spaces are blanks, as in a size");
        for bits in ["100Mbps", "100Mbit/s"] {
            assert!(parse_rate(bits).unwrap_err().message.contains("bits"), "{bits}");
        }
        assert!(parse_rate("fast").unwrap_err().help.contains("bytes a second"));
    }

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("5min"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("30").unwrap_err().message, "`30` has no unit");
        assert_eq!(parse_duration("3m").unwrap_err().message, "`3m` has the unknown unit `m`");
    }

    #[test]
    fn the_spelling_is_the_shortest() {
        assert_eq!(format_size(32 << 20), "32MiB");
        assert_eq!(format_size(1000), "1kB");
        assert_eq!(format_size(0), "0B");
        assert_eq!(format_rate(1 << 30), "1GiB/s");
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::ZERO), "0s");
    }

    proptest! {
        #[test]
        fn every_size_rate_and_duration_survives_the_round_trip(value: u64) {
            prop_assert_eq!(parse_size(&format_size(value)), Ok(value));
            prop_assert_eq!(parse_rate(&format_rate(value)), Ok(value));
            let duration = Duration::from_nanos(value);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = (parse_size(&text), parse_rate(&text), parse_duration(&text));
        }
    }
}
