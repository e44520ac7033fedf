//! What messaging reports: the trace of each event, the labels of what is handled, refusals, and the text of panics. The
//! host collects it: it sets up logs, metrics and the exporter of traces.
//!
//! Promise: every event carries a `traceparent`, and a trace that began elsewhere continues here, whether or not
//! this service exports traces. Without an exporter a service passes on the context that it received and begins
//! no span. Code that publishes an event without the context of its cause breaks that promise.

pub mod labels;
pub mod log_throttle;
pub mod panics;
pub mod refusals;
mod trace_context;

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::Context as TraceContext;
use opentelemetry::global;
use opentelemetry::trace::{SpanBuilder, SpanContext, TraceContextExt, Tracer};

pub use crate::telemetry::trace_context::{parse_trace, trace_headers, with_trace};

static SPANS_ARE_EXPORTED: AtomicBool = AtomicBool::new(false);

/// Spans begin from now on: the host has installed an exporter.
pub fn begin_spans() {
    SPANS_ARE_EXPORTED.store(true, Ordering::Relaxed);
}

/// Whether spans go anywhere: code that would have to compute a parent first asks.
pub(crate) fn exports_spans() -> bool {
    SPANS_ARE_EXPORTED.load(Ordering::Relaxed)
}

/// Begins a span below its parent and returns the context of the span. Without an exporter it returns the context
/// of the parent; if that has no trace, one begins. It also returns the parent if that is not recorded: the first
/// service of a trace decides, whatever the sampler, and the other traces cost nothing.
pub fn start_span(parent: &TraceContext, span: impl FnOnce() -> SpanBuilder) -> TraceContext {
    let is_unrecorded = |of: &SpanContext| of.is_valid() && !of.is_sampled();
    if !exports_spans() || is_unrecorded(parent.span().span_context()) {
        return with_trace(parent);
    }
    parent.with_span(global::tracer("chassis").build_with_context(span(), parent))
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[test]
    fn below_a_parent_that_is_not_recorded_no_span_begins() {
        global::set_tracer_provider(SdkTracerProvider::builder().build());
        begin_spans();
        for (flags, is_child) in [("00", false), ("01", true)] {
            let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            let span = start_span(&parse_trace(Some(&parent), Some("a=b")), || {
                SpanBuilder::from_name("x")
            });
            let (traceparent, tracestate) = trace_headers(&span);
            assert_eq!(traceparent != parent, is_child, "{flags}");
            assert_eq!(tracestate.as_deref(), Some("a=b"), "{flags}");
        }
    }
}
