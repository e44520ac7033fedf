//! Money and goods that come in meanwhile, so that payment and stock have commands of their own.
//! Each is asked for again with its key until it is settled, and once more in the end: a yes must
//! still be the same yes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use futures::stream::{self, StreamExt};
use rand::seq::IndexedRandom;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::client::Client;
use crate::outcome::{Answer, Outcome};
use crate::seed;

/// Between two of them, at each service.
const EVERY: Duration = Duration::from_millis(100);

const SETTLED_WITHIN: Duration = Duration::from_secs(60);

const ASKED_AT_ONCE: usize = 16;

/// All that was told to those who brought something.
#[derive(Default)]
pub struct Brought(Mutex<Vec<Told>>);

struct Told {
    wish: Wish,
    answer: Answer,
}

struct Wish {
    service: &'static str,
    path: String,
    key: String,
    body: Value,
}

impl Brought {
    /// Brings more and more; ends only where something is refused or never settled.
    pub async fn bring(&self, client: &Client) -> Result<()> {
        let (money, goods) = (self.bring_each(client, deposit), self.bring_each(client, delivery));
        tokio::try_join!(money, goods).map(drop)
    }

    async fn bring_each(&self, client: &Client, next: fn() -> Wish) -> Result<()> {
        loop {
            let wish = next();
            let answer = wish.settled(client).await?;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Told { wish, answer });
            sleep(EVERY).await;
        }
    }

    /// Asks for all of it once more. Answers how many there are, and what was told otherwise now.
    pub async fn asked_again(self, client: &Client) -> Result<(usize, Vec<String>)> {
        let told = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let count = told.len();
        let again = stream::iter(told)
            .map(async |Told { wish, answer }| -> Result<Option<String>> {
                let now = wish.settled(client).await?;
                let path = &wish.path;
                Ok((now != answer).then(|| format!("{path} was answered {answer}, then {now}")))
            })
            .buffered(ASKED_AT_ONCE);
        let again: Vec<Result<Option<String>>> = again.collect().await;
        let differ: Result<Vec<Option<String>>> = again.into_iter().collect();
        Ok((count, differ?.into_iter().flatten().collect()))
    }
}

impl Wish {
    async fn settled(&self, client: &Client) -> Result<Answer> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        let Wish { service, path, key, body } = self;
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
                bail!("{service} did not settle {path}: {because}");
            }
            sleep(EVERY).await;
        }
    }
}

fn deposit() -> Wish {
    let customer = seed::CUSTOMERS.choose(&mut rand::rng()).unwrap_or(&seed::CUSTOMERS[0]);
    let path = format!("/accounts/{}/deposits", customer.customer_id);
    Wish { service: "payment", path, key: key(), body: json!({ "amount_cents": 1 }) }
}

fn delivery() -> Wish {
    let item = seed::ITEMS.choose(&mut rand::rng()).unwrap_or(&seed::ITEMS[0]);
    let path = format!("/items/{}/deliveries", item.sku);
    Wish { service: "stock", path, key: key(), body: json!({ "quantity": 1 }) }
}

fn key() -> String {
    Uuid::now_v7().to_string()
}
