//! What the events of other services cause. Each handler is a pure function from an event and the rows in memory to
//! what is published.

use chassis::{HandlerContext, HandlerResult, unprocessable};
use events::purchases::PurchaseConfirmed;
use sqlx::types::Json;

use crate::published::Published;
use crate::purchases::{ConfirmedPurchase, Line, Purchases};

/// `purchases.confirmed` → [`Published`]
///
/// A purchase whose lines do not add up to its total is unprocessable.
pub fn record_confirmed(
    purchase: &PurchaseConfirmed,
    purchases: &mut Purchases,
    context: HandlerContext,
) -> HandlerResult<Published> {
    if purchases.purchase(purchase.purchase_id).is_some() {
        return Ok(None); // recorded before
    }
    let sum = purchase.lines.iter().try_fold(0_i64, |sum, line| {
        sum.checked_add(line.unit_price_cents.checked_mul(line.quantity.into())?)
    });
    if sum != Some(purchase.total_cents) {
        unprocessable!(
            "purchase {}: its lines do not add up to {}",
            purchase.purchase_id,
            purchase.total_cents
        );
    }
    let confirmed = ConfirmedPurchase {
        purchase_id: purchase.purchase_id,
        customer_id: purchase.customer_id,
        lines: Json(purchase.lines.iter().map(Line::from).collect()),
        total_cents: purchase.total_cents,
        currency: purchase.currency.clone(),
        confirmed_at: purchase.occurred_at,
        recorded_at: context.now,
        event_id: context.event_id,
    };
    let published = confirmed.published();
    purchases.put_purchase(confirmed);
    Ok(published)
}
