//! Stock has an item, of which each order orders one unit.

use events::participants::{LegState, Stock};
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockRejected, StockReleased, StockReserved,
};
use sqlx::types::Json;
use stock::State::{Rejected, Released, Reserved, Void};
use stock::{Item, Reservation, Shortfall, Warehouse};

use super::{Handled, Modelled, published};
use crate::rows::*;
use crate::world::{ANSWERS, EventKind, OrderState, Rules, STOCK, StepState};

/// In the order of [`ANSWERS`].
const STATES: [stock::State; 4] = [Reserved, Rejected, Released, Void];

impl Modelled for Stock {
    fn accepted() -> StockReserved {
        let lines = vec![ReservedLine { sku: SKU.into(), quantity: 1 }];
        StockReserved { order_id: ORDER, lines, occurred_at: context().now }
    }

    fn refused() -> StockRejected {
        let (order_id, occurred_at) = (ORDER, context().now);
        let (reason, sku, requested, available) = (RejectReason::OutOfStock, SKU.into(), 1, 0);
        StockRejected { order_id, reason, sku, requested, available, occurred_at }
    }

    fn undone(is_void: bool) -> StockReleased {
        let line = ReleasedLine { sku: SKU.into(), quantity: 1 };
        let lines = if is_void { vec![] } else { vec![line] };
        StockReleased { order_id: ORDER, lines, occurred_at: context().now }
    }

    fn handle(rules: &Rules, (shown, available): StepState, kind: EventKind, _: bool) -> Handled {
        let mut rows = warehouse_from(&shown, available, rules.units);
        let events = match kind {
            EventKind::Created => {
                published(stock::saga::reserve_stock(&created(), &mut rows, context()))
            }
            EventKind::Cancelled => {
                published(stock::saga::release_stock(&cancelled(), &mut rows, context()))
            }
            _ => unreachable!("stock does not subscribe to {kind:?}"),
        }?;
        let item = rows.item(SKU).unwrap();
        assert_eq!(item.delivered, item.available + item.reserved);
        let left = item.available as i8;
        let mut after = OrderState { held: shown.held + available - left, ..shown };
        after.own[STOCK] = rows.reservation(ORDER).map(|row| state_of(row.state));
        if let Some(row) = rows.reservation(ORDER) {
            let again = warehouse_from(&after, left, rules.units);
            rules.assert_lossless(row, again.reservation(ORDER).unwrap());
        }
        Ok((after, left, events))
    }
}

fn state_of(state: stock::State) -> LegState {
    ANSWERS[STATES.iter().position(|it| *it == state).unwrap()]
}

fn warehouse_from(placed: &OrderState, available: i8, units: i8) -> Warehouse {
    let mut rows = Warehouse::default();
    rows.put_item(Item {
        sku: SKU.into(),
        name: "Pen".into(),
        price_cents: TOTAL_CENTS,
        currency: euros(),
        version: 1,
        delivered: units.into(),
        available: available.into(),
        reserved: i64::from(units) - i64::from(available),
        event_id: PUBLISHED_EVENT_ID,
        changed_at: context().now,
    });
    for state in STATES.into_iter().filter(|state| placed.own[STOCK] == Some(state_of(*state))) {
        let line = stock::Line { sku: SKU.into(), quantity: 1 };
        rows.put_reservation(Reservation {
            order_id: ORDER,
            state,
            lines: Json(if matches!(state, Reserved | Released) { vec![line] } else { vec![] }),
            shortfall: (state == Rejected).then(|| {
                let (reason, sku) = (RejectReason::OutOfStock, SKU.into());
                Json(Shortfall { reason, sku, requested: 1, available: 0 })
            }),
            reason: (state == Rejected).then(|| "1 of pen ordered, 0 available".into()),
            response_event_id: (state != Void).then_some(PUBLISHED_EVENT_ID),
            compensation_event_id: matches!(state, Released | Void).then_some(PUBLISHED_EVENT_ID),
            created_at: context().now,
            updated_at: context().now,
        });
    }
    rows
}
