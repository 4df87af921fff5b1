//! Numbers as people read them: bytes, rates, packets, percentages, spans of time. Pure.
//!
//! Bytes are integers until their last digit is chosen, so that a figure does not depend on what a
//! float can hold. Every figure carries its unit. What a script reads is not made here.

use std::{fmt, str::FromStr, time::Duration};

use jiff::SignedDuration;

/// In which units bytes are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Units {
    /// Powers of 1024: KiB, MiB, GiB.
    #[default]
    Iec,
    /// Powers of 1000: kB, MB, GB.
    Si,
    /// Every byte, not rounded.
    Bytes,
}

impl Units {
    /// The words by which units are chosen.
    pub const NAMES: [&str; 3] = ["iec", "si", "bytes"];
}

/// A word that names no units.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no units are called `{0}`; choose iec (GiB), si (GB) or bytes (exact)")]
pub struct UnknownUnits(pub String);

impl FromStr for Units {
    type Err = UnknownUnits;

    fn from_str(name: &str) -> Result<Self, UnknownUnits> {
        match name {
            "iec" => Ok(Self::Iec),
            "si" => Ok(Self::Si),
            "bytes" => Ok(Self::Bytes),
            other => Err(UnknownUnits(other.to_owned())),
        }
    }
}

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iec => "iec",
            Self::Si => "si",
            Self::Bytes => "bytes",
        })
    }
}

/// Shown in place of a figure that there is none of.
pub const NONE: &str = "n/a";

/// Returns `bytes` with its unit: three digits (four below the next power of 1024), or all of them.
///
/// What rounds up to a whole next unit is shown in that one: 1,048,575 B are 1.00 MiB.
pub fn format_bytes(bytes: u64, units: Units) -> String {
    format_scaled(u128::from(bytes), units)
}

/// Returns bytes per second, or [`NONE`] where no time has passed.
pub fn format_rate(bytes: u64, seconds: f64, units: Units) -> String {
    // Nanoseconds as an integer: a span of seconds has no more precise source than that.
    let nanos = (seconds * 1e9) as u128;
    match (u128::from(bytes) * 1_000_000_000 + nanos / 2).checked_div(nanos) {
        Some(rate) => format!("{}/s", format_scaled(rate, units)),
        None => NONE.to_owned(),
    }
}

fn format_scaled(bytes: u128, units: Units) -> String {
    let (base, names): (u128, &[&str]) = match units {
        Units::Iec => (1024, &["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]),
        Units::Si => (1000, &["kB", "MB", "GB", "TB", "PB", "EB"]),
        Units::Bytes => return format!("{} B", grouped(bytes)),
    };
    if bytes < base {
        return format!("{} B", grouped(bytes));
    }
    let mut unit = base;
    for (index, name) in names.iter().enumerate() {
        let digits = three_digits(bytes, unit);
        // Rounding may reach the next unit, which then says it in fewer digits.
        if rounded(bytes, unit) < base || index + 1 == names.len() {
            return format!("{digits} {name}");
        }
        unit *= base;
    }
    unreachable!("the last unit takes whatever is left")
}

fn rounded(number: u128, unit: u128) -> u128 {
    (number + unit / 2) / unit
}

/// Returns `number / unit` with at least three digits.
fn three_digits(number: u128, unit: u128) -> String {
    let hundredths = rounded(number * 100, unit);
    if hundredths < 1_000 {
        return format!("{}.{:02}", hundredths / 100, hundredths % 100);
    }
    let tenths = rounded(number * 10, unit);
    if tenths < 1_000 {
        return format!("{}.{}", tenths / 10, tenths % 10);
    }
    grouped(rounded(number, unit))
}

/// Reads `60s`, `10m`, `1h30m`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    match text.parse::<u32>() {
        Ok(seconds) => Some(Duration::from_secs(seconds.into())),
        Err(_) => Duration::try_from(text.parse::<SignedDuration>().ok()?).ok(),
    }
}

