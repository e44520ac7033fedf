//! The services as a client sees them: over HTTP, with an Idempotency-Key, and three outcomes.
//! Nothing here shares code with the services, so what they answer is read as anybody would.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::seq::SliceRandom;
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Stack;
use crate::topology::SERVICES;

/// Longer than a service takes to say 503.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(50);

/// How long a service may refuse for now, or leave in doubt, what it has to decide: the disk may stand
/// still.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Where everything of a stack is reached.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Of each service's first instance: its API, its probes and its operators' port.
    pub apis: BTreeMap<String, String>,
    pub probes: BTreeMap<String, String>,
    pub operators: BTreeMap<String, String>,
    pub databases: BTreeMap<String, String>,
    pub kafka: String,
    pub registry: String,
}

impl Addresses {
    pub fn of(stack: &Stack) -> Result<Addresses> {
        let each = |address: &dyn Fn(&str) -> Result<String>| -> Result<BTreeMap<String, String>> {
            SERVICES.iter().map(|service| Ok((service.to_string(), address(service)?))).collect()
        };
        Ok(Addresses {
            apis: each(&|service| stack.url(service))?,
            probes: each(&|service| stack.probe_url(service))?,
            operators: each(&|service| stack.operator_url(service))?,
            databases: each(&|service| stack.database_url(service))?,
            kafka: stack.kafka_bootstrap()?,
            registry: stack.registry_url()?,
        })
    }
}

/// A client of all services. It asks the instances of a service by turns and, like any load
/// balancer, asks another one where one refuses the connection or says that it is unavailable.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub addresses: Addresses,
    /// The APIs of every instance.
    instances: Arc<RwLock<BTreeMap<String, Vec<String>>>>,
}

/// An answer as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// What a command came to, as far as its client can tell.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Durable.
    Ok(Answer),
    /// Nothing was stored.
    Refused(Answer),
    /// It may be stored or not: only the same key, asked again, tells.
    Unknown(String),
    /// The same, and the service ought never to answer that: a 500, for instance.
    Failed(Answer),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    pub sku: String,
    pub quantity: i64,
}

impl Outcome {
    /// What was answered, if anything was.
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Ok(answer) | Outcome::Refused(answer) | Outcome::Failed(answer) => {
                Some(answer.status)
            }
            Outcome::Unknown(_) => None,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Ok(answer) | Outcome::Refused(answer) | Outcome::Failed(answer) => {
                answer.fmt(out)
            }
            Outcome::Unknown(why) => why.fmt(out),
        }
    }
}

/// An order as its customer reads it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub status: String,
    pub reason: Option<String>,
    pub payment: String,
    pub stock: String,
    pub total_cents: i64,
    pub currency: String,
    pub lines: Vec<OrderLine>,
    pub created_at: chrono::DateTime<chrono::Utc>,
    pub ended_at: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderLine {
    pub sku: String,
    pub quantity: i64,
    pub unit_price_cents: i64,
}

impl Order {
    /// Whether it is over for everybody: decided, and both legs have ended.
    pub fn has_ended(&self) -> bool {
        match self.status.as_str() {
            "confirmed" => self.payment == "verified" && self.stock == "reserved",
            "cancelled" => {
                ["declined", "refunded", "void"].contains(&self.payment.as_str())
                    && ["rejected", "released", "void"].contains(&self.stock.as_str())
            }
            _ => false,
        }
    }
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("cannot read {self}"))
    }

    /// The JSON of a 2xx; anything else is an error that shows the answer.
    pub fn accepted<T: DeserializeOwned>(&self) -> Result<T> {
        ensure!(self.is_success(), "{self}");
        self.json()
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The last part of a problem's type.
    pub fn problem(&self) -> Option<String> {
        let problem: Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem["type"].as_str()?.rsplit('/').next()?.to_string())
    }

    /// A 503 that leaves open whether anything was stored.
    fn is_doubtful(&self) -> bool {
        self.status == 503 && self.problem().as_deref() == Some("outcome-unknown")
    }

    fn outcome(self) -> Outcome {
        match self.status {
            200..300 => Outcome::Ok(self),
            503 if self.is_doubtful() => Outcome::Unknown(self.to_string()),
            400..500 | 503 => Outcome::Refused(self),
            _ => Outcome::Failed(self),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(out, "{} {}", self.status, body.chars().take(500).collect::<String>())
    }
}

impl Client {
    pub fn of(stack: &Stack) -> Result<Client> {
        let client = Client::at(Addresses::of(stack)?)?;
        client.learn(stack)?;
        Ok(client)
    }

    /// Learns which instances there are, as a load balancer is told.
    pub fn learn(&self, stack: &Stack) -> Result<()> {
        let mut instances = BTreeMap::new();
        for service in SERVICES {
            let names = stack.instances_of(service)?;
            let urls: Result<Vec<String>> = names.iter().map(|name| stack.url(name)).collect();
            instances.insert(service.to_string(), urls?);
        }
        *self.instances.write().unwrap_or_else(PoisonError::into_inner) = instances;
        Ok(())
    }

