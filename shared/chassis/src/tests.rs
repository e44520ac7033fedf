//! The promises of the chassis, on a real Postgres, a real Kafka and a real schema registry.
//!
//! Each test opens a [`Till`], a small service of its own: database, topics and consumer group. What
//! is counted into a till is added up in its tally, so that an effect that is lost or comes twice
//! shows in the sums. Loops are run as a service runs them, or step by step on a given batch.

mod consumer;
mod letters;
mod relay;
mod commands;
mod trace;
mod evolution;
mod waiting;
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::StatusCode;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, StreamConsumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, post_schema};
use schema_registry_converter::schema_registry_common::{SchemaType, SuppliedSchema};
use serde::{Deserialize, Serialize};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, PgPool, PgTransaction, SqlSafeStr};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::avro::frame;
use crate::commands::{Commands, Reply, commands};
use crate::config::{Config, Secret};
use crate::consumer::Consumer;
use crate::event::{Answer, At, Event, Outgoing, Retention, Topic};
use crate::group::Reports;
use crate::loss::Loss;
use crate::outbox::{self, Envelope};
use crate::probes::Heartbeats;
use crate::problem::Problem;
use crate::registry::Registry;
use crate::relay::Relay;
use crate::rows::{Rows, Table, Touches};
use crate::wake::Wake;
use crate::writes::Writes;
use crate::{impossible, kafka, schema, testing};
use proxy::{Proxy, Way};

/// How long anything may take that has to happen.
const WITHIN: Duration = Duration::from_secs(60);

/// How long something that must not happen is waited for.
const MEANWHILE: Duration = Duration::from_millis(1500);

const MESSAGING: &str = include_str!("../../../services/stock/migrations/1_messaging.sql");

/// A till can't hold a million.
const TALLIES: &str = "
    create table tallies (
        till    text primary key,
        counted bigint not null,
        total   bigint not null check (total < 1000000)
    )";

const COUNTED: &str = r#"{"type": "record", "name": "Counted", "fields": [
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"},
    {"name": "note", "type": ["null", "string"], "default": null}]}"#;

const TALLIED: &str = r#"{"type": "record", "name": "Tallied", "fields": [
    {"name": "till", "type": "string"},
    {"name": "total", "type": "long"}]}"#;

/// Something was counted into a till. A topic belongs to a type, so each test has types of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counted<const TEST: u32> {
    pub till: String,
    pub amount: i64,
    pub note: Option<String>,
}

/// What is in a till now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tallied<const TEST: u32> {
    pub till: String,
    pub total: i64,
}

impl<const TEST: u32> Event for Counted<TEST> {
    fn topic() -> &'static Topic {
        names(TEST).counted
    }
    fn key(&self) -> String {
        self.till.clone()
    }
}

impl<const TEST: u32> Event for Tallied<TEST> {
    fn topic() -> &'static Topic {
        names(TEST).tallied
    }
    fn key(&self) -> String {
        self.till.clone()
    }
}

pub fn counted<const TEST: u32>(till: &str, amount: i64) -> Counted<TEST> {
    Counted { till: till.to_string(), amount, note: None }
}

/// What is the test's own: its service, which is its consumer group as well, and its topics.
struct Names {
    service: &'static str,
    counted: &'static Topic,
    tallied: &'static Topic,
}

fn names(test: u32) -> &'static Names {
    static NAMES: LazyLock<Mutex<BTreeMap<u32, &'static Names>>> = LazyLock::new(Mutex::default);
    NAMES.lock().unwrap().entry(test).or_insert_with(|| {
        let run = Uuid::now_v7().simple();
        let service: &'static str = format!("till-{run}").leak();
        let topic = |event: &str, schema| {
            let name = format!("till.{event}.{run}").leak();
            let (heard_by, kept) = (vec![service].leak(), Retention::Days(1));
            &*Box::leak(Box::new(Topic::new(name, service, heard_by, 3, kept, schema)))
        };
        let (counted, tallied) = (topic("counted", COUNTED), topic("tallied", TALLIED));
        Box::leak(Box::new(Names { service, counted, tallied }))
    })
}

/// The rows of a batch.
#[derive(Default)]
pub struct Drawer {
    tallies: Table<String, Tally>,
}

#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub struct Tally {
    till: String,
    counted: i64,
    total: i64,
}

