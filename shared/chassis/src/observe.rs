//! Each request is a span, and is counted. Handlers run inside the span: what they publish
//! continues the caller's trace.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::trace::{FutureExt, SpanBuilder, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};

use crate::telemetry;

/// Asked every few seconds by machines: as traces they would drown the others.
const UNTRACED: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// A middleware around every route.
pub async fn request(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known(request.method());
    // The route, not the path: paths hold ids, and each would be a time series.
    let path = request.extensions().get::<MatchedPath>();
    let path: Arc<str> = path.map_or("unmatched", MatchedPath::as_str).into();
    let cx = match UNTRACED.contains(&&*path) {
        true => Context::new(),
        false => span(&request, method, &path),
    };

    let response = next.run(request).with_context(cx.clone()).await;

    let status = response.status();
    let span = cx.span();
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
    span.end();
    metrics::counter!("http_requests_total",
        "method" => method, "path" => path.clone(), "status" => status.as_str().to_owned())
    .increment(1);
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        metrics::counter!("http_faults_total").increment(1);
    }
    metrics::histogram!("http_request_duration_seconds", "method" => method, "path" => path)
        .record(started.elapsed());
    response
}

/// What the metrics of this file mean.
pub fn describe() {
    metrics::describe_counter!(
        "http_requests_total",
        "Requests answered, by method, route and status."
    );
    metrics::describe_histogram!(
        "http_request_duration_seconds",
        "From the end of a request's header to the start of its answer, what it was asked to wait included."
    );
    // There from the start: an alert on an increase does not see one from nothing.
    for (name, meaning) in [
        ("commands_refused_total", "Commands refused because too many were waiting."),
        ("consumer_clients_rebuilt_total", "Kafka consumers that were beyond repair and replaced."),
        ("consumer_retries_total", "Parts of batches that had to wait and were tried again."),
        ("events_announced_total", "Events written to the outbox once more, as an operator asked."),
        (
            "http_faults_total",
            "Requests answered with a 500: a fault of ours, and none of the client.",
        ),
        ("relay_producers_rebuilt_total", "Producers that were beyond repair and replaced."),
        (
            "relay_supposed_total",
            "Records sent again, since only the client and no broker said that they are written.",
        ),
        ("watch_looks_total", "Looks at the database for those who wait for a change."),
        ("watch_refused_total", "Clients that found no place to wait."),
    ] {
        metrics::describe_counter!(name, meaning);
        metrics::counter!(name).increment(0);
    }
    for (name, meaning) in [
        ("dead_letters_total", "Records set aside because they can never be handled, by topic."),
        ("events_handled_total", "Events that had their effect, by topic."),
        ("events_repeated_total", "Events that came again after they had their effect, by topic."),
        ("events_published_total", "Events that the broker acknowledged, by topic."),
        (
            "consumer_log_truncated_total",
            "Times that a partition's log lost records at its end that were read before, by topic.",
        ),
        ("relay_topic_held_total", "Times that a topic's events had to wait, by topic."),
    ] {
        metrics::describe_counter!(name, meaning);
    }
    for (name, meaning) in [
        ("consumer_events_deferred", "Events that wait by themselves while all others go on."),
        ("consumer_lag", "Records of a topic that are not handled yet, here."),
        (
            "consumer_partitions",
            "Partitions of a topic whose records are fetched here, from a broker that is there.",
        ),
        ("consumer_paused", "1 while the consumer waits for an operator."),
        ("dead_letters_waiting", "Letters that wait for an operator, up to 1,000."),
        ("outbox_oldest_seconds", "How long the oldest event has been waiting to be published."),
        ("relay_active", "1 in the instance whose relay is the active one."),
        ("watch_waiting", "Clients that wait for a change, or follow what happens."),
    ] {
        metrics::describe_gauge!(name, meaning);
    }
    for (name, meaning) in [
        ("command_batch_size", "Commands that shared a transaction."),
        ("consumer_batch_size", "Records that were taken together."),
        ("event_delivery_seconds", "From an event's decision to its effect here, by topic."),
        ("outbox_wait_seconds", "From an event's decision to the broker's word, by topic."),
    ] {
        metrics::describe_histogram!(name, meaning);
    }
}

fn span(request: &Request, method: &'static str, path: &Arc<str>) -> Context {
    let header = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let caller = telemetry::context(header);
    telemetry::span(&caller, || {
        SpanBuilder::from_name(format!("{method} {path}"))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", method),
                KeyValue::new("http.route", path.clone()),
                KeyValue::new("url.path", request.uri().path().to_owned()),
                KeyValue::new("url.scheme", "http"),
            ])
    })
}

/// A client may invent methods; each would be a time series.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use axum::{Router, middleware};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_handler_runs_in_a_span_that_continues_its_callers_trace() {
        telemetry::export(&SdkTracerProvider::builder().build());
        let route = get(async || telemetry::traceparent(&Context::current()));
        let router = Router::new().route("/baskets/{id}", route);
        let router = router.layer(middleware::from_fn(super::request));
        let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let asked = Request::get("/baskets/7").header("traceparent", caller);
        let response = router.oneshot(asked.body(Body::empty()).unwrap()).await.unwrap();
        let inside = to_bytes(response.into_body(), 100).await.unwrap();
        let inside = String::from_utf8(inside.to_vec()).unwrap();
        assert_eq!(inside[..36], caller[..36], "the same trace");
        assert_ne!(inside[36..52], caller[36..52], "a span of its own");
    }
}
