//! The regions of the overview. They are rendered once for all viewers, and a viewer gets those that changed.

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::feeds::rendered::Rendered;
use crate::metrics::snapshot::Snapshot;
use crate::overview::{charts, headlines, pending, sales_charts, summary, tables};

/// A region of the page.
pub struct Region {
    pub id: &'static str,
    pub name: &'static str,
    pub class: &'static str,
}

/// The region whose changes a screen reader speaks.
pub const SPOKEN_REGION: &str = "summary";

/// The regions in the sequence of the page.
pub const REGIONS: [Region; 13] = [
    Region { id: SPOKEN_REGION, name: "Summary", class: "summary" },
    Region { id: "figures", name: "Figures", class: "figures" },
    Region { id: "orders-chart", name: "Orders a minute", class: "panel" },
    Region { id: "decisions-chart", name: "Time to a decision", class: "panel" },
    Region { id: "revenue-chart", name: "Revenue by item and minute", class: "panel" },
    Region { id: "units-chart", name: "Units by item and minute", class: "panel" },
    Region { id: "rate-chart", name: "Confirmation rate by minute", class: "panel" },
    Region { id: "durations-chart", name: "Time to a decision by minute", class: "panel" },
    Region { id: "pending", name: "Pending by age", class: "panel wide" },
    Region { id: "instances", name: "Instances", class: "panel wide" },
    Region { id: "lag", name: "Lag", class: "panel wide" },
    Region { id: "outboxes", name: "Outboxes and dead letters", class: "panel wide" },
    Region { id: "books", name: "Books", class: "panel wide" },
];

/// Renders all regions; those that are as before keep their version.
pub fn render(app: &App, snapshot: &Snapshot, before: &Rendered) -> Rendered {
    let (books, pending) = (app.books.present(), app.pending.present());
    let pending = pending.as_deref();
    let known = pending.and_then(|answer| answer.as_ref().ok());
    let sums = app.insights.present(Duration::MAX);
    let sums = sums.as_deref();
    let markup = |id: &str| match id {
        SPOKEN_REGION => summary::render(snapshot, known),
        "figures" => headlines::render(snapshot, &books, known),
        "orders-chart" => charts::orders(snapshot),
        "decisions-chart" => charts::decisions(snapshot),
        "revenue-chart" => sales_charts::revenue(sums),
        "units-chart" => sales_charts::units(sums),
        "rate-chart" => sales_charts::confirmation_rate(sums),
        "durations-chart" => sales_charts::durations(sums),
        "pending" => pending::render(pending),
        "instances" => tables::instances(snapshot),
        "lag" => tables::lag(snapshot, known),
        "outboxes" => tables::outboxes(snapshot),
        _ => tables::books(&books),
    };
    before.next(REGIONS.iter().map(|region| (region.id, markup(region.id).into_string())))
}

/// Gives all open pages the regions as of now.
pub fn publish(app: &App, snapshot: &Snapshot) {
    let before = app.rendered.borrow().clone();
    app.rendered.send_replace(Arc::new(render(app, snapshot, &before)));
}
