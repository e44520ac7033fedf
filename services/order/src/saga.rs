//! The decider: what the answers of payment and stock cause, and what the commands of customers do. Each handler is a
//! pure function from an event or a command and the rows in memory to what is published.
//!
//! Each answer does two things. First its leg advances, in every status of the order, because answers still arrive
//! after the order has ended. Then the order's row decides, once: two acceptances confirm a pending order, and the
//! first no cancels it.

use chassis::{Command, Decision, HandlerContext, HandlerResult, Unprocessable, unprocessable};
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{
    NAME_CHARS_MAX, SKU_RULE, StockItem, StockRejected, StockReleased, StockReserved, is_sku,
    is_text,
};
use sqlx::types::Json;
use uuid::Uuid;

use crate::order::{
    CancelOrder, Item, Line, LineRequest, Order, Orders, PaymentLeg, PlaceOrder, Reason, Status,
    StockLeg,
};

/// Why a command is refused.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    NoSuchItem { nth: usize },
    MixedCurrencies { nth: usize },
    TotalTooLarge { nth: usize },
    NoSuchOrder,
    AlreadyConfirmed,
}

/// Places an order → `orders.created`
///
/// The prices are those of the read model of items. A client sends none.
impl Command for PlaceOrder {
    type Aggregate = Orders;
    type Output = Order;
    type Event = OrderCreated;
    type Refusal = Refusal;

    fn decide(&self, orders: &mut Orders, context: HandlerContext) -> Decision<Self> {
        let location = format!("/orders/{}", self.order_id);
        if let Some(order) = orders.order(self.order_id) {
            // An earlier try was committed after all.
            return Ok(Self::created(location, order.clone()));
        }
        let order = self.price(orders, context)?;
        let created = order.created();
        orders.put_order(order);
        orders.add_pending(self.order_id, context.now);
        orders.record_published(&created, self.order_id, context);
        let order = orders.loaded_order(self.order_id).clone();
        Ok(Self::created(location, order).publishing(Some(created)))
    }
}

impl PlaceOrder {
    /// The order, with the prices of this moment.
    fn price(&self, orders: &Orders, context: HandlerContext) -> Result<Order, Refusal> {
        let mut lines = Vec::with_capacity(self.lines.len());
        let mut currency: Option<String> = None;
        let mut total_cents = 0_i64;
        for (nth, wanted) in self.lines.iter().enumerate() {
            let item = orders.item(&wanted.sku).ok_or(Refusal::NoSuchItem { nth })?;
            if *currency.get_or_insert_with(|| item.currency.clone()) != item.currency {
                return Err(Refusal::MixedCurrencies { nth });
            }
            total_cents = i64::from(wanted.quantity)
                .checked_mul(item.price_cents)
                .and_then(|cents| total_cents.checked_add(cents))
                .ok_or(Refusal::TotalTooLarge { nth })?;
            let LineRequest { sku, quantity } = wanted.clone();
            lines.push(Line { sku, quantity, unit_price_cents: item.price_cents });
        }
        Ok(Order {
            order_id: self.order_id,
            customer_id: self.customer_id,
            status: Status::Pending,
            reason: None,
            payment: PaymentLeg::Waiting,
            stock: StockLeg::Waiting,
            total_cents,
            currency: currency.unwrap_or_default(),
            lines: Json(lines),
            created_at: context.now,
            ended_at: None,
            created_event_id: context.event_id,
            ended_event_id: None,
            last_position: 0,
        })
    }
}

/// Cancels an order → `orders.cancelled`, unless it was cancelled already
impl Command for CancelOrder {
    type Aggregate = Orders;
    type Output = Order;
    type Event = OrderCancelled;
    type Refusal = Refusal;

    fn decide(&self, orders: &mut Orders, context: HandlerContext) -> Decision<Self> {
        let order = orders.order(self.order_id);
        let order = order.filter(|order| self.caller.owns(order.customer_id));
        let order = order.ok_or(Refusal::NoSuchOrder)?;
        // An order that was confirmed in time stays confirmed after its deadline.
        if order.status == Status::Confirmed && self.reason != Reason::Deadline {
            return Err(Refusal::AlreadyConfirmed);
        }
        let cancelled = cancel_if_pending(self.order_id, self.reason, orders, context);
        Ok(Self::ok(orders.loaded_order(self.order_id).clone()).publishing(cancelled))
    }
}

