//! The decider: what payment's and stock's answers cause, and what customers' commands do. Pure
//! functions from an event or a command and the rows in memory to what is published.
//!
//! Each answer does two things. Its leg climbs, whatever the order's status: answers to an order
//! that has ended still arrive. Then the row decides, once: both yes confirm a pending order, the
//! first no cancels it.

use chassis::event::{Answer, At, Impossible};
use chassis::impossible;
use chassis::loss::Loss;
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{
    NAME_CHARS_MAX, SKU_RULE, StockItem, StockRejected, StockReleased, StockReserved, is_sku,
    is_text,
};
use sqlx::types::Json;
use uuid::Uuid;

use crate::order::{
    CancelOrder, Item, Line, Order, Orders, PaymentLeg, PlaceOrder, Reason, Status, StockLeg,
};

/// Why a command is refused.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    NoSuchItem { nth: usize },
    MixedCurrencies { nth: usize },
    TooMuch { nth: usize },
    NoSuchOrder,
    AlreadyConfirmed,
}

/// The command that places an order → `orders.created`
///
/// Prices are the order service's own, never the client's.
pub fn place_order(
    place: &PlaceOrder,
    orders: &mut Orders,
    at: At,
) -> Result<Option<OrderCreated>, Refusal> {
    if orders.order(place.order_id).is_some() {
        return Ok(None); // an earlier try was committed after all
    }
    let mut lines = Vec::with_capacity(place.lines.len());
    let mut currency: Option<String> = None;
    let mut total_cents = 0_i64;
    for (nth, wanted) in place.lines.iter().enumerate() {
        let item = orders.item(&wanted.sku).ok_or(Refusal::NoSuchItem { nth })?;
        if *currency.get_or_insert_with(|| item.currency.clone()) != item.currency {
            return Err(Refusal::MixedCurrencies { nth });
        }
        total_cents = i64::from(wanted.quantity)
            .checked_mul(item.price_cents)
            .and_then(|cents| total_cents.checked_add(cents))
            .ok_or(Refusal::TooMuch { nth })?;
        let (sku, quantity, unit_price_cents) =
            (wanted.sku.clone(), wanted.quantity, item.price_cents);
        lines.push(Line { sku, quantity, unit_price_cents });
    }
    let currency = currency.unwrap_or_default();
    let order = Order {
        order_id: place.order_id,
        customer_id: place.customer_id,
        status: Status::Pending,
        reason: None,
        payment: PaymentLeg::Waiting,
        stock: StockLeg::Waiting,
        total_cents,
        currency,
        lines: Json(lines),
        created_at: at.now,
        ended_at: None,
        created_event_id: at.event_id,
        ended_event_id: None,
    };
    let created = order.created();
    orders.put_order(order);
    orders.said(&created, place.order_id, at);
    Ok(Some(created))
}

/// The command that cancels an order → `orders.cancelled`, unless it was cancelled already
pub fn cancel_order(
    cancel: &CancelOrder,
    orders: &mut Orders,
    at: At,
) -> Result<Option<OrderCancelled>, Refusal> {
    let order = orders.order(cancel.order_id).ok_or(Refusal::NoSuchOrder)?;
    match order.status {
        Status::Pending => Ok(cancel_if_pending(cancel.order_id, cancel.reason, orders, at)),
        Status::Cancelled => Ok(None),
        Status::Confirmed => Err(Refusal::AlreadyConfirmed),
    }
}

/// `payments.verified` → nothing yet | `orders.confirmed`
pub fn payment_verified(
    event: &PaymentVerified,
    orders: &mut Orders,
    at: At,
) -> Answer<OrderConfirmed> {
    let order = known(event.order_id, orders)?;
    if (event.amount_cents, &event.currency) != (order.total_cents, &order.currency) {
        impossible!("payment verified another amount than order {} is about", event.order_id);
    }
    match order.payment {
        PaymentLeg::Waiting => order.payment = PaymentLeg::Verified,
        PaymentLeg::Verified | PaymentLeg::Refunded => {}
        no => impossible!("payment of order {} was {no:?} and is now verified", event.order_id),
    }
    orders.heard(event, event.order_id, event.occurred_at, at);
    Ok(confirm_if_both_said_yes(event.order_id, orders, at))
}

/// `payments.declined` → `orders.cancelled`, unless the order has ended
pub fn payment_declined(
    event: &PaymentDeclined,
    orders: &mut Orders,
    at: At,
) -> Answer<OrderCancelled> {
    let order = known(event.order_id, orders)?;
    match order.payment {
        PaymentLeg::Waiting => order.payment = PaymentLeg::Declined,
        PaymentLeg::Declined => {}
        said => impossible!("payment of order {} was {said:?} and is now declined", event.order_id),
    }
    orders.heard(event, event.order_id, event.occurred_at, at);
    Ok(cancel_if_pending(event.order_id, Reason::PaymentDeclined, orders, at))
}

