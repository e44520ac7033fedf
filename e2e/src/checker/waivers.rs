//! Waivers: what the checker accepts because an operator discarded an event. The orders of
//! discarded events are named and need not end, and what they held must be written off.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use checker::group_digits;
use sqlx::PgPool;
use uuid::Uuid;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{I5, I6};
use crate::checker::order_cases::OrderCase;
use crate::checker::orders::check_case;
use crate::checker::tally::{CheckContext, Tally};

/// Findings that follow from a discarded event.
const WAIVED_KINDS: [&str; 3] = ["open", "disagreement", "history"];

/// Orders that the report names, at most.
const LISTED_ORDERS_MAX: usize = 20;

/// The discarded dead letters of all services.
#[derive(Debug, Default)]
pub struct Waivers {
    dead_letters: usize,
    /// By the key of the event, which is the id of its order or the SKU of its item: the service
    /// and event discarded.
    by_key: HashMap<String, Vec<String>>,
    /// By key, service and unit.
    write_offs: BTreeMap<(String, &'static str, String), i64>,
    /// Orders with waived findings.
    waived: BTreeMap<Uuid, Vec<String>>,
    /// Money taken for orders that are not confirmed and will not end.
    pub unrefunded_cents: i128,
}

impl Waivers {
    pub async fn load(databases: &BTreeMap<&'static str, PgPool>) -> Result<Waivers> {
        let mut waivers = Waivers::default();
        for (service, db) in databases {
            let dead_letters: Vec<(i64, String, Option<Vec<u8>>)> = sqlx::query_as(
                "select dead_letter_id, topic, key from chassis.dead_letters where state = 'discarded'",
            )
            .fetch_all(db)
            .await?;
            waivers.dead_letters += dead_letters.len();
            for (dead_letter_id, topic, key) in dead_letters {
                let discard = format!("{service} discarded {topic} (dead letter {dead_letter_id})");
                waivers.by_key.entry(key_text(key)).or_default().push(discard);
            }
            let write_offs: Vec<(Option<Vec<u8>>, String, i64)> = sqlx::query_as(
                "select key, unit, sum(amount)::bigint
                 from chassis.write_offs join chassis.dead_letters using (dead_letter_id) group by key, unit",
            )
            .fetch_all(db)
            .await?;
            for (key, unit, amount) in write_offs {
                waivers.write_offs.insert((key_text(key), service, unit), amount);
            }
        }
        Ok(waivers)
    }

    /// Orders that need not end.
    pub fn orders(&self) -> Vec<Uuid> {
        self.by_key.keys().filter_map(|key| key.parse().ok()).collect()
    }

    /// Whether an event of this order or item was discarded.
    pub fn covers(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// Like [`check_case`], with the waivers applied.
    pub fn check_case(
        &mut self,
        case: &OrderCase,
        context: &CheckContext<'_>,
        tally: &mut Tally,
        findings: &mut Findings,
    ) {
        let key = case.order_id.to_string();
        let Some(discards) = self.by_key.get(&key) else {
            return check_case(case, context, tally, findings);
        };
        let mut own = Findings::default();
        check_case(case, context, tally, &mut own);
        for (violates, kind, _, shown) in own.iter() {
            if WAIVED_KINDS.contains(&kind) {
                self.waived.insert(case.order_id, discards.clone());
            } else {
                shown.iter().for_each(|what| findings.add(violates, kind, || what.clone()));
            }
        }
        self.check_write_offs(&key, case, findings);
    }

    /// Whatever payment and stock keep of a cancelled order must be written off.
    fn check_write_offs(&mut self, key: &str, case: &OrderCase, findings: &mut Findings) {
        let status = case.order.as_ref().map_or("unknown", |order| &order.status);
        if status == "confirmed" {
            return;
        }
        let mut check = |service: &'static str, unit: String, amount: i64| {
            let written_off = self.write_offs.get(&(key.to_string(), service, unit.clone()));
            let holds = status != "cancelled" || written_off == Some(&amount);
            let violates = if service == "payment" { I5 } else { I6 };
            findings.unless(holds, violates, "written off", || {
                format!("{key}: {service} keeps {amount} {unit}, written off is {written_off:?}")
            });
        };
        let part =
            |service: &str, state: &str| case.parts.get(service).filter(|part| part.state == state);
        if let Some(payment) = part("payment", "verified") {
            let unit = format!("{} cents", payment.currency.as_deref().unwrap_or_default());
            check("payment", unit, payment.amount_cents);
            self.unrefunded_cents += i128::from(payment.amount_cents);
        }
        if let Some(held) = part("stock", "reserved") {
            held.lines.iter().for_each(|l| check("stock", l.sku.clone(), l.quantity));
        }
    }