impl Drawer {
    fn add(&mut self, till: &str, amount: i64) -> i64 {
        let (counted, total) = self.tallies.get(till).map_or((0, 0), |t| (t.counted, t.total));
        let tally = Tally { till: till.to_string(), counted: counted + 1, total: total + amount };
        self.tallies.put(till.to_string(), tally);
        total + amount
    }
}

/// Publishes in a transaction that is open, and nothing else.
async fn publish(tx: &mut PgTransaction<'static>, events: &[Envelope]) {
    let mut writes = Writes::of(tx);
    outbox::publish(&mut writes, events);
    writes.run().await.unwrap();
}

impl Rows for Drawer {
    type Keys = BTreeSet<String>;

    async fn load(tx: &mut PgConnection, keys: Self::Keys) -> sqlx::Result<Drawer> {
        let tallies =
            sqlx::query_as("select * from tallies where till = any($1) order by till for update")
                .bind(Vec::from_iter(keys))
                .fetch_all(tx)
                .await?;
        Ok(Drawer { tallies: Table::read(tallies, |tally: &Tally| tally.till.clone()) })
    }

    fn save(&self, writes: &mut Writes<'_>) {
        const UPDATE: &str = "
            update tallies set counted = t.counted, total = t.total
            from unnest($1::text[], $2::bigint[], $3::bigint[]) as t (till, counted, total)
            where tallies.till = t.till";
        const INSERT: &str = "
            insert into tallies select * from unnest($1::text[], $2::bigint[], $3::bigint[])";
        for (statement, rows) in
            [(UPDATE, self.tallies.updated()), (INSERT, self.tallies.inserted())]
        {
            if !rows.is_empty() {
                writes
                    .add(statement)
                    .bind(rows.iter().map(|tally| tally.till.as_str()).collect::<Vec<_>>())
                    .bind(rows.iter().map(|tally| tally.counted).collect::<Vec<_>>())
                    .bind(rows.iter().map(|tally| tally.total).collect::<Vec<_>>());
            }
        }
    }
}

impl<const TEST: u32> Touches<Counted<TEST>> for Drawer {
    fn touch(counted: &Counted<TEST>, keys: &mut BTreeSet<String>) {
        keys.insert(counted.till.clone());
    }
}

/// `till.counted` → `till.tallied`. To count nothing is impossible, to count less is a panic, and
/// the database refuses a million, and a NUL in a till's name.
fn tally<const TEST: u32>(
    counted: &Counted<TEST>,
    drawer: &mut Drawer,
    _: At,
) -> Answer<Tallied<TEST>> {
    match counted.amount {
        0 => impossible!("nothing was counted"),
        amount if amount < 0 => panic!("a till can't owe {amount}"),
        amount => {
            let total = drawer.add(&counted.till, amount);
            Ok(Some(Tallied { till: counted.till.clone(), total }))
        }
    }
}

/// What it costs that something is never counted: from 100 up it has to be written off.
fn uncounted<const TEST: u32>(counted: &Counted<TEST>, drawer: &Drawer) -> Loss {
    let total = drawer.tallies.get(&counted.till).map_or(0, |tally| tally.total);
    let loss = Loss::that(format!("Till {} stays at {total}.", counted.till));
    match counted.amount {
        100.. => loss.writing_off("what was not counted", counted.amount, "coins"),
        _ => loss.offering("counts it by hand", "till", format!("/tills/{}", counted.till)),
    }
}

/// The command of a client who counts → `till.counted`. Nothing is refused, less is a panic.
fn count<const TEST: u32>(
    wish: &Counted<TEST>,
    drawer: &mut Drawer,
    _: At,
) -> Result<Reply, Problem> {
    match wish.amount {
        0 => Err(Problem::invalid("amount", "It must not be 0.")),
        amount if amount < 0 => panic!("a till can't owe {amount}"),
        amount => {
            let total = drawer.add(&wish.till, amount);
            let answer = serde_json::json!({ "till": wish.till, "total": total });
            let place = format!("/tills/{}", wish.till);
            Ok(Reply::created(place, &answer).publishing(Some(wish.clone())))
        }
    }
}

