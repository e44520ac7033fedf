//! How the rows of orders, their history and the items are loaded, saved and republished. The second half of
//! `order.rs`, which declares it by its path: the model checker and the fuzzer compile that file in as well.

use chassis::{Loads, PublishedEvent, Republish, UnitOfWork, WriteBatch};
use std::collections::BTreeSet;

use events::orders::{CANCELLED, CONFIRMED, CREATED};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{StockItem, StockRejected, StockReleased, StockReserved};
use sqlx::PgConnection;

use super::*;

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

macro_rules! loads_by_order_id {
    ($($event:ty),*) => {$(
        impl Loads<$event> for Orders {
            fn keys(event: &$event, keys: &mut Keys) {
                keys.orders.insert(event.order_id);
            }
        }
    )*};
}

loads_by_order_id!(
    CancelOrder,
    PaymentVerified,
    PaymentDeclined,
    PaymentRefunded,
    StockReserved,
    StockRejected,
    StockReleased
);

impl UnitOfWork for Orders {
    type Keys = Keys;

    async fn load(tx: &mut PgConnection, keys: Keys) -> sqlx::Result<Orders> {
        let orders = Table::lock(tx, keys.orders).await?;
        // Not locked: an order takes the price that was known when it was placed.
        let items = Table::read(tx, keys.skus).await?;
        Ok(Orders { orders, items, ..Orders::default() })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.orders);
        insert_history(writes, &self.history);
        writes.insert_all(&self.deadlines);
        let items = self.items.changed_rows();
        if !items.is_empty() {
            writes.statement(UPSERT_ITEMS).bind_rows(&items);
        }
    }
}

/// An event that is there already is heard again, after the inbox forgot it: that changes nothing. No other
/// transaction can be adding it just now, since its order is locked, or new.
fn insert_history(writes: &mut WriteBatch<'_>, entries: &[NewHistoryEntry]) {
    if entries.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into history
             (order_id, event_id, position, event, detail, occurred_at, recorded_at)
         select order_id, event_id, position, event, detail, occurred_at, recorded_at
         from (select unnest($1::uuid[]) as order_id, unnest($2::uuid[]) as event_id,
                      unnest($3::bigint[]) as position, unnest($4::text[]) as event,
                      unnest($5::text[])::json as detail,
                      unnest($6::timestamptz[]) as occurred_at,
                      unnest($7::timestamptz[]) as recorded_at) as entry
         where not exists (select from history where history.order_id = entry.order_id
                                                 and history.event_id = entry.event_id)",
        )
        .bind(entries.iter().map(|e| e.order_id).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.event_id).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.position).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.event).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.detail.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.occurred_at).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.recorded_at).collect::<Vec<_>>());
}

/// The version decides, in memory and once more here: another instance may know a newer one.
const UPSERT_ITEMS: &str = "
    insert into items (sku, name, price_cents, currency, version)
    select unnest($1::text[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::text[]),
           unnest($5::bigint[])
    on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents,
        currency = excluded.currency, version = excluded.version
    where items.version < excluded.version";

impl Republish for Order {
    fn topic_names() -> Vec<&'static str> {
        vec![CREATED.name, CONFIRMED.name, CANCELLED.name]
    }

    fn published_events(&self) -> Vec<PublishedEvent> {
        let mut published =
            vec![PublishedEvent::new(self.created_event_id, self.created_at, &self.created())];
        if let (Some(event_id), Some(at)) = (self.ended_event_id, self.ended_at) {
            published.push(match self.reason {
                None => PublishedEvent::new(event_id, at, &self.confirmed(at)),
                Some(reason) => PublishedEvent::new(event_id, at, &self.cancelled(reason, at)),
            });
        }
        published
    }
}
