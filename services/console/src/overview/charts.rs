//! The charts: SVG made here, with its geometry in attributes and its colours in the style sheet.

use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use crate::format;
use crate::metrics::snapshot::Snapshot;
use crate::metrics::window::{BUCKET_SECONDS, BUCKETS_MAX, Bucket};

/// The drawing: its size, and the room of the labels.
pub(super) const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 48.0;
pub(super) const TOP: f64 = 8.0;
const BOTTOM: f64 = 22.0;
pub(super) const RIGHT: f64 = 6.0;

/// The charts span whole minutes: from the start of the console on, at least some, and at most what is kept.
const MINUTES_MIN: usize = 3;
const MINUTES_MAX: usize = BUCKETS_MAX * BUCKET_SECONDS as usize / 60;

/// Labels of the axis of time, at most, besides that of now.
const TIME_LABELS_MAX: usize = 3;

/// The decisions chart is logarithmic, from 10 ms to 100 s.
const DECISION_SECONDS_MIN: f64 = 0.01;
const DECISION_DECADES: f64 = 4.0;

/// The rate of a bucket, by the minute.
const PER_MINUTE: f64 = 60.0 / BUCKET_SECONDS as f64;

/// Placed orders as a line over the columns of those that ended.
pub fn orders(snapshot: &Snapshot) -> Markup {
    let (axis, buckets) = (TimeAxis::new(snapshot), complete(snapshot));
    let x = |nth: usize| axis.x(nth);
    let ended = |bucket: &Bucket| bucket.confirmed + bucket.cancelled;
    let largest = buckets.iter().map(|(_, it)| ended(it).max(it.placed)).fold(0.0, f64::max);
    let top = nice_maximum(largest * PER_MINUTE);
    let y = |number: f64| TOP + plot_height() * (1.0 - (number * PER_MINUTE / top).min(1.0));
    let columns = buckets.iter().filter(|(_, it)| ended(it) > 0.0).map(|(nth, it)| {
        let (confirmed, all) = (y(it.confirmed), y(ended(it)));
        (x(*nth) + 0.5, confirmed, y(0.0) - confirmed, all, confirmed - all)
    });
    let placed = axis.path(buckets.iter().map(|(nth, it)| Some((x(*nth), y(it.placed)))));
    let now = buckets.last().map_or(0.0, |(_, it)| it.placed * PER_MINUTE);
    let summary = format!(
        "Orders a minute over the last {} minutes; {} placed now",
        axis.minutes,
        format::rate(now)
    );
    let grid = [0.0, 0.5, 1.0]
        .map(|share| (TOP + plot_height() * (1.0 - share), format::rate(top * share)));
    html! {
        h2 { "Orders a minute"
            span.legend { i.key-confirmed {} "confirmed" i.key-cancelled {} "cancelled" i.key-placed {} "placed" } }
        svg.chart viewBox=(view_box()) role="img" aria-label=(summary) {
            (axis.draw(snapshot.at, &grid))
            @for (x, confirmed, height, all, rest) in columns {
                rect.confirmed x=(px(x)) y=(px(confirmed)) width=(px(axis.step() - 1.0)) height=(px(height)) {}
                rect.cancelled x=(px(x)) y=(px(all)) width=(px(axis.step() - 1.0)) height=(px(rest)) {}
            }
            path.placed d=(placed) {}
        }
    }
}

/// The time within which half and 95 % of the orders of each bucket ended.
pub fn decisions(snapshot: &Snapshot) -> Markup {
    let (axis, buckets) = (TimeAxis::new(snapshot), complete(snapshot));
    let y = |seconds: f64| {
        let decades = (seconds.min(1e9) / DECISION_SECONDS_MIN).max(1.0).log10();
        TOP + plot_height() * (1.0 - (decades / DECISION_DECADES).min(1.0))
    };
    let line =
        |share: f64| {
            axis.path(buckets.iter().map(|(nth, it)| {
                it.decision_quantile(share).map(|seconds| (axis.x(*nth), y(seconds)))
            }))
        };
    let (median, slow) = (line(0.5), line(0.95));
    let grid = [0.01, 0.1, 1.0, 10.0, 100.0].map(|seconds| (y(seconds), format::span(seconds)));
    let last = buckets.iter().rev().find_map(|(_, it)| it.decision_quantile(0.5));
    let last =
        last.map_or("no order ended".to_string(), |it| format!("{} lately", format::span(it)));
    let summary = format!(
        "Time from an order to its decision over the last {} minutes; half within {last}",
        axis.minutes
    );
    html! {
        h2 { "Time to a decision" span.legend { i.key-median {} "half within" i.key-slow {} "95 % within" } }
        svg.chart viewBox=(view_box()) role="img" aria-label=(summary) {
            (axis.draw(snapshot.at, &grid))
            path.slow d=(slow) {}
            path.median d=(median) {}
        }
    }
}

/// The buckets that are over, with their places from the right: the newest is 0, at the right edge.
fn complete(snapshot: &Snapshot) -> Vec<(usize, &Bucket)> {
    let over = snapshot.window.buckets.iter().rev().skip(1).enumerate();
    let mut over = Vec::from_iter(over);
    over.reverse();
    over
}