/// A service of a test's own.
#[derive(Clone)]
pub struct Till<const TEST: u32> {
    service: &'static str,
    config: Config,
    db: PgPool,
    /// The superuser's way into the same database, past every proxy.
    cluster: PgConnectOptions,
    wake: Arc<Wake>,
}

impl<const TEST: u32> Till<TEST> {
    /// With a database of its own. Kafka and the registry know nothing of it yet.
    pub async fn open() -> Till<TEST> {
        static OPENED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
        assert!(OPENED.lock().unwrap().insert(TEST), "test number {TEST} is taken");
        let service = names(TEST).service;
        let (owner, server) = testing::fresh_database().await;
        let cluster: PgConnectOptions = server.expose().parse().unwrap();
        let cluster =
            cluster.username("postgres").options([("default_transaction_read_only", "off")]);
        let config = config(owner, server);
        let migrations = [(1, MESSAGING), (2, TALLIES)].map(|(version, sql)| {
            let sql = AssertSqlSafe(sql).into_sql_str();
            Migration::new(version, "tables".into(), MigrationType::Simple, sql, false)
        });
        let migrator = Migrator::with_migrations(migrations.to_vec());
        schema::migrate(service, &config, migrator).await.unwrap();
        let db = schema::connect(service, &config).unwrap();
        let till = Till { service, config, db, cluster, wake: Arc::default() };
        let published = [names(TEST).counted, names(TEST).tallied];
        outbox::store_schemas(&till.db, &published).await.unwrap();
        till
    }

    /// With its topics and schemas as well.
    pub async fn open_with_contracts() -> Till<TEST> {
        let till = Till::open().await;
        for topic in [names(TEST).counted, names(TEST).tallied] {
            till.create_topic(topic, &[]).await;
            till.register(topic, topic.schema).await;
        }
        till
    }

    pub async fn create_topic(&self, topic: &Topic, settings: &[(&str, &str)]) {
        let new = NewTopic::new(topic.name, topic.partitions, TopicReplication::Fixed(1));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let made = self.admin().create_topics([&new], &AdminOptions::new()).await.unwrap();
        made[0].as_ref().unwrap();
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        kafka::client("test", &self.config.kafka).create().unwrap()
    }

    /// The schema's id.
    pub async fn register(&self, topic: &Topic, schema: &str) -> u32 {
        let url = self.config.schema_registry.schema_registry_url.clone();
        let settings = SrSettings::new_builder(url).build().unwrap();
        let schema = SuppliedSchema::new(None, SchemaType::Avro, schema.to_string());
        post_schema(&settings, topic.subject(), schema).await.unwrap().id
    }

    /// The same service with a proxy before its registry.
    pub async fn with_registry_proxy(&self) -> (Till<TEST>, Proxy) {
        let url = self.config.schema_registry.schema_registry_url.clone();
        let server = url.split('/').nth(2).unwrap().to_string();
        let proxy = Proxy::to(server.clone()).await;
        let there = url.replace(&server, &format!("127.0.0.1:{}", proxy.port));
        (self.with(|config| config.schema_registry.schema_registry_url = there), proxy)
    }

    /// The same service with a proxy before its database.
    pub async fn with_database_proxy(&self) -> (Till<TEST>, Proxy) {
        let server = format!("{}:{}", self.cluster.get_host(), self.cluster.get_port());
        let proxy = Proxy::to(server.clone()).await;
        let url = self.config.database_url.expose();
        let url = url.replace(&server, &format!("127.0.0.1:{}", proxy.port));
        (self.with(|config| config.database_url = url.into()), proxy)
    }