/// Writes a duration as [`parse_duration`] reads it: `10s`, `10m`, `1h 30m`.
pub fn format_duration(duration: Duration) -> String {
    SignedDuration::try_from(duration)
        .map_or_else(|_| format!("{}s", duration.as_secs()), |duration| format!("{duration:#}"))
}

/// Returns a count with a comma between thousands.
pub fn format_count(count: u64) -> String {
    grouped(u128::from(count))
}

fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns an error with its sign, two decimals below 1000 % and none from there on.
pub fn format_signed_percent(percent: f64) -> String {
    if !percent.is_finite() {
        return NONE.to_owned();
    }
    let sign = match percent {
        percent if percent > 0.0 => "+",
        percent if percent < 0.0 => "-",
        _ => "",
    };
    format!("{sign}{}", format_percent(percent.abs()))
}

/// Returns a share that has no sign, such as a capture rate.
pub fn format_percent(percent: f64) -> String {
    match percent {
        percent if !percent.is_finite() => NONE.to_owned(),
        percent if percent.abs() < 999.995 => format!("{percent:.2} %"),
        percent => format!("{} %", grouped(percent.abs().round() as u128)),
    }
}

/// Returns a ratio with at least three digits: `621.8`, `2.15`, `0.0016`.
pub fn format_ratio(ratio: f64) -> String {
    match ratio {
        ratio if !ratio.is_finite() => NONE.to_owned(),
        ratio if ratio >= 999.95 => grouped(ratio.round() as u128),
        ratio if ratio >= 99.995 => format!("{ratio:.1}"),
        ratio if ratio >= 0.995 || ratio <= 0.0 => format!("{ratio:.2}"),
        ratio => {
            // As many zeros as it has, and two digits behind them; 20 are more than bytes can make.
            let zeros = (-ratio.log10()).floor().clamp(0.0, 20.0) as usize;
            format!("{ratio:.*}", zeros + 2)
        }
    }
}

