//! The books of the order service: how many orders stand where, and what the confirmed ones are worth.

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

/// Balanced where each order stands as its legs say: a confirmed one was paid and reserved, and a
/// pending one lacks one of both, and nobody has said no.
///
/// What the confirmed ones are worth is what payment has taken, once none is pending and payment
/// has undone every cancelled one (its payment leg is declined, refunded or void), if nothing is
/// written off at payment.
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
