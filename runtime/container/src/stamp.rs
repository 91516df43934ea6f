//! Unix time to RFC 3339 with nanoseconds, in UTC, without a library.

/// Length of `2026-11-22T01:48:50.123456789Z`.
pub const LEN: usize = 30;

/// Formats seconds since 1970 and nanoseconds. Years 1970 to 9999.
pub fn format(seconds: i64, nanos: u32) -> [u8; LEN] {
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let mut out = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut out[0..4], year as u64);
    digits(&mut out[5..7], month);
    digits(&mut out[8..10], day);
    digits(&mut out[11..13], time as u64 / 3600);
    digits(&mut out[14..16], time as u64 / 60 % 60);
    digits(&mut out[17..19], time as u64 % 60);
    digits(&mut out[20..29], u64::from(nanos));
    out
}

fn digits(field: &mut [u8], mut value: u64) {
    for slot in field.iter_mut().rev() {
        *slot = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day count, in the calendar of 400-year cycles that starts on the first of March:
/// leap days are then last in their year and need no special case.
fn civil(days: i64) -> (i64, u64, u64) {
    const CYCLE: i64 = 146_097;
    let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let cycle = shifted.div_euclid(CYCLE);
    let day_of_cycle = shifted.rem_euclid(CYCLE) as u64;
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = cycle * 400 + year_of_cycle as i64 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_read_as_the_calendar_says() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_795_312_130, 123_456_789, "2026-11-22T01:48:50.123456789Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ];
        for (seconds, nanos, text) in cases {
            assert_eq!(std::str::from_utf8(&format(seconds, nanos)), Ok(text), "{seconds}");
        }
    }
}
