//! Demo items and customers, so that an order can be placed at once.
//!
//! It can be run any number of times: existing items and accounts are not changed, and the requests
//! of an interrupted run are recognised by their Idempotency-Keys.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use launcher::{Stack, eventually};
use rand::seq::IndexedRandom;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::client::addresses::Addresses;
use crate::client::http_client::Client;
use crate::client::outcome::Outcome;
use crate::stack_description::stack_description;

const ITEMS_KNOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// Options of the seed.
#[derive(Debug, clap::Args)]
pub struct SeedOptions {
    /// URL of the order service, such as http://order:8080; all three URLs or none: the native
    /// stack's by default
    #[arg(long, requires_all = ["payment", "stock"])]
    order: Option<String>,
    #[arg(long, requires = "order")]
    payment: Option<String>,
    #[arg(long, requires = "order")]
    stock: Option<String>,
    /// Create nothing; exit with 0 only if an order would be accepted
    #[arg(long)]
    check: bool,
    /// Run until SIGTERM, for tools that wait for a container to be healthy
    #[arg(long, conflicts_with = "check")]
    stay: bool,
}

impl SeedOptions {
    fn client(&self) -> Result<Client> {
        let (Some(order), Some(payment), Some(stock)) = (&self.order, &self.payment, &self.stock)
        else {
            return Client::for_stack(&Stack::open_for_checkout(&stack_description())?);
        };
        let services = [("order", order), ("payment", payment), ("stock", stock)];
        let apis = services.map(|(service, url)| (service.to_string(), url.clone()));
        Client::new(Addresses { apis: apis.into(), ..Addresses::default() })
    }
}

/// A demo item.
pub struct DemoItem {
    pub sku: &'static str,
    pub name: &'static str,
    pub price_cents: i64,
    pub delivered_quantity: i64,
}

const fn item(sku: &'static str, name: &'static str, price_cents: i64) -> DemoItem {
    DemoItem { sku, name, price_cents, delivered_quantity: 1_000_000 }
}

/// Enough of each, so that no load uses up an item.
pub const ITEMS: [DemoItem; 10] = [
    item("anchor-shackle", "Anchor shackle, galvanised, 12 mm", 890),
    item("bosun-whistle", "Bosun's whistle, brass", 1_950),
    item("chart-north-sea", "Chart of the North Sea, 1:750,000", 3_400),
    item("deck-lantern", "Deck lantern, storm-proof", 5_990),
    item("dock-line", "Dock line, 10 m, spliced eye", 2_450),
    item("folding-knife", "Folding knife with marlinspike", 4_200),
    item("hand-compass", "Hand bearing compass", 7_900),
    item("oilskin-jacket", "Oilskin jacket, yellow", 12_900),
    item("ships-biscuit", "Ship's biscuit, tin of 40", 650),
    item("wool-cap", "Watch cap, wool", 1_790),
];

/// Only a few of this item, so that an order can be rejected by stock.
pub const SCARCE_ITEM: DemoItem = DemoItem {
    sku: "sextant",
    name: "Sextant, brass, in its box",
    price_cents: 89_000,
    delivered_quantity: 5,
};

/// Customers, with their balance. The services only know their ids.
pub struct DemoCustomer {
    pub customer_id: Uuid,
    pub deposited_cents: i64,
}

const fn customer(number: u128, deposited_cents: i64) -> DemoCustomer {
    // Version 7 UUIDs, like those of the services.
    let customer_id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number);
    DemoCustomer { customer_id, deposited_cents }
}

pub const CUSTOMERS: [DemoCustomer; 4] = [
    customer(1, 10_000_000_000),
    customer(2, 10_000_000_000),
    customer(3, 10_000_000_000),
    customer(4, 10_000_000_000),
];

/// The customer who cannot pay for any item.
pub const POOR_CUSTOMER: DemoCustomer = customer(13, 100);

/// Runs `e2e seed`.
pub async fn command(options: &SeedOptions) -> Result<()> {
    let client = options.client()?;
    if options.check {
        ensure_items_known(&client).await?;
        return ensure_provisioned(&client).await;
    }
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        seeded = run(&client) => seeded?,
        _ = terminated.recv() => bail!("stopped before the demo items and accounts were complete"),
    }
    println!("the demo items and accounts exist");
    if options.stay {
        terminated.recv().await;
    }
    Ok(())
}

