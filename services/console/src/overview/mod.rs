//! The overview: what the stack is doing now. The page is complete when it is loaded, and a stream of server-sent
//! events then replaces the regions that change.

mod charts;
mod headlines;
mod pending;
pub mod regions;
mod sales_charts;
mod summary;
mod tables;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse::Event;
use futures::stream;
use maud::html;
use tokio::sync::watch;

use crate::app::App;
use crate::feeds::insights;
use crate::feeds::rendered::Rendered;
use crate::operators::Operator;
use crate::overview::regions::{REGIONS, SPOKEN_REGION};
use crate::pages::{self, Section};
use crate::streams;

/// Asks again for what is old, with the operator's token.
fn refresh(app: &App, operator: &Operator) {
    app.books.refresh(&app.services, operator, &app.snapshot.borrow().window.total);
    app.pending.refresh(&app.services, operator);
    if app.settings.insights_url.is_some() {
        insights::refresh(&app.insights, &app.services, operator);
    }
}

pub async fn show(State(app): State<App>, operator: Operator, headers: HeaderMap) -> Response {
    refresh(&app, &operator);
    let rendered = regions::render(&app, &app.snapshot.borrow().clone(), &Rendered::default());
    let body = html! {
        div.title {
            h1 { "Overview" }
            (streams::state())
        }
        div.overview data-stream="/overview/events" {
            @for region in REGIONS {
                @let spoken = (region.id == SPOKEN_REGION).then_some("polite");
                section id=(region.id) class=(region.class) aria-label=(region.name) aria-live=[spoken] {
                    (rendered.markup(region.id))
                }
            }
        }
    };
    pages::page(&headers, Section::Overview, "Overview", body)
}

/// An open stream: the regions that it has to send, and those that its page has.
struct RegionStream {
    app: App,
    operator: Operator,
    rendered: watch::Receiver<Arc<Rendered>>,
    /// The version of the regions that were sent.
    sent: u64,
    ready: Vec<Event>,
}

/// A message for each region that changed.
pub async fn follow(State(app): State<App>, operator: Operator) -> Response {
    let rendered = app.rendered.subscribe();
    let stream = RegionStream { app: app.clone(), operator, rendered, sent: 0, ready: Vec::new() };
    let events = stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((event, stream))
    });
    streams::respond(&app.stopping, events)
}

impl RegionStream {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            self.rendered.changed().await.ok()?;
            refresh(&self.app, &self.operator);
            let rendered = self.rendered.borrow_and_update().clone();
            let changed = rendered.changed_since(self.sent);
            self.ready =
                changed.map(|(region, markup)| streams::replace_region(region, markup)).collect();
            self.ready.reverse();
            self.sent = rendered.version;
        }
        self.ready.pop()
    }
}
