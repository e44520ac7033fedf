//! Logs a repeated message once a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// By subject, the text that was logged last, and when.
#[derive(Debug, Default)]
pub struct LogThrottle(HashMap<String, (String, Instant)>);

impl LogThrottle {
    /// Whether to log this text now: another text was logged last for this subject, or a minute has passed.
    pub fn should_log(&mut self, subject: &str, text: &str) -> bool {
        let last = self.0.get(subject);
        let is_due =
            last.is_none_or(|(last_text, at)| last_text != text || at.elapsed() > REPEAT_INTERVAL);
        if is_due {
            self.0.insert(subject.to_string(), (text.to_string(), Instant::now()));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_logged_once_a_minute_and_a_new_one_at_once() {
        let mut log_throttle = LogThrottle::default();
        assert!(log_throttle.should_log("a", "1"));
        assert!(!log_throttle.should_log("a", "1"));
        assert!(
            log_throttle.should_log("b", "1")
                && log_throttle.should_log("a", "2")
                && log_throttle.should_log("a", "1")
        );
        for (_, at) in log_throttle.0.values_mut() {
            *at -= REPEAT_INTERVAL;
        }
        assert!(log_throttle.should_log("a", "1") && !log_throttle.should_log("a", "1"));
    }
}
