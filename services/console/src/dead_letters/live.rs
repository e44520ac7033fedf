//! What changes while the list is open: a consumer is paused, dead letters arrive or are settled by others. The rows
//! stay as they were loaded, so that none moves below the pointer of an operator who selects some.

use axum::extract::{Query, State};
use axum::response::Response;
use futures::stream;
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::sleep;

use crate::app::App;
use crate::feeds::attention::{self, Attention, REFRESH_INTERVAL};
use crate::operators::Operator;
use crate::repair::consumers;
use crate::streams;

/// The region of the page.
const REGION: &str = "attention";

/// What a page shows, as it was loaded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Loaded {
    /// The one service that it shows, or nothing for all.
    pub service: String,
    /// The dead letters that waited, whatever else its filter says.
    pub waiting: String,
}

impl Loaded {
    /// The region, in the page's stream. It is empty if nothing needs attention.
    pub fn region(&self, app: &App, attention: &Attention) -> Markup {
        let [service, waiting] =
            [&self.service, &self.waiting].map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC));
        html! {
            div data-stream={ "/dead-letters/events?service=" (service) "&waiting=" (waiting) } {
                (app.jobs.region())
                section id=(REGION) aria-label="Needs attention" aria-live="polite" { (consumers::paused_notices(&attention.paused)) }
            }
        }
    }

    fn render(&self, attention: &Attention, is_changing: bool) -> Markup {
        let waiting = attention.waiting(&self.service).to_string();
        html! {
            (consumers::paused_notices(&attention.paused))
            @if waiting != self.waiting && !is_changing {
                div.notice.waits {
                    span { strong { (waiting) } @if !self.service.is_empty() { " of " (self.service) }
                        " wait now. The rows below show the state when the page was loaded." }
                    a href="" { "Show what waits now" }
                }
            }
        }
    }
}

/// A message when a region has changed.
pub async fn follow(
    State(app): State<App>,
    operator: Operator,
    Query(loaded): Query<Loaded>,
) -> Response {
    let first = (app.clone(), operator, loaded, None);
    let attention = stream::unfold(first, |(app, operator, loaded, sent)| async move {
        loop {
            // A replay under way shows its own progress, and then loads the page again.
            let attention = attention::read(&app.attention, &app.services, &operator).await;
            let markup = loaded.render(&attention, app.jobs.is_running()).into_string();
            if sent.as_ref() != Some(&markup) {
                let message = streams::replace_region(REGION, &markup);
                return Some((message, (app, operator, loaded, Some(markup))));
            }
            sleep(REFRESH_INTERVAL).await;
        }
    });
    streams::respond(&app.stopping, stream::select(app.jobs.updates(), attention))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_when_another_number_waits_than_it_shows() {
        let waiting = [("payment", Some(40.0)), ("stock", Some(2.0)), ("order", None)];
        let waiting = waiting.map(|(service, number)| (service.to_string(), number));
        let attention = Attention { paused: Vec::new(), waiting: waiting.into() };
        let render = |service: &str, waiting: &str, is_changing| {
            let loaded = Loaded { service: service.to_string(), waiting: waiting.to_string() };
            loaded.render(&attention, is_changing).into_string()
        };
        assert!(render("payment", "20", false).contains("<strong>40</strong> of payment wait now"));
        assert_eq!(render("payment", "40", false), "");
        assert_eq!(render("payment", "20", true), "", "a replay is under way");
        assert_eq!(render("", "42, and order unknown", false), "");
        assert!(render("", "42", false).contains("<strong>42, and order unknown</strong> wait"));
    }
}