    pub fn at(addresses: Addresses) -> Result<Client> {
        let http = reqwest::Client::builder()
            // Loopback is never asked through a proxy, whatever the user's environment says.
            .no_proxy()
            .timeout(ANSWER_WITHIN)
            .pool_max_idle_per_host(256)
            // A service closes what is idle for ten seconds, and what is idle when it was stopped a second
            // ago; to reuse a connection at that moment would lose a request.
            .pool_idle_timeout(Duration::from_millis(500))
            .build()?;
        let each = addresses.apis.iter().map(|(name, url)| (name.clone(), vec![url.clone()]));
        let instances = Arc::new(RwLock::new(each.collect()));
        Ok(Client { http, addresses, instances })
    }

    /// One request, and its answer whatever it is.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        key: Option<&str>,
        body: Option<Vec<u8>>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method, url);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        let response = request.send().await?;
        let header = |name| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_string)
        };
        let location = header("location");
        let content_type = header("content-type").unwrap_or_default();
        let status = response.status().as_u16();
        Ok(Answer { status, location, content_type, body: response.bytes().await?.to_vec() })
    }

    /// One request to a service, whichever of its instances takes it.
    pub async fn ask(
        &self,
        method: Method,
        service: &str,
        path: &str,
        key: Option<&str>,
        body: Option<Vec<u8>>,
    ) -> Result<Answer> {
        let mut urls = {
            let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
            instances.get(service).cloned().unwrap_or_default()
        };
        // By lot: turns would send every second request, of whatever kind, to the same one.
        urls.shuffle(&mut rand::rng());
        let last = urls.pop().with_context(|| format!("there is no service {service}"))?;
        for url in urls {
            let url = format!("{url}{path}");
            match self.send(method.clone(), &url, key, body.clone()).await {
                // Nothing was sent, or it says itself that nothing was stored.
                Err(error) if error.is_connect() => {}
                Ok(answer) if answer.status == 503 && !answer.is_doubtful() => {}
                answer => return Ok(answer?),
            }
        }
        Ok(self.send(method, &format!("{last}{path}"), key, body).await?)
    }

    /// A command: its outcome, never an error.
    pub async fn command(
        &self,
        method: Method,
        service: &str,
        path: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Outcome {
        outcome(self.ask(method, service, path, key, Some(body.to_string().into_bytes())).await)
    }

    pub async fn place(&self, customer_id: Uuid, lines: &[Wish], key: &str) -> Outcome {
        let order = json!({ "customer_id": customer_id, "lines": lines });
        self.command(Method::POST, "order", "/orders", Some(key), &order).await
    }

    /// Places an order that has to be accepted.
    pub async fn placed(&self, customer_id: Uuid, lines: &[Wish]) -> Result<Order> {
        let key = Uuid::now_v7().to_string();
        accepted(async || self.place(customer_id, lines, &key).await).await?.json()
    }

    pub async fn cancel(&self, order_id: Uuid) -> Outcome {
        let path = format!("/orders/{order_id}/cancel");
        outcome(self.ask(Method::POST, "order", &path, None, None).await)
    }

    /// Cancels an order that can be.
    pub async fn cancelled(&self, order_id: Uuid) -> Result<Order> {
        accepted(async || self.cancel(order_id).await).await?.json()
    }

    pub async fn order(&self, order_id: Uuid) -> Result<Order> {
        self.read("order", &format!("/orders/{order_id}")).await
    }

    /// Waits until an order is over for everybody.
    pub async fn ended(&self, order_id: Uuid, within: Duration) -> Result<Order> {
        let what = format!("order {order_id} to end");
        eventually(&what, within, async || {
            let order = self.order(order_id).await?;
            ensure!(
                order.has_ended(),
                "it is {} / {} / {}",
                order.status,
                order.payment,
                order.stock
            );
            Ok(order)
        })
        .await
    }

    /// A deposit or a delivery, safe to repeat with its key.
    pub async fn bring(&self, service: &str, path: &str, key: &str, body: &Value) -> Result<Value> {
        let ask = async || self.command(Method::POST, service, path, Some(key), body).await;
        accepted(ask).await.with_context(|| format!("{service}, {path}"))?.json()
    }

    pub async fn deposit(&self, customer_id: Uuid, amount_cents: i64, key: &str) -> Result<Value> {
        let path = format!("/accounts/{customer_id}/deposits");
        self.bring("payment", &path, key, &json!({ "amount_cents": amount_cents })).await
    }

    pub async fn deliver(&self, sku: &str, quantity: i64, key: &str) -> Result<Value> {
        let path = format!("/items/{sku}/deliveries");
        self.bring("stock", &path, key, &json!({ "quantity": quantity })).await
    }

    pub async fn put_item(&self, sku: &str, name: &str, price_cents: i64) -> Result<Value> {
        let item = json!({ "name": name, "price_cents": price_cents });
        let path = format!("/items/{sku}");
        let ask = async || self.command(Method::PUT, "stock", &path, None, &item).await;
        accepted(ask).await.with_context(|| path.clone())?.json()
    }

    /// Reads from a service's API.
    pub async fn read<T: DeserializeOwned>(&self, service: &str, path: &str) -> Result<T> {
        let answer = self.ask(Method::GET, service, path, None, None).await?;
        answer.accepted().with_context(|| format!("GET {path} of {service}"))
    }

    /// Every item that a service knows, page by page.
    pub async fn items(&self, service: &str) -> Result<Vec<Value>> {
        let (mut items, mut after) = (Vec::new(), String::new());
        loop {
            let mut page: Value = self.read(service, &format!("/items?limit=1000{after}")).await?;
            if let Some(rows) = page["items"].as_array_mut() {
                items.append(rows);
            }
            let Some(next) = page["next"].as_str() else { return Ok(items) };
            let mut query = Url::parse("http://items/")?;
            query.query_pairs_mut().append_pair("after", next);
            after = format!("&{}", query.query().unwrap_or_default());
        }
    }

    /// As [`Client::read`]; `None` where there is no such thing.
    pub async fn find<T: DeserializeOwned>(&self, service: &str, path: &str) -> Result<Option<T>> {
        let answer = self.ask(Method::GET, service, path, None, None).await?;
        if answer.status == 404 { Ok(None) } else { answer.accepted().map(Some) }
    }

    /// The sums of a service that must balance.
    pub async fn books(&self, service: &str) -> Result<Value> {
        self.get(&format!("{}/books", self.addresses.probes[service])).await
    }

    pub async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        let answer =
            self.send(Method::GET, url, None, None).await.with_context(|| url.to_string())?;
        answer.accepted().with_context(|| format!("GET {url}"))
    }
}

