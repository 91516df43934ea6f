//! Kubernetes quantities (`250m`, `64Mi`, `1.5`, `1e3`) as whole numbers. Pure.

/// Longer texts say nothing that fits a 64-bit result.
const TEXT_BYTES_MAX: usize = 40;

/// A quantity is kept in billionths: the smallest suffix, `n`, is one.
const NANOS: i128 = 1_000_000_000;

const SUFFIXES: [(&str, i128); 15] = [
    ("", NANOS),
    ("n", 1),
    ("u", 1_000),
    ("m", 1_000_000),
    ("k", NANOS * 1_000),
    ("M", NANOS * 1_000_000),
    ("G", NANOS * 1_000_000_000),
    ("T", NANOS * 1_000_000_000_000),
    ("P", NANOS * 1_000_000_000_000_000),
    ("Ki", NANOS << 10),
    ("Mi", NANOS << 20),
    ("Gi", NANOS << 30),
    ("Ti", NANOS << 40),
    ("Pi", NANOS << 50),
    ("Ei", NANOS << 60),
];

/// Thousandths, rounded up, as the kubelet counts CPU.
pub(crate) fn milli(text: &str) -> Result<i64, String> {
    scaled(text, NANOS / 1_000)
}

/// Whole units, rounded up, as the kubelet counts bytes.
pub(crate) fn whole(text: &str) -> Result<i64, String> {
    scaled(text, NANOS)
}

fn scaled(text: &str, unit: i128) -> Result<i64, String> {
    let nanos = nanos(text)
        .ok_or_else(|| format!("must be a quantity such as 250m, 64Mi or 1.5, not {text:?}"))?;
    let rounded_up = (nanos + unit - 1) / unit;
    i64::try_from(rounded_up).map_err(|_| format!("is too large: {text:?}"))
}

/// `None` when the text is no quantity, is negative, or exceeds every range.
fn nanos(text: &str) -> Option<i128> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let (mantissa, decimals) = mantissa(number)?;
    let multiplier = match SUFFIXES.iter().find(|(name, _)| *name == suffix) {
        Some((_, multiplier)) => *multiplier,
        // `E` alone is ten to the eighteenth; followed by digits it is an exponent.
        None if suffix == "E" => NANOS * 1_000_000_000_000_000_000,
        None => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            return shifted(mantissa.checked_mul(NANOS)?, exponent.checked_sub(decimals)?);
        }
    };
    shifted(mantissa.checked_mul(multiplier)?, -decimals)
}

/// The digits without their point, and how many of them stood behind it.
fn mantissa(number: &str) -> Option<(i128, i32)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = format!("{whole}{fraction}");
    Some((digits.parse().ok()?, i32::try_from(fraction.len()).ok()?))
}

/// `value` times ten to the `exponent`, rounded up.
fn shifted(value: i128, exponent: i32) -> Option<i128> {
    if value == 0 {
        return Some(0);
    }
    let power = 10_i128.checked_pow(exponent.unsigned_abs());
    if exponent >= 0 {
        return value.checked_mul(power?);
    }
    // A divisor beyond the range leaves less than one billionth, which rounds up to one.
    Some(power.map_or(1, |power| value / power + i128::from(value % power != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_counted_in_thousandths_and_rounded_up() {
        for (text, expect) in [
            ("250m", 250),
            ("1", 1_000),
            ("0.5", 500),
            (".5", 500),
            ("2.", 2_000),
            ("1e-1", 100),
            ("100n", 1),
            ("1500u", 2),
            ("0", 0),
            ("+1", 1_000),
        ] {
            assert_eq!(milli(text), Ok(expect), "{text}");
        }
    }

    #[test]
    fn memory_is_counted_in_bytes_with_either_kind_of_suffix() {
        for (text, expect) in [
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("64M", 64_000_000),
            ("1k", 1_000),
            ("1e3", 1_000),
            ("1E3", 1_000),
            ("1E", 1_000_000_000_000_000_000),
            ("128974848000m", 128_974_848),
            ("0.1", 1),
            ("7Ei", 7 << 60),
        ] {
            assert_eq!(whole(text), Ok(expect), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in
            ["", "m", "-1", "1 Gi", "1mi", "64MB", "0x10", "1..2", "e3", "1e", "1e99", "9Ei", "٣"]
        {
            assert!(whole(text).is_err(), "{text:?} was accepted");
        }
    }
}
