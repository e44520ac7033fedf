//! What must be conserved: a customer's money, and what there is of an item. Pure functions over rows.

use uuid::Uuid;

use crate::checks::Tally;
use crate::findings::Findings;

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
        findings.add("money", || {
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
    findings.unless(holds, "money", || format!("customer {}: {row:?}", row.customer_id));
    findings.unless(balance >= 0 && taken >= 0, "negative", || {
        format!("customer {}: {row:?}", row.customer_id)
    });
}

/// What was taken is what confirmed orders cost.
pub fn check_totals(money: &Money, tally: &Tally, findings: &mut Findings) {
    findings.unless(money.taken_cents == tally.confirmed_cents, "money", || {
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
        findings.add("stock", || format!("{sku}: deliveries or reservations without item"));
        return;
    };
    goods.items += 1;
    goods.delivered += i128::from(delivered);
    goods.available += i128::from(available);
    goods.reserved += i128::from(reserved);
    let conserved = i128::from(delivered) == i128::from(available) + i128::from(reserved);
    let holds = conserved && row.deliveries == delivered && row.held == reserved;
    findings.unless(holds, "stock", || format!("{row:?}"));
    findings.unless(available >= 0 && reserved >= 0, "negative", || format!("{row:?}"));
    findings.unless(newest.map(|(event_id, _)| *event_id) == row.event_id, "item", || {
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
    findings.unless(newest.is_some_and(|(_, newest)| same(newest)), "item", || {
        format!("{sku}: the newest record says something else than the row: {newest:?}")
    });
    findings.unless(known.is_some_and(same), "item", || {
        format!("{sku}: the order service knows it differently: {known:?}")
    });
}
