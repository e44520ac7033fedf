//! The pending orders, as the order service counts and lists them. All viewers share one question every two seconds,
//! and the service itself keeps its answer for a second.

use std::sync::Arc;
use std::time::Duration;

use chassis::{CachedAnswer, Problem};
use chrono::{DateTime, Utc};
use ops_client::{Port, Services};
use serde::Deserialize;

use super::feed::Feed;
use crate::format;
use crate::operators::Operator;
use crate::order::{DECIDER, Legs};

/// An order that is younger is on its way.
pub const STUCK_SECONDS_MIN: u32 = 2;

/// An order that is older needs a look.
pub const LATE_SECONDS_MIN: i64 = 60;

/// Orders that are listed, at most.
pub const LISTED_MAX: usize = 200;

/// How old an answer is, at most, when it is asked for again.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// An answer that is older is not shown: no page was open meanwhile, or the service does not answer.
const SHOWN_FOR: Duration = Duration::from_secs(10);

/// The answer of the order service.
#[derive(Clone, Debug, Deserialize)]
pub struct PendingOrders {
    pub read_at: DateTime<Utc>,
    pub pending: i64,
    /// The youngest bound comes first.
    pub by_age: Vec<AgeCount>,
    pub counted_at_most: i64,
    pub orders: Vec<PendingOrder>,
}

/// The number of orders that are at least so old.
#[derive(Clone, Debug, Deserialize)]
pub struct AgeCount {
    pub older_than_seconds: i64,
    pub orders: i64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PendingOrder {
    pub order_id: String,
    pub created_at: DateTime<Utc>,
    #[serde(flatten)]
    pub legs: Legs,
    pub waits_for: Vec<String>,
}

impl PendingOrders {
    /// How long orders have been pending at least, if any is late.
    pub fn late_seconds(&self) -> Option<i64> {
        let late = self.by_age.iter().filter(|it| it.orders > 0).map(|it| it.older_than_seconds);
        late.max().filter(|seconds| *seconds >= LATE_SECONDS_MIN)
    }

    /// The number of orders that wait for a service, as far as they are listed.
    pub fn waiting_for(&self, service: &str) -> String {
        let waits = |it: &&PendingOrder| it.waits_for.iter().any(|name| name == service);
        let more = if self.orders.len() >= LISTED_MAX { "At least " } else { "" };
        format!("{more}{}", self.orders.iter().filter(waits).count())
    }

    /// Whether more orders may be pending than were counted: the oldest are.
    pub fn is_truncated(&self) -> bool {
        self.pending >= self.counted_at_most
    }

    /// A count, with a mark where it is only a lower bound.
    pub fn count(&self, orders: i64) -> String {
        let more = if orders >= self.counted_at_most { "at least " } else { "" };
        format!("{more}{}", format::count(orders as f64))
    }
}

pub type PendingAnswer = Result<PendingOrders, String>;

/// The answer that all viewers share.
#[derive(Default)]
pub struct PendingFeed {
    shared: Arc<CachedAnswer<PendingAnswer>>,
    last: Feed<PendingAnswer>,
}

impl PendingFeed {
    /// The answer that was read last, unless it is old.
    pub fn present(&self) -> Option<Arc<PendingAnswer>> {
        self.last.present(SHOWN_FOR)
    }

    /// Asks again if the last answer is old, in the background and with the operator's token.
    pub fn refresh(&self, services: &Arc<Services>, operator: &Operator) {
        self.last.refresh(REFRESH_INTERVAL, || {
            let (shared, services) = (self.shared.clone(), services.clone());
            let operator = operator.clone();
            async move { Some(ask(&shared, &services, &operator).await) }
        });
    }

    /// Asks the order service, unless another viewer has just done so.
    ///
    /// # Errors
    /// In a sentence, why there is no answer.
    pub async fn read(&self, services: &Services, operator: &Operator) -> PendingAnswer {
        let answer = ask(&self.shared, services, operator).await;
        self.last.store(answer.clone());
        answer
    }
}

async fn ask(
    shared: &CachedAnswer<PendingAnswer>,
    services: &Services,
    operator: &Operator,
) -> PendingAnswer {
    let path = format!("/pending-orders?older_than_seconds={STUCK_SECONDS_MIN}&limit={LISTED_MAX}");
    let answer = async {
        let answer = operator.ask(services).get((DECIDER, Port::Admin), &path).await;
        // A failure is kept like an answer: a service that is down is asked no more often.
        Ok::<_, Problem>(answer.map_err(|error| error.to_string()))
    };
    match shared.get(REFRESH_INTERVAL, answer).await {
        Ok((answer, _)) => answer,
        Err(problem) => Err(problem.detail),
    }
}

/// A round age, as it is asked for.
pub fn age(seconds: i64) -> String {
    match seconds {
        s if s % 86_400 == 0 => format!("{} d", s / 86_400),
        s if s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}
