//! The overview: what the stack is doing now. The page is complete when it is loaded, and a stream of server-sent
//! events then replaces the regions that change.

pub mod books;
mod charts;
mod headlines;
pub mod insights;
mod pending;
pub mod regions;
mod sales_charts;
mod summary;
mod tables;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use maud::html;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, timeout_at};

use crate::app::{App, Stopping};
use crate::operators::Operator;
use crate::overview::regions::{REGIONS, Rendered, SPOKEN_REGION};
use crate::pages::{self, Section};

/// How long one stream lasts; the browser then opens another. The server closes older connections anyway.
const STREAM_DURATION_MAX: Duration = Duration::from_secs(240);

/// nginx buffers an answer unless it has this header.
const UNBUFFERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

pub fn router() -> Router<App> {
    Router::new().route("/", get(show)).route("/overview/events", get(follow))
}

async fn show(State(app): State<App>, operator: Operator, headers: HeaderMap) -> Response {
    app.books.refresh(&app, &operator);
    app.pending.refresh(&app, &operator);
    app.insights.refresh(&app, &operator);
    let rendered = regions::render(&app, &app.snapshot.borrow().clone(), &Rendered::default());
    let body = html! {
        div.title {
            h1 { "Overview" }
            span #stream-state .live role="status" { "as loaded" }
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
    stopping: Stopping,
    /// The version of the regions that were sent.
    sent: u64,
    ready: Vec<Event>,
    deadline: Instant,
}

/// A message for each region that changed.
async fn follow(State(app): State<App>, operator: Operator) -> Response {
    let stream = RegionStream {
        rendered: app.rendered.subscribe(),
        stopping: app.stopping.clone(),
        operator,
        app,
        sent: 0,
        ready: Vec::new(),
        deadline: Instant::now() + STREAM_DURATION_MAX,
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    ([UNBUFFERED], Sse::new(events).keep_alive(KeepAlive::new())).into_response()
}

impl RegionStream {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            let changed = tokio::select! {
                changed = timeout_at(self.deadline, self.rendered.changed()) => changed,
                () = self.stopping.wait() => return None,
            };
            changed.ok()?.ok()?;
            self.app.books.refresh(&self.app, &self.operator);
            self.app.pending.refresh(&self.app, &self.operator);
            self.app.insights.refresh(&self.app, &self.operator);
            let rendered = self.rendered.borrow_and_update().clone();
            let message = |(region, markup): (&str, &str)| {
                Event::default().data(json!({"region": region, "markup": markup}).to_string())
            };
            self.ready = rendered.changed_since(self.sent).map(message).collect();
            self.ready.reverse();
            self.sent = rendered.version;
        }
        self.ready.pop()
    }
}
