//! The books of the order service: how many orders have each status, and the total of the confirmed ones.

use std::sync::LazyLock;

use events::participants::{Answers, WAITING, leg_state, participants};

/// Orders that the books list, at most.
const OWED_LISTED_MAX: usize = 20;

/// Balanced if the status of each order agrees with the legs that it has: a confirmed order was accepted by all whom it
/// asks; a pending order lacks an acceptance, and no leg is a no.
///
/// The total of the confirmed orders equals what payment has taken, if no order is pending, if the payment leg of
/// each cancelled order is declined, refunded or void, and if payment has written nothing off.
///
/// If a participant may fail to undo, `owed` counts the cancelled orders that it could not undo, and `owed_orders` has the
/// oldest ones. Each stands there until an operator settles it with the participant.
pub static BOOKS: LazyLock<String> = LazyLock::new(|| {
    let all_accepted = every_leg(|yes| format!("= '{yes}'"));
    let none_ended = every_leg(|yes| format!("in ('{WAITING}', '{yes}')"));
    let owed =
        participants().into_iter().filter_map(|Answers { service, undo_refused, .. }| {
            Some(format!("{service} = '{}'", leg_state(undo_refused?)))
        });
    let owed = owed.collect::<Vec<_>>().join(" or ");
    let owed = match &*owed {
        "" => String::new(),
        owed => format!(
            "count(*) filter (where {owed}) as owed,
             (array_agg(order_id order by created_at, order_id) filter (where {owed}))[1:{OWED_LISTED_MAX}]
                 as owed_orders,"
        ),
    };
    format!(
        "select json_build_object(
                    'pending', count(*) filter (where status = 'pending'),
                    'confirmed', count(*) filter (where status = 'confirmed'),
                    'cancelled', count(*) filter (where status = 'cancelled')) as orders,
                {owed}
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
