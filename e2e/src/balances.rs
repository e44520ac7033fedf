//! What must be conserved: a customer's money, and what there is of an item. Pure functions over rows.

use uuid::Uuid;

use crate::checks::Tally;
use crate::findings::Findings;
use crate::invariants::Invariant::{I4, I5, I6, I8};

/// A customer's money: what came in, what is there, what was taken.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct AccountRow {
    pub customer_id: Uuid,
    /// Sums of the rows; the other three are the account's own counters.
    pub deposits_cents: i64,
    pub verified_cents: i64,
    pub deposited_cents: Option<i64>,
    pub balance_cents: Option<i64>,
    pub taken_cents: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Money {
    pub accounts: u64,
    pub deposited_cents: i128,
    pub balance_cents: i128,
    pub taken_cents: i128,
}

pub fn check_account(row: &AccountRow, money: &mut Money, findings: &mut Findings) {
    let (Some(deposited), Some(balance), Some(taken)) =
        (row.deposited_cents, row.balance_cents, row.taken_cents)
    else {
        findings.add(I5, "money", || {
            format!("customer {}: deposits or payments without account", row.customer_id)
        });
        return;
    };
    money.accounts += 1;
    money.deposited_cents += i128::from(deposited);
    money.balance_cents += i128::from(balance);
    money.taken_cents += i128::from(taken);
    let conserved = i128::from(deposited) == i128::from(balance) + i128::from(taken);
    let holds = conserved && row.deposits_cents == deposited && row.verified_cents == taken;
    findings.unless(holds, I5, "money", || format!("customer {}: {row:?}", row.customer_id));
    findings.unless(balance >= 0 && taken >= 0, I5, "negative", || {
        format!("customer {}: {row:?}", row.customer_id)
    });
}

/// What was taken is what confirmed orders cost.
pub fn check_totals(money: &Money, tally: &Tally, findings: &mut Findings) {
    findings.unless(money.taken_cents == tally.confirmed_cents, I5, "money", || {
        format!(
            "taken are {}, confirmed orders come to {}",
            money.taken_cents, tally.confirmed_cents
        )
    });
}

/// An item: what came in, what is there, what is set aside.
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

/// An item as a record of `stock.items`, or order's read model, has it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Described {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
    pub version: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Goods {
    pub items: u64,
    pub delivered: i128,
    pub available: i128,
    pub reserved: i128,
}

/// `newest` is the newest record of the item, `known` what the order service knows of it.
pub fn check_item(
    row: &ItemRow,
    newest: Option<&(Uuid, Described)>,
    known: Option<&Described>,
    goods: &mut Goods,
    findings: &mut Findings,
) {
    let sku = &row.sku;
    let (Some(delivered), Some(available), Some(reserved)) =
        (row.delivered, row.available, row.reserved)
    else {
        findings.add(I6, "stock", || format!("{sku}: deliveries or reservations without item"));
        return;
    };
    goods.items += 1;
    goods.delivered += i128::from(delivered);
    goods.available += i128::from(available);
    goods.reserved += i128::from(reserved);
    let conserved = i128::from(delivered) == i128::from(available) + i128::from(reserved);
    let holds = conserved && row.deliveries == delivered && row.held == reserved;
    findings.unless(holds, I6, "stock", || format!("{row:?}"));
    findings.unless(available >= 0 && reserved >= 0, I6, "negative", || format!("{row:?}"));
    findings.unless(newest.map(|(event_id, _)| *event_id) == row.event_id, I8, "item", || {
        format!("{sku}: its row recorded {:?}, the newest record is {newest:?}", row.event_id)
    });
    let same = |described: &Described| {
        (
            Some(&described.name),
            Some(described.price_cents),
            Some(&described.currency),
            Some(described.version),
        ) == (row.name.as_ref(), row.price_cents, row.currency.as_ref(), row.version)
    };
    findings.unless(newest.is_some_and(|(_, newest)| same(newest)), I8, "item", || {
        format!("{sku}: the newest record says something else than the row: {newest:?}")
    });
    findings.unless(known.is_some_and(same), I4, "item", || {
        format!("{sku}: the order service knows it differently: {known:?}")
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::checks::tests::id;

    /// An account that balances.
    pub(crate) fn right_account() -> AccountRow {
        AccountRow {
            customer_id: id(2),
            deposits_cents: 500,
            verified_cents: 200,
            deposited_cents: Some(500),
            balance_cents: Some(300),
            taken_cents: Some(200),
        }
    }

    /// An item that balances, and what it is described as.
    pub(crate) fn right_item() -> (ItemRow, Described) {
        let described = Described {
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
        let right = right_account();
        let off = |row: &AccountRow| {
            let (mut money, mut findings) = (Money::default(), Findings::default());
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

        let money = Money { taken_cents: 200, ..Money::default() };
        let mut findings = Findings::default();
        check_totals(&money, &Tally { confirmed_cents: 200, ..Tally::default() }, &mut findings);
        assert_eq!(findings.count(), 0);
        check_totals(&money, &Tally { confirmed_cents: 100, ..Tally::default() }, &mut findings);
        assert_eq!(findings.kinds(), ["I5 money"]);
    }

    #[test]
    fn an_item_that_does_not_balance_or_is_announced_differently_is_refused() {
        let (right, described) = right_item();
        let newest = (id(5), described.clone());
        let off = |row: &ItemRow, newest: Option<&(Uuid, Described)>, known: Option<&Described>| {
            let (mut goods, mut findings) = (Goods::default(), Findings::default());
            check_item(row, newest, known, &mut goods, &mut findings);
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
        let stale = Described { version: 1, ..described };
        assert_eq!(off(&right, Some(&newest), Some(&stale)), ["I4 item"]);
    }
}
