//! The durations of the timeline.

use chrono::TimeDelta;

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
    fn a_duration_has_one_or_two_units() {
        assert_eq!(format_duration(TimeDelta::milliseconds(61_500)), "1 min 1 s");
        assert_eq!(format_duration(TimeDelta::milliseconds(-3)), "0 ms");
    }
}
