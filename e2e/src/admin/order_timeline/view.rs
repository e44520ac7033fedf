//! The layout of the timeline: lines of at most 100 columns, and durations.

use chrono::TimeDelta;

/// A line of at most 100 columns.
pub fn format_row(
    decided: &str,
    event: &str,
    position: &str,
    outbox: &str,
    handled: [&str; 3],
) -> String {
    let [by, topic, attempts] = handled;
    let line = format!(
        "  {decided:<12}  {event:<18}  {position:<13}  {outbox:>9}  {by:<10}  {topic:>9}  {attempts:>5}"
    );
    line.trim_end().to_string()
}

/// A duration, with one or two units.
pub fn format_duration(span: TimeDelta) -> String {
    let millis = span.num_milliseconds().max(0);
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", millis as f64 / 1_000.0),
        60_000..3_600_000 => format!("{} min {} s", millis / 60_000, millis / 1_000 % 60),
        _ => format!("{} h {} min", millis / 3_600_000, millis / 60_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_into_100_columns() {
        let long = format_row(
            "23:59:59.999",
            "payments.refunded",
            "11@1234567890",
            "59 min 59 s",
            ["payment", "59 min 59 s", "1000"],
        );
        assert!(long.chars().count() <= 100, "{}", long.len());
        assert_eq!(format_duration(TimeDelta::milliseconds(61_500)), "1 min 1 s");
        assert_eq!(format_duration(TimeDelta::milliseconds(-3)), "0 ms");
    }
}
