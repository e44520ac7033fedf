//! The charts of the stream processor's sums: what was sold, and how orders ended. Without sums they are empty.

use std::collections::BTreeMap;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use maud::{Markup, html};

use crate::feeds::insights::{MINUTES, OutcomeSum, Sale, Sums};
use crate::format;
use crate::overview::charts::{TOP, TimeAxis, nice_maximum, plot_height, px, view_box};

/// The items that have a colour of their own. The others share one.
const ITEMS_MAX: usize = 4;
const OTHERS: &str = "other items";

/// The outcome that is not a cancellation.
const CONFIRMED: &str = "confirmed";

/// The chart of durations is logarithmic, from 10 ms to 100 s.
const MILLIS_MIN: f64 = 10.0;
const DECADES: f64 = 4.0;

const AXIS: TimeAxis = TimeAxis { minutes: MINUTES, bucket_seconds: 60 };

pub fn revenue(sums: Option<&Sums>) -> Markup {
    let Some(sums) = sums else { return html! {} };
    let currency = currency_of(sums).map_or(String::new(), |it| format!(" in {it}"));
    let title = format!("Revenue{currency} by item and minute");
    by_item(sums, &title, |sale| sale.revenue_cents / 100.0)
}

pub fn units(sums: Option<&Sums>) -> Markup {
    sums.map_or_else(
        || html! {},
        |sums| by_item(sums, "Units by item and minute", |sale| sale.units),
    )
}

/// The share of the orders of a minute that were confirmed.
pub fn confirmation_rate(sums: Option<&Sums>) -> Markup {
    let Some(sums) = sums else { return html! {} };
    let y = |share: f64| TOP + plot_height() * (1.0 - share);
    let share = |outcomes: &BTreeMap<String, OutcomeSum>| {
        let all: f64 = outcomes.values().map(|it| it.orders).sum();
        let confirmed = outcomes.get(CONFIRMED).map_or(0.0, |it| it.orders);
        (all > 0.0).then(|| confirmed / all)
    };
    let line = line_of(sums, |outcomes| share(outcomes).map(y));
    let last = sums.outcomes.values().next_back().and_then(share);
    let last = last.map_or("no order ended".to_string(), |it| format!("{:.0} % now", it * 100.0));
    let grid = [0.0, 0.5, 1.0].map(|share| (y(share), format!("{:.0} %", share * 100.0)));
    html! {
        h2 { "Confirmation rate by minute" span.legend { i.key-median {} "confirmed of all that ended" } }
        svg.chart viewBox=(view_box()) role="img" aria-label={ "Share of orders that were confirmed, by minute; " (last) } {
            (AXIS.draw(end_of(sums), &grid))
            path.median d=(line) {}
        }
    }
}

/// The mean and the longest time from an order to its end.
pub fn durations(sums: Option<&Sums>) -> Markup {
    let Some(sums) = sums else { return html! {} };
    let y = |millis: f64| {
        let decades = (millis / MILLIS_MIN).max(1.0).log10();
        TOP + plot_height() * (1.0 - (decades / DECADES).min(1.0))
    };
    let mean = |outcomes: &BTreeMap<String, OutcomeSum>| {
        let timed: f64 = outcomes.values().map(|it| it.timed_orders).sum();
        let millis: f64 = outcomes.values().map(|it| it.millis_sum).sum();
        (timed > 0.0).then(|| millis / timed)
    };
    let longest = |outcomes: &BTreeMap<String, OutcomeSum>| {
        let timed = outcomes.values().filter(|it| it.timed_orders > 0.0);
        timed.map(|it| it.millis_max).reduce(f64::max)
    };
    let mean_line = line_of(sums, |outcomes| mean(outcomes).map(y));
    let longest_line = line_of(sums, |outcomes| longest(outcomes).map(y));
    let last = sums.outcomes.values().next_back().and_then(mean);
    let last =
        last.map_or("no order ended".to_string(), |it| format!("{} now", format::span(it / 1e3)));
    let grid = [0.01, 0.1, 1.0, 10.0, 100.0].map(|it| (y(it * 1e3), format::span(it)));
    html! {
        h2 { "Time to a decision by minute" span.legend { i.key-median {} "mean" i.key-slow {} "longest" } }
        svg.chart viewBox=(view_box()) role="img" aria-label={ "Time from an order to its decision, by minute; mean " (last) } {
            (AXIS.draw(end_of(sums), &grid))
            path.slow d=(longest_line) {}
            path.median d=(mean_line) {}
        }
    }
}

