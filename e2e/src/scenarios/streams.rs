//! The sums of the stream processor, compared with the orders in the database of the order service: each ended order is
//! in the sums exactly once, in spite of all faults in between.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::event::Event;
use checker::kafka;
use chrono::{DateTime, Utc};
use events::insights;
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use launcher::{Stack, eventually};
use serde::Deserialize;
use sqlx::{Connection, PgConnection};

use crate::client::http_client::Client;
use crate::scenarios::redelivery::in_group;

/// The confirmed orders, as the stream processor sums them up.
const SALES_QUERY: &str = "
    select currency || ' ' || (line ->> 'sku') as key, count(*) as orders,
           sum((line ->> 'quantity')::bigint)::bigint as units,
           sum((line ->> 'quantity')::bigint * (line ->> 'unit_price_cents')::bigint)::bigint as revenue_cents
    from orders, jsonb_array_elements(lines) line where status = 'confirmed' group by 1";

const OUTCOMES_QUERY: &str = "
    select coalesce(reason, status) as key, count(*) as orders from orders where status <> 'pending' group by 1";

/// The sums by key: orders, units and cents of an item; orders of an outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Sums {
    pub sales: BTreeMap<String, Sale>,
    pub outcomes: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, sqlx::FromRow)]
pub struct Sale {
    pub orders: i64,
    pub units: i64,
    pub revenue_cents: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct OutcomeSum {
    orders: i64,
    timed_orders: i64,
    millis_sum: i64,
    millis_max: i64,
}

/// What `/sales` and `/outcomes` answer: sums by key.
#[derive(Debug, Deserialize)]
struct SumsResponse<S> {
    minutes: BTreeMap<DateTime<Utc>, BTreeMap<String, S>>,
    on_time: BTreeMap<String, S>,
    late: BTreeMap<String, S>,
}

impl<S: Clone + Default> SumsResponse<S> {
    /// Each key with its sum on time and its late sum.
    fn totals(&self) -> BTreeMap<&str, (S, S)> {
        let keys = self.on_time.keys().chain(self.late.keys());
        let sum = |sums: &BTreeMap<String, S>, key| sums.get(key).cloned().unwrap_or_default();
        keys.map(|key| (key.as_str(), (sum(&self.on_time, key), sum(&self.late, key)))).collect()
    }
}

/// Waits until the stream processor has read everything, and its sums are those of the orders.
///
/// # Errors
/// If they are not after this time. The error has both.
pub async fn wait_until_equal(client: &Client, stack: &Stack, within: Duration) -> Result<Sums> {
    let urls = stack.streams_urls()?;
    let (_, url) = urls.first().context("the stack has no stream processor")?;
    eventually("the sums to be those of the orders", within, async || {
        let expected = expected_sums(&client.addresses.databases["order"]).await?;
        let sums = read_sums(client, url).await?;
        ensure!(sums == expected, "the sums are {sums:?}, and the orders {expected:?}");
        Ok(sums)
    })
    .await
}

/// The number of records of the orders' topics that the stream processor has not committed.
///
/// # Errors
/// If Kafka does not answer.
pub async fn consumer_lag(client: &Client) -> Result<i64> {
    in_group(client, insights::NAME, |group| {
        let topics = [OrderCreated::topic(), OrderConfirmed::topic(), OrderCancelled::topic()];
        let positions = topics.map(|topic| kafka::group_positions(group, topic.name));
        let positions = positions.into_iter().collect::<Result<Vec<_>>>()?.concat();
        Ok(positions.iter().map(|(next, high)| high - next).sum())
    })
    .await
}

async fn expected_sums(database: &str) -> Result<Sums> {
    #[derive(sqlx::FromRow)]
    struct ItemRow {
        key: String,
        #[sqlx(flatten)]
        sale: Sale,
    }
    let mut db = PgConnection::connect(database).await?;
    let sales: Vec<ItemRow> = sqlx::query_as(SALES_QUERY).fetch_all(&mut db).await?;
    let outcomes: Vec<(String, i64)> = sqlx::query_as(OUTCOMES_QUERY).fetch_all(&mut db).await?;
    db.close().await?;
    let sales = sales.into_iter().map(|row| (row.key, row.sale));
    Ok(Sums { sales: sales.collect(), outcomes: outcomes.into_iter().collect() })
}

/// The totals of both kinds together. The sums by minute are those of what was on time, for a load of some minutes.
async fn read_sums(client: &Client, url: &str) -> Result<Sums> {
    let sales: SumsResponse<Sale> = client.get_url(&format!("{url}/sales?minutes=1000")).await?;
    let outcomes: SumsResponse<OutcomeSum> =
        client.get_url(&format!("{url}/outcomes?minutes=1000")).await?;
    let mut sums = Sums::default();
    for (key, (on_time, late)) in sales.totals() {
        let minutes = sales.minutes.values().filter_map(|minute| minute.get(key));
        let minutes = minutes.fold(Sale::default(), |sum, sale| add(&sum, sale));
        ensure!(minutes == on_time, "{key}: the minutes are {minutes:?}, and on time {on_time:?}");
        sums.sales.insert(key.to_string(), add(&on_time, &late));
    }
    for (key, (on_time, late)) in outcomes.totals() {
        let orders = on_time.orders + late.orders;
        let timed = on_time.timed_orders + late.timed_orders;
        ensure!(
            timed == orders,
            "{key}: {orders} orders ended, and the times of {timed} are known"
        );
        let longest = on_time.millis_max.max(late.millis_max);
        let total = on_time.millis_sum + late.millis_sum;
        ensure!((longest..=longest * orders).contains(&total), "{key}: {total} ms, {longest} ms");
        sums.outcomes.insert(key.to_string(), orders);
    }
    Ok(sums)
}

fn add(one: &Sale, other: &Sale) -> Sale {
    Sale {
        orders: one.orders + other.orders,
        units: one.units + other.units,
        revenue_cents: one.revenue_cents + other.revenue_cents,
    }
}
