//! Deposits and deliveries during a round, so that payment and stock have commands of their own.
//! Each is retried with its key until it is settled, and sent once more at the end: the response
//! must be the same.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::stream::{self, StreamExt};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::client::http_client::Client;
use crate::client::outcome::{HttpResponse, Outcome};
use crate::workload::seed;

/// The interval between two commands, at each service.
const COMMAND_INTERVAL: Duration = Duration::from_millis(100);

const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

const CONCURRENCY: usize = 16;

/// All responses to the commands.
#[derive(Default)]
pub struct BackgroundCommands(Mutex<Vec<AnsweredCommand>>);

struct AnsweredCommand {
    command: BackgroundCommand,
    answer: HttpResponse,
}

struct BackgroundCommand {
    service: &'static str,
    path: String,
    key: String,
    body: Value,
}

impl BackgroundCommands {
    /// Sends commands until one is refused or is never settled.
    pub async fn run(&self, client: &Client) -> Result<()> {
        let (money, goods) = (self.run_each(client, "payment"), self.run_each(client, "stock"));
        tokio::try_join!(money, goods).map(drop)
    }

    async fn run_each(&self, client: &Client, service: &'static str) -> Result<()> {
        loop {
            let (path, body) = seed::any_command(service).context("a command")?;
            let key = Uuid::now_v7().to_string();
            let command = BackgroundCommand { service, path, key, body };
            let answer = command.settle(client).await?;
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(AnsweredCommand { command, answer });
            sleep(COMMAND_INTERVAL).await;
        }
    }

    /// Sends all commands once more. Returns their number, and the responses that differ.
    pub async fn repeat_all(self, client: &Client) -> Result<(usize, Vec<String>)> {
        let answered = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let count = answered.len();
        let again = stream::iter(answered)
            .map(async |AnsweredCommand { command: wish, answer }| -> Result<Option<String>> {
                let now = wish.settle(client).await?;
                let path = &wish.path;
                Ok((now != answer).then(|| format!("{path} got the response {answer}, then {now}")))
            })
            .buffered(CONCURRENCY);
        let again: Vec<Result<Option<String>>> = again.collect().await;
        let differ: Result<Vec<Option<String>>> = again.into_iter().collect();
        Ok((count, differ?.into_iter().flatten().collect()))
    }
}

impl BackgroundCommand {
    async fn settle(&self, client: &Client) -> Result<HttpResponse> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let BackgroundCommand { service, path, key, body } = self;
        loop {
            let because = match client.command(Method::POST, service, path, Some(key), body).await {
                Outcome::Ok(answer) => return Ok(answer),
                Outcome::Refused(answer) if answer.status != 503 => {
                    bail!("{service} refused {path}: {answer}")
                }
                Outcome::Failed(answer) => bail!("{service} failed at {path}: {answer}"),
                in_doubt => in_doubt.to_string(),
            };
            if Instant::now() > deadline {
                bail!("the outcome of {path} at {service} stayed unknown: {because}");
            }
            sleep(COMMAND_INTERVAL).await;
        }
    }
}