/// `payments.refunded` → nothing: the leg ends
pub fn payment_refunded(event: &PaymentRefunded, orders: &mut Orders, at: At) -> Answer<()> {
    let order = known(event.order_id, orders)?;
    if order.status != Status::Cancelled {
        impossible!("payment refunded order {}, which was not cancelled", event.order_id);
    }
    let nothing_taken = event.amount_cents.is_none();
    let whole = (event.amount_cents, event.currency.as_ref())
        == (Some(order.total_cents), Some(&order.currency));
    if !nothing_taken && !whole {
        impossible!("payment refunded another amount than order {} is about", event.order_id);
    }
    order.payment = match (order.payment, nothing_taken) {
        (PaymentLeg::Waiting | PaymentLeg::Void, true) => PaymentLeg::Void,
        // The refund may overtake the verification that it undoes.
        (PaymentLeg::Waiting | PaymentLeg::Verified | PaymentLeg::Refunded, false) => {
            PaymentLeg::Refunded
        }
        (said, _) => {
            impossible!("payment of order {} was {said:?} and is now undone", event.order_id)
        }
    };
    orders.heard(event, event.order_id, event.occurred_at, at);
    Ok(None)
}

/// `stock.reserved` → nothing yet | `orders.confirmed`
pub fn stock_reserved(
    event: &StockReserved,
    orders: &mut Orders,
    at: At,
) -> Answer<OrderConfirmed> {
    let order = known(event.order_id, orders)?;
    let reserved = event.lines.iter().map(|line| (line.sku.as_str(), line.quantity));
    if !is_the_whole_order(reserved, order) {
        impossible!("stock reserved other lines than order {} has", event.order_id);
    }
    match order.stock {
        StockLeg::Waiting => order.stock = StockLeg::Reserved,
        StockLeg::Reserved | StockLeg::Released => {}
        no => impossible!("stock of order {} was {no:?} and is now reserved", event.order_id),
    }
    orders.heard(event, event.order_id, event.occurred_at, at);
    Ok(confirm_if_both_said_yes(event.order_id, orders, at))
}

/// `stock.rejected` → `orders.cancelled`, unless the order has ended
pub fn stock_rejected(
    event: &StockRejected,
    orders: &mut Orders,
    at: At,
) -> Answer<OrderCancelled> {
    let order = known(event.order_id, orders)?;
    match order.stock {
        StockLeg::Waiting => order.stock = StockLeg::Rejected,
        StockLeg::Rejected => {}
        said => impossible!("stock of order {} was {said:?} and is now rejected", event.order_id),
    }
    orders.heard(event, event.order_id, event.occurred_at, at);
    Ok(cancel_if_pending(event.order_id, Reason::StockRejected, orders, at))
}

/// `stock.released` → nothing: the leg ends
pub fn stock_released(event: &StockReleased, orders: &mut Orders, at: At) -> Answer<()> {
    let order = known(event.order_id, orders)?;
    if order.status != Status::Cancelled {
        impossible!("stock released order {}, which was not cancelled", event.order_id);
    }
    let nothing_reserved = event.lines.is_empty();
    let released = event.lines.iter().map(|line| (line.sku.as_str(), line.quantity));
    if !nothing_reserved && !is_the_whole_order(released, order) {
        impossible!("stock released other lines than order {} has", event.order_id);
    }
    order.stock = match (order.stock, nothing_reserved) {
        (StockLeg::Waiting | StockLeg::Void, true) => StockLeg::Void,
        // The release may overtake the reservation that it undoes.
        (StockLeg::Waiting | StockLeg::Reserved | StockLeg::Released, false) => StockLeg::Released,
        (said, _) => {
            impossible!("stock of order {} was {said:?} and is now undone", event.order_id)
        }
    };
    orders.heard(event, event.order_id, event.occurred_at, at);
    Ok(None)
}

/// `stock.items` → nothing: the read model that orders take their prices from
pub fn item_changed(item: &StockItem, orders: &mut Orders, _: At) -> Answer<()> {
    let StockItem { sku, name, price_cents, currency, version, .. } = item.clone();
    if !is_sku(&sku) {
        impossible!("its SKU has {} characters: a SKU {SKU_RULE}", sku.chars().count());
    }
    // What it may be is stock's to decide: here it has to be stored.
    if !is_text(&name, NAME_CHARS_MAX) {
        let chars = name.chars().count();
        impossible!(
            "its name has {chars} characters, not 1 to {NAME_CHARS_MAX}, or a control character"
        );
    }
    if price_cents < 0 || version < 1 {
        impossible!("version {version} of item {sku:?} has a price of {price_cents} cents");
    }
    if let Err(rule) = events::currency(&currency) {
        impossible!("item {sku:?} has a price in {currency:?}: {rule}");
    }
    orders.put_item(Item { sku, name, price_cents, currency, version });
    Ok(None)
}

fn known(order_id: Uuid, orders: &mut Orders) -> Result<&mut Order, Impossible> {
    match orders.change_order(order_id) {
        Some(order) => Ok(order),
        None => impossible!("there is no order {order_id}"),
    }
}

fn is_the_whole_order<'a>(lines: impl Iterator<Item = (&'a str, i32)>, order: &Order) -> bool {
    let mut lines: Vec<_> = lines.collect();
    let mut ordered: Vec<_> = order.lines.iter().map(|l| (l.sku.as_str(), l.quantity)).collect();
    lines.sort_unstable();
    ordered.sort_unstable();
    lines == ordered
}

