//! What changes while the list is open: a consumer is paused, dead letters arrive or are settled by others. The rows
//! stay as they were loaded, so that none moves below the pointer of an operator who selects some.
//!
//! All viewers share one question to each service every two seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::Response;
use chassis::{CachedAnswer, Problem};
use futures::future::join_all;
use futures::stream;
use maud::{Markup, PreEscaped, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::sleep;

use crate::app::App;
use crate::metrics::snapshot::KnownSum;
use crate::operators::Operator;
use crate::repair::consumers;
use crate::services::Port;
use crate::streams;

/// The region of the page.
const REGION: &str = "attention";

/// How old the answer is, at most.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// The answer that all viewers share.
pub type AttentionCache = CachedAnswer<Attention>;

/// What an operator has to know beside the rows.
#[derive(Clone, Debug, Default)]
pub struct Attention {
    /// A notice for each consumer that is paused.
    paused: String,
    /// The dead letters that wait, by service; nothing for one that does not answer.
    waiting: BTreeMap<String, Option<f64>>,
}

impl Attention {
    /// The dead letters that wait in one service, or in all of them if it has no name.
    pub fn waiting(&self, service: &str) -> KnownSum {
        let meant = self.waiting.iter().filter(|(name, _)| service.is_empty() || *name == service);
        KnownSum::new(meant.map(|(name, number)| (&**name, *number)))
    }
}

/// Asks all services, unless another viewer has just done so.
pub async fn read(app: &App, operator: &Operator) -> Attention {
    let ask = async { Ok::<_, Problem>(ask(app, operator).await) };
    app.attention.get(REFRESH_INTERVAL, ask).await.map(|(answer, _)| answer).unwrap_or_default()
}

async fn ask(app: &App, operator: &Operator) -> Attention {
    let waiting = join_all(app.services.names.iter().map(async |service| {
        let place = (&**service, Port::Admin);
        let page = app.services.get::<Value>(operator, place, "/dead-letters?limit=1").await;
        (service.clone(), page.ok().and_then(|page| page["waiting"].as_f64()))
    }));
    let (paused, waiting) = tokio::join!(consumers::paused_notices(app, operator), waiting);
    Attention { paused: paused.into_string(), waiting: waiting.into_iter().collect() }
}

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
                section id=(REGION) aria-label="Needs attention" aria-live="polite" { (PreEscaped(&attention.paused)) }
            }
        }
    }

    fn render(&self, attention: &Attention, is_changing: bool) -> Markup {
        let waiting = attention.waiting(&self.service).to_string();
        html! {
            (PreEscaped(&attention.paused))
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
            let attention = read(&app, &operator).await;
            let markup = loaded.render(&attention, app.jobs.is_running()).into_string();
            if sent.as_ref() != Some(&markup) {
                let message = streams::replace_region(REGION, &markup);
                return Some((message, (app, operator, loaded, Some(markup))));
            }
            sleep(REFRESH_INTERVAL).await;
        }
    });
    streams::respond(&app, stream::select(app.jobs.updates(), attention))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_when_another_number_waits_than_it_shows() {
        let waiting = [("payment", Some(40.0)), ("stock", Some(2.0)), ("order", None)];
        let waiting = waiting.map(|(service, number)| (service.to_string(), number));
        let attention = Attention { paused: String::new(), waiting: waiting.into() };
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