/// Columns by minute, with a part for each of the items that earn most.
fn by_item(sums: &Sums, title: &str, value: impl Fn(&Sale) -> f64) -> Markup {
    let items = top_items(sums);
    let columns = columns(sums, &items, value);
    let largest = columns.iter().map(|(_, parts)| parts.iter().sum()).fold(0.0, f64::max);
    let top = nice_maximum(largest);
    let y = |number: f64| TOP + plot_height() * (1.0 - number / top);
    let grid = [0.0, 0.5, 1.0].map(|share| (y(top * share), label(top * share)));
    let now: f64 = columns.last().map_or(0.0, |(_, parts)| parts.iter().sum());
    html! {
        h2 { (title)
            span.legend { @for (nth, item) in items.iter().enumerate() { i class={ "key-item-" (nth) } {} (item) } } }
        svg.chart viewBox=(view_box()) role="img" aria-label={ (title) "; " (format::rate(now)) " now" } {
            (AXIS.draw(end_of(sums), &grid))
            @for (x, parts) in &columns {
                @for (nth, part) in parts.iter().enumerate().filter(|(_, part)| **part > 0.0) {
                    @let below: f64 = parts[..nth].iter().sum();
                    rect class={ "item-" (nth) } x=(px(x + 0.5)) y=(px(y(below + part))) width=(px(AXIS.step() - 1.0)) height=(px(y(below) - y(below + part))) {}
                }
            }
        }
    }
}

/// There is room for six characters.
fn label(number: f64) -> String {
    if number < 1e5 { format::rate(number) } else { format!("{}k", format::rate(number / 1e3)) }
}

/// The left edge of each minute with sales, and its parts by item.
fn columns(sums: &Sums, items: &[String], value: impl Fn(&Sale) -> f64) -> Vec<(f64, Vec<f64>)> {
    let currency = currency_of(sums).unwrap_or_default();
    let columns = sums.sales.iter().filter_map(|(minute, sales)| {
        let mut parts = vec![0.0; items.len()];
        for (key, sale) in sales {
            let Some((_, item)) = split(key).filter(|(it, _)| *it == currency) else { continue };
            let nth = items.iter().position(|it| it == item).unwrap_or(items.len() - 1);
            parts[nth] += value(sale);
        }
        Some((x_of(sums, *minute)?, parts))
    });
    columns.collect()
}

/// The SKUs with the largest revenue, and a name for the others if there are any.
fn top_items(sums: &Sums) -> Vec<String> {
    let currency = currency_of(sums).unwrap_or_default();
    let mut revenue = BTreeMap::<&str, f64>::new();
    for (key, sale) in sums.sales.values().flatten() {
        if let Some((_, item)) = split(key).filter(|(it, _)| *it == currency) {
            *revenue.entry(item).or_default() += sale.revenue_cents;
        }
    }
    let mut items = Vec::from_iter(revenue);
    items.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let others = (items.len() > ITEMS_MAX).then_some(OTHERS);
    let named = items.iter().take(ITEMS_MAX).map(|(item, _)| *item);
    named.chain(others).map(str::to_string).collect()
}

/// The currency in which most was sold. Amounts of two currencies are not added.
fn currency_of(sums: &Sums) -> Option<&str> {
    let mut units = BTreeMap::<&str, f64>::new();
    for (key, sale) in sums.sales.values().flatten() {
        if let Some((currency, _)) = split(key) {
            *units.entry(currency).or_default() += sale.units;
        }
    }
    units.into_iter().max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(it, _)| it)
}

fn split(key: &str) -> Option<(&str, &str)> {
    key.split_once(' ')
}

