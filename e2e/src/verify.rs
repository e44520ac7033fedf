//! The checker: reads the databases and every record of every topic, and says whether
//! anything was lost, done twice, or does not balance.
//!
//! It only reads, from the outside: SQL, raw Kafka and the registry. Rows are streamed, ordered by
//! order, against the records, of which a few bytes each are kept; so its memory is bounded by the
//! number of records, at some 100 bytes each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use events::TOPICS;
use futures::stream::{BoxStream, StreamExt};
use rdkafka::consumer::BaseConsumer;
use sqlx::postgres::PgPoolOptions;
use sqlx::{FromRow, PgPool, postgres::PgRow};
use uuid::Uuid;

use crate::balances::{
    AccountRow, Described, Goods, ItemRow, Money, check_account, check_item, check_totals,
};
use crate::checks::{
    Around, Case, HistoryRow, OrderRow, PaymentRow, ReservationRow, Tally, check_foreign,
};
use crate::client::{Client, grouped};
use crate::discarded::Discarded;
use crate::facts::{Fact, Letters, Place, topic_number};
use crate::findings::Findings;
use crate::inboxes::{InboxCheck, InboxRow, enters};
use crate::load::seconds;
use crate::topics::{self, Log};
use crate::topology::SERVICES;
use crate::verdict::Verdict;

const LOOK_EVERY: Duration = Duration::from_millis(250);
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Topics are kept for 14 days; a segment may go a little early.
const KEPT_DAYS: i64 = 13;

/// How to check.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How long to wait for everything to come to rest.
    #[arg(long = "within-seconds", default_value = "60", value_parser = seconds)]
    pub within: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { within: Duration::from_secs(60) }
    }
}

/// Waits until everything rests, then checks.
pub async fn run(client: &Client, options: &Options) -> Result<Verdict> {
    let began = Instant::now();
    let stack = Reading::open(client).await?;
    let mut findings = Findings::default();
    let mut discarded = Discarded::read(&stack.databases).await?;
    let restless = stack.rest(&discarded, options.within).await?;
    for what in restless {
        findings.add("unrest", || what);
    }
    let before = stack.marks().await?;
    let (letters, letters_waiting) = stack.letters().await?;

    let mut log = topics::read_all(client, letters.1).await?;
    let around =
        Around { letters: &letters.0, kept_since: Utc::now() - TimeDelta::days(KEPT_DAYS) };
    check_records(&log, &around, &mut findings);
    log.facts.sort_unstable_by_key(|fact| (fact.order_id, fact.place));
    let mut tally = Tally::default();
    stack.check_orders(&log.facts, &around, &mut discarded, &mut tally, &mut findings).await?;
    let mut handled = BTreeMap::new();
    for service in SERVICES {
        let entered = stack.check_inbox(service, &log, &around, &mut findings).await?;
        handled.insert(service, entered);
    }
    let money = stack.check_money(&mut findings).await?;
    let taken_cents = money.taken_cents - discarded.held_cents;
    check_totals(&Money { taken_cents, ..money.clone() }, &tally, &mut findings);
    let goods = stack.check_goods(&log, &discarded, &mut findings).await?;
    findings.unless(stack.marks().await? == before, "unrest", || {
        "records were written meanwhile: is somebody placing orders? Check again when all is quiet".into()
    });
    let (records, announced) = (log.records, log.announced);
    let foreign = log.foreign.len() as u64;
    let took = began.elapsed();
    Ok(Verdict {
        tally,
        money,
        goods,
        records,
        announced,
        foreign,
        handled,
        letters_waiting,
        discarded,
        findings,
        took,
    })
}

fn check_records(log: &Log, around: &Around<'_>, findings: &mut Findings) {
    for foreign in &log.foreign {
        check_foreign(foreign, around.letters, findings);
    }
    for (place, fault) in &log.faults {
        findings.unless(around.letters.has(*place), "envelope", || format!("{place}: {fault}"));
    }
    for place in &log.missing {
        // A compacted topic may have forgotten it.
        if place.topic().name != events::stock::ITEMS.name {
            findings.add("dead letters", || {
                format!("{place}: a dead letter of a record that is not there")
            });
        }
    }
}

/// Connections to everything that is read.
struct Reading {
    databases: HashMap<&'static str, PgPool>,
    /// One for each consumer group. They never join it.
    groups: HashMap<&'static str, BaseConsumer>,
}

impl Reading {
    async fn open(client: &Client) -> Result<Reading> {
        let (mut databases, mut groups) = (HashMap::new(), HashMap::new());
        for service in SERVICES {
            let pool = PgPoolOptions::new()
                .max_connections(4)
                .acquire_timeout(Duration::from_secs(10))
                .connect(&client.addresses.databases[service])
                .await
                .with_context(|| format!("the database of {service} cannot be read"))?;
            databases.insert(service, pool);
            groups.insert(service, topics::reader(&client.addresses.kafka, service)?);
        }
        Ok(Reading { databases, groups })
    }

    fn db(&self, service: &str) -> &PgPool {
        &self.databases[service]
    }

