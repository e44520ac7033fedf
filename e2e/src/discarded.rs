//! What the checker has to allow for: events that an operator gave up. Their orders are named, need
//! not end, and what they held has to be written off.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use sqlx::PgPool;
use uuid::Uuid;

use crate::checks::{Around, Case, Tally, check_case};
use crate::figures::grouped;
use crate::findings::Findings;
use crate::invariants::Invariant::{I5, I6};

/// Findings that follow from an event that nobody handled.
const EXCUSED: [&str; 3] = ["open", "disagreement", "history"];

/// Orders named, at most.
const NAMED_MAX: usize = 20;

/// The discarded letters of all services.
#[derive(Debug, Default)]
pub struct Discarded {
    letters: usize,
    /// By the key of the event, which names its order or item: who discarded what.
    by_key: HashMap<String, Vec<String>>,
    /// By key, service and unit.
    written_off: BTreeMap<(String, &'static str, String), i64>,
    /// Orders that are not as they should be, and may be so.
    excused: BTreeMap<Uuid, Vec<String>>,
    /// Taken for orders that are not confirmed and will not end.
    pub held_cents: i128,
}

impl Discarded {
    pub async fn read(databases: &HashMap<&'static str, PgPool>) -> Result<Discarded> {
        let mut discarded = Discarded::default();
        for (service, db) in databases {
            let letters: Vec<(i64, String, Option<Vec<u8>>)> = sqlx::query_as(
                "select letter_id, topic, key from dead_letters where state = 'discarded'",
            )
            .fetch_all(db)
            .await?;
            discarded.letters += letters.len();
            for (letter_id, topic, key) in letters {
                let who = format!("{service} discarded {topic} (letter {letter_id})");
                discarded.by_key.entry(text(key)).or_default().push(who);
            }
            let write_offs: Vec<(Option<Vec<u8>>, String, i64)> = sqlx::query_as(
                "select key, unit, sum(amount)::bigint
                 from write_offs join dead_letters using (letter_id) group by key, unit",
            )
            .fetch_all(db)
            .await?;
            for (key, unit, amount) in write_offs {
                discarded.written_off.insert((text(key), service, unit), amount);
            }
        }
        Ok(discarded)
    }

    /// Orders that may never end.
    pub fn orders(&self) -> Vec<Uuid> {
        self.by_key.keys().filter_map(|key| key.parse().ok()).collect()
    }

    /// Whether an event of this order or item was discarded.
    pub fn has(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// As [`check_case`], with what has to be allowed for.
    pub fn check_case(
        &mut self,
        case: &Case,
        around: &Around<'_>,
        tally: &mut Tally,
        findings: &mut Findings,
    ) {
        let key = case.order_id.to_string();
        let Some(who) = self.by_key.get(&key) else {
            return check_case(case, around, tally, findings);
        };
        let mut own = Findings::default();
        check_case(case, around, tally, &mut own);
        for (violates, kind, _, shown) in own.iter() {
            if EXCUSED.contains(&kind) {
                self.excused.insert(case.order_id, who.clone());
            } else {
                shown.iter().for_each(|what| findings.add(violates, kind, || what.clone()));
            }
        }
        self.check_held(&key, case, findings);
    }

    /// What payment and stock keep for a cancelled order has to be written off.
    fn check_held(&mut self, key: &str, case: &Case, findings: &mut Findings) {
        let status = case.order.as_ref().map_or("unknown", |order| &order.status);
        if status == "confirmed" {
            return;
        }
        let mut check = |service: &'static str, unit: String, amount: i64| {
            let written_off = self.written_off.get(&(key.to_string(), service, unit.clone()));
            let holds = status != "cancelled" || written_off == Some(&amount);
            let violates = if service == "payment" { I5 } else { I6 };
            findings.unless(holds, violates, "written off", || {
                format!("{key}: {service} keeps {amount} {unit}, written off is {written_off:?}")
            });
        };
        if let Some(payment) = case.payment.as_ref().filter(|payment| payment.state == "verified") {
            let unit = format!("{} cents", payment.currency.as_deref().unwrap_or_default());
            check("payment", unit, payment.amount_cents);
            self.held_cents += i128::from(payment.amount_cents);
        }
        if let Some(held) = case.reservation.as_ref().filter(|held| held.state == "reserved") {
            held.lines.iter().for_each(|l| check("stock", l.sku.clone(), i64::from(l.quantity)));
        }
    }

