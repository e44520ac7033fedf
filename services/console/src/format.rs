//! Numbers, spans of time and dates for people.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};

/// A whole number with a comma between thousands.
pub fn count(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number <= -0.5 { format!("−{text}") } else { text }
}

/// A rate: small ones with a decimal.
pub fn rate(number: f64) -> String {
    if number > 0.0 && number < 9.95 { format!("{number:.1}") } else { count(number) }
}

/// A span of time, with two or three significant digits.
pub fn span(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "over 60 s".to_string(),
        s if s < 0.0005 => "0 ms".to_string(),
        s if s < 0.9995 => format!("{:.0} ms", s * 1000.0),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 119.5 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// How long ago something was.
pub fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let since = (now - at).to_std().unwrap_or(Duration::ZERO);
    span(since.as_secs_f64().floor())
}

/// A time of today or of another day, in UTC.
pub fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// The time in UTC that a browser sends from a field for one, such as `2026-11-29T14:13`.
pub fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    let time = text.parse::<NaiveDateTime>().or_else(|_| format!("{text}:00").parse());
    time.ok().map(|time| time.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_enough() {
        let counts = [0.0, 7.0, 1234.0, 12345.4, 1_234_567.0, -1234.0].map(count);
        assert_eq!(counts, ["0", "7", "1,234", "12,345", "1,234,567", "−1,234"]);
        assert_eq!([0.0, 0.25, 9.9, 12.3].map(rate), ["0", "0.2", "9.9", "12"]);
        let spans = [0.0, 0.0123, 0.99, 1.0, 9.94, 59.6, 119.0, 600.0, 10_800.0, 400_000.0];
        let expected = [
            "0 ms", "12 ms", "990 ms", "1.0 s", "9.9 s", "60 s", "119 s", "10 min", "3 h", "5 days",
        ];
        assert_eq!(spans.map(span), expected);
        assert_eq!(span(f64::INFINITY), "over 60 s");
    }
}
