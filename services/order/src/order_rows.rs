//! How the rows of orders, their history and the items are loaded and saved: the SQL of the aggregate.
//!
//! One statement a table, with arrays for columns, whatever the size of the batch. The second half of
//! `order.rs`, which declares it by its path: the model checker and the fuzzer compile that file in as well.

use super::*;

/// An order as its table has it.
#[derive(sqlx::FromRow)]
struct OrderRow {
    #[sqlx(flatten)]
    order: Order,
    last_position: i64,
}

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
        let (mut orders, mut items) = (Vec::<OrderRow>::new(), Vec::new());
        if !keys.orders.is_empty() {
            orders = sqlx::query_as(
                "select order_id, customer_id, status, reason, payment, stock, total_cents,
                        currency, lines, created_at, ended_at, created_event_id, ended_event_id,
                        last_position
                 from orders where order_id = any($1) order by order_id for update",
            )
            .bind(Vec::from_iter(keys.orders.iter().copied()))
            .fetch_all(&mut *tx)
            .await?;
        }
        if !keys.skus.is_empty() {
            // Not locked: an order takes the price that was known when it was placed.
            items = sqlx::query_as(
                "select sku, name, price_cents, currency, version
                 from items where sku = any($1)",
            )
            .bind(Vec::from_iter(keys.skus.iter().map(String::as_str)))
            .fetch_all(&mut *tx)
            .await?;
        }
        let last_positions =
            orders.iter().map(|stored| (stored.order.order_id, stored.last_position)).collect();
        let orders = orders.into_iter().map(|stored| stored.order).collect();
        Ok(Orders {
            orders: Table::from_rows(keys.orders, orders, |order: &Order| order.order_id),
            items: Table::from_rows(keys.skus, items, |item: &Item| item.sku.clone()),
            last_positions,
            history: Vec::new(),
            with_deadline: HashSet::new(),
        })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        insert_orders(writes, self.orders.new_rows(), &self.last_positions);
        update_orders(writes, self.orders.dirty_rows(), &self.last_positions);
        insert_history(writes, &self.history);
        save_deadlines(writes, self);
        let mut items = self.items.new_rows();
        items.extend(self.items.dirty_rows());
        items.sort_by(|a, b| a.sku.cmp(&b.sku));
        upsert_items(writes, items);
    }
}

fn insert_orders(
    writes: &mut WriteBatch<'_>,
    orders: Vec<&Order>,
    last_positions: &HashMap<Uuid, i64>,
) {
    if orders.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into orders
             (order_id, customer_id, status, reason, payment, stock, total_cents, currency, lines,
              created_at, ended_at, created_event_id, ended_event_id, last_position)
         select unnest($1::uuid[]), unnest($2::uuid[]), unnest($3::text[]), unnest($4::text[]),
                unnest($5::text[]), unnest($6::text[]), unnest($7::bigint[]), unnest($8::text[]),
                unnest($9::jsonb[]), unnest($10::timestamptz[]), unnest($11::timestamptz[]),
                unnest($12::uuid[]), unnest($13::uuid[]), unnest($14::bigint[])",
        )
        .bind(orders.iter().map(|o| o.order_id).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.customer_id).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.status).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.reason).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.payment).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.stock).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.total_cents).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.currency.as_str()).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| &o.lines).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.created_at).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.ended_at).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.created_event_id).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.ended_event_id).collect::<Vec<_>>())
        .bind(last_positions_of(&orders, last_positions));
}

/// The position of the last history entry of each order; 0 for an order without one.
fn last_positions_of(orders: &[&Order], last_positions: &HashMap<Uuid, i64>) -> Vec<i64> {
    orders.iter().map(|order| last_positions.get(&order.order_id).copied().unwrap_or(0)).collect()
}

/// What an order is about never changes; where it stands does.
fn update_orders(
    writes: &mut WriteBatch<'_>,
    orders: Vec<&Order>,
    last_positions: &HashMap<Uuid, i64>,
) {
    if orders.is_empty() {
        return;
    }
    writes
        .statement(
            "update orders set status = o.status, reason = o.reason, payment = o.payment,
             stock = o.stock, ended_at = o.ended_at, ended_event_id = o.ended_event_id,
             last_position = o.last_position
         from (select unnest($1::uuid[]) as order_id, unnest($2::text[]) as status,
                      unnest($3::text[]) as reason, unnest($4::text[]) as payment,
                      unnest($5::text[]) as stock, unnest($6::timestamptz[]) as ended_at,
                      unnest($7::uuid[]) as ended_event_id,
                      unnest($8::bigint[]) as last_position) as o
         where orders.order_id = o.order_id",
        )
        .bind(orders.iter().map(|o| o.order_id).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.status).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.reason).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.payment).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.stock).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.ended_at).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.ended_event_id).collect::<Vec<_>>())
        .bind(last_positions_of(&orders, last_positions));
}

/// An event that is there already is heard again, after the inbox forgot it: that changes nothing. Nobody can
/// be adding it just now, since its order is locked, or new.
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

impl Orders {
    /// Has the sweep cancel a new order if it is still pending at the deadline.
    pub fn set_deadline(&mut self, order_id: Uuid) {
        self.with_deadline.insert(order_id);
    }
}

/// A row for each new order that has a deadline, until the order ends.
fn save_deadlines(writes: &mut WriteBatch<'_>, orders: &Orders) {
    let mut new = orders.orders.new_rows();
    new.retain(|o| o.status == Status::Pending && orders.with_deadline.contains(&o.order_id));
    if !new.is_empty() {
        writes
            .statement(
                "insert into deadlines (order_id, created_at)
             select unnest($1::uuid[]), unnest($2::timestamptz[])",
            )
            .bind(new.iter().map(|o| o.order_id).collect::<Vec<_>>())
            .bind(new.iter().map(|o| o.created_at).collect::<Vec<_>>());
    }
    let mut ended = orders.orders.dirty_rows();
    ended.retain(|o| o.status != Status::Pending);
    if !ended.is_empty() {
        writes
            .statement("delete from deadlines where order_id = any($1)")
            .bind(ended.iter().map(|o| o.order_id).collect::<Vec<_>>());
    }
}

/// The version decides, in memory and once more here: another instance may know a newer one.
fn upsert_items(writes: &mut WriteBatch<'_>, items: Vec<&Item>) {
    if items.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into items (sku, name, price_cents, currency, version)
         select unnest($1::text[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::text[]),
                unnest($5::bigint[])
         on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents,
             currency = excluded.currency, version = excluded.version
         where items.version < excluded.version",
        )
        .bind(items.iter().map(|i| i.sku.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.name.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.price_cents).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.currency.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.version).collect::<Vec<_>>());
}

impl Republish for Order {
    type Key = Uuid;
    const TABLE: (&'static str, &'static str) = ("orders", "order_id");

    fn key(&self) -> Uuid {
        self.order_id
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
