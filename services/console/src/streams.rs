//! Streams of server-sent events, which keep the regions of a page current.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderName;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chassis::Frontend;
use futures::{Stream, StreamExt};
use maud::{Markup, html};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

/// How long one stream lasts; the browser then opens another. The server closes older connections anyway.
const STREAM_DURATION_MAX: Duration = Duration::from_secs(240);

/// How often a stream sends something, so that a page can tell that it has lost its connection.
const ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// nginx buffers an answer unless it has this header.
const UNBUFFERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// Tells the streams that the process stops.
#[derive(Clone)]
pub struct Stopping(watch::Receiver<bool>);

impl Stopping {
    pub fn new(frontend: &Frontend) -> Stopping {
        let (sender, receiver) = watch::channel(false);
        let stopping = frontend.stopping.clone();
        tokio::spawn(async move {
            stopping.cancelled().await;
            sender.send_replace(true);
        });
        Stopping(receiver)
    }

    /// Returns when the process stops.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|stops| *stops).await;
    }
}

/// Whether the page is live. The script of the pages changes it.
pub fn state() -> Markup {
    html! { span #stream-state .live role="status" { "as loaded" } }
}

/// The message that replaces a region of the page.
pub fn replace_region(id: &str, markup: &str) -> Event {
    Event::default().data(json!({"region": id, "markup": markup}).to_string())
}

/// Sends these messages until the stream is old or the process stops.
pub fn respond(
    stopping: &Stopping,
    messages: impl Stream<Item = Event> + Send + 'static,
) -> Response {
    let mut stopping = stopping.clone();
    let end = async move {
        tokio::select! {
            () = sleep(STREAM_DURATION_MAX) => {}
            () = stopping.wait() => {}
        }
    };
    let messages = messages.map(Ok::<_, Infallible>).take_until(Box::pin(end));
    let alive = Event::default().event("alive").data("");
    let alive = KeepAlive::new().interval(ALIVE_INTERVAL).event(alive);
    ([UNBUFFERED], Sse::new(messages).keep_alive(alive)).into_response()
}