    /// The report: what was discarded and written off, and which orders need not end.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        if self.dead_letters == 0 {
            return Vec::new();
        }
        let mut sums: BTreeMap<(&str, &str), i128> = BTreeMap::new();
        for ((_, service, unit), amount) in &self.write_offs {
            *sums.entry((service, unit)).or_default() += i128::from(*amount);
        }
        let sums: Vec<String> = sums
            .iter()
            .map(|((service, unit), sum)| format!("{} {unit} by {service}", group_digits(*sum)))
            .collect();
        let sums = if sums.is_empty() { "nothing".into() } else { sums.join(", ") };
        let mut rows =
            vec![("discarded", format!("{} dead letters, written off: {sums}", self.dead_letters))];
        for (order_id, discards) in self.waived.iter().take(LISTED_ORDERS_MAX) {
            rows.push(("", format!("order {order_id} need not end: {}", discards.join(", "))));
        }
        if self.waived.len() > LISTED_ORDERS_MAX {
            rows.push(("", format!("and {} more orders", self.waived.len() - LISTED_ORDERS_MAX)));
        }
        rows
    }
}

fn key_text(key: Option<Vec<u8>>) -> String {
    String::from_utf8_lossy(&key.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use checker::dead_letters::DeadLetterIndex;

    use crate::checker::test_cases::{RESERVED, case, context, has_finding, id, part_mut};

    /// The findings of an order after an event was discarded and these amounts were written off.
    fn findings_of(case: &OrderCase, written_off: &[(&'static str, &str, i64)]) -> Vec<String> {
        let key = case.order_id.to_string();
        let mut waivers = Waivers::default();
        waivers.by_key.insert(key.clone(), vec!["a service".to_string()]);
        for (service, unit, amount) in written_off {
            waivers.write_offs.insert((key.clone(), service, unit.to_string()), *amount);
        }
        let (dead_letters, mut findings) = (DeadLetterIndex::default(), Findings::default());
        let context = context(&dead_letters);
        waivers.check_case(case, &context, &mut Tally::default(), &mut findings);
        findings.kinds()
    }

    #[test]
    fn what_a_cancelled_order_still_holds_is_written_off_to_the_last_cent_and_piece() {
        let kept = case("cancelled", "verified", "rejected");
        assert_eq!(findings_of(&kept, &[("payment", "EUR cents", 1000)]), [""; 0]);
        for wrong in [&[][..], &[("payment", "EUR cents", 999)], &[("stock", "EUR cents", 1000)]] {
            assert_eq!(findings_of(&kept, wrong), ["I5 written off"], "{wrong:?}");
        }
        let held = case("cancelled", "declined", "reserved");
        assert_eq!(findings_of(&held, &[("stock", "ink", 1), ("stock", "pen", 2)]), [""; 0]);
        for wrong in [&[][..], &[("stock", "pen", 2)], &[("stock", "ink", 1), ("stock", "pen", 3)]]
        {
            assert_eq!(findings_of(&held, wrong), ["I6 written off"], "{wrong:?}");
        }
    }

    #[test]
    fn an_order_whose_event_was_discarded_need_not_end_and_loses_nothing_else() {
        let open = case("pending", "verified", "reserved");
        assert_eq!(findings_of(&open, &[]), [""; 0]);
        let mut lost = case("confirmed", "verified", "reserved");
        lost.records.retain(|record| record.event_id != id(RESERVED));
        assert!(has_finding(&findings_of(&lost, &[]), "I8 lost"), "{:?}", findings_of(&lost, &[]));
        let mut money = case("confirmed", "verified", "reserved");
        part_mut(&mut money, "payment").amount_cents += 1;
        assert!(
            findings_of(&money, &[])
                .iter()
                .any(|kind| kind.starts_with("I4") || kind.starts_with("I5")),
            "{:?}",
            findings_of(&money, &[])
        );
    }
}