/// The axis of time, whose right edge is now.
#[derive(Clone, Copy)]
pub(super) struct TimeAxis {
    pub minutes: usize,
    /// The time of a bucket.
    pub bucket_seconds: i64,
}

impl TimeAxis {
    fn new(snapshot: &Snapshot) -> TimeAxis {
        let seconds = snapshot.window.buckets.len() * BUCKET_SECONDS as usize;
        let minutes = seconds.div_ceil(60).clamp(MINUTES_MIN, MINUTES_MAX);
        TimeAxis { minutes, bucket_seconds: BUCKET_SECONDS }
    }

    /// The width of a bucket.
    pub fn step(self) -> f64 {
        (WIDTH - LEFT - RIGHT) * self.bucket_seconds as f64 / (self.minutes * 60) as f64
    }

    /// The left edge of a bucket, by its place from the right.
    pub fn x(self, nth: usize) -> f64 {
        WIDTH - RIGHT - self.step() * (nth + 1) as f64
    }

    /// A line with a step for each bucket, from its left edge; it is interrupted where there is none.
    pub fn path(self, points: impl Iterator<Item = Option<(f64, f64)>>) -> String {
        let (mut path, mut is_drawn) = (String::new(), false);
        for point in points {
            if let Some((x, y)) = point {
                let command = if is_drawn { 'L' } else { 'M' };
                path += &format!("{command}{} {}h{}", px(x), px(y), px(self.step()));
            }
            is_drawn = point.is_some();
        }
        path
    }

    /// The labels of time, as minutes before now.
    fn labels(self) -> impl Iterator<Item = usize> {
        (0..=self.minutes).step_by(self.minutes.div_ceil(TIME_LABELS_MAX))
    }

    pub fn draw(self, now: DateTime<Utc>, grid: &[(f64, String)]) -> Markup {
        let labels = self.labels().map(|ago| {
            let right = WIDTH - RIGHT;
            let x = right - (right - LEFT) * ago as f64 / self.minutes as f64;
            let at = now - TimeDelta::minutes(ago as i64);
            let anchor = match ago {
                0 => "end",
                _ if ago == self.minutes => "start",
                _ => "middle",
            };
            (x, at.format("%H:%M").to_string(), anchor)
        });
        html! {
            @for (y, text) in grid {
                line.grid x1=(px(LEFT)) x2=(px(WIDTH - RIGHT)) y1=(px(*y)) y2=(px(*y)) {}
                text.label x=(px(LEFT - 6.0)) y=(px(y + 3.5)) text-anchor="end" { (text) }
            }
            @for (x, text, anchor) in labels {
                text.label x=(px(x)) y=(px(HEIGHT - 6.0)) text-anchor=(anchor) { (text) }
            }
        }
    }
}

pub(super) fn view_box() -> String {
    format!("0 0 {WIDTH} {HEIGHT}")
}

pub(super) fn plot_height() -> f64 {
    HEIGHT - TOP - BOTTOM
}

pub(super) fn px(number: f64) -> String {
    format!("{number:.1}")
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below.
pub(super) fn nice_maximum(number: f64) -> f64 {
    let number = number.max(10.0);
    let power = 10f64.powf(number.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= number);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number() {
        let tops = [0.0, 9.0, 11.0, 180.0, 501.0, 6_000.0].map(nice_maximum);
        assert_eq!(tops, [10.0, 10.0, 20.0, 200.0, 1_000.0, 10_000.0]);
    }

    #[test]
    fn a_line_is_interrupted_where_nothing_ended() {
        let axis = TimeAxis { minutes: MINUTES_MAX, bucket_seconds: BUCKET_SECONDS };
        let points = [Some((0.0, 1.0)), Some((1.0, 2.0)), None, Some((3.0, 4.0))];
        let width = px(axis.step());
        let expected = format!("M0.0 1.0h{width}L1.0 2.0h{width}M3.0 4.0h{width}");
        assert_eq!(axis.path(points.into_iter()), expected);
    }

    #[test]
    fn the_axis_begins_with_the_console_and_labels_whole_minutes() {
        let axis = |buckets: i64| {
            let mut snapshot = Snapshot::default();
            for second in (0..buckets * BUCKET_SECONDS).step_by(BUCKET_SECONDS as usize) {
                snapshot.window.advance(DateTime::from_timestamp(6_000 + second, 0).unwrap());
            }
            TimeAxis::new(&snapshot)
        };
        let of = |buckets: i64| (axis(buckets).minutes, Vec::from_iter(axis(buckets).labels()));
        assert_eq!(of(1), (3, vec![0, 1, 2, 3]));
        assert_eq!(of(25), (5, vec![0, 2, 4]));
        assert_eq!(of(500), (15, vec![0, 5, 10, 15]));
        // The newest bucket ends at the right edge, and the oldest begins at the left one.
        for axis in [axis(1), axis(25), axis(500)] {
            assert!((axis.x(0) + axis.step() - (WIDTH - RIGHT)).abs() < 1e-9);
            assert!((axis.x(axis.minutes * 6 - 1) - LEFT).abs() < 1e-9);
        }
    }
}
