//! Logs, traces and metrics of a service: set up once at start, flushed at the end.
//!
//! Promise: every event carries a `traceparent`, and a trace that began elsewhere continues here, whether or not
//! this service exports traces. Without an exporter a service passes on the context that it received and begins
//! no span. Code that publishes an event without the context of its cause breaks that promise.

mod escaped_fields;
pub(crate) mod labels;
pub(crate) mod log_lines;
pub(crate) mod log_throttle;
pub(crate) mod metrics;
pub(crate) mod panics;
pub(crate) mod refusals;
mod resource;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use opentelemetry::Context as TraceContext;
use opentelemetry::global;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    SpanBuilder, SpanContext, TraceContextExt, TraceFlags, TraceState, Tracer,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider};
use tracing_subscriber::EnvFilter;

use crate::config::env::{self, BadConfiguration};
use crate::config::{Config, LogFormat};
use crate::telemetry::log_lines::{json_format, text_format};

const RUST_LOG: &str = EnvFilter::DEFAULT_ENV;
const DEFAULT_FILTER: &str = "info,librdkafka=warn,rdkafka=warn,sqlx::postgres::notice=warn";
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The exporter of traces, to be flushed at the end, and the metrics for `/metrics`.
pub struct Telemetry {
    metrics: PrometheusHandle,
    traces: Option<SdkTracerProvider>,
}

/// Sets up logs, traces and metrics. Once a process.
pub fn init(
    service: &'static str,
    version: &'static str,
    config: &Config,
) -> anyhow::Result<Telemetry> {
    init_logs(config.log_format)?;
    let resource = || resource::resource(service, version, config.service_instance_id.as_deref());
    let endpoint = config.otel_exporter_otlp_endpoint.as_deref();
    let traces = endpoint.map(|endpoint| tracer_provider(resource(), endpoint)).transpose()?;
    if let Some(traces) = &traces {
        install_tracer_provider(traces);
    }
    let metrics = metrics::install()?;
    Ok(Telemetry { metrics, traces })
}

/// Sets up the logs alone, with the log of panics.
pub fn init_logs(format: LogFormat) -> anyhow::Result<()> {
    let logs = tracing_subscriber::fmt().with_env_filter(log_filter(std::env::var_os(RUST_LOG))?);
    let set = match format {
        LogFormat::Text => text_format(logs, std::io::stdout().is_terminal()).try_init(),
        LogFormat::Json => json_format(logs).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("the logs were set up before: {error}"))?;
    panics::install_hook();
    Ok(())
}

/// The filter of the log. `EnvFilter`'s default constructor would ignore the parts that it cannot parse, and log
/// nothing about them.
fn log_filter(chosen: Option<OsString>) -> Result<EnvFilter, BadConfiguration> {
    let chosen = chosen.map(|chosen| env::variable_text(RUST_LOG, chosen, false)).transpose()?;
    let chosen = chosen.flatten();
    let chosen = chosen.as_deref().unwrap_or(DEFAULT_FILTER);
    EnvFilter::try_new(chosen).map_err(|error| {
        BadConfiguration::new(format!("{RUST_LOG} is `{chosen}`, which cannot be used: {error}."))
    })
}

impl Telemetry {
    /// A handle of the metrics, which stays valid after this guard is dropped.
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Sends the last spans. The exporter blocks, so this happens off the runtime's own threads.
    pub async fn shutdown(self) {
        let Some(traces) = self.traces else { return };
        let flush = move || traces.shutdown_with_timeout(FLUSH_TIMEOUT);
        match tokio::task::spawn_blocking(flush).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not exported"),
            Err(error) => tracing::warn!(%error, "the last spans were not exported"),
        }
    }
}

static SPANS_ARE_EXPORTED: AtomicBool = AtomicBool::new(false);

/// Makes this provider export spans. Spans begin from then on.
pub(crate) fn install_tracer_provider(traces: &SdkTracerProvider) {
    global::set_tracer_provider(traces.clone());
    SPANS_ARE_EXPORTED.store(true, Ordering::Relaxed);
}

/// Whether spans go anywhere: code that would have to compute a parent first asks.
pub(crate) fn exports_spans() -> bool {
    SPANS_ARE_EXPORTED.load(Ordering::Relaxed)
}

