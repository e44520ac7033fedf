//! What commands share: lines on standard output, for people who watch them step by step, and spans of time as
//! options give them.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;

/// The head of a numbered step.
pub fn print_step(number: u32, what: &str) {
    print_line(&format!("\n{number}. {what}\n"));
}

/// Standard output, at once; a reader that went away is no reason to stop half-way.
pub fn print_line(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// `90` or `0.5`, as an option gives a span of time.
pub fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}
