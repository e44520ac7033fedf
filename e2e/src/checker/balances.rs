//! The conservation checks: a customer's money (I5) and the units of an item (I6). Pure functions
//! over rows.

use std::fmt::Debug;

use serde::Deserialize;
use uuid::Uuid;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{self, I4, I5, I6, I8};
use crate::checker::tally::Tally;

/// A customer's money: deposits, balance and payments taken.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct AccountRow {
    pub customer_id: Uuid,
    /// Sums of the rows. The other three are the account's own counters.
    pub deposits_cents: i64,
    pub verified_cents: i64,
    pub deposited_cents: Option<i64>,
    pub balance_cents: Option<i64>,
    pub taken_cents: Option<i64>,
}

/// Of all accounts, or of all items: what came in is what is left and what was taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub received: i128,
    pub left: i128,
    pub taken: i128,
}

/// What came in, is left and was taken, by the counters of one account or item. The first and the last are also sums of
/// other rows.
fn check_conserved(
    (violates, kind): (Invariant, &'static str),
    row: &impl Debug,
    counters: [i64; 3],
    sums: [i64; 2],
    totals: &mut Totals,
    findings: &mut Findings,
) {
    let [received, left, taken] = counters.map(i128::from);
    totals.received += received;
    totals.left += left;
    totals.taken += taken;
    let holds = received == left + taken && sums.map(i128::from) == [received, taken];
    findings.unless(holds, violates, kind, || format!("{row:?}"));
    findings.unless(left >= 0 && taken >= 0, violates, "negative", || format!("{row:?}"));
}

pub fn check_account(row: &AccountRow, totals: &mut Totals, findings: &mut Findings) {
    let (Some(deposited), Some(balance), Some(taken)) =
        (row.deposited_cents, row.balance_cents, row.taken_cents)
    else {
        return findings.add(I5, "money", || {
            format!("customer {}: deposits or payments without an account", row.customer_id)
        });
    };
    let sums = [row.deposits_cents, row.verified_cents];
    check_conserved((I5, "money"), row, [deposited, balance, taken], sums, totals, findings);
}

/// The money taken equals the totals of the confirmed orders.
pub fn check_totals(taken_cents: i128, tally: &Tally, findings: &mut Findings) {
    let confirmed_cents = tally.confirmed_cents;
    findings.unless(taken_cents == confirmed_cents, I5, "money", || {
        format!("payments taken are {taken_cents}, confirmed orders total {confirmed_cents}")
    });
}

/// The units of an item: delivered, available and reserved.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct ItemRow {
    pub sku: String,
    pub deliveries: i64,
    pub held: i64,
    pub name: Option<String>,
    pub price_cents: Option<i64>,
    pub currency: Option<String>,
    pub version: Option<i64>,
    pub delivered: Option<i64>,
    pub available: Option<i64>,
    pub reserved: Option<i64>,
    pub event_id: Option<Uuid>,
}

/// An item as described by a record of `stock.items` or by order's read model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, sqlx::FromRow)]
pub struct ItemDescription {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
    pub version: i64,
}

