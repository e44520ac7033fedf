//! Streams of server-sent events, which keep the regions of a page current.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderName;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use maud::{Markup, html};
use serde_json::json;
use tokio::time::sleep;

use crate::app::App;

/// How long one stream lasts; the browser then opens another. The server closes older connections anyway.
const STREAM_DURATION_MAX: Duration = Duration::from_secs(240);

/// How often a stream sends something, so that a page can tell that it has lost its connection.
const ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// nginx buffers an answer unless it has this header.
const UNBUFFERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// Whether the page is live. The script of the pages changes it.
pub fn state() -> Markup {
    html! { span #stream-state .live role="status" { "as loaded" } }
}

/// The message that replaces a region of the page.
pub fn replace_region(id: &str, markup: &str) -> Event {
    Event::default().data(json!({"region": id, "markup": markup}).to_string())
}

/// Sends these messages until the stream is old or the process stops.
pub fn respond(app: &App, messages: impl Stream<Item = Event> + Send + 'static) -> Response {
    let mut stopping = app.stopping.clone();
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
