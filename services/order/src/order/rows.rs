//! How the rows of orders, their history and the items are loaded and saved.

use std::collections::BTreeSet;

use chassis::{Loader, Loads, UnitOfWork, WriteBatch};
use events::stock::StockItem;
use uuid::Uuid;

use super::participants::Answer;
use super::{CancelOrder, Deadline, Orders, PlaceOrder, history, pending};

/// Which rows a batch touches.
#[derive(Default)]
pub struct Keys {
    orders: BTreeSet<Uuid>,
    skus: BTreeSet<String>,
}

impl Loads<PlaceOrder> for Orders {
    fn keys(place: &PlaceOrder, keys: &mut Keys) {
        keys.orders.insert(place.order_id);
        keys.skus.extend(place.lines.iter().map(|line| line.sku.clone()));
    }
}

impl Loads<StockItem> for Orders {
    fn keys(item: &StockItem, keys: &mut Keys) {
        keys.skus.insert(item.sku.clone());
    }
}

impl Loads<CancelOrder> for Orders {
    fn keys(cancel: &CancelOrder, keys: &mut Keys) {
        keys.orders.insert(cancel.order_id);
    }
}

impl Loads<Deadline> for Orders {
    fn keys(deadline: &Deadline, keys: &mut Keys) {
        keys.orders.insert(deadline.order_id);
    }
}

impl<A: Answer> Loads<A> for Orders {
    fn keys(answer: &A, keys: &mut Keys) {
        keys.orders.insert(answer.order_id());
    }
}

impl UnitOfWork for Orders {
    type Keys = Keys;

    async fn load(loader: &mut Loader<'_>, keys: Keys) -> sqlx::Result<Orders> {
        let orders = loader.lock(keys.orders).await?;
        // Not locked: an order takes the price that is stored when it is placed.
        let items = loader.read(keys.skus).await?;
        Ok(Orders { orders, items, ..Orders::default() })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.orders);
        history::insert(writes, &self.history);
        pending::save(writes, self);
        let items = self.items.changed_rows();
        if !items.is_empty() {
            writes.statement(UPSERT_ITEMS).bind_rows(&items);
        }
    }
}

/// A newer version replaces an older one, here and in memory: another instance may have stored a newer one meanwhile.
const UPSERT_ITEMS: &str = "
    insert into items (sku, name, price_cents, currency, version)
    select unnest($1::text[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::text[]),
           unnest($5::bigint[])
    on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents,
        currency = excluded.currency, version = excluded.version
    where items.version < excluded.version";