/// A line with a step for each minute.
fn line_of(sums: &Sums, y: impl Fn(&BTreeMap<String, OutcomeSum>) -> Option<f64>) -> String {
    let minutes = (0..MINUTES as i64).rev().map(|ago| {
        let minute = end_of(sums) - TimeDelta::minutes(ago + 1);
        sums.outcomes.get(&minute).and_then(&y).map(|y| (AXIS.x(ago as usize), y))
    });
    AXIS.path(minutes)
}

/// The end of the present minute, which is the right edge.
fn end_of(sums: &Sums) -> DateTime<Utc> {
    let minute = TimeDelta::minutes(1);
    sums.at.duration_trunc(minute).unwrap_or(sums.at) + minute
}

/// The left edge of a minute, if it is in the drawing.
fn x_of(sums: &Sums, minute: DateTime<Utc>) -> Option<f64> {
    let ago = usize::try_from((end_of(sums) - minute).num_minutes() - 1).ok()?;
    (ago < MINUTES).then(|| AXIS.x(ago))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two minutes of sales of six items, and of orders of which three of four are confirmed.
    fn sums() -> Sums {
        let at: DateTime<Utc> = "2026-11-02T10:05:30Z".parse().unwrap();
        let minutes = [3, 5]
            .map(|it| at.duration_trunc(TimeDelta::hours(1)).unwrap() + TimeDelta::minutes(it));
        let sale = |item: u32| Sale { units: 2.0, revenue_cents: f64::from(item) * 1_000.0 };
        let sales = || (1..=6).map(|item| (format!("EUR item-{item}"), sale(item)));
        let foreign = ("USD cap".to_string(), Sale { units: 1.0, revenue_cents: 9e9 });
        let decided = |orders: f64| OutcomeSum {
            orders,
            timed_orders: orders,
            millis_sum: orders * 100.0,
            millis_max: 900.0,
        };
        let outcomes =
            || [(CONFIRMED, 3.0), ("customer", 1.0)].map(|(it, n)| (it.to_string(), decided(n)));
        Sums {
            at,
            sales: minutes.map(|it| (it, sales().chain([foreign.clone()]).collect())).into(),
            outcomes: minutes.map(|it| (it, outcomes().into())).into(),
        }
    }

    #[test]
    fn without_sums_there_is_no_chart() {
        for chart in [revenue, units, confirmation_rate, durations] {
            assert_eq!(chart(None).into_string(), "");
            assert!(chart(Some(&Sums::default())).into_string().contains("<svg"));
        }
    }

    #[test]
    fn the_items_that_earn_most_have_a_part_of_their_own_and_currencies_are_not_added() {
        assert_eq!(top_items(&sums()), ["item-6", "item-5", "item-4", "item-3", OTHERS]);
        let drawn = columns(&sums(), &top_items(&sums()), |sale| sale.revenue_cents / 100.0);
        assert_eq!(drawn.len(), 2);
        assert_eq!(drawn[1], (AXIS.x(0), vec![60.0, 50.0, 40.0, 30.0, 30.0]));
        assert_eq!(drawn[0].0, AXIS.x(2));
        let chart = revenue(Some(&sums())).into_string();
        assert!(chart.contains("Revenue in EUR by item and minute; 210 now"), "{chart}");
        assert!(chart.contains("key-item-4") && !chart.contains("cap"), "{chart}");
        assert!(units(Some(&sums())).into_string().contains("minute; 12 now"));
        assert_eq!([0.0, 50_000.0, 500_000.0].map(label), ["0", "50,000", "500k"]);
    }

    #[test]
    fn the_rate_and_the_durations_are_those_of_a_minute() {
        let rate = confirmation_rate(Some(&sums())).into_string();
        assert!(rate.contains("; 75 % now"), "{rate}");
        let durations = durations(Some(&sums())).into_string();
        assert!(durations.contains("; mean 100 ms now"), "{durations}");
        // Between two minutes with orders there is one without: each line has two parts.
        assert_eq!(durations.matches('M').count(), 4, "{durations}");
    }
}
