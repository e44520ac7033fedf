//! The sums of the stream processor: the control room requests them every few seconds while a page is open. Without a
//! stream processor there are no sums.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::operators::Operator;
use crate::services::{INSIGHTS, Port, ServiceError};

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

/// The sums that were read last.
#[derive(Default)]
pub struct InsightsCache(Mutex<CachedSums>);

#[derive(Default)]
struct CachedSums {
    sums: Option<Arc<Sums>>,
    asked_at: Option<Instant>,
}

impl InsightsCache {
    /// The sums that were read last. `None` where the stream processor does not answer.
    pub fn present(&self) -> Option<Arc<Sums>> {
        self.0.lock().sums.clone()
    }

    /// Asks for the sums if they are old, in the background and with the operator's token.
    pub fn refresh(&self, app: &App, operator: &Operator) {
        let mut cached = self.0.lock();
        let is_young = cached.asked_at.is_some_and(|at| at.elapsed() < REFRESH_INTERVAL);
        if is_young || app.settings.insights_url.is_none() {
            return;
        }
        cached.asked_at = Some(Instant::now());
        let (app, operator) = (app.clone(), operator.clone());
        tokio::spawn(async move {
            let sums = read(&app, &operator).await.ok().map(Arc::new);
            app.insights.0.lock().sums = sums;
        });
    }
}

async fn read(app: &App, operator: &Operator) -> Result<Sums, ServiceError> {
    let (sales, outcomes) =
        tokio::try_join!(ask(app, operator, "/sales"), ask(app, operator, "/outcomes"))?;
    Ok(Sums { at: Utc::now(), sales, outcomes })
}

async fn ask<S: DeserializeOwned>(
    app: &App,
    operator: &Operator,
    path: &str,
) -> Result<Minutes<S>, ServiceError> {
    let path = format!("{path}?minutes={MINUTES}");
    let asked = app.services.get(operator, (INSIGHTS, Port::Api), &path);
    let SumsResponse { minutes } = asked.await?;
    Ok(minutes)
}