fn outcome(told: Result<Answer>) -> Outcome {
    match told {
        Ok(answer) => answer.outcome(),
        Err(error) => Outcome::Unknown(format!("no answer: {error:#}")),
    }
}

/// Has a command accepted that can be.
pub async fn accepted(ask: impl AsyncFnMut() -> Outcome) -> Result<Answer> {
    let answer = settled(ask).await?;
    ensure!(answer.is_success(), "it was refused: {answer}");
    Ok(answer)
}

/// What becomes of a command that means the same twice: asks again while it is refused for now, or left in
/// doubt.
pub async fn settled(ask: impl AsyncFnMut() -> Outcome) -> Result<Answer> {
    let for_now = |outcome: &Outcome| matches!(outcome.status(), Some(503) | None);
    match ask_again(SETTLED_WITHIN, ask, for_now).await {
        Outcome::Ok(answer) => Ok(answer),
        Outcome::Refused(answer) if answer.status != 503 => Ok(answer),
        Outcome::Failed(answer) => bail!("it failed: {answer}"),
        outcome => bail!("it is not settled: {outcome}"),
    }
}

/// Asks until what is told is more than for now, or for as long as `within`.
pub async fn ask_again<T>(
    within: Duration,
    mut ask: impl AsyncFnMut() -> T,
    for_now: impl Fn(&T) -> bool,
) -> T {
    let until = Instant::now() + within;
    loop {
        let told = ask().await;
        if !for_now(&told) || Instant::now() > until {
            return told;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Asks until the answer is right, or for as long as `within`; then the last wrong one is the error.
/// Every wait from outside goes through here, or through [`ask_again`].
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited {} s for {what}", within.as_secs())));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: impl Into<i128>) -> String {
    let number: i128 = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if number < 0 { format!("-{grouped}") } else { grouped }
}

/// Cents as `12,345.67`.
pub fn money(cents: impl Into<i128>) -> String {
    let cents: i128 = cents.into();
    let sign = if cents < 0 { "-" } else { "" };
    let (whole, rest) = (cents.unsigned_abs() / 100, cents.unsigned_abs() % 100);
    format!("{sign}{}.{rest:02}", grouped(i128::try_from(whole).unwrap_or(i128::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, kind: &str) -> Answer {
        let body = json!({ "type": format!("/problems/{kind}") }).to_string().into_bytes();
        Answer { status, location: None, content_type: String::new(), body }
    }

    #[test]
    fn only_a_503_that_says_so_and_what_nobody_expects_are_unknown() {
        assert!(matches!(answer(201, "").outcome(), Outcome::Ok(_)));
        assert!(matches!(answer(422, "invalid-value").outcome(), Outcome::Refused(_)));
        assert!(matches!(answer(429, "slow-down").outcome(), Outcome::Refused(_)));
        assert!(matches!(answer(503, "unavailable").outcome(), Outcome::Refused(_)));
        assert!(matches!(answer(503, "outcome-unknown").outcome(), Outcome::Unknown(_)));
        assert!(matches!(answer(500, "internal").outcome(), Outcome::Failed(_)));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(-1_234_567), "-1,234,567");
        assert_eq!(money(123_456_789), "1,234,567.89");
        assert_eq!(money(-5), "-0.05");
    }
}
