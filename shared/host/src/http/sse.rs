//! Server-sent events: a subject's log as a stream that ends once the subject is settled.
//!
//! A stream sends the entries that exist, then each new one from the [change feed](crate::http::change_feed).
//! A client that lost its stream names the last event that it received and gets those after it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, stream};
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::http::change_feed::{ChangeFeed, FeedEntry, Subscription};
use crate::http::problem::Problem;

/// How long one stream may last. Its client then resumes it with another request.
const STREAM_DURATION_MAX: Duration = Duration::from_secs(300);

/// How often a comment is sent while there is no event, so that the server notices a client that has gone: sooner
/// than [`crate::http::limits::Limits::unread_timeout`], and than the timeouts of most proxies. A client that has closed
/// its sending half may still read: only its reaction to the next comment shows that.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A proxy that buffers would delay events until the stream ends. nginx buffers by default, unless the response has
/// this header; other proxies buffer responses that they compress.
const UNBUFFERED_HEADERS: [(HeaderName, &str); 2] = [
    (HeaderName::from_static("x-accel-buffering"), "no"),
    (header::CACHE_CONTROL, "no-cache, no-transform"),
];

/// When a client is to reconnect after a stream that ended before its subject was settled.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// A server-sent event.
// Only the description of an API uses it: axum writes the events themselves.
#[derive(ToSchema)]
#[expect(dead_code)]
pub struct ServerSentEvent {
    /// The entry's id, which `Last-Event-ID` names to resume.
    id: Uuid,
    /// What happened.
    event: String,
    /// The entry, as JSON.
    data: String,
    /// Milliseconds after which to come back if the stream breaks; sent once.
    #[schema(required = false)]
    retry: usize,
}

impl<E: FeedEntry> ChangeFeed<E> {
    /// Answers with a subject's log as server-sent events: the entries of `log`, then each new entry as it is
    /// committed, up to the last entry of the subject.
    ///
    /// A client that has received entries names the last one by its id, and gets those after it. A client that has
    /// received all gets 204, after which a browser does not reconnect.
    pub fn event_stream(
        &self,
        log: Vec<E>,
        last_event_id: Option<Uuid>,
    ) -> Result<Response, Problem> {
        let Some(newest) = log.last() else { return Ok(StatusCode::NO_CONTENT.into_response()) };
        let (subject, newest) = (newest.subject(), newest.position());
        let first = last_event_id.and_then(|seen| log.iter().position(|entry| entry.id() == seen));
        let first = first.map_or(0, |nth| nth + 1);
        let last = log.iter().position(E::is_final);
        if last.is_some_and(|last| last < first) {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let subscription = match last {
            Some(_) => None,
            None => Some(self.subscribe(subject, newest)?),
        };
        let ready = log.into_iter().skip(first).map(Arc::new).collect();
        let events =
            SseStream { ready, subscription, deadline: Instant::now() + STREAM_DURATION_MAX }
                .events();
        let kept_alive = KeepAlive::new().interval(KEEP_ALIVE_INTERVAL);
        Ok((UNBUFFERED_HEADERS, Sse::new(events).keep_alive(kept_alive)).into_response())
    }
}

/// An open stream: the entries that it can send at once, and its subscription, unless the last entry is known.
struct SseStream<E: FeedEntry> {
    ready: VecDeque<Arc<E>>,
    subscription: Option<Subscription<E>>,
    deadline: Instant,
}

impl<E: FeedEntry> SseStream<E> {
    fn events(self) -> impl Stream<Item = Result<sse::Event, Infallible>> + Send + 'static {
        stream::unfold((self, true), |(mut sse_stream, first): (Self, bool)| async move {
            let entry = sse_stream.next().await?;
            let event = sse::Event::default().id(entry.id().to_string()).event(entry.event());
            let event = event.json_data(&*entry).expect("entries are plain JSON");
            let event = if first { event.retry(RECONNECT_INTERVAL) } else { event };
            Some((Ok(event), (sse_stream, false)))
        })
    }

    async fn next(&mut self) -> Option<Arc<E>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                if entry.is_final() {
                    (self.subscription, self.ready) = (None, VecDeque::new());
                }
                return Some(entry);
            }
            let new = timeout_at(self.deadline, self.subscription.as_mut()?.next()).await;
            self.ready.extend(new.ok()??);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::change_feed::SUBSCRIPTIONS_MAX;
    use crate::http::limits::Limits;

    #[test]
    fn subscriptions_leave_room_for_other_clients_and_end_with_their_client() {
        let limits = Limits::default();
        assert!(2 * SUBSCRIPTIONS_MAX <= limits.connections_max);
        assert!(KEEP_ALIVE_INTERVAL < limits.unread_timeout);
    }
}