/// `payments.verified` → nothing yet | `orders.confirmed`
pub fn payment_verified(
    event: &PaymentVerified,
    orders: &mut Orders,
    context: HandlerContext,
) -> HandlerResult<OrderConfirmed> {
    let order_id = event.order_id;
    let order = find_order(order_id, orders)?;
    if (event.amount_cents, &event.currency) != (order.total_cents, &order.currency) {
        unprocessable!("payment verified another amount than the total of order {order_id}");
    }
    match order.payment {
        PaymentLeg::Waiting => order.payment = PaymentLeg::Verified,
        PaymentLeg::Verified | PaymentLeg::Refunded => {}
        leg => unprocessable!("payment of order {order_id} was {leg:?} and is now verified"),
    }
    orders.record_received(event, order_id, event.occurred_at, context);
    Ok(confirm_if_both_accepted(order_id, orders, context))
}

/// `payments.declined` → `orders.cancelled`, unless the order has ended
pub fn payment_declined(
    event: &PaymentDeclined,
    orders: &mut Orders,
    context: HandlerContext,
) -> HandlerResult<OrderCancelled> {
    let order_id = event.order_id;
    let order = find_order(order_id, orders)?;
    match order.payment {
        PaymentLeg::Waiting => order.payment = PaymentLeg::Declined,
        PaymentLeg::Declined => {}
        leg => unprocessable!("payment of order {order_id} was {leg:?} and is now declined"),
    }
    orders.record_received(event, order_id, event.occurred_at, context);
    Ok(cancel_if_pending(order_id, Reason::PaymentDeclined, orders, context))
}

/// `payments.refunded` → nothing: the leg ends
pub fn payment_refunded(
    event: &PaymentRefunded,
    orders: &mut Orders,
    context: HandlerContext,
) -> HandlerResult<()> {
    let order_id = event.order_id;
    let order = find_order(order_id, orders)?;
    if order.status != Status::Cancelled {
        unprocessable!("payment refunded order {order_id}, which was not cancelled");
    }
    let nothing_taken = event.amount_cents.is_none();
    let whole = (event.amount_cents, event.currency.as_ref())
        == (Some(order.total_cents), Some(&order.currency));
    if !nothing_taken && !whole {
        unprocessable!("payment refunded another amount than the total of order {order_id}");
    }
    order.payment = match (order.payment, nothing_taken) {
        (PaymentLeg::Waiting | PaymentLeg::Void, true) => PaymentLeg::Void,
        // The refund may overtake the verification that it undoes.
        (PaymentLeg::Waiting | PaymentLeg::Verified | PaymentLeg::Refunded, false) => {
            PaymentLeg::Refunded
        }
        (leg, _) => unprocessable!("payment of order {order_id} was {leg:?} and is now undone"),
    };
    orders.record_received(event, order_id, event.occurred_at, context);
    Ok(None)
}

/// `stock.reserved` → nothing yet | `orders.confirmed`
pub fn stock_reserved(
    event: &StockReserved,
    orders: &mut Orders,
    context: HandlerContext,
) -> HandlerResult<OrderConfirmed> {
    let order_id = event.order_id;
    let order = find_order(order_id, orders)?;
    let reserved = event.lines.iter().map(|line| (line.sku.as_str(), line.quantity));
    if !matches_order_lines(reserved, order) {
        unprocessable!("stock reserved other lines than order {order_id} has");
    }
    match order.stock {
        StockLeg::Waiting => order.stock = StockLeg::Reserved,
        StockLeg::Reserved | StockLeg::Released => {}
        leg => unprocessable!("stock of order {order_id} was {leg:?} and is now reserved"),
    }
    orders.record_received(event, order_id, event.occurred_at, context);
    Ok(confirm_if_both_accepted(order_id, orders, context))
}

/// `stock.rejected` → `orders.cancelled`, unless the order has ended
pub fn stock_rejected(
    event: &StockRejected,
    orders: &mut Orders,
    context: HandlerContext,
) -> HandlerResult<OrderCancelled> {
    let order_id = event.order_id;
    let order = find_order(order_id, orders)?;
    match order.stock {
        StockLeg::Waiting => order.stock = StockLeg::Rejected,
        StockLeg::Rejected => {}
        leg => unprocessable!("stock of order {order_id} was {leg:?} and is now rejected"),
    }
    orders.record_received(event, order_id, event.occurred_at, context);
    Ok(cancel_if_pending(order_id, Reason::StockRejected, orders, context))
}

