//! Stock reserves the items of an order.

use chassis::DiscardImpact;
use events::participants::LegState::{self, *};
use events::stock::{StockRejected, StockReleased, StockReserved};

use super::{Asked, Stock, answer};
use crate::order::{Leg, Order, Reason};

impl Asked for Stock {
    const REFUSAL: Reason = Reason::StockRejected;

    fn leg(order: &mut Order) -> Option<&mut Leg<Stock>> {
        Some(&mut order.stock)
    }

    fn write_off(order: &Order, impact: DiscardImpact) -> DiscardImpact {
        let (what, lines) =
            (format!("the release of order {}", order.order_id), order.lines.iter());
        lines.fold(impact, |impact, line| impact.with_write_off(&what, line.quantity, &line.sku))
    }
}

answer!(Stock, StockReserved, |event, order| {
    let lines = event.lines.iter().map(|line| (&*line.sku, line.quantity));
    are_all(lines, order).then_some(Accepted)
});

answer!(Stock, StockRejected, |_, _| Some(Refused));

answer!(Stock, StockReleased, |event, order| {
    let lines = event.lines.iter().map(|line| (&*line.sku, line.quantity));
    let is_void = event.lines.is_empty();
    if is_void { Some(Void) } else { are_all(lines, order).then_some(Undone) }
});

fn are_all<'a>(lines: impl Iterator<Item = (&'a str, i32)>, order: &Order) -> bool {
    let mut lines = Vec::from_iter(lines);
    let mut ordered = Vec::from_iter(order.lines.iter().map(|line| (&*line.sku, line.quantity)));
    lines.sort_unstable();
    ordered.sort_unstable();
    lines == ordered
}
