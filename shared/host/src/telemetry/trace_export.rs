//! The export of spans to a collector of traces, which a service does not need: spans that the collector does not take
//! in time are lost. A counter has their number, and one line a minute gives the reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use messaging::telemetry::log_throttle::LogThrottle;
use metrics::counter;
use opentelemetry::Context as TraceContext;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter,
    SpanProcessor,
};
use parking_lot::Mutex;

use crate::config::env::BadConfiguration;

pub(crate) const LOST_COUNTER: &str = "spans_lost_total";

const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Spans that wait to be exported, at most. The SDK's own queue has the same bound, so it never drops a span: it would
/// not report that.
const WAITING_SPANS_MAX: usize = 2_048;

/// The provider whose spans go to this endpoint.
pub(super) fn tracer_provider(
    resource: Resource,
    endpoint: &str,
) -> anyhow::Result<SdkTracerProvider> {
    let exporter = OtlpExporter::builder()
        .with_http()
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| {
            let exporter = "no traces can go to OTEL_EXPORTER_OTLP_ENDPOINT";
            BadConfiguration::new(format!("{exporter} ({endpoint}): {error}."))
        })?;
    let losses = Arc::new(SpanLosses::default());
    let exporter = CountingExporter { exporter, losses: losses.clone() };
    let config = BatchConfigBuilder::default().with_max_queue_size(WAITING_SPANS_MAX).build();
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    let processor = BoundedProcessor { batches, losses };
    Ok(SdkTracerProvider::builder().with_resource(resource).with_span_processor(processor).build())
}

/// How many spans wait, and what is logged of those that are lost.
#[derive(Debug, Default)]
struct SpanLosses {
    waiting: AtomicUsize,
    log_throttle: Mutex<LogThrottle>,
}

impl SpanLosses {
    fn report(&self, spans: usize, reason: &str) {
        counter!(LOST_COUNTER).increment(spans as u64);
        // The reasons of a collector that is away alternate.
        if self.log_throttle.lock().should_log("spans", "") {
            tracing::warn!(
                "spans are lost, because the trace collector does not accept them: {reason}"
            );
        }
    }
}

/// Passes spans on while there is room for them.
#[derive(Debug)]
struct BoundedProcessor {
    batches: BatchSpanProcessor,
    losses: Arc<SpanLosses>,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, cx: &TraceContext) {
        self.batches.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        let waiting = &self.losses.waiting;
        if waiting.fetch_add(1, Ordering::Relaxed) < WAITING_SPANS_MAX {
            self.batches.on_end(span);
        } else {
            waiting.fetch_sub(1, Ordering::Relaxed);
            self.losses.report(1, "too many wait");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Exports batches, and counts those that the collector did not take.
#[derive(Debug)]
struct CountingExporter<E> {
    exporter: E,
    losses: Arc<SpanLosses>,
}

impl<E: SpanExporter> SpanExporter for CountingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.losses.waiting.fetch_sub(spans, Ordering::Relaxed);
        let exported = self.exporter.export(batch).await;
        if let Err(error) = &exported {
            self.losses.report(spans, &error.to_string());
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use opentelemetry::trace::{Tracer, TracerProvider};

    use super::*;
    use crate::tests::captured_log::CapturedLog;

    /// Exports on the thread of the test, whose subscriber and recorder see what is reported.
    #[test]
    fn spans_that_the_collector_does_not_take_are_counted_and_logged_once() {
        let log = CapturedLog::default();
        let metrics = PrometheusBuilder::new().build_recorder();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let exporter = OtlpExporter::builder().with_http();
        let exporter =
            exporter.with_endpoint(format!("http://{closed}/v1/traces")).build().unwrap();
        let exporter = CountingExporter { exporter, losses: Arc::default() };
        exporter.losses.waiting.store(2, Ordering::Relaxed);
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter).build();
        tracing::subscriber::with_default(log.text_subscriber(false), || {
            // Another test may have met this line first, while none was logged.
            tracing::callsite::rebuild_interest_cache();
            metrics::with_local_recorder(&metrics, || {
                for name in ["one", "two"] {
                    drop(provider.tracer("test").start(name));
                }
            });
        });
        let (counted, log) = (metrics.handle().render(), log.text());
        assert!(counted.contains(&format!("{LOST_COUNTER} 2")), "{counted}");
        assert!(log.contains("WARN") && log.matches("spans are lost").count() == 1, "{log}");
    }

    #[test]
    fn spans_beyond_those_that_may_wait_are_counted() {
        let metrics = PrometheusBuilder::new().build_recorder();
        // It accepts connections and answers none.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let provider = tracer_provider(Resource::builder().build(), &endpoint).unwrap();
        metrics::with_local_recorder(&metrics, || {
            for _ in 0..2 * WAITING_SPANS_MAX {
                drop(provider.tracer("test").start("a span"));
            }
        });
        let _ = provider.shutdown_with_timeout(Duration::ZERO);
        let counted = metrics.handle().render();
        let lost =
            counted.lines().find_map(|line| line.strip_prefix(LOST_COUNTER)?.trim().parse().ok());
        // A batch may have left the queue.
        let lost: usize = lost.unwrap();
        assert!((WAITING_SPANS_MAX - 512..=WAITING_SPANS_MAX).contains(&lost), "{counted}");
    }
}
