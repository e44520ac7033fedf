//! The orders of a load, drawn from a seed in advance, and the money and items that they need.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::client::http_client::Client;
use crate::client::order::LineRequest;
use crate::client::order_plan::OrderPlan;
use crate::workload::options::Load;
use crate::workload::seed;

/// Largest quantity of a line.
const QUANTITY_MAX: i64 = 3;

/// The largest quantity that the order service accepts.
pub const QUANTITY_ORDERED_MAX: i64 = 1_000;

/// When a client disconnects: before, while or after the order is stored.
const DISCONNECT_AFTER_MS: Range<u64> = 0..80;

/// The prices of items, in cents.
pub type Prices = BTreeMap<String, i64>;

/// Customers that no other load uses: all their orders belong to this load.
#[derive(Clone, Debug)]
pub struct Customers(BTreeMap<Uuid, Uuid>);

impl Customers {
    pub fn generate() -> Customers {
        let customers = seed::CUSTOMERS.iter().chain([&seed::POOR_CUSTOMER]);
        Customers(customers.map(|customer| (customer.customer_id, Uuid::now_v7())).collect())
    }

    pub fn replacement_of(&self, customer_id: Uuid) -> Uuid {
        self.0.get(&customer_id).copied().unwrap_or(customer_id)
    }
}

/// The orders of a load, in order of the time when they are due. Their keys are always new.
pub fn generate(load: &Load) -> Vec<OrderPlan> {
    let mut rng = StdRng::seed_from_u64(load.seed.unwrap_or_else(rand::random));
    (0..load.order_count())
        .map(|nth| {
            let mut chosen = |percent: u32| rng.random_range(0..100) < percent;
            let (poor, scarce) = (chosen(load.poor_percent), chosen(load.scarce_percent));
            let cancelled = chosen(load.cancelled_percent);
            let repeated = chosen(load.duplicated_percent);
            let confused = chosen(load.key_reused_percent);
            let hung_up = chosen(load.disconnected_percent);
            let customer =
                if poor { Some(&seed::POOR_CUSTOMER) } else { seed::CUSTOMERS.choose(&mut rng) };
            let wanted = rng.random_range(1..=load.lines_max.min(seed::ITEMS.len()));
            let chosen: Vec<_> = seed::ITEMS.choose_multiple(&mut rng, wanted).collect();
            let mut lines: Vec<LineRequest> = chosen
                .into_iter()
                .map(|item| LineRequest {
                    sku: item.sku.to_string(),
                    quantity: rng.random_range(1..=QUANTITY_MAX),
                })
                .collect();
            if scarce {
                // Too many; of a customer without money so many that another participant may object to the total.
                let quantity = seed::SCARCE_ITEM.delivered_quantity + 1 + rng.random_range(0..20);
                let quantity = if poor { QUANTITY_ORDERED_MAX } else { quantity };
                lines.push(LineRequest { sku: seed::SCARCE_ITEM.sku.to_string(), quantity });
            }
            OrderPlan {
                due_at: Duration::from_secs_f64(nth as f64 / f64::from(load.rate)),
                key: Uuid::now_v7().to_string(),
                customer_id: customer
                    .map_or(seed::POOR_CUSTOMER.customer_id, |customer| customer.customer_id),
                lines,
                cancel_after: cancelled.then(|| Duration::from_millis(rng.random_range(0..1_000))),
                duplicated: repeated,
                key_reused: confused,
                disconnect_after: hung_up
                    .then(|| Duration::from_millis(rng.random_range(DISCONNECT_AFTER_MS))),
            }
        })
        .collect()
}

/// Provides enough money and items for all orders, and returns the prices.
pub async fn provision(client: &Client, load: &Load, load_customers: &Customers) -> Result<Prices> {
    let key = format!("load-{}", Uuid::now_v7());
    let orders = i64::try_from(load.order_count())?;
    let pieces = orders * QUANTITY_MAX;
    let dearest = seed::ITEMS.iter().map(|item| item.price_cents).max().unwrap_or(0);
    // Spread evenly, with twice the amount that is needed.
    let customers = seed::CUSTOMERS.len() as i64;
    let cents = orders * dearest * QUANTITY_MAX * load.lines_max as i64 / customers + dearest;
    let money = seed::CUSTOMERS.iter().map(|c| (c.customer_id, cents));
    let money =
        money.chain([(seed::POOR_CUSTOMER.customer_id, seed::POOR_CUSTOMER.deposited_cents)]);
    let money =
        money.map(|(who, cents)| client.deposit(load_customers.replacement_of(who), cents, &key));
    let goods = seed::ITEMS.iter().map(|item| client.deliver(item.sku, pieces, &key));
    tokio::try_join!(try_join_all(money), try_join_all(goods))
        .context("money and items for the load")?;
    let items = client.items("order").await?;
    let prices = items
        .iter()
        .filter_map(|item| Some((item["sku"].as_str()?.into(), item["price_cents"].as_i64()?)));
    Ok(prices.collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_generates_the_same_plans() {
        let plans_of = |seed| {
            let plans = generate(&Load { seed: Some(seed), ..Load::default() });
            let content = |plan: OrderPlan| {
                (plan.due_at, plan.customer_id, plan.lines, plan.cancel_after, plan.duplicated)
            };
            plans.into_iter().map(content).collect::<Vec<_>>()
        };
        assert_eq!(plans_of(7), plans_of(7));
        assert_ne!(plans_of(7), plans_of(8));
    }

    #[test]
    fn a_load_has_the_configured_length_and_mix() {
        let lasting = Duration::from_secs(20);
        let load = Load { rate: 50, duration: lasting, poor_percent: 100, ..Load::default() };
        let load = Load { scarce_percent: 0, duplicated_percent: 0, ..load };
        let plans = generate(&load);
        assert_eq!(plans.len(), 1_000);
        assert!(plans.windows(2).all(|pair| pair[0].due_at < pair[1].due_at));
        assert!(
            plans.iter().all(|plan| plan.customer_id == seed::POOR_CUSTOMER.customer_id && !plan.duplicated)
        );
        for plan in &plans {
            let skus: BTreeSet<_> = plan.lines.iter().map(|line| &line.sku).collect();
            assert_eq!(skus.len(), plan.lines.len(), "no item stands on two lines");
            assert!((1..=load.lines_max).contains(&plan.lines.len()));
        }
    }
}