fn confirm_if_both_said_yes(order_id: Uuid, orders: &mut Orders, at: At) -> Option<OrderConfirmed> {
    let order = orders.change_order(order_id)?;
    let both = order.payment == PaymentLeg::Verified && order.stock == StockLeg::Reserved;
    if order.status != Status::Pending || !both {
        return None;
    }
    order.status = Status::Confirmed;
    order.ended_at = Some(at.now);
    order.ended_event_id = Some(at.event_id);
    let confirmed = order.confirmed(at.now);
    orders.said(&confirmed, order_id, at);
    Some(confirmed)
}

fn cancel_if_pending(
    order_id: Uuid,
    reason: Reason,
    orders: &mut Orders,
    at: At,
) -> Option<OrderCancelled> {
    let order = orders.change_order(order_id)?;
    if order.status != Status::Pending {
        return None;
    }
    order.status = Status::Cancelled;
    order.reason = Some(reason);
    order.ended_at = Some(at.now);
    order.ended_event_id = Some(at.event_id);
    let cancelled = order.cancelled(reason, at.now);
    orders.said(&cancelled, order_id, at);
    Some(cancelled)
}

/// What it costs to discard a `payments.verified` that the order can't handle.
pub fn verification_discarded(event: &PaymentVerified, orders: &Orders) -> Loss {
    answer_discarded(event.order_id, "payment's yes", orders)
}

/// What it costs to discard a `payments.declined` that the order can't handle.
pub fn decline_discarded(event: &PaymentDeclined, orders: &Orders) -> Loss {
    answer_discarded(event.order_id, "payment's no", orders)
}

/// What it costs to discard a `stock.reserved` that the order can't handle.
pub fn reservation_discarded(event: &StockReserved, orders: &Orders) -> Loss {
    answer_discarded(event.order_id, "stock's yes", orders)
}

/// What it costs to discard a `stock.rejected` that the order can't handle.
pub fn rejection_discarded(event: &StockRejected, orders: &Orders) -> Loss {
    answer_discarded(event.order_id, "stock's no", orders)
}

fn answer_discarded(order_id: Uuid, answer: &str, orders: &Orders) -> Loss {
    match orders.order(order_id).map(|order| order.status) {
        None => nobody_waits(order_id),
        Some(Status::Pending) => {
            Loss::that(format!("Order {order_id} never hears {answer} and may never end."))
                .offering("cancels the order", "order", format!("/orders/{order_id}/cancel"))
        }
        Some(_) => Loss::that(format!(
            "Order {order_id} is decided; that it never hears {answer} leaves that leg open."
        )),
    }
}

/// What it costs to discard a `payments.refunded` that the order can't handle. What is due is the
/// order's word: the event may be one that cannot be.
pub fn refund_discarded(event: &PaymentRefunded, orders: &Orders) -> Loss {
    let order_id = event.order_id;
    let Some(order) = orders.order(order_id) else { return nobody_waits(order_id) };
    if order.status != Status::Cancelled {
        return nothing_is_due(order_id);
    }
    let loss = Loss::that(format!(
        "Order {order_id} never learns what payment gave back: its payment never reads as undone."
    ));
    if event.amount_cents.is_none() {
        return loss;
    }
    let what = format!("the refund of order {order_id}");
    loss.writing_off(what, order.total_cents, format!("{} cents", order.currency))
}

/// What it costs to discard a `stock.released` that the order can't handle, by the order's own lines.
pub fn release_discarded(event: &StockReleased, orders: &Orders) -> Loss {
    let order_id = event.order_id;
    let Some(order) = orders.order(order_id) else { return nobody_waits(order_id) };
    if order.status != Status::Cancelled {
        return nothing_is_due(order_id);
    }
    let loss = Loss::that(format!(
        "Order {order_id} never learns what stock put back: its stock never reads as undone."
    ));
    if event.lines.is_empty() {
        return loss;
    }
    let what = format!("the release of order {order_id}");
    order.lines.iter().fold(loss, |loss, l| loss.writing_off(&what, l.quantity, &l.sku))
}

/// What it costs to discard a `stock.items` that the order service can't handle.
pub fn item_discarded(item: &StockItem, orders: &Orders) -> Loss {
    let StockItem { sku, version, .. } = item;
    Loss::that(match orders.item(sku) {
        Some(known) if known.version >= *version => {
            format!("Nothing is lost: version {} of {sku:?} is known.", known.version)
        }
        Some(known) => format!(
            "Orders of {sku:?} go on with version {}, until stock announces it again.",
            known.version
        ),
        None => format!("Nobody can order {sku:?} until stock announces it again."),
    })
}

fn nobody_waits(order_id: Uuid) -> Loss {
    Loss::that(format!("Nothing is lost here: there is no order {order_id} that waits for it."))
}

fn nothing_is_due(order_id: Uuid) -> Loss {
    Loss::that(format!(
        "Nothing is lost: order {order_id} was not cancelled, so nothing is undone."
    ))
}
