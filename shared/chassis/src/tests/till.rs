//! A small service of a test's own: database, topics, consumer group, and every way to look at them.

use std::path::Path;

use super::*;
use crate::producer::Producer;
use crate::round::Round;

/// Where the chassis's own migrations are found, `*_messaging.sql`, beside those of a service.
const MIGRATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../services/stock/migrations");

/// A till can't hold a million.
pub const TALLIES: &str = "
    create table tallies (
        till    text primary key,
        counted bigint not null,
        total   bigint not null check (total < 1000000)
    )";

/// A service of a test's own.
#[derive(Clone)]
pub struct Till<const TEST: u32> {
    pub service: &'static str,
    pub config: Config,
    pub db: PgPool,
    /// The superuser's way into the same database, past every proxy.
    pub cluster: PgConnectOptions,
    pub wake: Arc<Wake>,
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
        let stock = Migrator::new(Path::new(MIGRATIONS)).await.unwrap();
        let is_messaging =
            |it: &&Migration| it.description.split(' ').next_back() == Some("messaging");
        let messaging = stock.iter().filter(is_messaging).cloned();
        let sql = AssertSqlSafe(TALLIES).into_sql_str();
        let own = Migration::new(i64::MAX, "tables".into(), MigrationType::Simple, sql, false);
        let migrator = Migrator::with_migrations(messaging.chain([own]).collect());
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
        let settings = SrSettings::new_builder(url).no_proxy().build().unwrap();
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
        let beat = Heartbeats::new().register("relay", WITHIN);
        let (db, wake) = (self.db.clone(), self.wake.clone());
        Relay::new(self.service, &self.config.kafka, db, self.registry(), wake, beat)
    }

    /// The relay's one step, and what it keeps between them.
    pub fn round<'a>(&self, registry: &'a Registry) -> Round<'a> {
        let producer = Producer::new(self.service, &self.config.kafka).unwrap();
        Round::new(self.service, producer, registry)
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
        let (commands, writers) = commands(self.service, self.db.clone(), self.wake.clone(), beat);
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
        eventually("the group has caught up", async || group.caught_up().await.is_some()).await;
        consuming.stop().await;
    }

    /// A client of the consumer's group that owns no partition, so that no offset is stored: as if
    /// the process died after each commit.
    pub fn client(&self) -> Arc<StreamConsumer<Reports>> {
        let config = kafka::consumer(self.service, &self.config.kafka, Isolation::ReadUncommitted);
        Arc::new(config.create_with_context(Reports::default()).unwrap())
    }

    /// The consumer's one step, on a given batch, and further ones until no event of it is deferred.
    pub async fn handle(&self, batch: Vec<OwnedMessage>) {
        handle_all(&self.consumer(), &self.client(), batch).await;
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

/// A consumer's one step, on a given batch, and further ones until no event of it is deferred.
pub async fn handle_all(
    consumer: &Consumer<Drawer>,
    client: &Arc<StreamConsumer<Reports>>,
    batch: Vec<OwnedMessage>,
) {
    let stop = CancellationToken::new();
    let mut batches = consumer.batches(client, &stop);
    batches.handle(batch, &client.context().assigned()).await;
    while let Some(due_at) = batches.next_due() {
        tokio::time::sleep_until(due_at).await;
        batches.retry_deferred().await;
    }
}

#[derive(Debug, sqlx::FromRow)]
pub struct Letter {
    pub partition: i32,
    pub offset: i64,
    pub event_id: Option<Uuid>,
    pub record: Option<Vec<u8>>,
    pub kind: String,
    pub reason: String,
}

pub fn envelope<const TEST: u32>(event: &Counted<TEST>) -> Envelope {
    Envelope {
        event: Outgoing::of(event),
        event_id: Uuid::now_v7(),
        traceparent: None,
        cause: None,
        occurred_at: chrono::Utc::now(),
    }
}

pub fn config(owner: Secret, server: Secret) -> Config {
    let given = |name| std::env::var(name).expect("run by `make test`");
    let mut config = testing::config(owner, server);
    config.kafka.kafka_bootstrap_servers = given("TEST_KAFKA_BOOTSTRAP_SERVERS");
    config.schema_registry.schema_registry_url = given("TEST_SCHEMA_REGISTRY_URL");
    config.schema_registry.schema_registry_lag = Duration::from_secs(3);
    config
}

/// The offsets that the group has committed, of the partitions where it has.
pub async fn committed<const TEST: u32>(till: &Till<TEST>) -> Vec<i64> {
    let client = till.client();
    let look = move || {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(names(TEST).counted.name, 0, 2);
        let committed = client.committed_offsets(partitions, WITHIN).unwrap();
        committed.elements().iter().filter_map(|place| place.offset().to_raw()).collect::<Vec<_>>()
    };
    let offsets = tokio::task::spawn_blocking(look).await.unwrap();
    offsets.into_iter().filter(|offset| *offset >= 0).collect()
}
