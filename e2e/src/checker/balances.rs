//! The conservation checks: a customer's money (I5) and the units of an item (I6). Pure functions
//! over rows.

use serde::Deserialize;
use uuid::Uuid;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{I4, I5, I6, I8};
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

#[derive(Clone, Debug, Default, PartialEq)]
pub struct MoneyTotals {
    pub accounts: u64,
    pub deposited_cents: i128,
    pub balance_cents: i128,
    pub taken_cents: i128,
}

pub fn check_account(row: &AccountRow, totals: &mut MoneyTotals, findings: &mut Findings) {
    let (Some(deposited), Some(balance), Some(taken)) =
        (row.deposited_cents, row.balance_cents, row.taken_cents)
    else {
        findings.add(I5, "money", || {
            format!("customer {}: deposits or payments without an account", row.customer_id)
        });
        return;
    };
    totals.accounts += 1;
    totals.deposited_cents += i128::from(deposited);
    totals.balance_cents += i128::from(balance);
    totals.taken_cents += i128::from(taken);
    let conserved = i128::from(deposited) == i128::from(balance) + i128::from(taken);
    let holds = conserved && row.deposits_cents == deposited && row.verified_cents == taken;
    findings.unless(holds, I5, "money", || format!("customer {}: {row:?}", row.customer_id));
    findings.unless(balance >= 0 && taken >= 0, I5, "negative", || {
        format!("customer {}: {row:?}", row.customer_id)
    });
}

/// The money taken equals the totals of the confirmed orders.
pub fn check_totals(totals: &MoneyTotals, tally: &Tally, findings: &mut Findings) {
    findings.unless(totals.taken_cents == tally.confirmed_cents, I5, "money", || {
        format!(
            "payments taken are {}, confirmed orders total {}",
            totals.taken_cents, tally.confirmed_cents
        )
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

#[derive(Clone, Debug, Default, PartialEq)]
pub struct StockTotals {
    pub items: u64,
    pub delivered: i128,
    pub available: i128,
    pub reserved: i128,
}

/// `newest` is the newest record of the item, `known` the row of order's read model.
pub fn check_item(
    row: &ItemRow,
    newest: Option<&(Uuid, ItemDescription)>,
    known: Option<&ItemDescription>,
    totals: &mut StockTotals,
    findings: &mut Findings,
) {
    let sku = &row.sku;
    let (Some(delivered), Some(available), Some(reserved)) =
        (row.delivered, row.available, row.reserved)
    else {
        findings.add(I6, "stock", || format!("{sku}: deliveries or reservations without an item"));
        return;
    };
    totals.items += 1;
    totals.delivered += i128::from(delivered);
    totals.available += i128::from(available);
    totals.reserved += i128::from(reserved);
    let conserved = i128::from(delivered) == i128::from(available) + i128::from(reserved);
    let holds = conserved && row.deliveries == delivered && row.held == reserved;
    findings.unless(holds, I6, "stock", || format!("{row:?}"));
    findings.unless(available >= 0 && reserved >= 0, I6, "negative", || format!("{row:?}"));
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
            let (mut money, mut findings) = (MoneyTotals::default(), Findings::default());
            check_account(row, &mut money, &mut findings);
            findings.kinds()
        };
        assert!(off(&right).is_empty());
        assert_eq!(off(&AccountRow { deposits_cents: 499, ..right.clone() }), ["I5 money"]);
        assert_eq!(off(&AccountRow { verified_cents: 100, ..right.clone() }), ["I5 money"]);
        assert_eq!(off(&AccountRow { balance_cents: Some(301), ..right.clone() }), ["I5 money"]);
        assert_eq!(off(&AccountRow { deposited_cents: None, ..right.clone() }), ["I5 money"]);
        let negative = AccountRow {
            verified_cents: 600,
            balance_cents: Some(-100),
            taken_cents: Some(600),
            ..right
        };
        assert_eq!(off(&negative), ["I5 negative"]);

        let money = MoneyTotals { taken_cents: 200, ..MoneyTotals::default() };
        let mut findings = Findings::default();
        check_totals(&money, &Tally { confirmed_cents: 200, ..Tally::default() }, &mut findings);
        assert_eq!(findings.count(), 0);
        check_totals(&money, &Tally { confirmed_cents: 100, ..Tally::default() }, &mut findings);
        assert_eq!(findings.kinds(), ["I5 money"]);
    }

    #[test]
    fn an_item_that_does_not_balance_or_is_published_differently_is_refused() {
        let (right, described) = balanced_item();
        let newest = (id(5), described.clone());
        let off = |row: &ItemRow,
                   newest: Option<&(Uuid, ItemDescription)>,
                   known: Option<&ItemDescription>| {
            let (mut stock, mut findings) = (StockTotals::default(), Findings::default());
            check_item(row, newest, known, &mut stock, &mut findings);
            findings.kinds()
        };
        assert!(off(&right, Some(&newest), Some(&described)).is_empty());
        let row = ItemRow { deliveries: 9, ..right.clone() };
        assert_eq!(off(&row, Some(&newest), Some(&described)), ["I6 stock"]);
        let row = ItemRow { held: 3, ..right.clone() };
        assert_eq!(off(&row, Some(&newest), Some(&described)), ["I6 stock"]);
        let row = ItemRow { available: Some(7), ..right.clone() };
        assert_eq!(off(&row, Some(&newest), Some(&described)), ["I6 stock"]);
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
