//! Each request is a span, and is counted. Handlers run inside the span, so that their events continue the caller's
//! trace, and their lines of the log have its id.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use messaging::telemetry;
use messaging::telemetry::labels::Labels;
use opentelemetry::trace::{FutureExt, SpanBuilder, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context as TraceContext, KeyValue};

/// Probes request these paths every few seconds: their traces would hide all others.
const UNTRACED_PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

pub(crate) async fn instrument_request(
    request: Request,
    handle: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    // The label is the route and not the path: each id in a path would be a time series.
    let path = request.extensions().get::<MatchedPath>();
    let path: Arc<str> = path.map_or("unmatched", MatchedPath::as_str).into();
    let cx = match UNTRACED_PATHS.contains(&&*path) {
        true => TraceContext::new(),
        false => request_span(&request, method, &path).with_value(Labels::default()),
    };

    let response = handle(request).with_context(cx.clone()).await;

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
        metrics::counter!("http_server_errors_total").increment(1);
    }
    metrics::histogram!("http_request_duration_seconds", "method" => method, "path" => path)
        .record(started.elapsed());
    response
}

/// It has the route and not `url.path`: ids of customers are parts of paths, and spans are stored elsewhere.
fn request_span(request: &Request, method: &'static str, path: &Arc<str>) -> TraceContext {
    let headers = request.headers();
    let parent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    // It may be in several parts.
    let state =
        headers.get_all("tracestate").iter().map(|value| value.to_str().unwrap_or_default());
    let state = Vec::from_iter(state).join(",");
    let caller = telemetry::parse_trace(parent, Some(&state));
    telemetry::start_span(&caller, || {
        SpanBuilder::from_name(format!("{method} {path}"))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", method),
                KeyValue::new("http.route", path.clone()),
                KeyValue::new("url.scheme", "http"),
            ])
    })
}

/// A client may invent methods; each would be a time series.
fn method_label(method: &Method) -> &'static str {
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
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::middleware::{Next, from_fn};
    use axum::routing::get;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
    use parking_lot::Mutex;
    use tower::ServiceExt;

    use super::*;

    async fn instrument(request: Request, next: Next) -> Response {
        instrument_request(request, async |request| next.run(request).await).await
    }

    #[tokio::test]
    async fn a_handler_runs_in_a_span_that_continues_its_callers_trace() {
        crate::telemetry::install_tracer_provider(&SdkTracerProvider::builder().build());
        let route = get(async || telemetry::trace_headers(&TraceContext::current()).0);
        let router = Router::new().route("/baskets/{id}", route);
        let router = router.layer(from_fn(instrument));
        let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let request = Request::get("/baskets/7").header("traceparent", caller);
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let inside = to_bytes(response.into_body(), 100).await.unwrap();
        let inside = String::from_utf8(inside.to_vec()).unwrap();
        assert_eq!(inside[..36], caller[..36], "the same trace");
        assert_ne!(inside[36..52], caller[36..52], "a span of its own");
    }

    /// Keeps the exported spans.
    #[derive(Clone, Debug, Default)]
    struct ExportedSpans(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for ExportedSpans {
        async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().extend(spans);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_span_has_the_route_and_no_value_of_the_path_or_the_query() {
        let exported = ExportedSpans::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exported.clone()).build();
        let router = Router::new().route("/accounts/{id}", get(async || ()));
        let router = router.layer(from_fn(instrument));
        // Another test may replace the provider of the process meanwhile.
        for _ in 0..100 {
            crate::telemetry::install_tracer_provider(&provider);
            let request = Request::get("/accounts/customer-7?customer_id=customer-7");
            router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            let spans = exported.0.lock();
            if let Some(span) = spans.iter().find(|span| span.name == "GET /accounts/{id}") {
                let route = KeyValue::new("http.route", "/accounts/{id}");
                assert!(span.attributes.contains(&route), "{span:?}");
                assert!(!format!("{span:?}").contains("customer-7"), "{span:?}");
                return;
            }
        }
        panic!("no span was exported");
    }
}