/// `stock.released` → nothing: the leg ends
pub fn stock_released(
    event: &StockReleased,
    orders: &mut Orders,
    context: HandlerContext,
) -> HandlerResult<()> {
    let order_id = event.order_id;
    let order = find_order(order_id, orders)?;
    if order.status != Status::Cancelled {
        unprocessable!("stock released order {order_id}, which was not cancelled");
    }
    let nothing_reserved = event.lines.is_empty();
    let released = event.lines.iter().map(|line| (line.sku.as_str(), line.quantity));
    if !nothing_reserved && !matches_order_lines(released, order) {
        unprocessable!("stock released other lines than order {order_id} has");
    }
    order.stock = match (order.stock, nothing_reserved) {
        (StockLeg::Waiting | StockLeg::Void, true) => StockLeg::Void,
        // The release may overtake the reservation that it undoes.
        (StockLeg::Waiting | StockLeg::Reserved | StockLeg::Released, false) => StockLeg::Released,
        (leg, _) => unprocessable!("stock of order {order_id} was {leg:?} and is now undone"),
    };
    orders.record_received(event, order_id, event.occurred_at, context);
    Ok(None)
}

/// `stock.items` → nothing: the read model that orders take their prices from
pub fn item_changed(item: &StockItem, orders: &mut Orders, _: HandlerContext) -> HandlerResult<()> {
    let StockItem { sku, name, price_cents, currency, version, .. } = item.clone();
    if !is_sku(&sku) {
        unprocessable!("its SKU has {} characters: a SKU {SKU_RULE}", sku.chars().count());
    }
    // Stock decides which names are valid. This service only has to be able to store them.
    if !is_text(&name, NAME_CHARS_MAX) {
        let chars = name.chars().count();
        unprocessable!(
            "its name has {chars} characters, not 1 to {NAME_CHARS_MAX}, or a control character"
        );
    }
    if price_cents < 0 || version < 1 {
        unprocessable!("version {version} of item {sku:?} has a price of {price_cents} cents");
    }
    if let Err(rule) = events::parse_currency(&currency) {
        unprocessable!("item {sku:?} has a price in {currency:?}: {rule}");
    }
    orders.put_item(Item { sku, name, price_cents, currency, version });
    Ok(None)
}

fn find_order(order_id: Uuid, orders: &mut Orders) -> Result<&mut Order, Unprocessable> {
    let order = orders.order_mut(order_id);
    order.ok_or_else(|| Unprocessable(format!("there is no order {order_id}")))
}

fn matches_order_lines<'a>(lines: impl Iterator<Item = (&'a str, i32)>, order: &Order) -> bool {
    let mut lines: Vec<_> = lines.collect();
    let mut ordered: Vec<_> = order.lines.iter().map(|l| (l.sku.as_str(), l.quantity)).collect();
    lines.sort_unstable();
    ordered.sort_unstable();
    lines == ordered
}

fn confirm_if_both_accepted(
    order_id: Uuid,
    orders: &mut Orders,
    context: HandlerContext,
) -> Option<OrderConfirmed> {
    let order = orders.order_mut(order_id)?;
    let both = order.payment == PaymentLeg::Verified && order.stock == StockLeg::Reserved;
    if order.status != Status::Pending || !both {
        return None;
    }
    order.status = Status::Confirmed;
    order.ended_at = Some(context.now);
    order.ended_event_id = Some(context.event_id);
    let confirmed = order.confirmed(context.now);
    orders.remove_pending(order_id);
    orders.record_published(&confirmed, order_id, context);
    Some(confirmed)
}

fn cancel_if_pending(
    order_id: Uuid,
    reason: Reason,
    orders: &mut Orders,
    context: HandlerContext,
) -> Option<OrderCancelled> {
    let order = orders.order_mut(order_id)?;
    if order.status != Status::Pending {
        return None;
    }
    order.status = Status::Cancelled;
    order.reason = Some(reason);
    order.ended_at = Some(context.now);
    order.ended_event_id = Some(context.event_id);
    let cancelled = order.cancelled(reason, context.now);
    orders.remove_pending(order_id);
    orders.record_published(&cancelled, order_id, context);
    Some(cancelled)
}