    /// For people: what was discarded, what it cost, and who may stay open because of it.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        if self.letters == 0 {
            return Vec::new();
        }
        let mut sums: BTreeMap<(&str, &str), i128> = BTreeMap::new();
        for ((_, service, unit), amount) in &self.written_off {
            *sums.entry((service, unit)).or_default() += i128::from(*amount);
        }
        let sums: Vec<String> = sums
            .iter()
            .map(|((service, unit), sum)| format!("{} {unit} by {service}", grouped(*sum)))
            .collect();
        let sums = if sums.is_empty() { "nothing".into() } else { sums.join(", ") };
        let mut rows =
            vec![("discarded", format!("{} dead letters, written off: {sums}", self.letters))];
        for (order_id, who) in self.excused.iter().take(NAMED_MAX) {
            rows.push(("", format!("order {order_id} need not end: {}", who.join(", "))));
        }
        if self.excused.len() > NAMED_MAX {
            rows.push(("", format!("and {} more orders", self.excused.len() - NAMED_MAX)));
        }
        rows
    }
}

fn text(key: Option<Vec<u8>>) -> String {
    String::from_utf8_lossy(&key.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::tests::{HELD, case, has, id, now};
    use crate::facts::Letters;

    /// What is found in an order of which an event was discarded, and so much written off.
    fn found(case: &Case, written_off: &[(&'static str, &str, i64)]) -> Vec<String> {
        let key = case.order_id.to_string();
        let mut discarded = Discarded::default();
        discarded.by_key.insert(key.clone(), vec!["somebody".to_string()]);
        for (service, unit, amount) in written_off {
            discarded.written_off.insert((key.clone(), service, unit.to_string()), *amount);
        }
        let (letters, mut findings) = (Letters::default(), Findings::default());
        let around = Around { letters: &letters, kept_since: now(), clocks_apart_ms: 0 };
        discarded.check_case(case, &around, &mut Tally::default(), &mut findings);
        findings.kinds()
    }

    #[test]
    fn what_is_kept_for_a_cancelled_order_is_written_off_to_the_last_cent_and_piece() {
        let kept = case("cancelled", "verified", "rejected");
        assert_eq!(found(&kept, &[("payment", "EUR cents", 1000)]), [""; 0]);
        for wrong in [&[][..], &[("payment", "EUR cents", 999)], &[("stock", "EUR cents", 1000)]] {
            assert_eq!(found(&kept, wrong), ["I5 written off"], "{wrong:?}");
        }
        let held = case("cancelled", "declined", "reserved");
        assert_eq!(found(&held, &[("stock", "ink", 1), ("stock", "pen", 2)]), [""; 0]);
        for wrong in [&[][..], &[("stock", "pen", 2)], &[("stock", "ink", 1), ("stock", "pen", 3)]]
        {
            assert_eq!(found(&held, wrong), ["I6 written off"], "{wrong:?}");
        }
    }

    #[test]
    fn an_order_whose_event_was_discarded_need_not_end_and_loses_nothing_else() {
        let open = case("pending", "verified", "reserved");
        assert_eq!(found(&open, &[]), [""; 0]);
        let mut lost = case("confirmed", "verified", "reserved");
        lost.facts.retain(|fact| fact.event_id != id(HELD));
        assert!(has(&found(&lost, &[]), "I8 lost"), "{:?}", found(&lost, &[]));
        let mut money = case("confirmed", "verified", "reserved");
        money.payment.as_mut().unwrap().amount_cents += 1;
        assert!(
            found(&money, &[]).iter().any(|kind| kind.starts_with("I4") || kind.starts_with("I5")),
            "{:?}",
            found(&money, &[])
        );
    }
}
