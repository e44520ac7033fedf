//! Logs, traces and metrics of a service: set up once at start, flushed at the end.
//!
//! A trace context exists whether or not traces are exported, so that every event carries a
//! `traceparent` and a trace begun elsewhere never ends here.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::Context;
use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, TraceContextExt, Tracer};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};
use crate::observe;

const DEFAULT_FILTER: &str = "info,librdkafka=warn,rdkafka=warn,sqlx::postgres::notice=warn";
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
const UPKEEP: Duration = Duration::from_secs(5);

const SECONDS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0];
const SIZES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// What must be flushed at the end, and read by `/metrics`.
pub struct Telemetry {
    metrics: PrometheusHandle,
    traces: SdkTracerProvider,
}

/// Sets up all three. Once a process.
pub fn init(service: &'static str, config: &Config) -> anyhow::Result<Telemetry> {
    init_logs(config.log_format)?;
    let traces = traces(service, config.otel_exporter_otlp_endpoint.as_deref())?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    global::set_tracer_provider(traces.clone());
    let metrics = prometheus()?.install_recorder().context("metrics were set up before")?;
    observe::describe();
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Ok(Telemetry { metrics, traces })
}

/// Sets up the logs alone, panics among them.
pub fn init_logs(format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT_FILTER.into());
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    let set = match format {
        LogFormat::Text => logs.with_ansi(std::io::stdout().is_terminal()).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("the logs were set up before: {error}"))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!("panicked at {place}: {message}");
    }));
    Ok(())
}

impl Telemetry {
    /// What `/metrics` answers, for whoever outlives this guard.
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Sends the last spans. The exporter blocks, so this happens off the runtime's own threads.
    pub async fn shutdown(self) {
        let flush = move || self.traces.shutdown_with_timeout(FLUSH_TIMEOUT);
        match tokio::task::spawn_blocking(flush).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not exported"),
            Err(error) => tracing::warn!(%error, "the last spans were not exported"),
        }
    }
}

/// The tracer of everything in this crate.
pub fn tracer() -> BoxedTracer {
    global::tracer("chassis")
}

/// The W3C `traceparent` of a context, to be stored beside an event. Where no trace has begun, one
/// begins.
pub fn traceparent(cx: &Context) -> String {
    let format = |span: &SpanContext| {
        let (trace, id) = (span.trace_id(), span.span_id());
        format!("00-{trace}-{id}-{:02x}", span.trace_flags().to_u8() & 1)
    };
    let span = cx.span();
    match span.span_context() {
        span if span.is_valid() => format(span),
        _ => format(Context::new().with_span(tracer().start("publish")).span().span_context()),
    }
}

/// The context that a stored or received `traceparent` names; an empty one where it names none.
pub fn context(traceparent: Option<&str>) -> Context {
    let Some(traceparent) = traceparent else {
        return Context::new();
    };
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

fn traces(service: &'static str, endpoint: Option<&str>) -> anyhow::Result<SdkTracerProvider> {
    let resource = Resource::builder().with_service_name(service).build();
    let provider = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = endpoint else {
        return Ok(provider.build());
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .with_context(|| format!("OTEL_EXPORTER_OTLP_ENDPOINT is `{endpoint}`"))?;
    Ok(provider.with_batch_exporter(exporter).build())
}

fn prometheus() -> anyhow::Result<PrometheusBuilder> {
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &SIZES)?)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::Router;
    use axum::body::Bytes;
    use axum::routing::post;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;

    use super::*;

    #[test]
    fn a_traceparent_survives_the_outbox_and_the_header() {
        global::set_tracer_provider(SdkTracerProvider::builder().build());
        let begun = traceparent(&Context::new());
        assert_eq!((begun.len(), &begun[..3], &begun[52..]), (55, "00-", "-01"));
        assert_eq!(traceparent(&context(Some(&begun))), begun);
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!(traceparent(&context(Some(unsampled))), unsampled);
        for nothing in [None, Some(""), Some("00-nonsense-x-01")] {
            assert!(!context(nothing).span().span_context().is_valid());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn spans_reach_an_otlp_receiver() {
        let (sent, received) = mpsc::channel();
        let receiver = Router::new().route(
            "/v1/traces",
            post(async move |body: Bytes| {
                let _ = sent.send(ExportTraceServiceRequest::decode(body).unwrap());
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, receiver).await });

        let traces = traces("till", Some(&endpoint)).unwrap();
        drop(traces.tracer("test").start("a span"));
        let metrics = prometheus().unwrap().build_recorder().handle();
        Telemetry { metrics, traces }.shutdown().await;

        let export = received.try_recv().expect("an export before the end of the shutdown");
        let resource = &export.resource_spans[0];
        let attributes = format!("{:?}", resource.resource.as_ref().unwrap().attributes);
        assert!(attributes.contains("service.name") && attributes.contains("till"), "{attributes}");
        assert_eq!(resource.scope_spans[0].spans[0].name, "a span");
    }

    #[test]
    fn durations_have_buckets_and_every_metric_a_meaning() {
        let recorder = prometheus().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            observe::describe();
            metrics::histogram!("http_request_duration_seconds").record(0.003);
            metrics::counter!("http_requests_total").increment(1);
        });
        let text = recorder.handle().render();
        assert!(text.contains("http_request_duration_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("# HELP http_requests_total "), "{text}");
    }
}
