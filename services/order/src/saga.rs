//! The decider: what the answers of the participants cause, and what the commands of customers do. Each handler is a
//! pure function from an event or a command and the rows in memory to what is published.
//!
//! Each answer does two things. First its leg advances, in every status of the order, because answers still arrive
//! after the order has ended. Then the order's row decides, once: the acceptances of all whom the order asks confirm a
//! pending order, and the first no cancels it. An answer of one whom the order does not ask is recorded and decides
//! nothing.

use chassis::{
    Command, Decision, HandlerContext, HandlerResult, Outcome, SetTimer, Timer, unprocessable,
};
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated, OrderLine};
use events::participants::LegState::*;
use events::stock::{NAME_CHARS_MAX, SKU_RULE, StockItem, is_sku, is_text};
use uuid::Uuid;

use crate::order::participants::{Answer, Asked};
use crate::order::{
    CancelOrder, Deadline, Item, LineRequest, Order, Orders, PlaceOrder, Reason, Status,
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

/// Places an order → `orders.created`, and the timer of its deadline, if there is one
///
/// The prices are those of the read model of items. A client sends none.
impl Command for PlaceOrder {
    type Aggregate = Orders;
    type Output = Order;
    type Event = (OrderCreated, Option<SetTimer>);
    type Refusal = Refusal;

    fn decide(&self, orders: &mut Orders, context: HandlerContext) -> Decision<Self> {
        let location = format!("/orders/{}", self.order_id);
        if let Some(order) = orders.order(self.order_id) {
            // An earlier try was committed after all.
            return Ok(Self::created(location, order.clone()));
        }
        let created = self.price(orders, context)?;
        orders.put_order(Order::placed(&created, context.event_id));
        orders.add_pending(self.order_id, context.now);
        orders.record_published(&created, self.order_id, context);
        let order = orders.loaded_order(self.order_id).clone();
        let order_id = self.order_id;
        let timer = self.deadline.map(|limit| Deadline { order_id }.at(context.now + limit));
        Ok(Self::created(location, order).publishing(Some((created, timer))))
    }
}

impl PlaceOrder {
    /// What is ordered, with the prices of this moment.
    fn price(&self, orders: &Orders, context: HandlerContext) -> Result<OrderCreated, Refusal> {
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
            lines.push(OrderLine { sku, quantity, unit_price_cents: item.price_cents });
        }
        Ok(OrderCreated {
            order_id: self.order_id,
            customer_id: self.customer_id,
            lines,
            total_cents,
            currency: currency.unwrap_or_default(),
            also_asks: self.also_asks.clone(),
            occurred_at: context.now,
        })
    }
}

/// Cancels an order → `orders.cancelled`, unless it was cancelled already
impl Command for CancelOrder {
    type Aggregate = Orders;
    type Output = Order;
    type Event = Ended;
    type Refusal = Refusal;

    fn decide(&self, orders: &mut Orders, context: HandlerContext) -> Decision<Self> {
        let order = orders.order(self.order_id);
        let order = order.filter(|order| self.caller.owns(order.customer_id));
        let order = order.ok_or(Refusal::NoSuchOrder)?;
        if order.status == Status::Confirmed {
            return Err(Refusal::AlreadyConfirmed);
        }
        let cancelled = end(self.order_id, Some(Reason::Customer), orders, context);
        Ok(Self::ok(orders.loaded_order(self.order_id).clone()).publishing(cancelled))
    }
}

/// What ends an order.
#[derive(Debug, PartialEq, Outcome)]
pub enum Ended {
    Confirmed(OrderConfirmed),
    Cancelled(OrderCancelled),
}

/// An answer of a participant → nothing | `orders.confirmed` | `orders.cancelled`
pub fn answered<A: Answer>(
    answer: &A,
    orders: &mut Orders,
    context: HandlerContext,
) -> HandlerResult<Ended> {
    let (order_id, topic) = (answer.order_id(), A::topic().name);
    let Some(order) = orders.order_mut(order_id) else {
        unprocessable!("there is no order {order_id}");
    };
    let Some(state) = answer.state(order) else {
        unprocessable!("this {topic} is about something else than order {order_id} needs");
    };
    if matches!(state, Undone | Void | UndoRefused) && order.status != Status::Cancelled {
        unprocessable!(
            "this {topic} answers a cancellation, and order {order_id} was not cancelled"
        );
    }
    let leg = A::Of::leg(order);
    let is_asked = leg.is_some();
    if let Some(leg) = leg
        && !leg.climb(state)
    {
        unprocessable!("the leg of order {order_id} was {:?} before this {topic}", leg.state);
    }
    orders.record_received(answer, context);
    let reason = match state {
        Accepted => None,
        Refused => Some(A::Of::REFUSAL),
        _ => return Ok(None),
    };
    Ok(is_asked.then(|| end(order_id, reason, orders, context)).flatten())
}

/// The deadline of an order → `orders.cancelled`, unless the order has ended
pub fn overdue(
    Deadline { order_id }: &Deadline,
    orders: &mut Orders,
    context: HandlerContext,
) -> HandlerResult<Ended> {
    Ok(end(*order_id, Some(Reason::Deadline), orders, context))
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

/// Ends a pending order, once: it is cancelled for a reason, or confirmed if all whom it asks have accepted.
fn end(
    order_id: Uuid,
    reason: Option<Reason>,
    orders: &mut Orders,
    context: HandlerContext,
) -> Option<Ended> {
    let order = orders.order_mut(order_id).filter(|order| order.status == Status::Pending)?;
    order.status = match reason {
        Some(_) => Status::Cancelled,
        None if order.legs().into_iter().flatten().all(|leg| leg == Accepted) => Status::Confirmed,
        None => return None,
    };
    order.reason = reason;
    order.ended_at = Some(context.now);
    order.ended_event_id = Some(context.event_id);
    let ended = match reason {
        None => Ended::Confirmed(order.confirmed(context.now)),
        Some(reason) => Ended::Cancelled(order.cancelled(reason, context.now)),
    };
    orders.remove_pending(order_id);
    match &ended {
        Ended::Confirmed(event) => orders.record_published(event, order_id, context),
        Ended::Cancelled(event) => orders.record_published(event, order_id, context),
    }
    Some(ended)
}
