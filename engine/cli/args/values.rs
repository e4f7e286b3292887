//! Values of the command line: devices, ages, sizes, pins.

use std::time::Duration;

/// `auto`, `cpu` or `cuda:N`.
pub(super) fn device(text: &str) -> Result<String, String> {
    let is_cuda = text
        .strip_prefix("cuda:")
        .is_some_and(|index| index.parse::<u8>().is_ok());
    if matches!(text, "auto" | "cpu") || is_cuda {
        Ok(text.to_owned())
    } else {
        Err("expected `auto`, `cpu` or `cuda:N`, for example `cuda:0`".to_owned())
    }
}

/// `30s`, `5m`, `12h`, `7d` or `2w`.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number with s, m, h, d or w, for example `7d`".to_owned();
    let unit = text.chars().next_back().ok_or_else(expected)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(expected()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(expected)
}

/// `512MiB`, `8GiB`, `1.5GiB`, `2GB`; a number alone is bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let expected = || "expected a number with KiB, MiB, GiB or TiB, for example `8GiB`".to_owned();
    let digits = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: f64 = match unit.trim() {
        "" | "B" => 1.0,
        "K" | "KiB" => 1024.0,
        "M" | "MiB" => 1_048_576.0,
        "G" | "GiB" => 1_073_741_824.0,
        "T" | "TiB" => 1_099_511_627_776.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    let bytes = (number * factor).round();
    if (1.0..9e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(expected())
    }
}

/// `STAGE=RUN`.
pub(super) fn pin(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((stage, run)) if !stage.is_empty() && !run.is_empty() => {
            Ok((stage.to_owned(), run.to_owned()))
        }
        _ => Err("expected `STAGE=RUN`, for example `rl=latest~1`".to_owned()),
    }
}

/// Name of a split as Hugging Face takes it.
pub(super) fn split(text: &str) -> Result<String, String> {
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    if !text.is_empty() && text.chars().all(is_word) {
        Ok(text.to_owned())
    } else {
        Err("expected letters, digits and `_`, for example `train`".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_a_number_and_a_unit() {
        assert_eq!(age("0s"), Ok(Duration::ZERO));
        assert_eq!(age("7d"), Ok(Duration::from_hours(168)));
        for wrong in ["", "7", "d", "-1d", "7 d", "7y", "99999999999999999999w"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_size_has_a_number_and_a_unit() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("2GB"), Ok(2_000_000_000));
        for wrong in ["", "GiB", "8 gigs", "-1GiB", "0", "1.2.3MiB", "1e9"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices_are_named_exactly() {
        let right = ["auto", "cpu", "cuda:0", "cuda:7"];
        assert!(right.iter().all(|text| device(text).is_ok()));
        let wrong = ["cuda", "gpu", "cuda:", "cuda:x", "CPU"];
        assert!(wrong.iter().all(|text| device(text).is_err()));
    }

    #[test]
    fn a_pin_names_a_stage_and_a_run() {
        assert_eq!(
            pin("rl=latest~1"),
            Ok(("rl".to_owned(), "latest~1".to_owned()))
        );
        assert!(["rl", "=x", "rl="].iter().all(|text| pin(text).is_err()));
    }
}
