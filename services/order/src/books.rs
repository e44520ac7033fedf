//! The books of the order service: how many orders have each status, and the total of the confirmed ones.

use std::sync::LazyLock;

use events::participants::{Answers, WAITING, leg_state, participants};

/// Balanced if the status of each order agrees with the legs that it has: a confirmed order was accepted by all whom it
/// asks; a pending order lacks an acceptance, and no leg is a no.
///
/// The total of the confirmed orders equals what payment has taken, if no order is pending, if the payment leg of
/// each cancelled order is declined, refunded or void, and if payment has written nothing off.
pub static BOOKS: LazyLock<String> = LazyLock::new(|| {
    let all_accepted = every_leg(|yes| format!("= '{yes}'"));
    let none_ended = every_leg(|yes| format!("in ('{WAITING}', '{yes}')"));
    format!(
        "select json_build_object(
                    'pending', count(*) filter (where status = 'pending'),
                    'confirmed', count(*) filter (where status = 'confirmed'),
                    'cancelled', count(*) filter (where status = 'cancelled')) as orders,
                coalesce(sum(total_cents) filter (where status = 'confirmed'), 0) as confirmed_cents,
                count(*) filter (where case status
                    when 'confirmed' then not ({all_accepted})
                    when 'pending' then ({all_accepted}) or not ({none_ended})
                    end) = 0 as balanced
         from orders"
    )
});

/// That a condition holds of every leg, given the word of its yes. A leg that an order does not have is null.
fn every_leg(condition: fn(&str) -> String) -> String {
    let legs = participants().map(|Answers { service, accepted, .. }| {
        format!("coalesce({service} {}, true)", condition(leg_state(accepted)))
    });
    legs.join(" and ")
}
