//! What other services' events cause here, and what clients' commands do: pure functions from an
//! event or a command and the rows in memory to what is published.

use chassis::event::{Answer, At, Outcome, Outgoing};
use chassis::impossible;
use chassis::loss::Loss;
use events::orders::{OrderCancelled, OrderCreated};
use events::stock::{RejectReason, StockItem, StockRejected, StockReleased, StockReserved};
use sqlx::types::Json;

use crate::stock::{Delivery, Item, Line, PutItem, Reservation, Shortfall, State, Warehouse};

/// Of one item, all that ever came in: far from overflow, and more than anybody has.
const DELIVERED_MAX: i64 = 1_000_000_000_000_000;

/// The answer to an order.
#[derive(Debug, PartialEq)]
pub enum Reserving {
    Reserved(StockReserved),
    Rejected(StockRejected),
}

impl Outcome for Reserving {
    fn publish(self) -> Option<Outgoing> {
        match self {
            Reserving::Reserved(event) => event.publish(),
            Reserving::Rejected(event) => event.publish(),
        }
    }
}

/// `orders.created` → `stock.reserved` | `stock.rejected`
///
/// Every line is reserved, or nothing is.
pub fn reserve_stock(order: &OrderCreated, warehouse: &mut Warehouse, at: At) -> Answer<Reserving> {
    if warehouse.reservation(order.order_id).is_some() {
        return Ok(None); // answered before, or cancelled before it was heard of
    }
    let mut lines: Vec<Line> = order
        .lines
        .iter()
        .map(|line| Line { sku: line.sku.clone(), quantity: line.quantity })
        .collect();
    lines.sort_by(|a, b| a.sku.cmp(&b.sku));
    if lines.is_empty() || lines.iter().any(|line| line.quantity <= 0) {
        impossible!("order {} has no lines, or one that orders nothing", order.order_id);
    }
    if lines.windows(2).any(|pair| pair[0].sku == pair[1].sku) {
        impossible!("order {} names an item twice", order.order_id);
    }

    let shortfall = lines.iter().find_map(|line| shortfall(line, warehouse));
    let mut reservation = Reservation {
        order_id: order.order_id,
        state: State::Reserved,
        lines: Json(lines),
        shortfall: None,
        reason: None,
        answer_event_id: Some(at.event_id),
        undo_event_id: None,
        created_at: at.now,
        updated_at: at.now,
    };
    let answer = match shortfall {
        None => {
            for line in reservation.lines.iter() {
                warehouse.set_aside(&line.sku, line.quantity);
            }
            Reserving::Reserved(reservation.reserved())
        }
        Some(short) => {
            let Shortfall { sku, requested, available, .. } = &short;
            reservation.reason =
                Some(format!("{requested} of {sku} ordered, {available} available"));
            reservation.state = State::Rejected;
            reservation.lines.clear();
            let rejected = reservation.rejected(&short);
            reservation.shortfall = Some(Json(short));
            Reserving::Rejected(rejected)
        }
    };
    warehouse.put_reservation(reservation);
    Ok(Some(answer))
}

/// Why a line can't be supplied, if it can't.
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

/// `orders.cancelled` → `stock.released`, unless stock had said no
pub fn release_stock(
    order: &OrderCancelled,
    warehouse: &mut Warehouse,
    at: At,
) -> Answer<StockReleased> {
    let order_id = order.order_id;
    let released = match warehouse.reservation(order_id).cloned() {
        Some(Reservation { state: State::Rejected | State::Released | State::Void, .. }) => {
            return Ok(None);
        }
        Some(reservation) => {
            for line in reservation.lines.iter() {
                warehouse.set_aside(&line.sku, -line.quantity);
            }
            Reservation {
                state: State::Released,
                undo_event_id: Some(at.event_id),
                updated_at: at.now,
                ..reservation
            }
        }
        // The cancellation overtook its order: the row keeps the order from being served later.
        None => Reservation {
            order_id,
            state: State::Void,
            lines: Json(Vec::new()),
            shortfall: None,
            reason: None,
            answer_event_id: None,
            undo_event_id: Some(at.event_id),
            created_at: at.now,
            updated_at: at.now,
        },
    };
    let event = released.released();
    warehouse.put_reservation(released);
    Ok(Some(event))
}

/// The command to have an item → `stock.items`, if that changes anything
pub fn put_item(put: &PutItem, warehouse: &mut Warehouse, at: At) -> Option<StockItem> {
    let PutItem { sku, name, price_cents, currency } = put.clone();
    let item = match warehouse.item(&sku).cloned() {
        Some(item)
            if (&item.name, item.price_cents, &item.currency)
                == (&name, price_cents, &currency) =>
        {
            return None;
        }
        Some(item) => {
            let (version, event_id) = (item.version + 1, at.event_id);
            let changed_at = at.now;
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
            event_id: at.event_id,
            changed_at: at.now,
        },
    };
    let announced = item.announced();
    warehouse.put_item(item);
    Some(announced)
}

/// Why a command is refused.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    NoSuchItem,
    TooMuch,
}

/// The command that takes in a delivery. It publishes nothing: `stock.items` says nothing of
/// availability.
pub fn take_in(delivery: &Delivery, warehouse: &mut Warehouse, at: At) -> Result<(), Refusal> {
    let item = warehouse.item(&delivery.sku).ok_or(Refusal::NoSuchItem)?;
    if item.delivered > DELIVERED_MAX - delivery.quantity {
        return Err(Refusal::TooMuch);
    }
    warehouse.deliver(delivery, at.now);
    Ok(())
}

/// What it costs to discard an `orders.created` that stock can't handle.
pub fn order_discarded(order: &OrderCreated, warehouse: &Warehouse) -> Loss {
    let order_id = order.order_id;
    if warehouse.reservation(order_id).is_some() {
        return Loss::that(format!("Nothing is lost: stock has answered order {order_id}."));
    }
    Loss::that(format!("Stock never answers order {order_id}, which may never end.")).offering(
        "cancels the order, so that it ends",
        "order",
        format!("/orders/{order_id}/cancel"),
    )
}

/// What it costs to discard an `orders.cancelled` that stock can't handle.
pub fn cancellation_discarded(order: &OrderCancelled, warehouse: &Warehouse) -> Loss {
    let order_id = order.order_id;
    match warehouse.reservation(order_id) {
        Some(Reservation { state: State::Reserved, lines, .. }) => {
            let loss = Loss::that(format!(
                "What is set aside for order {order_id} is never put back, and the order's stock \
                 never reads as undone."
            ));
            let what = format!("the release of order {order_id}");
            lines.iter().fold(loss, |loss, l| loss.writing_off(&what, l.quantity, &l.sku))
        }
        Some(_) => Loss::that(format!(
            "Nothing is lost: nothing is set aside for order {order_id}, or it was put back."
        )),
        // The items are not known here: none yet.
        None => Loss::that(format!(
            "Stock has not heard of order {order_id}. Should it still, it sets its items aside \
             for a cancelled order and never puts them back."
        ))
        .writing_off(
            format!("the release of order {order_id}, if it is served"),
            0,
            "items",
        ),
    }
}
