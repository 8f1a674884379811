//! Times as written by people and other programs.

use std::time::{Duration, SystemTime};

use eventstore::backend::limits::RECORDED_AT_END;

/// Parses a time as in RFC 3339, with any UTC offset, in the years 1970 to 9999. A space may replace the `T`.
pub(crate) fn parse(text: &str) -> Result<SystemTime, String> {
    let not_a_time = || {
        format!("{text:?} is not a time as in RFC 3339, such as 2025-01-31T12:30:00Z or 2025-01-31T13:30:00.25+01:00")
    };
    let out_of_range = || format!("{text:?} is not in the years 1970 to 9999");
    let upper = text.to_ascii_uppercase();
    let (local, offset) = split_offset(&upper).ok_or_else(not_a_time)?;
    let (date, clock) = local.split_at_checked(10).ok_or_else(not_a_time)?;
    let clock = clock.strip_prefix(['T', ' ']).ok_or_else(not_a_time)?;
    let local = humantime::parse_rfc3339(&format!("{date}T{clock}Z")).map_err(|error| match error {
        humantime::TimestampError::OutOfRange => out_of_range(),
        _ => not_a_time(),
    })?;
    let time = match offset {
        Offset::Ahead(by) => local.checked_sub(by),
        Offset::Behind(by) => local.checked_add(by),
    };
    let can_be_recorded = |time: &SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since_1970| since_1970 < RECORDED_AT_END)
    };
    time.filter(can_be_recorded).ok_or_else(out_of_range)
}

/// Parses what [`parse`] accepts, or a date, which means its first moment in UTC.
pub(crate) fn parse_or_date(text: &str) -> Result<SystemTime, String> {
    match text.len() {
        10 => {
            parse(&format!("{text}T00:00:00Z")).map_err(|_| format!("{text:?} is not a date in the years 1970 to 9999"))
        }
        _ => parse(text).map_err(|reason| format!("{reason}; a date such as 2025-01-31 is accepted as well")),
    }
}

/// The offset of a clock from UTC.
enum Offset {
    Ahead(Duration),
    Behind(Duration),
}

/// Splits off the offset: `Z`, or `+hh:mm` or `-hh:mm`.
fn split_offset(text: &str) -> Option<(&str, Offset)> {
    if let Some(local) = text.strip_suffix('Z') {
        return Some((local, Offset::Ahead(Duration::ZERO)));
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let two_digits = |text: &str| match text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let by = Duration::from_secs(hours * 3600 + minutes * 60);
    match offset.as_bytes()[0] {
        b'+' => Some((local, Offset::Ahead(by))),
        b'-' => Some((local, Offset::Behind(by))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> u128 {
        let time = parse(text).unwrap_or_else(|reason| panic!("{reason}"));
        time.duration_since(SystemTime::UNIX_EPOCH).expect("since 1970").as_micros()
    }

    #[test]
    fn times_of_any_offset_are_read() {
        const EXPECTED: u128 = 1_700_000_000_250_000;
        for text in [
            "2023-11-14T22:13:20.25Z",
            "2023-11-14t22:13:20.250z",
            "2023-11-14 22:13:20.250000000Z",
            "2023-11-14T22:13:20.25+00:00",
            "2023-11-14T22:13:20.25-00:00",
            "2023-11-15T03:43:20.25+05:30",
            "2023-11-14T14:13:20.25-08:00",
        ] {
            assert_eq!(micros(text), EXPECTED, "{text}");
        }
        assert_eq!(micros("1970-01-01T00:00:00Z"), 0);
        assert_eq!(micros("9999-12-31T23:59:59.999999Z"), RECORDED_AT_END.as_micros() - 1);
    }

    #[test]
    fn what_cannot_be_recorded_is_out_of_range() {
        for text in [
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:59:59+01:00",
            "9999-12-31T23:30:00-01:00",
            "0000-00-00T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2025-01-01T24:00:00Z",
        ] {
            let reason = parse(text).expect_err(text);
            assert!(reason.contains(text) && reason.ends_with("is not in the years 1970 to 9999"), "{reason}");
        }
    }

    #[test]
    fn what_is_no_time_is_told() {
        for text in [
            "",
            "Z",
            "now",
            "1700000000",
            "2025-01-31",
            "2025-01-31T12:30:00",
            "2025-01-31T12:30Z",
            "2025-01-31T12:30:00+1:00",
            "2025-01-31T12:30:00+24:00",
            "2025-01-31T12:30:00+00:60",
            "2025-01-31T12:30:00+01:00Z",
            "2025-01-31T12:30:00 +01:00",
            "2025-01-31x12:30:00Z",
            "20250131T123000Z",
            "2025-01-3é1T12:30:00Z",
            "é",
            "éééééé",
        ] {
            let reason = parse(text).expect_err(text);
            assert!(reason.contains("RFC 3339"), "{reason}");
        }
    }

    #[test]
    fn a_date_is_its_first_moment() {
        assert_eq!(parse_or_date("2023-11-14"), parse("2023-11-14T00:00:00Z"));
        assert_eq!(parse_or_date("2023-11-14T00:00:00+01:00"), parse("2023-11-13T23:00:00Z"));
        for text in ["2023-13-01", "1969-01-01", "yesterday", ""] {
            assert!(parse_or_date(text).expect_err(text).contains("date"));
        }
    }
}
