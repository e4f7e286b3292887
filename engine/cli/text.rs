//! Numbers, times and tables for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0.02 s`, `1.2 s`, `12 s`, `3m 07s`, `2h 05m`.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 0.995 {
        return format!("{seconds:.2} s");
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    // Whole seconds from here on; durations are far below the precision of a float.
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole / 60 % 60),
    }
}

/// `12 B`, `3.4 KiB`, `5.6 GiB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut size = number as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// Microseconds since 1970 of a time in UTC as records have it: `2026-01-31T12:00:00.123Z`.
pub(crate) fn epoch_micros(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let rest = text.get(19..)?.strip_suffix('Z')?;
    let micros = match rest.strip_prefix('.') {
        Some(digits) => format!("{digits:0<6}").get(..6)?.parse::<i64>().ok()?,
        None => 0,
    };
    // Days since 1970 in the Gregorian calendar; years begin in March, so that leap days come last.
    let shifted = year - i64::from(month <= 2);
    let (era, year_of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000 + micros)
}

/// A table without vertical lines; the columns with these numbers are aligned to the right.
pub(crate) fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.to_vec());
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The lines of a table without the spaces around them.
pub(crate) fn lines(table: &Table) -> String {
    table
        .lines()
        .map(|line| {
            line.strip_prefix(' ')
                .unwrap_or(&line)
                .trim_end()
                .to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// The text on one line, cut to so many characters.
pub(crate) fn brief(text: &str, limit: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(limit) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_records_are_read() {
        assert_eq!(epoch_micros("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(
            epoch_micros("2000-02-29T23:59:59.5Z"),
            Some(951_868_799_500_000)
        );
        assert_eq!(
            epoch_micros("2026-01-02T03:04:05.678Z"),
            Some(1_767_323_045_678_000)
        );
        assert!(
            ["", "yesterday", "2026-01-02T03:04:05"]
                .iter()
                .all(|text| epoch_micros(text).is_none())
        );
    }

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(
            ["0", "999", "1,000", "12,345,678"],
            [0, 999, 1000, 12_345_678]
                .map(count)
                .each_ref()
                .map(String::as_str)
        );
        let times = [0.04, 0.996, 9.96, 61.0, 3599.6, 7500.0].map(duration);
        assert_eq!(
            times,
            ["0.04 s", "1.0 s", "10 s", "1m 01s", "1h 00m", "2h 05m"]
        );
        let sizes = [1023, 1536, 1_048_575, 5 << 40].map(bytes);
        assert_eq!(sizes, ["1023 B", "1.5 KiB", "1.0 MiB", "5.0 TiB"]);
        assert_eq!(brief("a\n b  c", 10), "a b c");
        assert_eq!(brief("abcdef", 3), "abc...");
    }
}