/// Starts what does not run of a stack, and creates what is missing.
pub async fn start(stack: &Stack) -> Result<Client> {
    stack.up().await?;
    let client = Client::for_stack(stack)?;
    run(&client).await?;
    Ok(client)
}

/// Creates what is missing, and waits until it can be ordered.
pub async fn run(client: &Client) -> Result<()> {
    let items = ITEMS.iter().chain([&SCARCE_ITEM]);
    let customers = CUSTOMERS.iter().chain([&POOR_CUSTOMER]);
    tokio::try_join!(
        try_join_all(items.map(|item| provide_item(client, item))),
        try_join_all(customers.map(|customer| provide_customer(client, customer))),
    )
    .context("the demo items and accounts could not be created")?;
    let known = async || ensure_items_known(client).await;
    eventually("the order service to know the demo items", ITEMS_KNOWN_TIMEOUT, known).await
}

/// Sends one command to a service: an order, a deposit or a delivery. Returns `None` for a service
/// without a known command.
pub async fn send_any_command(client: &Client, service: &str) -> Option<Outcome> {
    let (path, body) = any_command(service)?;
    let key = Uuid::now_v7().to_string();
    Some(client.command(Method::POST, service, &path, Some(&key), &body).await)
}

/// The path and the body of a command, of any customer and item.
pub fn any_command(service: &str) -> Option<(String, Value)> {
    let mut rng = rand::rng();
    let (customer, item) = (CUSTOMERS.choose(&mut rng)?, ITEMS.choose(&mut rng)?);
    let (customer_id, sku) = (customer.customer_id, item.sku);
    let order = json!({ "customer_id": customer_id, "lines": [{ "sku": sku, "quantity": 1 }] });
    Some(match service {
        "payment" => (format!("/accounts/{customer_id}/deposits"), json!({ "amount_cents": 1 })),
        "stock" => (format!("/items/{sku}/deliveries"), json!({ "quantity": 1 })),
        "order" => ("/orders".to_string(), order),
        _ => return None,
    })
}

async fn ensure_items_known(client: &Client) -> Result<()> {
    let known = skus(&client.items("order").await?);
    let missing = ITEMS.iter().find(|item| !known.iter().any(|sku| sku == item.sku));
    ensure!(missing.is_none(), "{} is not known yet", missing.map_or("", |item| item.sku));
    Ok(())
}

async fn ensure_provisioned(client: &Client) -> Result<()> {
    for item in ITEMS.iter().chain([&SCARCE_ITEM]) {
        let found: Value = client.get("stock", &format!("/items/{}", item.sku)).await?;
        ensure!(found["delivered"] != 0, "{} is not delivered yet", item.sku);
    }
    for customer in CUSTOMERS.iter().chain([&POOR_CUSTOMER]) {
        client.get::<Value>("payment", &format!("/accounts/{}", customer.customer_id)).await?;
    }
    Ok(())
}

async fn provide_item(client: &Client, item: &DemoItem) -> Result<()> {
    let path = format!("/items/{}", item.sku);
    let found: Option<Value> = client.find("stock", &path).await?;
    if found.is_none() {
        client.put_item(item.sku, item.name, item.price_cents).await?;
    }
    if found.is_none_or(|item| item["delivered"] == 0) {
        client.deliver(item.sku, item.delivered_quantity, "demo-delivery").await?;
    }
    Ok(())
}

async fn provide_customer(client: &Client, customer: &DemoCustomer) -> Result<()> {
    let path = format!("/accounts/{}", customer.customer_id);
    if client.find::<Value>("payment", &path).await?.is_none() {
        client.deposit(customer.customer_id, customer.deposited_cents, "demo-deposit").await?;
    }
    Ok(())
}

fn skus(items: &[Value]) -> Vec<String> {
    items.iter().filter_map(|item| Some(item["sku"].as_str()?.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_poor_customer_can_pay_for_nothing_and_the_others_for_much() {
        let cheapest = ITEMS.iter().map(|item| item.price_cents).min();
        assert!(Some(POOR_CUSTOMER.deposited_cents) < cheapest);
        assert!(
            CUSTOMERS
                .iter()
                .all(|customer| customer.deposited_cents > 1_000 * SCARCE_ITEM.price_cents)
        );
        assert!(CUSTOMERS.iter().all(|customer| customer.customer_id.get_version_num() == 7));
    }
}