    /// The row of a till, locked until the answer is dropped.
    pub async fn lock(&self, till: &str) -> sqlx::PgTransaction<'static> {
        let mut tx = self.db.begin().await.unwrap();
        let lock = "insert into tallies values ($1, 0, 0)
                    on conflict (till) do update set counted = tallies.counted";
        sqlx::query(lock).bind(till).execute(&mut *tx).await.unwrap();
        tx
    }

    /// The same service, elsewhere.
    pub fn with(&self, change: impl FnOnce(&mut Config)) -> Till<TEST> {
        let mut till = self.clone();
        change(&mut till.config);
        till.db = schema::connect(self.service, &till.config).unwrap();
        till
    }

    pub fn relay(&self) -> Relay {
        let published = vec![names(TEST).counted, names(TEST).tallied];
        let beat = Heartbeats::new().register("relay", WITHIN);
        let (db, wake) = (self.db.clone(), self.wake.clone());
        Relay::new(self.service, &self.config.kafka, db, published, self.registry(), wake, beat)
    }

    pub fn consumer(&self) -> Consumer<Drawer> {
        let beat = Heartbeats::new().register("consumer", WITHIN);
        let (db, wake) = (self.db.clone(), self.wake.clone());
        Consumer::new(self.service, &self.config.kafka, db, self.registry(), wake, beat)
            .on(tally::<TEST>, uncounted::<TEST>)
    }

    /// Where commands go, with the loop that runs them.
    pub fn commands(&self) -> (Commands<Drawer>, Running) {
        let beat = Heartbeats::new().register("writers", WITHIN);
        let (commands, writers) = commands(self.db.clone(), self.wake.clone(), beat);
        (commands, Running::start(|stop| writers.run(stop)))
    }

    pub fn registry(&self) -> Arc<Registry> {
        Arc::new(Registry::new(&self.config.schema_registry).unwrap())
    }

    /// Runs a consumer until it has handled everything that its topics hold.
    pub async fn catch_up(&self) {
        let consumer = self.consumer();
        let group = consumer.group();
        let consuming = Running::start(|stop| consumer.run(stop));
        eventually("the group has caught up", async || group.caught_up().await).await;
        consuming.stop().await;
    }

    /// A client of the consumer's group that owns no partition, so that no offset is stored: as if
    /// the process died after each commit.
    pub fn client(&self) -> Arc<StreamConsumer<Reports>> {
        let config = kafka::consumer(self.service, &self.config.kafka);
        Arc::new(config.create_with_context(Reports::default()).unwrap())
    }

    /// The consumer's one step, on a given batch.
    pub async fn handle(&self, batch: Vec<OwnedMessage>) {
        let (consumer, client, stop) = (self.consumer(), self.client(), CancellationToken::new());
        consumer.batches(&client, &stop).handle(batch).await;
    }

    /// Events as Kafka gives them to a consumer, one partition's records from offset 0.
    pub async fn delivered(&self, events: &[Counted<TEST>]) -> Vec<OwnedMessage> {
        let topic = names(TEST).counted;
        let id = self.register(topic, topic.schema).await;
        let record = |(nth, event): (usize, &Counted<TEST>)| {
            let payload = frame(id, &Outgoing::of(event).body);
            let (key, name) = (event.till.clone().into_bytes(), topic.name.to_string());
            let headers = Some(event_id_header(&Uuid::now_v7().to_string()));
            let (payload, key) = (Some(payload), Some(key));
            OwnedMessage::new(payload, key, name, Timestamp::NotAvailable, 0, nth as i64, headers)
        };
        events.iter().enumerate().map(record).collect()
    }

    /// Publishes events, each in a transaction of its own.
    pub async fn publish(&self, events: &[Counted<TEST>]) -> Vec<Uuid> {
        let mut ids = Vec::new();
        for event in events {
            let mut tx = self.db.begin().await.unwrap();
            let envelope = envelope(event);
            ids.push(envelope.event_id);
            publish(&mut tx, &[envelope]).await;
            tx.commit().await.unwrap();
        }
        self.wake.relay.notify_one();
        ids
    }

    /// Everything that a topic holds, partition by partition.
    pub async fn records(&self, topic: &'static Topic) -> Vec<OwnedMessage> {
        let client = kafka::client("reader", &self.config.kafka)
            .set("group.id", "reader")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        tokio::task::spawn_blocking(move || read(&client, topic.name).unwrap()).await.unwrap()
    }

    /// What was published, as (event id, till, amount), in each till's order of the topic.
    pub async fn published(&self) -> Vec<(Uuid, String, i64)> {
        let records = self.records(names(TEST).counted).await;
        let told = |record: &OwnedMessage| {
            let codec = names(TEST).counted.codec();
            let event: Counted<TEST> =
                codec.decode(codec, &record.payload().unwrap()[5..]).unwrap();
            (header(record, "ce_id").unwrap().parse().unwrap(), event.till, event.amount)
        };
        records.iter().map(told).collect()
    }

    /// How many events have been counted into each till, and their sum.
    pub async fn tallies(&self) -> BTreeMap<String, (i64, i64)> {
        let tallies: Vec<Tally> =
            sqlx::query_as("select * from tallies").fetch_all(&self.db).await.unwrap();
        tallies.into_iter().map(|tally| (tally.till, (tally.counted, tally.total))).collect()
    }

    /// One number that the database tells.
    pub async fn number(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.db).await.unwrap()
    }

    pub async fn outbox_is_empty(&self) {
        eventually("the outbox is empty", async || {
            self.number("select count(*) from outbox").await == 0
        })
        .await;
    }

    /// Until what was published to a topic has gone out; the consumer's answers may still be there.
    pub async fn outbox_is_empty_of(&self, topic: &Topic) {
        eventually("the outbox is empty", async || {
            let left = "select count(*) from outbox where topic = $1";
            let left: i64 =
                sqlx::query_scalar(left).bind(topic.name).fetch_one(&self.db).await.unwrap();
            left == 0
        })
        .await;
    }

    /// Kind, reason and place of what was set aside.
    pub async fn letters(&self) -> Vec<Letter> {
        sqlx::query_as("select * from dead_letters order by partition, \"offset\"")
            .fetch_all(&self.db)
            .await
            .unwrap()
    }

    /// A session of the superuser.
    pub async fn session(&self) -> PgConnection {
        self.cluster.connect().await.unwrap()
    }

    /// Runs a statement as the superuser.
    pub async fn force(&self, statement: &str) {
        let mut session = self.session().await;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.unwrap();
    }

    /// Until so many sessions of the service wait for locks.
    pub async fn blocked(&self, sessions: i64) {
        eventually("sessions wait for a lock", async || {
            let waiting = "select count(*) from pg_stat_activity
                           where datname = current_database() and wait_event_type = 'Lock'";
            self.number(waiting).await >= sessions
        })
        .await;
    }
}

