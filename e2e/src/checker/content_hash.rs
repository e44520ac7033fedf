//! The content of an event as a hash. A record and the row that it was made from must have the same one.
//! The checker keeps eight bytes of a record instead of its body, since there may be millions.

use std::hash::{DefaultHasher, Hash, Hasher};

use uuid::Uuid;

use crate::checker::rows::{OrderLineRow, ReservationLine};

/// Hashes of the content of events. Lines are hashed as a set, since their order has no meaning.
pub struct ContentHash;

impl ContentHash {
    pub fn order(
        customer_id: Uuid,
        total_cents: i64,
        currency: &str,
        lines: &[OrderLineRow],
    ) -> u64 {
        let mut lines: Vec<_> =
            lines.iter().map(|line| (&line.sku, line.quantity, line.unit_price_cents)).collect();
        lines.sort_unstable();
        hash(&(customer_id, total_cents, currency, lines))
    }

    pub fn reason(reason: &str) -> u64 {
        hash(reason)
    }

    pub fn payment(amount_cents: i64, currency: &str) -> u64 {
        hash(&(Some(amount_cents), Some(currency)))
    }

    pub fn refund(amount_cents: Option<i64>, currency: Option<&str>) -> u64 {
        hash(&(amount_cents, currency))
    }

    pub fn quantities<'a>(lines: impl Iterator<Item = (&'a str, i32)>) -> u64 {
        let mut lines: Vec<_> = lines.collect();
        lines.sort_unstable();
        hash(&lines)
    }

    pub fn lines(lines: &[ReservationLine]) -> u64 {
        ContentHash::quantities(lines.iter().map(|line| (line.sku.as_str(), line.quantity)))
    }
}

pub fn hash(what: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
