//! The fields of a line of the text log: control characters from brokers and clients are escaped, so each line stays
//! one line and a terminal does not interpret it.

use std::fmt::{self, Write};

use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

/// The default format of fields, with every character escaped that ends a line or that a terminal acts on.
#[derive(Default)]
pub(crate) struct EscapedFields(DefaultFields);

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        // Without styles, because those are escape sequences too.
        self.0.format_fields(Writer::new(&mut EscapingWriter(writer)), fields)
    }
}

pub(super) struct EscapingWriter<'writer>(pub Writer<'writer>);

impl Write for EscapingWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(acts_on_a_line) {
            let (harmless, tail) = rest.split_at(at);
            let mut tail = tail.chars();
            self.0.write_str(harmless)?;
            tail.next().into_iter().try_for_each(|it| write!(self.0, "{}", it.escape_debug()))?;
            rest = tail.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Control characters, the separators of lines and paragraphs of Unicode, and what turns the direction of a text.
fn acts_on_a_line(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use crate::tests::captured_log::CapturedLog;

    #[test]
    fn a_line_of_the_text_log_stays_one_line_whatever_stands_in_its_values() {
        let hostile = "a\nb\r\u{1b}[2Jc\u{2028}d\u{85}e\u{202e}f";
        let escaped = r"a\nb\r\x1b[2Jc\u{2028}d\u{85}e\u{202e}f";
        let escaped_field = escaped.replace(r"\x1b", r"\u{1b}");
        for with_ansi in [false, true] {
            let log = CapturedLog::default();
            tracing::subscriber::with_default(log.text_subscriber(with_ansi), || {
                tracing::info!(shown = %hostile, debugged = hostile, r"it's C:\ü: {hostile}");
                tracing::info!("the next line");
            });
            let log = log.text();
            assert_eq!(log.lines().count(), 2, "{log}");
            let line = log.lines().next().unwrap();
            let plain =
                format!(r#"it's C:\ü: {escaped} shown={escaped_field} debugged="{escaped_field}""#);
            assert!(line.ends_with(&plain), "{line}\n{plain}");
            assert!(!log.contains(['\r', '\u{2028}', '\u{85}', '\u{202e}']), "{log}");
        }
    }
}