#[derive(Debug, sqlx::FromRow)]
pub struct Letter {
    partition: i32,
    offset: i64,
    event_id: Option<Uuid>,
    record: Option<Vec<u8>>,
    kind: String,
    reason: String,
}

fn config(owner: Secret, server: Secret) -> Config {
    crate::environment::read_from(|name| match name {
        "DATABASE_URL" => Some(server.expose().to_owned()),
        "MIGRATION_DATABASE_URL" => Some(owner.expose().to_owned()),
        "KAFKA_BOOTSTRAP_SERVERS" | "SCHEMA_REGISTRY_URL" => {
            Some(std::env::var(format!("TEST_{name}")).expect("run by `make test`"))
        }
        _ => None,
    })
    .unwrap()
}

fn envelope<const TEST: u32>(event: &Counted<TEST>) -> Envelope {
    Envelope {
        event: Outgoing::of(event),
        event_id: Uuid::now_v7(),
        traceparent: None,
        cause: None,
        occurred_at: chrono::Utc::now(),
    }
}

fn event_id_header(id: &str) -> OwnedHeaders {
    OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(id) })
}

fn header<'a>(record: &'a OwnedMessage, key: &str) -> Option<&'a str> {
    let header = record.headers()?.iter().find(|header| header.key == key)?;
    Some(std::str::from_utf8(header.value?).unwrap())
}

fn read(client: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<OwnedMessage>> {
    let mut partitions = TopicPartitionList::new();
    let (mut records, mut held) = (Vec::new(), 0);
    let metadata = client.fetch_metadata(Some(topic), WITHIN)?;
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = client.fetch_watermarks(topic, partition.id(), WITHIN)?;
        partitions.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        held += (high - low) as usize;
    }
    client.assign(&partitions)?;
    while records.len() < held {
        let record = client.poll(WITHIN).context("a record is missing")??;
        records.push(record.detach());
    }
    Ok(records)
}

/// The one way to wait: looks until it is so, up to a deadline.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {WITHIN:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A loop that runs as in a service, until it is stopped or dropped.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub fn start<F>(run: impl FnOnce(CancellationToken) -> F) -> Running
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        Running { task: tokio::spawn(run(stop.clone())), stop }
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn status(answer: &Result<Reply, Problem>) -> StatusCode {
    use axum::response::IntoResponse;
    match answer {
        Ok(_) => StatusCode::CREATED,
        Err(problem) => problem.clone().into_response().status(),
    }
}
