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

use crate::arrivals::check_foreign;
use crate::balances::{
    AccountRow, Described, Goods, ItemRow, Money, check_account, check_item, check_totals,
};
use crate::checks::{Around, Case, HistoryRow, OrderRow, PaymentRow, ReservationRow, Tally};
use crate::client::Client;
use crate::discarded::Discarded;
use crate::facts::{Fact, Letter, Letters, Place, topic_number};
use crate::findings::Findings;
use crate::inboxes::{InboxCheck, InboxRow, enters};
use crate::invariants::Invariant::{I4, I9, I10, I12, I13};
use crate::load::seconds;
use crate::rest;
use crate::topics::{self, Log};
use crate::topology::SERVICES;
use crate::verdict::Verdict;
use crate::witness;

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
    checked(client, options, async || Ok(None)).await
}

/// The same, where it is known which records were put there to become dead letters, or lay there
/// before: any other letter is then a finding.
pub async fn knowing(
    client: &Client,
    options: &Options,
    spoiled: &HashSet<Place>,
) -> Result<Verdict> {
    checked(client, options, async || Ok(Some(spoiled.clone()))).await
}

/// The same, where that is known only once everything rests: until then some are still set aside.
pub async fn asking(
    client: &Client,
    options: &Options,
    spoiled: impl AsyncFnOnce() -> Result<HashSet<Place>>,
) -> Result<Verdict> {
    checked(client, options, async || spoiled().await.map(Some)).await
}

async fn checked(
    client: &Client,
    options: &Options,
    spoiled: impl AsyncFnOnce() -> Result<Option<HashSet<Place>>>,
) -> Result<Verdict> {
    let began = Instant::now();
    let stack = Reading::open(client).await?;
    let mut findings = Findings::default();
    let mut discarded = Discarded::read(&stack.databases).await?;
    let restless = stack.rest(&discarded, options.within).await?;
    rest::check(restless, &mut findings);
    let before = stack.marks().await?;
    let read = stack.letters().await?;
    let letters_replayed = read.iter().filter(|letter| letter.state == "replayed").count() as u64;
    let letters_waiting = read.iter().filter(|letter| letter.state == "waiting").count() as i64;
    // After the letters: a list is not to miss one of them.
    if let Some(spoiled) = spoiled().await? {
        check_letters(&read, &spoiled, &mut findings);
    }
    let letters = Letters::of(&read);

    let mut log = topics::read_all(client, letters.places().collect()).await?;
    let around = Around {
        letters: &letters,
        kept_since: Utc::now() - TimeDelta::days(KEPT_DAYS),
        clocks_apart_ms: stack.clocks_apart_ms()?,
    };
    check_records(&log, &around, &mut findings);
    log.facts.sort_unstable_by_key(|fact| (fact.order_id, fact.place));
    let mut tally = Tally::default();
    stack.check_orders(&log.facts, &around, &mut discarded, &mut tally, &mut findings).await?;
    let mut handled = BTreeMap::new();
    for service in SERVICES {
        let entered = stack.check_inbox(service, &log, &around, &tally, &mut findings).await?;
        handled.insert(service, entered);
    }
    let money = stack.check_money(&mut findings).await?;
    let taken_cents = money.taken_cents - discarded.held_cents;
    check_totals(&Money { taken_cents, ..money.clone() }, &tally, &mut findings);
    let goods = stack.check_goods(&log, &discarded, &mut findings).await?;
    let changes = witness::check(&stack.databases, &mut findings).await?;
    findings.unless(stack.marks().await? == before, I13, "unrest", || {
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
        letters_replayed,
        changes,
        discarded,
        findings,
        took,
    })
}

/// Where every dead letter of a stack lies now: those that a run finds there it did not make.
pub async fn letters_now(client: &Client) -> Result<HashSet<Place>> {
    let letters = Reading::open(client).await?.letters().await?;
    Ok(letters.into_iter().map(|letter| letter.place).collect())
}

/// Only what was put there to be dead may be.
pub fn check_letters(letters: &[Letter], spoiled: &HashSet<Place>, findings: &mut Findings) {
    for Letter { place, service, reason, .. } in letters {
        findings.unless(spoiled.contains(place), I10, "set aside", || {
            format!("{place}: {service} set it aside, and nobody had spoiled it: {reason}")
        });
    }
}

pub fn check_records(log: &Log, around: &Around<'_>, findings: &mut Findings) {
    for (place, what) in &log.overtaken {
        findings.add(I9, "overtaken", || format!("{place}: {what}"));
    }
    for foreign in &log.foreign {
        check_foreign(foreign, foreign.place.topic().subscribers, around.letters, findings);
    }
    for (place, fault) in &log.faults {
        findings
            .unless(around.letters.has(*place), I12, "envelope", || format!("{place}: {fault}"));
    }
    for place in &log.missing {
        // A compacted topic may have forgotten it.
        if place.topic().name != events::stock::ITEMS.name {
            findings.add(I10, "dead letters", || {
                format!("{place}: a dead letter of a record that is not there")
            });
        }
    }
}

/// Connections to everything that is read.
pub(crate) struct Reading {
    pub(crate) databases: HashMap<&'static str, PgPool>,
    /// One for each consumer group. They never join it.
    pub(crate) groups: HashMap<&'static str, BaseConsumer>,
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

    pub(crate) fn db(&self, service: &str) -> &PgPool {
        &self.databases[service]
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

    /// The dead letters of this cluster.
    async fn letters(&self) -> Result<Vec<Letter>> {
        let cluster = tokio::task::block_in_place(|| topics::cluster_id(&self.groups["order"]))?;
        let mut letters = Vec::new();
        for service in SERVICES {
            let mut rows = sqlx::query_as::<_, (String, i32, i64, Vec<u8>, String, String)>(
                "select topic, partition, \"offset\", hash, state, reason
                 from dead_letters where cluster = $1",
            )
            .bind(&cluster)
            .fetch(self.db(service));
            while let Some(row) = rows.next().await {
                let (topic, partition, offset, hash, state, reason) = row?;
                let Some(topic) = TOPICS.iter().find(|declared| declared.name == topic) else {
                    continue;
                };
                let place = Place { topic: topic_number(topic), partition, offset };
                let hash = hash.try_into().unwrap_or_default();
                letters.push(Letter { place, service, hash, state, reason });
            }
        }
        Ok(letters)
    }

    fn clocks_apart_ms(&self) -> Result<i64> {
        let apart = tokio::task::block_in_place(|| topics::clocks_apart(&self.groups["order"]))?;
        Ok(i64::try_from(apart.as_millis())?)
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
        tally: &Tally,
        findings: &mut Findings,
    ) -> Result<u64> {
        let mut heard: Vec<&Fact> = log
            .facts
            .iter()
            .chain(&log.others)
            .filter(|fact| enters(service, fact.place.topic()))
            .collect();
        heard.sort_unstable_by_key(|fact| fact.event_id);
        let mut check = InboxCheck::new(service, &heard, around, &tally.unanswered);
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
            findings.add(I4, "item", || format!("{sku}: stock has no such item"));
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