/// Returns a span of time: `0.0 s`, `59.9 s`, `2 min 05 s`, `1 h 02 min 05 s`, `3 d 04 h 05 min`.
pub fn format_seconds(seconds: f64) -> String {
    let tenths = (seconds.max(0.0) * 10.0).round() as u64;
    if tenths < 600 {
        return format!("{}.{} s", tenths / 10, tenths % 10);
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min {:02} s", whole % 60),
        (0, _) => format!("{hours} h {minutes:02} min {:02} s", whole % 60),
        _ => format!("{days} d {hours:02} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_units_change_at_powers_of_1024() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1,000 B"),
            (1_023, "1,023 B"),
            (1_024, "1.00 KiB"),
            (1_536, "1.50 KiB"),
            // 9.994 and 9.996 KiB: the second rounds to four digits, and shows three of them.
            (10_234, "9.99 KiB"),
            (10_236, "10.0 KiB"),
            // 99.9 KiB is 102,298 B; 99.95 KiB, 102,349, rounds up.
            (102_298, "99.9 KiB"),
            (102_349, "100 KiB"),
            (1_000 * 1_024, "1,000 KiB"),
            (1_023 * 1_024, "1,023 KiB"),
            // Half a KiB below 1 MiB is the boundary of rounding up to it.
            (1_048_063, "1,023 KiB"),
            (1_048_064, "1.00 MiB"),
            (1_048_575, "1.00 MiB"),
            (1_320_702_443, "1.23 GiB"),
            (1 << 40, "1.00 TiB"),
            (1 << 50, "1.00 PiB"),
            (1 << 60, "1.00 EiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(format_bytes(bytes, Units::Iec), text, "{bytes}");
        }
    }

    #[test]
    fn decimal_units_change_at_powers_of_1000() {
        for (bytes, text) in [
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (1_004, "1.00 kB"),
            (1_005, "1.01 kB"),
            (9_994, "9.99 kB"),
            (9_995, "10.0 kB"),
            (99_949, "99.9 kB"),
            (99_950, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (999_949, "1.00 MB"),
            (1_320_702_443, "1.32 GB"),
            (999_499_999_999, "999 GB"),
            (999_500_000_000, "1.00 TB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(format_bytes(bytes, Units::Si), text, "{bytes}");
        }
    }

    #[test]
    fn exact_units_keep_every_byte() {
        assert_eq!(format_bytes(0, Units::Bytes), "0 B");
        assert_eq!(format_bytes(1_234, Units::Bytes), "1,234 B");
        // Beyond 2^53, where a float would round to 9,007,199,254,740,992.
        assert_eq!(format_bytes((1 << 53) + 1, Units::Bytes), "9,007,199,254,740,993 B");
        assert_eq!(format_bytes(u64::MAX, Units::Bytes), "18,446,744,073,709,551,615 B");
        assert_eq!(format_count(999), "999");
        assert_eq!(format_count(1_000_000), "1,000,000");
    }

    #[test]
    fn a_rate_is_per_second_and_needs_a_second() {
        assert_eq!(format_rate(3 * 1_048_576, 2.0, Units::Iec), "1.50 MiB/s");
        assert_eq!(format_rate(100, 0.5, Units::Bytes), "200 B/s");
        assert_eq!(format_rate(u64::MAX, 1.0, Units::Bytes), "18,446,744,073,709,551,615 B/s");
        for seconds in [0.0, -1.0, f64::NAN] {
            assert_eq!(format_rate(100, seconds, Units::Iec), NONE);
        }
    }

    #[test]
    fn an_error_shows_its_sign_and_a_share_does_not() {
        assert_eq!(format_signed_percent(-99.936), "-99.94 %");
        assert_eq!(format_signed_percent(0.4), "+0.40 %");
        assert_eq!(format_signed_percent(0.0), "0.00 %");
        assert_eq!(format_signed_percent(-0.0), "0.00 %");
        // Too small to show, and still not nothing.
        assert_eq!(format_signed_percent(-0.001), "-0.00 %");
        assert_eq!(format_signed_percent(999.994), "+999.99 %");
        assert_eq!(format_signed_percent(999.996), "+1,000 %");
        assert_eq!(format_signed_percent(12_345.6), "+12,346 %");
        assert_eq!(format_signed_percent(f64::INFINITY), NONE);
        assert_eq!(format_percent(38.44), "38.44 %");
        assert_eq!(format_percent(f64::NAN), NONE);
    }

    #[test]
    fn a_ratio_keeps_three_digits_however_small() {
        assert_eq!(format_ratio(621.784), "621.8");
        assert_eq!(format_ratio(999.96), "1,000");
        assert_eq!(format_ratio(12_345.6), "12,346");
        assert_eq!(format_ratio(2.154), "2.15");
        assert_eq!(format_ratio(1.0), "1.00");
        assert_eq!(format_ratio(0.25), "0.25");
        assert_eq!(format_ratio(0.001_608), "0.0016");
        assert_eq!(format_ratio(0.0), "0.00");
        assert_eq!(format_ratio(f64::NAN), NONE);
    }

    #[test]
    fn a_span_carries_over_when_it_rounds_up() {
        for (seconds, text) in [
            (0.0, "0.0 s"),
            (-1.0, "0.0 s"),
            (f64::NAN, "0.0 s"),
            (1.25, "1.3 s"),
            (59.94, "59.9 s"),
            (59.96, "1 min 00 s"),
            (125.4, "2 min 05 s"),
            (3_599.6, "1 h 00 min 00 s"),
            (3_725.0, "1 h 02 min 05 s"),
            (86_399.9, "1 d 00 h 00 min"),
            (273_900.0, "3 d 04 h 05 min"),
        ] {
            assert_eq!(format_seconds(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn units_are_read_as_they_are_written() {
        for name in Units::NAMES {
            assert_eq!(name.parse::<Units>().unwrap().to_string(), name);
        }
        assert_eq!("GiB".parse::<Units>(), Err(UnknownUnits("GiB".to_owned())));
    }
}
