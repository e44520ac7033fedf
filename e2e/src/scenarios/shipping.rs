//! What a run does to a stack that ships: the carrier lies, and some customers cancel. Everything that comes of it must be
//! settled, which the checker finds (I17).

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use anyhow::Result;
use launcher::{Stack, StopOutcome};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::sleep;
use uuid::Uuid;

use crate::checker::run::CheckOptions;
use crate::client::http_client::Client;
use crate::stack_description::{CARRIER, SHIPPING, ships};

/// One answer of five is late, an error or lost, one webhook of five is late, lost, doubled or wrong, and a shipment
/// without news leads to a question soon. The pauses are short, so that a run ends.
const SETTINGS: [Setting; 8] = [
    (CARRIER, "LIES", "0.2"),
    (CARRIER, "LOST_RATE", "0.02"),
    (CARRIER, "LATE_SECONDS", "6"),
    (CARRIER, "WEBHOOK_DELAY_SECONDS", "60"),
    (SHIPPING, "NEWS_SECONDS", "10"),
    (SHIPPING, "CARRIER_TIMEOUT_SECONDS", "3"),
    (SHIPPING, "CARRIER_PAUSE_MAX_SECONDS", "5"),
    (SHIPPING, "CARRIER_CONCURRENCY", "200"),
];

/// Shipments end when their news came: the slowest after three inquiries.
const SETTLED_WITHIN: Duration = Duration::from_secs(300);

/// Between two acts of customers or operators.
const ACT_INTERVAL: Duration = Duration::from_millis(500);

/// A variable of a component, and its value.
type Setting = (&'static str, &'static str, &'static str);

/// A carrier that lies until the end of a run. An interrupted run takes the settings back as well, for the next starts.
pub struct Lies<'a> {
    stack: &'a Stack,
    settings: Vec<Setting>,
}

impl<'a> Lies<'a> {
    /// Begins with the next start of both, if the stack ships, with these settings in place of some of the usual ones. It
    /// stops what runs.
    pub async fn begin(stack: &'a Stack, further: &[Setting]) -> Result<Lies<'a>> {
        let all = SETTINGS.iter().chain(further).filter(|_| ships(stack));
        let lies = Lies { stack, settings: all.copied().collect() };
        lies.set(true)?;
        lies.stop().await?;
        Ok(lies)
    }

    /// From the next start on, the carrier is honest. What ran is started again.
    pub async fn end(self) -> Result<()> {
        self.set(false)?;
        for name in self.stop().await? {
            self.stack.start(name).await?;
        }
        Ok(())
    }

    fn set(&self, lies: bool) -> Result<()> {
        self.settings.iter().try_for_each(|(name, variable, value)| {
            self.stack.set_environment(name, variable, lies.then_some(*value))
        })
    }

    /// Stops both, and returns which of them ran.
    async fn stop(&self) -> Result<Vec<&'static str>> {
        let mut ran = Vec::new();
        for name in [CARRIER, SHIPPING].into_iter().filter(|_| ships(self.stack)) {
            if !matches!(self.stack.stop(name).await?, StopOutcome::NotRunning) {
                ran.push(name);
            }
        }
        Ok(ran)
    }
}

impl Drop for Lies<'_> {
    fn drop(&mut self) {
        let _ = self.set(false);
    }
}

/// How long the checker waits for the end of everything.
pub fn check_timeout(client: &Client) -> Duration {
    match client.addresses.carrier_ledger {
        Some(_) => SETTLED_WITHIN,
        None => CheckOptions::default().timeout,
    }
}

/// Cancels two shipments a second that are booked, until it is dropped. The carrier may have collected one by then, and
/// shipping may be down.
pub async fn cancel_some(stack: &Stack, client: &Client) -> Result<Infallible> {
    if !ships(stack) || stack.is_secure()? {
        return pending().await;
    }
    let db = PgPool::connect_lazy(&stack.database_url(SHIPPING)?)?;
    let newest =
        "select order_id from shipments where state = 'booked' order by updated_at desc limit 1";
    loop {
        sleep(ACT_INTERVAL).await;
        if let Ok(Some(order_id)) = sqlx::query_scalar::<_, Uuid>(newest).fetch_optional(&db).await
        {
            let url = format!("{}/shipments/{order_id}/cancel", stack.url(SHIPPING)?);
            let _ = client.send(Method::POST, &url, None, None).await;
        }
    }
}

/// Answers each task of shipping so that it waits, until it is dropped. Shipping may be down.
pub async fn answer_tasks(stack: &Stack, client: &Client) -> Result<Infallible> {
    let tasks = format!("{}/tasks", stack.admin_url(SHIPPING)?);
    let body = || Some(json!({"answer": "wait", "reason": "the carrier may tell yet"}).to_string());
    loop {
        sleep(ACT_INTERVAL).await;
        let Ok(listed) = client.send(Method::GET, &tasks, None, None).await else { continue };
        let listed: Value = serde_json::from_slice(&listed.body).unwrap_or_default();
        for task in listed["tasks"].as_array().into_iter().flatten() {
            let url = format!("{tasks}/{}/answer", task["task_id"].as_str().unwrap_or_default());
            let _ = client.send(Method::POST, &url, None, body().map(String::into_bytes)).await;
        }
    }
}
