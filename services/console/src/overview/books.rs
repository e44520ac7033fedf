//! The books of the services, which may read every row: they are asked for once a minute at most, and only while
//! a page is open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::future::join_all;
use parking_lot::Mutex;
use serde_json::Value;

use crate::app::App;
use crate::metrics::window::Bucket;
use crate::operators::Operator;
use crate::services::{Port, WORK_TIMEOUT};

/// How old the books may be before they are asked for again, and if a service gave none. A service computes its books
/// once a minute, however often they are asked for.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The books of all services, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Books {
    pub at: Option<DateTime<Utc>>,
    /// Each service with its sums, or why there are none.
    pub services: Vec<(String, Result<Value, String>)>,
    /// What had been counted by then.
    pub counted: Bucket,
}

impl Books {
    /// The number of orders that have not ended, if a service reports it: that of its books, and what was counted
    /// since.
    pub fn pending(&self, counted: &Bucket) -> Option<f64> {
        let books = self.services.iter().filter_map(|(_, books)| books.as_ref().ok());
        let pending = books.filter_map(|books| books["orders"]["pending"].as_f64()).next()?;
        let open = |bucket: &Bucket| bucket.placed - bucket.confirmed - bucket.cancelled;
        Some((pending + open(counted) - open(&self.counted)).max(0.0))
    }
}

/// The books that were read last.
#[derive(Default)]
pub struct BooksCache(Mutex<CachedBooks>);

#[derive(Default)]
struct CachedBooks {
    books: Arc<Books>,
    /// When they were last asked for.
    asked_at: Option<Instant>,
    /// Whether an operator has written something off since.
    is_outdated: bool,
}

impl BooksCache {
    /// The books that were read last.
    pub fn present(&self) -> Arc<Books> {
        self.0.lock().books.clone()
    }

    /// Has the books read again for the next viewer: an operator has written something off, and looks for it there.
    pub fn expire(&self) {
        self.0.lock().is_outdated = true;
    }

    /// Asks for the books if they are old, in the background and with the operator's token.
    pub fn refresh(&self, app: &App, operator: &Operator) {
        let mut cached = self.0.lock();
        let is_complete = cached.books.services.iter().all(|(_, sums)| sums.is_ok());
        let interval = if is_complete { REFRESH_INTERVAL } else { RETRY_INTERVAL };
        let is_young = cached.asked_at.is_some_and(|at| at.elapsed() < interval);
        let must_be_current = std::mem::take(&mut cached.is_outdated);
        if is_young && !must_be_current {
            return;
        }
        let asked_at = Some(Instant::now());
        cached.asked_at = asked_at;
        let (app, operator) = (app.clone(), operator.clone());
        tokio::spawn(async move {
            let counted = app.snapshot.borrow().window.total.clone();
            let services = join_all(
                app.services.names.iter().map(|name| read(&app, &operator, name, must_be_current)),
            );
            let books = Books { at: Some(Utc::now()), services: services.await, counted };
            let mut cached = app.books.0.lock();
            // A later question has a newer answer.
            if cached.asked_at == asked_at {
                cached.books = Arc::new(books);
            }
        });
    }
}

async fn read(
    app: &App,
    operator: &Operator,
    service: &str,
    must_be_current: bool,
) -> (String, Result<Value, String>) {
    let place = (service, Port::Admin);
    let books: Result<Value, _> = match must_be_current {
        true => app.services.get_current(operator, place, "/books").await,
        false => app.services.get_within(WORK_TIMEOUT, operator, place, "/books").await,
    };
    (service.to_string(), books.map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pending_orders_are_those_of_the_books_and_what_was_counted_since() {
        let counted = Bucket { placed: 10.0, confirmed: 4.0, ..Bucket::default() };
        let services = vec![
            ("payment".to_string(), Err("away".to_string())),
            ("order".to_string(), Ok(json!({"orders": {"pending": 7}}))),
        ];
        let books = Books { services, counted, ..Books::default() };
        let now = Bucket { placed: 15.0, confirmed: 5.0, cancelled: 1.0, ..Bucket::default() };
        assert_eq!(books.pending(&now), Some(10.0));
        assert_eq!(Books::default().pending(&now), None);
    }
}