/// `newest` is the newest record of the item, `known` the row of order's read model.
pub fn check_item(
    row: &ItemRow,
    newest: Option<&(Uuid, ItemDescription)>,
    known: Option<&ItemDescription>,
    totals: &mut Totals,
    findings: &mut Findings,
) {
    let sku = &row.sku;
    let (Some(delivered), Some(available), Some(reserved)) =
        (row.delivered, row.available, row.reserved)
    else {
        return findings
            .add(I6, "stock", || format!("{sku}: deliveries or reservations without an item"));
    };
    let sums = [row.deliveries, row.held];
    check_conserved((I6, "stock"), row, [delivered, available, reserved], sums, totals, findings);
    findings.unless(newest.map(|(event_id, _)| *event_id) == row.event_id, I8, "item", || {
        format!("{sku}: its row recorded {:?}, the newest record is {newest:?}", row.event_id)
    });
    let same = |described: &ItemDescription| {
        (
            Some(&described.name),
            Some(described.price_cents),
            Some(&described.currency),
            Some(described.version),
        ) == (row.name.as_ref(), row.price_cents, row.currency.as_ref(), row.version)
    };
    findings.unless(newest.is_some_and(|(_, newest)| same(newest)), I8, "item", || {
        format!("{sku}: the newest record differs from the row: {newest:?}")
    });
    findings.unless(known.is_some_and(same), I4, "item", || {
        format!("{sku}: the order service has it as {known:?}")
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::checker::test_cases::id;

    /// An account that balances.
    pub(crate) fn balanced_account() -> AccountRow {
        AccountRow {
            customer_id: id(2),
            deposits_cents: 500,
            verified_cents: 200,
            deposited_cents: Some(500),
            balance_cents: Some(300),
            taken_cents: Some(200),
        }
    }

    /// An item that balances, and its description.
    pub(crate) fn balanced_item() -> (ItemRow, ItemDescription) {
        let described = ItemDescription {
            sku: "pen".into(),
            name: "Pen".into(),
            price_cents: 150,
            currency: "EUR".into(),
            version: 2,
        };
        let row = ItemRow {
            sku: "pen".into(),
            deliveries: 10,
            held: 4,
            name: Some("Pen".into()),
            price_cents: Some(150),
            currency: Some("EUR".into()),
            version: Some(2),
            delivered: Some(10),
            available: Some(6),
            reserved: Some(4),
            event_id: Some(id(5)),
        };
        (row, described)
    }

    #[test]
    fn money_that_does_not_balance_is_refused() {
        let right = balanced_account();
        let off = |row: &AccountRow| {
            let (mut money, mut findings) = (Totals::default(), Findings::default());
            check_account(row, &mut money, &mut findings);
            findings.kinds()
        };
        assert!(off(&right).is_empty());
        for row in [
            AccountRow { deposits_cents: 499, ..right.clone() },
            AccountRow { verified_cents: 100, ..right.clone() },
            AccountRow { balance_cents: Some(301), ..right.clone() },
            AccountRow { deposited_cents: None, ..right.clone() },
        ] {
            assert_eq!(off(&row), ["I5 money"], "{row:?}");
        }
        let (balance_cents, taken_cents) = (Some(-100), Some(600));
        let negative = AccountRow { verified_cents: 600, balance_cents, taken_cents, ..right };
        assert_eq!(off(&negative), ["I5 negative"]);

        let mut findings = Findings::default();
        check_totals(200, &Tally { confirmed_cents: 200, ..Tally::default() }, &mut findings);
        assert_eq!(findings.count(), 0);
        check_totals(200, &Tally { confirmed_cents: 100, ..Tally::default() }, &mut findings);
        assert_eq!(findings.kinds(), ["I5 money"]);
    }

    #[test]
    fn an_item_that_does_not_balance_or_is_published_differently_is_refused() {
        let (right, described) = balanced_item();
        let newest = (id(5), described.clone());
        let off = |row: &ItemRow,
                   newest: Option<&(Uuid, ItemDescription)>,
                   known: Option<&ItemDescription>| {
            let (mut stock, mut findings) = (Totals::default(), Findings::default());
            check_item(row, newest, known, &mut stock, &mut findings);
            findings.kinds()
        };
        assert!(off(&right, Some(&newest), Some(&described)).is_empty());
        for row in [
            ItemRow { deliveries: 9, ..right.clone() },
            ItemRow { held: 3, ..right.clone() },
            ItemRow { available: Some(7), ..right.clone() },
        ] {
            assert_eq!(off(&row, Some(&newest), Some(&described)), ["I6 stock"], "{row:?}");
        }
        let row = ItemRow { held: 11, available: Some(-1), reserved: Some(11), ..right.clone() };
        assert_eq!(off(&row, Some(&newest), Some(&described)), ["I6 negative"]);
        let older = (id(4), described.clone());
        assert_eq!(off(&right, Some(&older), Some(&described)), ["I8 item"]);
        assert_eq!(off(&right, None, Some(&described)), ["I8 item"]);
        assert_eq!(off(&right, Some(&newest), None), ["I4 item"]);
        let stale = ItemDescription { version: 1, ..described };
        assert_eq!(off(&right, Some(&newest), Some(&stale)), ["I4 item"]);
    }
}
