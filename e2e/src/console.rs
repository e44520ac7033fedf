//! Output and options that commands share: lines on standard output for users who watch the steps,
//! and durations given as options.

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
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Parses a duration in seconds, such as `90` or `0.5`.
pub fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}
