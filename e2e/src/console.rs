//! Output and options that commands share: lines on standard output for users who watch the steps,
//! text that a terminal does not interpret, and durations given as options.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;

/// The heading of a numbered step.
pub fn print_step(number: u32, what: &str) {
    print_line(&format!("\n{number}. {what}\n"));
}

/// Prints to standard output without a buffer. A closed pipe does not stop the command half-way.
pub fn print_line(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{}", printable_lines(line));
    let _ = out.flush();
}

/// Prints each text as one line.
pub fn print_lines(lines: &[String]) {
    lines.iter().for_each(|line| print_line(&printable(line)));
}

/// A text with each character escaped that is not visible, such as a control character, a line
/// break or a change of the writing direction. Any client that may write to a topic chooses the
/// texts of its records, and a terminal acts on such characters: it changes its title, or the lines
/// above.
pub fn printable(text: &str) -> String {
    let escaped = text.escape_debug().to_string();
    // Quotes and backslashes are visible.
    escaped.replace("\\\"", "\"").replace("\\'", "'").replace("\\\\", "\\")
}

/// The same for a text of our own with several lines, which may quote others.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Parses a duration in seconds, such as `90` or `0.5`.
pub fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Text that clears the screen, sets the title, rings, ends a line, and turns the direction of
    /// writing; the third is the eight-bit form of the first.
    pub const HOSTILE_TEXT: &str =
        "\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}2J\rforged\nline\u{202e}txt\u{2066}\u{85}\u{7f}\u{0}";

    /// Whether a terminal shows each character of the lines and acts on none.
    pub fn is_harmless(text: &str) -> bool {
        text.split('\n').flat_map(str::chars).all(|character| {
            let direction = ['\u{61c}', '\u{200e}', '\u{200f}'];
            !character.is_control()
                && !('\u{202a}'..='\u{202e}').contains(&character)
                && !('\u{2066}'..='\u{2069}').contains(&character)
                && !direction.contains(&character)
        })
    }

    #[test]
    fn what_a_terminal_acts_on_is_escaped_and_visible_text_stays() {
        assert!(!is_harmless(HOSTILE_TEXT));
        assert!(is_harmless(&printable(HOSTILE_TEXT)));
        assert_eq!(
            printable(HOSTILE_TEXT),
            r"\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}2J\rforged\nline\u{202e}txt\u{2066}\u{85}\u{7f}\0"
        );
        assert_eq!(printable_lines("a\nb\u{1b}"), "a\nb\\u{1b}");
        for visible in
            [r#"{"a": "it's \"quoted\"", "path": "C:\\new"}"#, "Grüße, 値段 ✓", "e\u{301}"]
        {
            assert_eq!(printable(visible), visible);
        }
    }
}
