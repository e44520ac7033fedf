//! The reason that an operator gives for an act.

use crate::http::problem::Problem;

const REASON_CHARS_MAX: usize = 1_000;

/// A reason without the blanks around it.
///
/// # Errors
/// 422 if it is empty or too long.
pub(super) fn check_reason(reason: &str) -> Result<&str, Problem> {
    let reason = reason.trim();
    if reason.is_empty() || reason.chars().count() > REASON_CHARS_MAX {
        let detail = format!("It must give a reason of 1 to {REASON_CHARS_MAX} characters.");
        return Err(Problem::invalid("reason", detail));
    }
    Ok(reason)
}
