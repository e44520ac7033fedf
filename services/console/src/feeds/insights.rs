//! The sums of the stream processor: the control room requests them every few seconds while a page is open. Without a
//! stream processor there are no sums.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use ops_client::{OpsClient, Port, ServiceError, Services};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::feed::Feed;
use crate::operators::Operator;
use crate::services::INSIGHTS;

/// How old the sums may be before they are asked for again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// The minutes that are drawn.
pub const MINUTES: usize = 30;

/// Sums by the beginning of their minute, then by key.
pub type Minutes<S> = BTreeMap<DateTime<Utc>, BTreeMap<String, S>>;

/// What was sold of an item, by `EUR pen`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Sale {
    pub units: f64,
    pub revenue_cents: f64,
}

/// The orders that ended with an outcome, and the time to their ends.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct OutcomeSum {
    pub orders: f64,
    pub timed_orders: f64,
    pub millis_sum: f64,
    pub millis_max: f64,
}

/// The sums of the last minutes, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    pub at: DateTime<Utc>,
    pub sales: Minutes<Sale>,
    pub outcomes: Minutes<OutcomeSum>,
}

#[derive(Deserialize)]
struct SumsResponse<S> {
    minutes: Minutes<S>,
}

/// The sums that were read last. There are none where the stream processor does not answer.
pub type InsightsFeed = Feed<Sums>;

/// Asks for the sums if they are old, in the background and with the operator's token.
pub fn refresh(feed: &InsightsFeed, services: &Arc<Services>, operator: &Operator) {
    feed.refresh(REFRESH_INTERVAL, || {
        let (services, operator) = (services.clone(), operator.clone());
        async move {
            let ops = operator.ask(&services);
            let asked = tokio::try_join!(ask(&ops, "/sales"), ask(&ops, "/outcomes"));
            let (sales, outcomes) = asked.ok()?;
            Some(Sums { at: Utc::now(), sales, outcomes })
        }
    });
}

async fn ask<S: DeserializeOwned>(
    ops: &OpsClient<'_>,
    path: &str,
) -> Result<Minutes<S>, ServiceError> {
    let path = format!("{path}?minutes={MINUTES}");
    let SumsResponse { minutes } = ops.get((INSIGHTS, Port::Api), &path).await?;
    Ok(minutes)
}
