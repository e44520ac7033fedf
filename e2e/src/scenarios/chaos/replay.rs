//! The replay of the dead letters that a bad migration left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faults::database_faults;
use launcher::{Stack, eventually};
use serde_json::{Value, json};

use crate::client::http_client::Client;

/// How long until every dead letter is replayed.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What an operator does after the cause is gone: resume a paused consumer and replay every dead
/// letter, until none with `handler_failed` waits.
pub async fn replay_dead_letters(stack: &Stack, client: &Client, service: &str) -> Result<()> {
    let admin_urls = || {
        let names = stack.instances_of(service)?;
        names.iter().map(|name| stack.admin_url(name)).collect::<Result<Vec<_>>>()
    };
    eventually("the dead letters of a bad migration to be handled", SETTLE_TIMEOUT, async || {
        let mut last_error = None;
        for url in admin_urls()? {
            match replay_all_at(stack, client, &url).await {
                Ok(()) => return Ok(()),
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.context("there is no instance")?)
    })
    .await
}

async fn replay_all_at(stack: &Stack, client: &Client, admin_url: &str) -> Result<()> {
    let post = async |path: &str, body: Value| {
        let body = Some(body.to_string().into_bytes());
        client.send(reqwest::Method::POST, &format!("{admin_url}{path}"), None, body).await
    };
    post("/consumer/resume", json!({})).await?.accepted_json::<Value>()?;
    let mut after = json!(0);
    while !after.is_null() {
        let request = json!({ "after": after });
        let response: Value = post("/dead-letters/replay", request).await?.accepted_json()?;
        after = response["next"].clone();
    }
    let failing = database_faults::count_dead_letters(stack, "payment", "handler_failed").await?;
    ensure!(failing == 0, "{failing} dead letters are left");
    Ok(())
}
