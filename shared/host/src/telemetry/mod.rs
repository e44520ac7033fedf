//! Logs, traces and metrics of a service: set up once at start, flushed at the end.

mod escaped_fields;
mod log_buffer;
pub(crate) mod log_lines;
pub(crate) mod metrics;
mod resource;
pub(crate) mod trace_export;
mod waiting_lines;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::Duration;

use messaging::telemetry::{begin_spans, panics};
use metrics_exporter_prometheus::PrometheusHandle;
use opentelemetry::global;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::EnvFilter;

use crate::config::env::{self, BadConfiguration};
use crate::config::{Config, LogFormat};
pub(crate) use crate::telemetry::log_buffer::LogFlush;
use crate::telemetry::log_buffer::{LogBuffer, standard_output};
use crate::telemetry::log_lines::{json_format, text_format};
use crate::telemetry::trace_export::tracer_provider;

const RUST_LOG: &str = EnvFilter::DEFAULT_ENV;
const DEFAULT_FILTER: &str = "info,librdkafka=warn,rdkafka=warn,sqlx::postgres::notice=warn";
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The metrics for `/metrics`, and the exporter of traces, to be flushed at the end.
pub struct Telemetry {
    pub metrics: PrometheusHandle,
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
    Ok(Telemetry { metrics: metrics::install()?, traces })
}

/// Sets up the logs alone, with the log of panics.
pub fn init_logs(format: LogFormat) -> anyhow::Result<()> {
    let buffer = LogBuffer::start(standard_output()?, |lost| {
        tracing::warn!(
            error = lost[0],
            warn = lost[1],
            info = lost[2],
            debug = lost[3],
            trace = lost[4],
            "the log was not read in time and lost lines: the fields count them since the start"
        );
    })?;
    let logs = tracing_subscriber::fmt()
        .with_writer(buffer.clone())
        .with_env_filter(log_filter(std::env::var_os(RUST_LOG))?);
    let set = match format {
        LogFormat::Text => text_format(logs, std::io::stdout().is_terminal()).try_init(),
        LogFormat::Json => json_format(logs).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("the logs were set up before: {error}"))?;
    buffer.keep_for_flush();
    panics::install_hook(log_buffer::flush_at_panic);
    Ok(())
}

/// The filter of the log. `EnvFilter`'s default constructor would ignore the parts that it cannot parse, and log
/// nothing about them.
fn log_filter(chosen: Option<OsString>) -> Result<EnvFilter, BadConfiguration> {
    let chosen = match chosen {
        Some(chosen) => env::variable_text(RUST_LOG, chosen, false)?,
        None => None,
    };
    let chosen = chosen.as_deref().unwrap_or(DEFAULT_FILTER);
    EnvFilter::try_new(chosen).map_err(|error| {
        BadConfiguration::new(format!("{RUST_LOG} is `{chosen}`, which cannot be used: {error}."))
    })
}

impl Telemetry {
    /// Sends the last spans. The exporter blocks, so this happens off the runtime's own threads.
    pub async fn shutdown(self) {
        let Some(traces) = self.traces else { return };
        let flush = move || traces.shutdown_with_timeout(FLUSH_TIMEOUT);
        let flushed = tokio::task::spawn_blocking(flush).await;
        if let Err(error) = flushed.map_err(anyhow::Error::new).and_then(|it| Ok(it?)) {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Makes this provider export spans. Spans begin from then on.
pub(crate) fn install_tracer_provider(traces: &SdkTracerProvider) {
    global::set_tracer_provider(traces.clone());
    begin_spans();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::Router;
    use axum::body::Bytes;
    use axum::routing::post;
    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;

    use super::*;

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
