//! The lines of the log: each ends with the ids of its trace and its span, and with the labels of the request or the
//! record that is handled.

use std::fmt::{self, Write};

use messaging::telemetry::labels::Labels;
use opentelemetry::Context as TraceContext;
use opentelemetry::trace::TraceContextExt;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{DefaultFields, Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{
    FmtContext, FormatEvent, FormatFields, MakeWriter, SubscriberBuilder,
};
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::escaped_fields::{EscapedFields, EscapingWriter};

/// A format of lines, with what the current context adds to each.
pub(crate) struct InContext<F> {
    format: F,
    style: Style,
}

#[derive(Clone, Copy)]
enum Style {
    Text,
    Json,
}

/// The text format, in colours if `ansi` is set.
pub(crate) fn text_format<Filter, Output>(
    logs: SubscriberBuilder<DefaultFields, Format, Filter, Output>,
    ansi: bool,
) -> SubscriberBuilder<EscapedFields, InContext<Format>, Filter, Output>
where
    Output: for<'writer> MakeWriter<'writer> + 'static,
{
    let logs = logs.with_ansi(ansi).fmt_fields(EscapedFields::default());
    logs.map_event_format(|format| InContext { format: format.with_ansi(ansi), style: Style::Text })
}

/// The format JSON, which escapes by itself.
pub(crate) fn json_format<Filter, Output>(
    logs: SubscriberBuilder<DefaultFields, Format, Filter, Output>,
) -> SubscriberBuilder<JsonFields, InContext<Format<Json>>, Filter, Output>
where
    Output: for<'writer> MakeWriter<'writer> + 'static,
{
    let logs = logs.json().flatten_event(true);
    logs.map_event_format(|format| InContext { format, style: Style::Json })
}

impl<S, N, F> FormatEvent<S, N> for InContext<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = current_fields();
        // The line has these already.
        fields.retain(|(name, _)| event.metadata().fields().field(name).is_none());
        if fields.is_empty() {
            return self.format.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n');
        match self.style {
            Style::Text => {
                writer.write_str(line)?;
                for (name, value) in &fields {
                    write!(EscapingWriter(Writer::new(&mut writer)), " {name}={value}")?;
                }
                writeln!(writer)
            }
            Style::Json => {
                writer.write_str(line.strip_suffix('}').ok_or(fmt::Error)?)?;
                for (name, value) in &fields {
                    write!(writer, ",\"{name}\":{}", serde_json::Value::from(value.as_str()))?;
                }
                writeln!(writer, "}}")
            }
        }
    }
}

/// What the current context adds to a line: nothing outside of a request and of a record.
fn current_fields() -> Vec<(&'static str, String)> {
    TraceContext::map_current(|cx| {
        let span = cx.span();
        let span = span.span_context();
        let mut fields = Vec::new();
        if span.is_valid() {
            fields.push(("trace_id", span.trace_id().to_string()));
            fields.push(("span_id", span.span_id().to_string()));
        }
        fields.extend(cx.get::<Labels>().into_iter().flat_map(Labels::all));
        fields
    })
}

#[cfg(test)]
mod tests {
    use messaging::telemetry;
    use messaging::telemetry::labels::label_request;

    use super::*;
    use crate::tests::captured_log::CapturedLog;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// The lines of a request that is labelled with a hostile text, and one after it.
    fn log_lines() {
        let parent = telemetry::parse_trace(Some(TRACEPARENT), None);
        let request = parent.with_value(Labels::default()).attach();
        tracing::info!(attempts = 3, "before the label");
        label_request("parcel_id", "7\"\n");
        tracing::warn!("a \"line\"\n of it");
        tracing::info!(parcel_id = 8, "a line with a parcel of its own");
        drop(request);
        tracing::info!("no request");
    }

    #[test]
    fn a_json_line_within_a_trace_has_its_ids_and_the_labels() {
        let log = CapturedLog::default();
        tracing::subscriber::with_default(log.json_subscriber(), log_lines);
        let (text, lines) = (log.text(), log.json_lines());
        let [before, labelled, own, outside] = &lines[..] else { panic!("{text}") };
        for line in [before, labelled, own] {
            assert_eq!(line["trace_id"], TRACEPARENT[3..35], "{line}");
            assert_eq!(line["span_id"], TRACEPARENT[36..52], "{line}");
        }
        assert_eq!(
            (&before["message"], &before["attempts"]),
            (&"before the label".into(), &3.into())
        );
        assert_eq!(before.get("parcel_id"), None);
        assert_eq!(labelled["parcel_id"], "7\"\n");
        assert_eq!(
            (&labelled["level"], &labelled["message"]),
            (&"WARN".into(), &"a \"line\"\n of it".into())
        );
        assert_eq!(
            (own["parcel_id"].as_i64(), text.matches("parcel_id").count()),
            (Some(8), 2),
            "{text}"
        );
        assert_eq!((outside.get("trace_id"), outside.get("parcel_id")), (None, None));
    }

    #[test]
    fn a_text_line_within_a_trace_ends_with_its_ids_and_the_labels() {
        for ansi in [false, true] {
            let log = CapturedLog::default();
            tracing::subscriber::with_default(log.text_subscriber(ansi), log_lines);
            let text = log.text();
            let ids = "trace_id=0af7651916cd43dd8448eb211c80319c span_id=b7ad6b7169203331";
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines[0].ends_with(ids), "{text}");
            assert!(lines[1].ends_with(&format!(r#"{ids} parcel_id=7"\n"#)), "{text}");
            assert!(lines.len() == 4 && lines[3].ends_with("no request"), "{text}");
            assert_eq!(text.contains('\u{1b}'), ansi, "{text}");
        }
    }
}
