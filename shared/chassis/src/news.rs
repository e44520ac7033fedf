//! What is worth a line in the log, of what is noticed several times a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often the same is said again.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What was said last, and when, by what it was about.
#[derive(Default)]
pub(crate) struct News(HashMap<String, (String, Instant)>);

impl News {
    /// Whether to say this now: it is not what was said last about that, or that is a minute ago.
    pub(crate) fn is_news(&mut self, about: &str, what: &str) -> bool {
        let said = self.0.get(about);
        let news = said.is_none_or(|(said, at)| said != what || at.elapsed() > SAID_EVERY);
        if news {
            self.0.insert(about.to_string(), (what.to_string(), Instant::now()));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_and_anything_else_at_once() {
        let mut news = News::default();
        assert!(news.is_news("a", "1"));
        assert!(!news.is_news("a", "1"));
        assert!(news.is_news("b", "1") && news.is_news("a", "2") && news.is_news("a", "1"));
        for (_, at) in news.0.values_mut() {
            *at -= SAID_EVERY;
        }
        assert!(news.is_news("a", "1") && !news.is_news("a", "1"));
    }
}
