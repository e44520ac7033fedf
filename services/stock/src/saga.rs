//! What the events of other services cause, and what the commands of clients do. Each handler is a pure function from
//! an event or a command and the rows in memory to what is published.

use chassis::{Command, Decision, HandlerContext, HandlerResult, Outcome, unprocessable};
use events::orders::{OrderCancelled, OrderCreated};
use events::stock::{RejectReason, StockItem, StockRejected, StockReleased, StockReserved};
use sqlx::types::Json;

use crate::stock::{Delivery, Item, Line, PutItem, Reservation, Shortfall, State, Warehouse};

/// The largest sum of all deliveries of one item: far from overflow, and more than a real stock has.
const DELIVERED_MAX: i64 = 1_000_000_000_000_000;

/// The answer to an order.
#[derive(Debug, PartialEq, Outcome)]
pub enum ReservationOutcome {
    Reserved(StockReserved),
    Rejected(StockRejected),
}

/// `orders.created` → `stock.reserved` | `stock.rejected`
///
/// Every line is reserved, or nothing is.
pub fn reserve_stock(
    order: &OrderCreated,
    warehouse: &mut Warehouse,
    context: HandlerContext,
) -> HandlerResult<ReservationOutcome> {
    if warehouse.reservation(order.order_id).is_some() {
        return Ok(None); // answered before, or cancelled before it arrived
    }
    let mut lines: Vec<Line> = order.lines.iter().map(Line::from).collect();
    lines.sort_by(|a, b| a.sku.cmp(&b.sku));
    if lines.is_empty() || lines.iter().any(|line| line.quantity <= 0) {
        unprocessable!("order {} has no lines, or a line with a quantity below 1", order.order_id);
    }
    if lines.windows(2).any(|pair| pair[0].sku == pair[1].sku) {
        unprocessable!("order {} names an item twice", order.order_id);
    }

    let shortfall = lines.iter().find_map(|line| shortfall(line, warehouse));
    let mut reservation = Reservation {
        order_id: order.order_id,
        state: State::Reserved,
        lines: Json(lines),
        shortfall: None,
        reason: None,
        response_event_id: Some(context.event_id),
        compensation_event_id: None,
        created_at: context.now,
        updated_at: context.now,
    };
    let answer = match shortfall {
        None => {
            for line in reservation.lines.iter() {
                warehouse.reserve(&line.sku, line.quantity);
            }
            ReservationOutcome::Reserved(reservation.reserved())
        }
        Some(short) => {
            let Shortfall { sku, requested, available, .. } = &short;
            reservation.reason =
                Some(format!("{requested} of {sku} ordered, {available} available"));
            reservation.state = State::Rejected;
            reservation.lines.clear();
            let rejected = reservation.rejected(&short);
            reservation.shortfall = Some(Json(short));
            ReservationOutcome::Rejected(rejected)
        }
    };
    warehouse.put_reservation(reservation);
    Ok(Some(answer))
}

/// Why a line can't be supplied; `None` if it can.
fn shortfall(line: &Line, warehouse: &Warehouse) -> Option<Shortfall> {
    let (reason, available) = match warehouse.item(&line.sku) {
        None => (RejectReason::NoSuchItem, 0),
        Some(item) if item.available < i64::from(line.quantity) => {
            (RejectReason::OutOfStock, item.available)
        }
        Some(_) => return None,
    };
    Some(Shortfall { reason, sku: line.sku.clone(), requested: line.quantity, available })
}

/// `orders.cancelled` → `stock.released`, unless the reservation was rejected
pub fn release_stock(
    order: &OrderCancelled,
    warehouse: &mut Warehouse,
    context: HandlerContext,
) -> HandlerResult<StockReleased> {
    let order_id = order.order_id;
    let released = match warehouse.reservation(order_id).cloned() {
        Some(Reservation { state: State::Rejected | State::Released | State::Void, .. }) => {
            return Ok(None);
        }
        Some(reservation) => {
            for line in reservation.lines.iter() {
                warehouse.release(&line.sku, line.quantity);
            }
            Reservation {
                state: State::Released,
                compensation_event_id: Some(context.event_id),
                updated_at: context.now,
                ..reservation
            }
        }
        // The cancellation overtook its order. The row is a tombstone: it prevents that items are reserved later.
        None => Reservation {
            order_id,
            state: State::Void,
            lines: Json(Vec::new()),
            shortfall: None,
            reason: None,
            response_event_id: None,
            compensation_event_id: Some(context.event_id),
            created_at: context.now,
            updated_at: context.now,
        },
    };
    let event = released.released();
    warehouse.put_reservation(released);
    Ok(Some(event))
}

/// Creates or changes an item → `stock.items`, if anything changes
impl Command for PutItem {
    type Aggregate = Warehouse;
    type Output = Item;
    type Event = StockItem;
    type Refusal = Refusal;

    fn decide(&self, warehouse: &mut Warehouse, context: HandlerContext) -> Decision<Self> {
        let PutItem { sku, name, price_cents, currency } = self.clone();
        let known = warehouse.item(&sku).cloned();
        let is_new = known.is_none();
        let item = match known {
            Some(item)
                if (&item.name, item.price_cents, &item.currency)
                    == (&name, price_cents, &currency) =>
            {
                return Ok(Self::ok(item));
            }
            Some(item) => {
                let (version, event_id) = (item.version + 1, context.event_id);
                let changed_at = context.now;
                Item { name, price_cents, currency, version, event_id, changed_at, ..item }
            }
            None => Item {
                sku,
                name,
                price_cents,
                currency,
                version: 1,
                delivered: 0,
                available: 0,
                reserved: 0,
                event_id: context.event_id,
                changed_at: context.now,
            },
        };
        let event = item.to_event();
        warehouse.put_item(item.clone());
        let accepted = match is_new {
            true => Self::created(item.location(), item),
            false => Self::ok(item),
        };
        Ok(accepted.publishing(Some(event)))
    }
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    NoSuchItem,
    LimitExceeded,
}

/// Receives a delivery. It publishes nothing, because `stock.items` has no field for the available units.
impl Command for Delivery {
    type Aggregate = Warehouse;
    type Output = Item;
    type Event = ();
    type Refusal = Refusal;

    fn decide(&self, warehouse: &mut Warehouse, context: HandlerContext) -> Decision<Self> {
        let item = warehouse.item(&self.sku).ok_or(Refusal::NoSuchItem)?;
        if item.delivered > DELIVERED_MAX - self.quantity {
            return Err(Refusal::LimitExceeded);
        }
        let item = warehouse.add_delivery(self, context.now).clone();
        Ok(Self::created(item.location(), item))
    }
}
