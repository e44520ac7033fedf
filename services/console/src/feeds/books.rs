//! The books of the services, which may read every row: they are asked for once a minute at most, and only while
//! a page is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::join_all;
use ops_client::{OpsClient, Port, Services};
use serde_json::Value;

use super::feed::Feed;
use crate::metrics::window::Bucket;
use crate::operators::Operator;

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
pub struct BooksFeed {
    feed: Feed<Books>,
    /// Whether an operator has written something off since.
    is_outdated: AtomicBool,
}

impl BooksFeed {
    /// The books that were read last.
    pub fn present(&self) -> Arc<Books> {
        self.feed.present(Duration::MAX).unwrap_or_default()
    }

    /// Has the books read again for the next viewer: an operator has written something off, and looks for it there.
    pub fn expire(&self) {
        self.is_outdated.store(true, Ordering::Relaxed);
    }

    /// Asks for the books if they are old, in the background and with the operator's token. `counted` is what was
    /// counted by now.
    pub fn refresh(&self, services: &Arc<Services>, operator: &Operator, counted: &Bucket) {
        let is_complete = self.present().services.iter().all(|(_, sums)| sums.is_ok());
        let must_be_current = self.is_outdated.swap(false, Ordering::Relaxed);
        let interval = match (must_be_current, is_complete) {
            (true, _) => Duration::ZERO,
            (false, true) => REFRESH_INTERVAL,
            (false, false) => RETRY_INTERVAL,
        };
        self.feed.refresh(interval, || {
            let (services, operator) = (services.clone(), operator.clone());
            let counted = counted.clone();
            async move {
                let ops = operator.ask(&services).patient();
                let books = services.names.iter().map(|name| read(&ops, name, must_be_current));
                Some(Books { at: Some(Utc::now()), services: join_all(books).await, counted })
            }
        });
    }
}

async fn read(
    ops: &OpsClient<'_>,
    service: &str,
    must_be_current: bool,
) -> (String, Result<Value, String>) {
    let place = (service, Port::Admin);
    let books: Result<Value, _> = match must_be_current {
        true => ops.get_current(place, "/books").await,
        false => ops.get(place, "/books").await,
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
