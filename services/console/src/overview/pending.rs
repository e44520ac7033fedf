//! The pending orders by age, each age with a bar.

use maud::{Markup, html};

use crate::feeds::pending::{LATE_SECONDS_MIN, PendingOrders, age};
use crate::format;

/// Orders that are pending for so long are in trouble.
const BAD_SECONDS: i64 = 600;

/// The orders of one age.
#[derive(Debug, PartialEq)]
struct AgeRange {
    name: String,
    orders: i64,
    /// Their least age.
    seconds: i64,
}

/// The orders between each two bounds. The service counts those that are at least so old.
fn ranges(pending: &PendingOrders) -> Vec<AgeRange> {
    let bounds = pending.by_age.iter().map(|it| (it.older_than_seconds, it.orders));
    let lower = Vec::from_iter(std::iter::once((0, pending.pending)).chain(bounds));
    let upper = lower.iter().skip(1).map(Some).chain([None]);
    let range = |((from, orders), upper): (&(i64, i64), Option<&(i64, i64)>)| {
        let name = match upper {
            Some((to, _)) if *from == 0 => format!("under {}", age(*to)),
            Some((to, _)) => format!("{} to {}", age(*from), age(*to)),
            None => format!("over {}", age(*from)),
        };
        let older = upper.map_or(0, |(_, orders)| *orders);
        AgeRange { name, orders: orders - older, seconds: *from }
    };
    lower.iter().zip(upper).map(range).collect()
}

pub fn render(pending: Option<&Result<PendingOrders, String>>) -> Markup {
    html! {
        h2 { "Pending by age"
            span.legend {
                @match pending {
                    Some(Ok(pending)) => { "as of " (pending.read_at.format("%H:%M:%S")) " UTC · " a href="/orders" { "what is stuck" } },
                    Some(Err(_)) => "unknown",
                    None => "is being read",
                }
            }
        }
        @match pending {
            Some(Ok(pending)) => (bars(pending)),
            Some(Err(why)) => p.quiet { (why) },
            None => {},
        }
    }
}

fn bars(pending: &PendingOrders) -> Markup {
    let ranges = ranges(pending);
    let most = ranges.iter().map(|it| it.orders).max().unwrap_or_default().max(1);
    html! {
        dl.by-age { @for AgeRange { name, orders, seconds } in &ranges {
            @let is_bad = *orders > 0 && *seconds >= BAD_SECONDS;
            @let is_warning = *orders > 0 && *seconds >= LATE_SECONDS_MIN && !is_bad;
            div.is-warning[is_warning].is-bad[is_bad] {
                dt { (name) }
                dd { @if *seconds == 0 && pending.is_truncated() { "at least " } (format::count(*orders as f64)) }
                svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
                    rect.whole width="100" height="6" {}
                    rect width=(100 * orders / most) height="6" {}
                }
            }
        } }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::feeds::pending::AgeCount;

    #[test]
    fn each_order_is_in_the_range_of_its_age() {
        let older = |older_than_seconds, orders| AgeCount { older_than_seconds, orders };
        let by_age = vec![older(10, 9), older(60, 4), older(86_400, 1)];
        let pending = PendingOrders {
            read_at: Utc::now(),
            pending: 12,
            by_age,
            counted_at_most: 50_000,
            orders: Vec::new(),
        };
        let ranges = ranges(&pending);
        let found = Vec::from_iter(ranges.iter().map(|it| (&*it.name, it.orders)));
        let expected =
            [("under 10 s", 3), ("10 s to 1 min", 5), ("1 min to 1 d", 3), ("over 1 d", 1)];
        assert_eq!(found, expected);
    }
}
