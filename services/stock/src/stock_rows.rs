//! How the rows of items, reservations and deliveries are loaded and saved: the SQL of the aggregate.
//!
//! One statement a table, with arrays for columns, whatever the size of the batch. The second half of
//! `stock.rs`, which declares it by its path: the model checker and the fuzzer compile that file in as well.

use super::*;

impl UnitOfWork for Warehouse {
    type Keys = Keys;

    async fn load(tx: &mut PgConnection, mut keys: Keys) -> sqlx::Result<Warehouse> {
        let (mut reservations, mut items) = (Vec::<Reservation>::new(), Vec::new());
        if !keys.orders.is_empty() {
            reservations = sqlx::query_as(
                "select order_id, state, lines, shortfall, reason, response_event_id, compensation_event_id,
                        created_at, updated_at
                 from reservations where order_id = any($1) order by order_id for update",
            )
            .bind(Vec::from_iter(keys.orders.iter().copied()))
            .fetch_all(&mut *tx)
            .await?;
            // A cancellation names no items; what is put back stands in the reservation.
            let lines = reservations.iter().flat_map(|reservation| reservation.lines.iter());
            keys.skus.extend(lines.map(|line| line.sku.clone()));
        }
        if !keys.skus.is_empty() {
            items = sqlx::query_as(
                "select sku, name, price_cents, currency, version, delivered, available,
                            reserved, event_id, changed_at
                     from items where sku = any($1) order by sku for update",
            )
            .bind(Vec::from_iter(keys.skus.iter().map(String::as_str)))
            .fetch_all(&mut *tx)
            .await?;
        }
        Ok(Warehouse {
            reservations: Table::from_rows(keys.orders, reservations, |r| r.order_id),
            items: Table::from_rows(keys.skus, items, |item: &Item| item.sku.clone()),
            deliveries: Vec::new(),
        })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        save_items(writes, UPDATE_ITEMS, self.items.dirty_rows());
        save_items(writes, INSERT_ITEMS, self.items.new_rows());
        update_reservations(writes, self.reservations.dirty_rows());
        insert_reservations(writes, self.reservations.new_rows());
        insert_deliveries(writes, &self.deliveries);
    }
}

const UPDATE_ITEMS: &str = "
    update items set name = changed.name, price_cents = changed.price_cents, currency = changed.currency,
        version = changed.version, delivered = changed.delivered, available = changed.available,
        reserved = changed.reserved, event_id = changed.event_id, changed_at = changed.changed_at
    from (select unnest($1::text[]) as sku, unnest($2::text[]) as name,
                 unnest($3::bigint[]) as price_cents, unnest($4::text[]) as currency,
                 unnest($5::bigint[]) as version, unnest($6::bigint[]) as delivered,
                 unnest($7::bigint[]) as available, unnest($8::bigint[]) as reserved,
                 unnest($9::uuid[]) as event_id, unnest($10::timestamptz[]) as changed_at) as changed
    where items.sku = changed.sku";

const INSERT_ITEMS: &str = "
    insert into items
        (sku, name, price_cents, currency, version, delivered, available, reserved, event_id,
         changed_at)
    select unnest($1::text[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::text[]),
           unnest($5::bigint[]), unnest($6::bigint[]), unnest($7::bigint[]), unnest($8::bigint[]),
           unnest($9::uuid[]), unnest($10::timestamptz[])";

fn save_items(writes: &mut WriteBatch<'_>, statement: &'static str, items: Vec<&Item>) {
    if items.is_empty() {
        return;
    }
    writes
        .statement(statement)
        .bind(items.iter().map(|i| i.sku.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.name.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.price_cents).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.currency.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.version).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.delivered).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.available).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.reserved).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.event_id).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.changed_at).collect::<Vec<_>>());
}

/// What was answered stays; it can be undone once.
fn update_reservations(writes: &mut WriteBatch<'_>, reservations: Vec<&Reservation>) {
    if reservations.is_empty() {
        return;
    }
    writes
        .statement(
            "update reservations set state = changed.state, compensation_event_id = changed.compensation_event_id,
             updated_at = changed.updated_at
         from (select unnest($1::uuid[]) as order_id, unnest($2::text[]) as state,
                      unnest($3::uuid[]) as compensation_event_id,
                      unnest($4::timestamptz[]) as updated_at) as changed
         where reservations.order_id = changed.order_id",
        )
        .bind(reservations.iter().map(|r| r.order_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.state).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.compensation_event_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.updated_at).collect::<Vec<_>>());
}

fn insert_reservations(writes: &mut WriteBatch<'_>, reservations: Vec<&Reservation>) {
    if reservations.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into reservations
             (order_id, state, lines, shortfall, reason, response_event_id, compensation_event_id,
              created_at, updated_at)
         select unnest($1::uuid[]), unnest($2::text[]), unnest($3::jsonb[]), unnest($4::jsonb[]),
                unnest($5::text[]), unnest($6::uuid[]), unnest($7::uuid[]),
                unnest($8::timestamptz[]), unnest($9::timestamptz[])",
        )
        .bind(reservations.iter().map(|r| r.order_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.state).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| &r.lines).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.shortfall.as_ref()).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.reason.as_deref()).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.response_event_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.compensation_event_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.created_at).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.updated_at).collect::<Vec<_>>());
}

fn insert_deliveries(writes: &mut WriteBatch<'_>, deliveries: &[(Delivery, DateTime<Utc>)]) {
    if deliveries.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into deliveries (delivery_id, sku, quantity, created_at)
         select unnest($1::uuid[]), unnest($2::text[]), unnest($3::bigint[]),
                unnest($4::timestamptz[])",
        )
        .bind(deliveries.iter().map(|(d, _)| d.delivery_id).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|(d, _)| d.sku.as_str()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|(d, _)| d.quantity).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|(_, at)| *at).collect::<Vec<_>>());
}
