//! What the events of other services cause. Each handler is a pure function from an event and the rows in memory to
//! what is published.

use chassis::{HandlerContext, HandlerResult, unprocessable};
use events::orders::OrderConfirmed;
use sqlx::types::Json;

use crate::shipping::{ConfirmedOrder, Line, Orders};

/// `orders.confirmed` → nothing yet
///
/// An order whose lines do not add up to its total is unprocessable.
pub fn record_confirmed(
    order: &OrderConfirmed,
    orders: &mut Orders,
    _: HandlerContext,
) -> HandlerResult<()> {
    if orders.order(order.order_id).is_some() {
        return Ok(None); // recorded before
    }
    let sum = order.lines.iter().try_fold(0_i64, |sum, line| {
        sum.checked_add(line.unit_price_cents.checked_mul(line.quantity.into())?)
    });
    if sum != Some(order.total_cents) {
        unprocessable!(
            "order {}: its lines do not add up to {}",
            order.order_id,
            order.total_cents
        );
    }
    orders.put_order(ConfirmedOrder {
        order_id: order.order_id,
        customer_id: order.customer_id,
        lines: Json(order.lines.iter().map(Line::from).collect()),
        total_cents: order.total_cents,
        currency: order.currency.clone(),
        confirmed_at: order.occurred_at,
    });
    Ok(None)
}