/// Begins a span below its parent and returns the context of the span. Without an exporter it returns the context
/// of the parent; if that has no trace, one begins. It also returns the parent if that is not recorded: the first
/// service of a trace decides, whatever the sampler, and the other traces cost nothing.
pub(crate) fn start_span(
    parent: &TraceContext,
    span: impl FnOnce() -> SpanBuilder,
) -> TraceContext {
    let is_unrecorded = |of: &SpanContext| of.is_valid() && !of.is_sampled();
    if !exports_spans() || is_unrecorded(parent.span().span_context()) {
        return with_trace(parent);
    }
    parent.with_span(global::tracer("chassis").build_with_context(span(), parent))
}

/// The context itself if it belongs to a trace, or one in which a trace begins.
pub(crate) fn with_trace(cx: &TraceContext) -> TraceContext {
    if cx.span().span_context().is_valid() {
        return cx.clone();
    }
    let ids = RandomIdGenerator::default();
    cx.with_remote_span_context(SpanContext::new(
        ids.new_trace_id(),
        ids.new_span_id(),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    ))
}

/// The W3C `traceparent` of a context, to be stored beside an event. If the context has no trace, one begins.
pub fn traceparent(cx: &TraceContext) -> String {
    let cx = with_trace(cx);
    let span = cx.span();
    let span = span.span_context();
    let sampled = u8::from(span.is_sampled());
    format!("00-{}-{}-{sampled:02x}", span.trace_id(), span.span_id())
}

/// The context of a stored or received `traceparent`; an empty context if it is absent or invalid.
pub fn parse_traceparent(traceparent: Option<&str>) -> TraceContext {
    struct Carrier<'a>(&'a str);
    impl Extractor for Carrier<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            (key == "traceparent").then_some(self.0)
        }
        fn keys(&self) -> Vec<&str> {
            vec!["traceparent"]
        }
    }
    let Some(traceparent) = traceparent else {
        return TraceContext::new();
    };
    TraceContextPropagator::new().extract_with_context(&TraceContext::new(), &Carrier(traceparent))
}

fn tracer_provider(resource: Resource, endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let provider = SdkTracerProvider::builder().with_resource(resource);
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| {
            let exporter = "no traces can go to OTEL_EXPORTER_OTLP_ENDPOINT";
            BadConfiguration::new(format!("{exporter} ({endpoint}): {error}."))
        })?;
    Ok(provider.with_batch_exporter(exporter).build())
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
        let begun = traceparent(&TraceContext::new());
        assert_eq!((begun.len(), &begun[..3], &begun[52..]), (55, "00-", "-01"));
        assert_eq!(traceparent(&parse_traceparent(Some(&begun))), begun);
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!(traceparent(&parse_traceparent(Some(unsampled))), unsampled);
        for nothing in [None, Some(""), Some("00-nonsense-x-01")] {
            assert!(!parse_traceparent(nothing).span().span_context().is_valid());
        }
    }

    #[test]
    fn below_a_parent_that_is_not_recorded_no_span_begins() {
        install_tracer_provider(&SdkTracerProvider::builder().build());
        for (flags, is_child) in [("00", false), ("01", true)] {
            let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            let span =
                start_span(&parse_traceparent(Some(&parent)), || SpanBuilder::from_name("x"));
            assert_eq!(traceparent(&span) != parent, is_child, "{flags}");
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
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, receiver).await });

        let resource = resource::resource("till", "1.2.3", Some("till-7d4f"));
        let traces = tracer_provider(resource, &endpoint).unwrap();
        drop(traces.tracer("test").start("a span"));
        let metrics = metrics::prometheus_builder().unwrap().build_recorder().handle();
        Telemetry { metrics, traces: Some(traces) }.shutdown().await;

        let export = received.try_recv().expect("an export before the end of the shutdown");
        let resource = &export.resource_spans[0];
        let attributes = format!("{:?}", resource.resource.as_ref().unwrap().attributes);
        for (name, value) in [("name", "till"), ("version", "1.2.3"), ("instance.id", "till-7d4f")]
        {
            let (name, value) = (format!("service.{name}"), format!("\"{value}\""));
            assert!(attributes.contains(&name) && attributes.contains(&value), "{attributes}");
        }
        assert_eq!(resource.scope_spans[0].spans[0].name, "a span");
    }

    #[test]
    fn a_filter_of_the_log_that_cannot_be_read_is_refused_by_name() {
        for readable in [None, Some(""), Some("info"), Some(" warn "), Some("sqlx=debug,info")] {
            log_filter(readable.map(OsString::from)).unwrap();
        }
        for unreadable in ["info,,=", "chassis=loud", "  "] {
            let refused = log_filter(Some(unreadable.into())).unwrap_err().to_string();
            assert!(refused.starts_with("RUST_LOG "), "{unreadable}: {refused}");
        }
    }
}
