//! The W3C trace context: the headers `traceparent` and `tracestate` of a request or a record, and the context that
//! they name.

use opentelemetry::Context as TraceContext;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

/// Characters of a `tracestate` that are passed on: as many as the standard asks for.
const TRACESTATE_CHARS_MAX: usize = 512;

/// The standard lets go of entries with more characters first.
const LONG_ENTRY_CHARS_MIN: usize = 129;

/// The context itself if it belongs to a trace, or one in which a trace begins.
pub fn with_trace(cx: &TraceContext) -> TraceContext {
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

/// The `traceparent` and the `tracestate` of a context, to be stored beside an event. If the context has no trace, one
/// begins.
pub fn trace_headers(cx: &TraceContext) -> (String, Option<String>) {
    let cx = with_trace(cx);
    let span = cx.span();
    let span = span.span_context();
    let sampled = u8::from(span.is_sampled());
    let traceparent = format!("00-{}-{}-{sampled:02x}", span.trace_id(), span.span_id());
    let tracestate = span.trace_state();
    let tracestate = (*tracestate != TraceState::NONE).then(|| tracestate.header());
    (traceparent, tracestate)
}

/// The context of stored or received headers; an empty context if `traceparent` is absent or invalid.
pub fn parse_trace(traceparent: Option<&str>, tracestate: Option<&str>) -> TraceContext {
    struct Carrier<'a>(&'a str, Option<String>);
    impl Extractor for Carrier<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            match key {
                "traceparent" => Some(self.0),
                "tracestate" => self.1.as_deref(),
                _ => None,
            }
        }
        fn keys(&self) -> Vec<&str> {
            vec!["traceparent", "tracestate"]
        }
    }
    let Some(traceparent) = traceparent else {
        return TraceContext::new();
    };
    let carrier = Carrier(traceparent, tracestate.and_then(shorten_tracestate));
    TraceContextPropagator::new().extract_with_context(&TraceContext::new(), &carrier)
}

/// A `tracestate` within its bound: it loses whole entries, first the long ones, then the oldest ones. `None` if it has
/// characters that no header may have: a client wrote it, and rows and headers hold it.
fn shorten_tracestate(tracestate: &str) -> Option<String> {
    if !tracestate.chars().all(|it| it.is_ascii_graphic() || matches!(it, ' ' | '\t')) {
        return None;
    }
    let entries = tracestate.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let mut entries = Vec::from_iter(entries);
    // Each with a comma behind it.
    const CHARS_MAX: usize = TRACESTATE_CHARS_MAX + 1;
    if entries.iter().map(|entry| entry.len() + 1).sum::<usize>() > CHARS_MAX {
        entries.retain(|entry| entry.len() < LONG_ENTRY_CHARS_MIN);
    }
    let mut chars = 0;
    entries.retain(|entry| {
        chars += entry.len() + 1;
        chars <= CHARS_MAX
    });
    (!entries.is_empty()).then(|| entries.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_survives_the_outbox_and_the_header() {
        let headers = |parent: Option<&str>| trace_headers(&parse_trace(parent, None));
        let (begun, state) = trace_headers(&TraceContext::new());
        assert_eq!((begun.len(), &begun[..3], &begun[52..]), (55, "00-", "-01"));
        assert_eq!(state, None);
        assert_eq!(headers(Some(&begun)), (begun, None));
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!(headers(Some(unsampled)), (unsampled.to_owned(), None));
        for nothing in [None, Some(""), Some("00-nonsense-x-01")] {
            let parsed = parse_trace(nothing, Some("a=b"));
            assert!(!parsed.span().span_context().is_valid());
        }
    }

    #[test]
    fn a_tracestate_survives_the_outbox_and_the_header_within_its_bound() {
        let passed_on = |state: &str| trace_headers(&parse_trace(Some(PARENT), Some(state))).1;
        for kept in ["a=b", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "t@v=1/2 3!"] {
            assert_eq!(passed_on(kept).as_deref(), Some(kept));
        }
        assert_eq!(passed_on("a=b , ,\tc=d").as_deref(), Some("a=b,c=d"));
        for invalid in ["", " ", "a", "A=b", "a=b\0", "a=b\nc=d", "a=ü", "a=b=c"] {
            assert_eq!(passed_on(invalid), None, "{invalid:?}");
        }
        let entry = |nth: usize, chars: usize| format!("k{nth:02}={}", "v".repeat(chars - 4));
        let full = [entry(1, 128), entry(2, 128), entry(3, 128), entry(4, 125)].join(",");
        assert_eq!(full.len(), TRACESTATE_CHARS_MAX);
        assert_eq!(passed_on(&full).as_ref(), Some(&full));
        let newest = format!("a=b,{}", &full[..386]);
        assert_eq!(passed_on(&format!("a=b,{full}")), Some(newest), "without the oldest");
        assert_eq!(passed_on(&format!("{},{full}", entry(9, 129))), Some(full), "a long one");
    }
}
