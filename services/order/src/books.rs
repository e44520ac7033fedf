//! The books of the order service: how many orders have each status, and the total of the confirmed ones.

use axum::Router;
use chassis::{Sum, books};
use serde::Serialize;
use sqlx::PgPool;

#[derive(Serialize, sqlx::FromRow)]
struct Books {
    #[sqlx(flatten)]
    orders: OrderCounts,
    confirmed_cents: Sum,
    balanced: bool,
}

#[derive(Serialize, sqlx::FromRow)]
struct OrderCounts {
    pending: i64,
    confirmed: i64,
    cancelled: i64,
}

/// Balanced if the status of each order agrees with its legs: a confirmed order was paid for and reserved; a pending
/// order lacks an acceptance, and neither leg is a no.
///
/// The total of the confirmed orders equals what payment has taken, if no order is pending, if the payment leg of
/// each cancelled order is declined, refunded or void, and if payment has written nothing off.
pub fn router(db: PgPool) -> Router {
    books::router::<Books>(
        db,
        "select count(*) filter (where status = 'pending') as pending,
                count(*) filter (where status = 'confirmed') as confirmed,
                count(*) filter (where status = 'cancelled') as cancelled,
                coalesce(sum(total_cents) filter (where status = 'confirmed'), 0)::text
                    as confirmed_cents,
                count(*) filter (where case status
                    when 'confirmed' then not (payment = 'verified' and stock = 'reserved')
                    when 'pending' then payment = 'verified' and stock = 'reserved'
                        or payment not in ('waiting', 'verified')
                        or stock not in ('waiting', 'reserved')
                    end) = 0 as balanced
         from orders",
    )
}