    /// Waits until nothing moves any more. Answers what still does when the time is up.
    async fn rest(&self, discarded: &Discarded, within: Duration) -> Result<Vec<String>> {
        let began = Instant::now();
        let mut said = began;
        loop {
            let restless = self.restless(discarded).await?;
            if restless.is_empty() || began.elapsed() > within {
                return Ok(restless);
            }
            if said.elapsed() > SAY_EVERY {
                said = Instant::now();
                eprintln!("waiting for rest: {} …", restless.join(", "));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn restless(&self, discarded: &Discarded) -> Result<Vec<String>> {
        let mut restless = Vec::new();
        let open: i64 = sqlx::query_scalar(
            "select count(*) from orders
             where not (status = 'confirmed' and payment = 'verified' and stock = 'reserved'
                     or status = 'cancelled' and payment in ('declined', 'refunded', 'void')
                                             and stock in ('rejected', 'released', 'void'))
               and order_id <> all($1)",
        )
        .bind(discarded.orders())
        .fetch_one(self.db("order"))
        .await?;
        if open > 0 {
            restless.push(format!("{} orders have not ended", grouped(open)));
        }
        for service in SERVICES {
            let waiting: i64 = sqlx::query_scalar("select count(*) from outbox")
                .fetch_one(self.db(service))
                .await?;
            if waiting > 0 {
                restless
                    .push(format!("{} events wait in the outbox of {service}", grouped(waiting)));
            }
            let paused: Option<String> =
                sqlx::query_scalar("select reason from consumer where paused_at is not null")
                    .fetch_optional(self.db(service))
                    .await?
                    .flatten();
            if let Some(reason) = paused {
                restless.push(format!("the consumer of {service} is paused: {reason}"));
            }
        }
        restless.extend(tokio::task::block_in_place(|| self.lags())?);
        Ok(restless)
    }

    fn lags(&self) -> Result<Vec<String>> {
        let mut lags = Vec::new();
        for topic in TOPICS {
            for service in topic.subscribers {
                let lag = topics::lag(&self.groups[service], topic.name)?;
                if lag > 0 {
                    lags.push(format!(
                        "{service} has {} records of {} to read",
                        grouped(lag),
                        topic.name
                    ));
                }
            }
        }
        Ok(lags)
    }

    /// The ends of all topics: whether they moved tells whether anything did.
    async fn marks(&self) -> Result<Vec<(i64, i64)>> {
        tokio::task::block_in_place(|| {
            let mut marks = Vec::new();
            for topic in TOPICS {
                let all = topics::watermarks(&self.groups[topic.publisher], topic.name)?;
                marks.extend(all.into_iter().map(|(_, high)| (0, high)));
            }
            Ok(marks)
        })
    }

    /// The dead letters of this cluster, their places, and how many wait for an operator.
    async fn letters(&self) -> Result<((Letters, HashSet<Place>), i64)> {
        let cluster = tokio::task::block_in_place(|| topics::cluster_id(&self.groups["order"]))?;
        let (mut letters, mut places, mut waiting) = (Letters::default(), HashSet::new(), 0);
        for service in SERVICES {
            let mut rows = sqlx::query_as::<_, (String, i32, i64, Vec<u8>, bool)>(
                "select topic, partition, \"offset\", hash, state = 'waiting'
                 from dead_letters where cluster = $1",
            )
            .bind(&cluster)
            .fetch(self.db(service));
            while let Some(row) = rows.next().await {
                let (topic, partition, offset, hash, is_waiting) = row?;
                waiting += i64::from(is_waiting);
                let Some(topic) = TOPICS.iter().find(|declared| declared.name == topic) else {
                    continue;
                };
                let place = Place { topic: topic_number(topic), partition, offset };
                letters.add(place, service, hash.try_into().unwrap_or_default());
                if is_waiting {
                    letters.add_waiting(place);
                }
                places.insert(place);
            }
        }
        Ok(((letters, places), waiting))
    }

    /// Goes through orders, payments, reservations, history and records, all by order id, once.
    async fn check_orders(
        &self,
        facts: &[Fact],
        around: &Around<'_>,
        discarded: &mut Discarded,
        tally: &mut Tally,
        findings: &mut Findings,
    ) -> Result<()> {
        let mut orders = Rows::<OrderRow>::of(
            self.db("order"),
            "select * from orders order by order_id",
            |row| row.order_id,
        );
        let mut history = Rows::<HistoryRow>::of(
            self.db("order"),
            "select order_id, event_id, position, event, detail, occurred_at
             from history order by order_id, event_id",
            |row| row.order_id,
        );
        let mut payments = Rows::<PaymentRow>::of(
            self.db("payment"),
            "select * from payments order by order_id",
            |row| row.order_id,
        );
        let mut reservations = Rows::<ReservationRow>::of(
            self.db("stock"),
            "select * from reservations order by order_id",
            |row| row.order_id,
        );
        let mut facts = facts.iter().copied().peekable();
        loop {
            let next = [
                orders.next_id().await?,
                history.next_id().await?,
                payments.next_id().await?,
                reservations.next_id().await?,
                facts.peek().map(|fact| fact.order_id),
            ];
            let Some(order_id) = next.into_iter().flatten().min() else {
                return Ok(());
            };
            let mut case = Case {
                order_id,
                order: orders.take(order_id).await?,
                payment: payments.take(order_id).await?,
                reservation: reservations.take(order_id).await?,
                ..Case::default()
            };
            while let Some(row) = history.take(order_id).await? {
                case.history.push(row);
            }
            while let Some(fact) = facts.next_if(|fact| fact.order_id == order_id) {
                case.facts.push(fact);
            }
            discarded.check_case(&case, around, tally, findings);
        }
    }

    /// Answers how many events the service handled.
    async fn check_inbox(
        &self,
        service: &'static str,
        log: &Log,
        around: &Around<'_>,
        findings: &mut Findings,
    ) -> Result<u64> {
        let mut heard: Vec<&Fact> = log
            .facts
            .iter()
            .chain(&log.others)
            .filter(|fact| enters(service, fact.place.topic()))
            .collect();
        heard.sort_unstable_by_key(|fact| fact.event_id);
        let mut check = InboxCheck::new(service, &heard, around);
        let mut rows = sqlx::query_as::<_, InboxRow>("select * from inbox order by event_id")
            .fetch(self.db(service));
        while let Some(row) = rows.next().await {
            check.row(&row?, findings);
        }
        check.end(findings);
        Ok(check.matched)
    }

    async fn check_money(&self, findings: &mut Findings) -> Result<Money> {
        let mut rows = sqlx::query_as::<_, AccountRow>(
            "select customer_id,
                    coalesce(deposits_cents, 0)::bigint as deposits_cents,
                    coalesce(verified_cents, 0)::bigint as verified_cents,
                    deposited_cents, balance_cents, taken_cents
             from accounts
             full join (select customer_id, sum(amount_cents) as deposits_cents
                        from deposits group by customer_id) as deposits using (customer_id)
             full join (select customer_id, sum(amount_cents) as verified_cents
                        from payments where state = 'verified'
                        group by customer_id) as payments using (customer_id)",
        )
        .fetch(self.db("payment"));
        let mut money = Money::default();
        while let Some(row) = rows.next().await {
            check_account(&row?, &mut money, findings);
        }
        Ok(money)
    }

    async fn check_goods(
        &self,
        log: &Log,
        discarded: &Discarded,
        findings: &mut Findings,
    ) -> Result<Goods> {
        let known: Vec<Described> =
            sqlx::query_as("select * from items").fetch_all(self.db("order")).await?;
        let known: HashMap<&str, &Described> =
            known.iter().map(|item| (item.sku.as_str(), item)).collect();
        let rows: Vec<ItemRow> = sqlx::query_as(
            "select sku, coalesce(deliveries, 0)::bigint as deliveries, coalesce(held, 0)::bigint as held,
                    name, price_cents, currency, version, delivered, available, reserved, event_id
             from items
             full join (select sku, sum(quantity) as deliveries
                        from deliveries group by sku) as deliveries using (sku)
             full join (select line ->> 'sku' as sku, sum((line ->> 'quantity')::bigint) as held
                        from reservations, jsonb_array_elements(lines) as line
                        where state = 'reserved' group by 1) as lines using (sku)",
        )
        .fetch_all(self.db("stock"))
        .await?;
        let mut goods = Goods::default();
        for row in &rows {
            let newest = log.items.get(&row.sku);
            let known = match discarded.has(&row.sku) {
                true => newest.map(|(_, newest)| newest),
                false => known.get(row.sku.as_str()).copied(),
            };
            check_item(row, newest, known, &mut goods, findings);
        }
        let there: HashSet<&str> = rows.iter().map(|row| row.sku.as_str()).collect();
        let strangers = known.keys().copied().chain(log.items.keys().map(String::as_str));
        for sku in strangers.filter(|sku| !there.contains(sku)).collect::<HashSet<_>>() {
            findings.add("item", || format!("{sku}: stock has no such item"));
        }
        Ok(goods)
    }
}

/// Rows in order of their order's id, one ahead.
struct Rows<'a, T> {
    stream: BoxStream<'a, sqlx::Result<T>>,
    ahead: Option<T>,
    id: fn(&T) -> Uuid,
}

impl<'a, T: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'a> Rows<'a, T> {
    fn of(db: &'a PgPool, sql: &'static str, id: fn(&T) -> Uuid) -> Rows<'a, T> {
        Rows { stream: sqlx::query_as(sql).fetch(db), ahead: None, id }
    }

    async fn next_id(&mut self) -> Result<Option<Uuid>> {
        if self.ahead.is_none() {
            self.ahead = self.stream.next().await.transpose()?;
        }
        Ok(self.ahead.as_ref().map(self.id))
    }

    /// The next row, if it is of this order.
    async fn take(&mut self, order_id: Uuid) -> Result<Option<T>> {
        let is_next = self.next_id().await? == Some(order_id);
        Ok(if is_next { self.ahead.take() } else { None })
    }
}
