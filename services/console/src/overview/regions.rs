//! The regions of the overview. They are rendered once for all viewers, and a viewer gets those that changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use maud::{Markup, PreEscaped};

use crate::app::App;
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

/// The markup of every region, and the version in which it changed last.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    pub version: u64,
    regions: BTreeMap<&'static str, (Arc<str>, u64)>,
}

impl Rendered {
    /// A region, for the page.
    pub fn markup(&self, id: &str) -> Markup {
        PreEscaped(self.regions.get(id).map_or(String::new(), |(text, _)| text.to_string()))
    }

    /// The regions that changed after a version, in the sequence of the page.
    pub fn changed_since(&self, version: u64) -> impl Iterator<Item = (&'static str, &str)> {
        REGIONS.iter().filter_map(move |region| {
            let (text, changed) = self.regions.get(region.id)?;
            (*changed > version).then_some((region.id, &**text))
        })
    }
}

/// Renders all regions; those that are as before keep their version.
pub fn render(app: &App, snapshot: &Snapshot, before: &Rendered) -> Rendered {
    let (books, pending) = (app.books.present(), app.pending.present());
    let pending = pending.as_deref();
    let known = pending.and_then(|answer| answer.as_ref().ok());
    let sums = app.insights.present();
    let sums = sums.as_deref();
    let version = before.version + 1;
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
    let regions = REGIONS.iter().map(|region| {
        let text: Arc<str> = markup(region.id).into_string().into();
        match before.regions.get(region.id) {
            Some((known, changed)) if *known == text => (region.id, (text, *changed)),
            _ => (region.id, (text, version)),
        }
    });
    Rendered { version, regions: regions.collect() }
}

/// Gives all open pages the regions as of now.
pub fn publish(app: &App, snapshot: &Snapshot) {
    let before = app.rendered.borrow().clone();
    app.rendered.send_replace(Arc::new(render(app, snapshot, &before)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_viewer_gets_the_regions_that_changed_after_the_last_that_it_got() {
        let text = |text: &str| Arc::<str>::from(text);
        let regions = BTreeMap::from([("figures", (text("a"), 3)), ("books", (text("b"), 1))]);
        let rendered = Rendered { version: 3, regions };
        assert_eq!(Vec::from_iter(rendered.changed_since(0)), [("figures", "a"), ("books", "b")]);
        assert_eq!(Vec::from_iter(rendered.changed_since(2)), [("figures", "a")]);
        assert_eq!(rendered.changed_since(3).count(), 0);
    }
}
