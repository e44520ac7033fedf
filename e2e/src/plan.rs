//! What the clients of a load are going to do, drawn by lot beforehand, and what they need for it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::client::{Client, Wish};
use crate::load::Load;
use crate::seed;

/// Pieces of a line at most.
const QUANTITY_MAX: i64 = 3;

/// When clients hang up who do so: before, while or after the order is stored.
const HUNG_UP_AFTER: Range<u64> = 0..80;

/// What items cost, in cents.
pub type Prices = BTreeMap<String, i64>;

/// Customers of one load alone, in place of those that its plans name: whatever orders they have are
/// then this load's.
#[derive(Clone, Debug)]
pub struct Crowd(BTreeMap<Uuid, Uuid>);

impl Crowd {
    pub fn gather() -> Crowd {
        let customers = seed::CUSTOMERS.iter().chain([&seed::POOR]);
        Crowd(customers.map(|customer| (customer.customer_id, Uuid::now_v7())).collect())
    }

    pub fn in_place_of(&self, customer_id: Uuid) -> Uuid {
        self.0.get(&customer_id).copied().unwrap_or(customer_id)
    }
}

/// One order as its client means it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// When it is due, from the beginning of the load.
    pub at: Duration,
    pub key: String,
    pub customer_id: Uuid,
    pub lines: Vec<Wish>,
    pub cancel_after: Option<Duration>,
    /// The client is impatient, and posts it twice.
    pub repeated: bool,
    /// The client is confused, and posts something else with the same key as well.
    pub confused: bool,
    /// The client does not wait for its first answer.
    pub hung_up_after: Option<Duration>,
}

impl Plan {
    /// The something else.
    pub fn other_lines(&self) -> Vec<Wish> {
        let mut lines = self.lines.clone();
        lines.iter_mut().for_each(|line| line.quantity += 1);
        lines
    }
}

/// The orders of a load, by the time when they are due. Their keys are always new.
pub fn draw(load: &Load) -> Vec<Plan> {
    let mut rng = StdRng::seed_from_u64(load.seed.unwrap_or_else(rand::random));
    (0..load.orders())
        .map(|nth| {
            let mut chosen = |percent: u32| rng.random_range(0..100) < percent;
            let (poor, scarce) = (chosen(load.poor_percent), chosen(load.scarce_percent));
            let cancelled = chosen(load.cancelled_percent);
            let repeated = chosen(load.repeated_percent);
            let confused = chosen(load.confused_percent);
            let hung_up = chosen(load.disconnected_percent);
            let customer = if poor { Some(&seed::POOR) } else { seed::CUSTOMERS.choose(&mut rng) };
            let wanted = rng.random_range(1..=load.lines_max.min(seed::ITEMS.len()));
            let chosen: Vec<_> = seed::ITEMS.choose_multiple(&mut rng, wanted).collect();
            let mut lines: Vec<Wish> = chosen
                .into_iter()
                .map(|item| Wish {
                    sku: item.sku.to_string(),
                    quantity: rng.random_range(1..=QUANTITY_MAX),
                })
                .collect();
            if scarce {
                let quantity = seed::SCARCE.delivered + 1 + rng.random_range(0..20);
                lines.push(Wish { sku: seed::SCARCE.sku.to_string(), quantity });
            }
            Plan {
                at: Duration::from_secs_f64(nth as f64 / f64::from(load.rate)),
                key: Uuid::now_v7().to_string(),
                customer_id: customer
                    .map_or(seed::POOR.customer_id, |customer| customer.customer_id),
                lines,
                cancel_after: cancelled.then(|| Duration::from_millis(rng.random_range(0..1_000))),
                repeated,
                confused,
                hung_up_after: hung_up
                    .then(|| Duration::from_millis(rng.random_range(HUNG_UP_AFTER))),
            }
        })
        .collect()
}

/// Makes sure that money and items suffice for all of it; answers the prices.
pub async fn provide(client: &Client, load: &Load, crowd: &Crowd) -> Result<Prices> {
    let key = format!("load-{}", Uuid::now_v7());
    let orders = i64::try_from(load.orders())?;
    let pieces = orders * QUANTITY_MAX;
    let dearest = seed::ITEMS.iter().map(|item| item.price_cents).max().unwrap_or(0);
    // Spread evenly, with as much again to spare.
    let customers = seed::CUSTOMERS.len() as i64;
    let cents = orders * dearest * QUANTITY_MAX * load.lines_max as i64 / customers + dearest;
    let money = seed::CUSTOMERS.iter().map(|c| (c.customer_id, cents));
    let money = money.chain([(seed::POOR.customer_id, seed::POOR.deposited_cents)]);
    let money = money.map(|(who, cents)| client.deposit(crowd.in_place_of(who), cents, &key));
    let goods = seed::ITEMS.iter().map(|item| client.deliver(item.sku, pieces, &key));
    tokio::try_join!(try_join_all(money), try_join_all(goods)).context("before the load")?;
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
    fn a_seed_draws_the_same_wishes_again() {
        let wishes = |seed| {
            let plans = draw(&Load { seed: Some(seed), ..Load::default() });
            let wish = |plan: Plan| {
                (plan.at, plan.customer_id, plan.lines, plan.cancel_after, plan.repeated)
            };
            plans.into_iter().map(wish).collect::<Vec<_>>()
        };
        assert_eq!(wishes(7), wishes(7));
        assert_ne!(wishes(7), wishes(8));
    }

    #[test]
    fn a_load_is_as_long_as_it_says_and_mixed_as_it_says() {
        let lasting = Duration::from_secs(20);
        let load = Load { rate: 50, lasting, poor_percent: 100, ..Load::default() };
        let load = Load { scarce_percent: 0, repeated_percent: 0, ..load };
        let plans = draw(&load);
        assert_eq!(plans.len(), 1_000);
        assert!(plans.windows(2).all(|pair| pair[0].at < pair[1].at));
        assert!(
            plans.iter().all(|plan| plan.customer_id == seed::POOR.customer_id && !plan.repeated)
        );
        for plan in &plans {
            let skus: BTreeSet<_> = plan.lines.iter().map(|line| &line.sku).collect();
            assert_eq!(skus.len(), plan.lines.len(), "no item stands on two lines");
            assert!((1..=load.lines_max).contains(&plan.lines.len()));
        }
    }
}
