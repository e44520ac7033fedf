//! The fixture: a small service for one test, with its own database, topics and consumer group.

use messaging::consumer::resources::ConsumerResources;
use messaging::outbox::producer::Producer;
use messaging::outbox::sender::OutboxSender;
use rdkafka::ClientConfig;
use tokio::sync::watch;

use super::*;

/// A till cannot hold a million.
pub const CREATE_TALLIES: &str = "
    create table tallies (
        till    text primary key,
        counted bigint not null,
        total   bigint not null check (total < 1000000)
    )";

/// A small service for one test.
#[derive(Clone)]
pub struct Fixture<const TEST: u32> {
    pub service: &'static str,
    pub config: Config,
    pub db: PgPool,
    /// The superuser's connection to the same database, without a proxy.
    pub superuser: PgConnectOptions,
    pub wakeups: Arc<Wakeups>,
}

impl<const TEST: u32> Fixture<TEST> {
    /// Creates its database; nothing is created in Kafka or in the registry.
    pub async fn create() -> Fixture<TEST> {
        messaging::flow::IS_TEST.store(true, std::sync::atomic::Ordering::Relaxed);
        static OPENED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
        assert!(OPENED.lock().insert(TEST), "test number {TEST} is taken");
        let service = names(TEST).service;
        let (owner, server) = testing::fresh_database().await;
        let database: PgConnectOptions = server.expose().parse().unwrap();
        let cluster = std::env::var("TEST_DATABASE_URL").expect("the cluster's URL");
        let cluster: PgConnectOptions = cluster.parse().unwrap();
        let superuser = cluster.database(database.get_database().unwrap());
        let superuser = superuser.options([("default_transaction_read_only", "off")]);
        let config = config(owner, server);
        let migrator = migrate::tests::migrator([(1, CREATE_TALLIES.into_sql_str())]);
        migrate::migrate(service, &config, migrator).await.unwrap();
        let db = crate::db::pool::connect(service, &config).unwrap();
        let fixture = Fixture { service, config, db, superuser, wakeups: Arc::default() };
        let published = [names(TEST).counted, names(TEST).tallied];
        outbox::store_schemas(&fixture.db, &published).await.unwrap();
        fixture
    }

    /// Creates its topics and registers its schemas as well.
    pub async fn create_with_contracts() -> Fixture<TEST> {
        let fixture = Fixture::create().await;
        for topic in [names(TEST).counted, names(TEST).tallied] {
            fixture.create_topic(topic, &[]).await;
            fixture.register_schema(topic, topic.schema).await;
        }
        fixture
    }

    /// Creates it with a mock broker that can be made to fail in place of Kafka.
    pub async fn create_with_mock_kafka() -> (Fixture<TEST>, MockKafka) {
        with_mock_kafka(&Fixture::create().await).await
    }

    pub async fn create_topic(&self, topic: &Topic, settings: &[(&str, &str)]) {
        let new = NewTopic::new(topic.name, topic.partitions, TopicReplication::Fixed(1));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let made = self.admin_client().create_topics([&new], &AdminOptions::new()).await.unwrap();
        made[0].as_ref().unwrap();
    }

    pub fn admin_client(&self) -> AdminClient<DefaultClientContext> {
        self.config.kafka.client_config("test").create().unwrap()
    }

    /// The schema's id.
    pub async fn register_schema(&self, topic: &Topic, schema: &str) -> u32 {
        let url = self.config.schema_registry.schema_registry_url.clone();
        let settings = SrSettings::new_builder(url).no_proxy().build().unwrap();
        let schema = SuppliedSchema::new(None, SchemaType::Avro, schema.to_string());
        post_schema(&settings, topic.subject(), schema).await.unwrap().id
    }

    /// The same service with a proxy before its registry.
    pub async fn with_registry_proxy(&self) -> (Fixture<TEST>, Proxy) {
        let url = self.config.schema_registry.schema_registry_url.clone();
        let server = url.split('/').nth(2).unwrap().to_string();
        let proxy = Proxy::new(server.clone()).await;
        let there = url.replace(&server, &format!("127.0.0.1:{}", proxy.port));
        (self.with_config(|config| config.schema_registry.schema_registry_url = there), proxy)
    }

    /// The same service with a proxy before its database.
    pub async fn with_database_proxy(&self) -> (Fixture<TEST>, Proxy) {
        let server = format!("{}:{}", self.superuser.get_host(), self.superuser.get_port());
        let proxy = Proxy::new(server.clone()).await;
        let url = self.config.database_url.expose();
        let url = url.replace(&server, &format!("127.0.0.1:{}", proxy.port));
        (self.with_config(|config| config.database_url = url.into()), proxy)
    }

    /// Locks the row of a till until the returned transaction is dropped.
    pub async fn lock_tally(&self, till: &str) -> sqlx::PgTransaction<'static> {
        let mut tx = self.db.begin().await.unwrap();
        let lock = "insert into tallies values ($1, 0, 0)
                    on conflict (till) do update set counted = tallies.counted";
        sqlx::query(lock).bind(till).execute(&mut *tx).await.unwrap();
        tx
    }

    /// The same service with a changed configuration.
    pub fn with_config(&self, change: impl FnOnce(&mut Config)) -> Fixture<TEST> {
        let mut fixture = self.clone();
        change(&mut fixture.config);
        fixture.db = crate::db::pool::connect(self.service, &fixture.config).unwrap();
        fixture
    }

    pub fn relay(&self) -> Relay {
        self.relay_with(watch::channel(self.config.kafka.connection()).1)
    }

    /// A relay whose settings of Kafka may change.
    pub fn relay_with(&self, kafka: watch::Receiver<ClientConfig>) -> Relay {
        let beat = Heartbeats::default().register("relay", TEST_TIMEOUT);
        let (db, wake) = (self.db.clone(), self.wakeups.clone());
        Relay::new(self.service, kafka, db, self.registry(), wake, beat)
    }

    pub fn start_relay(&self) -> RunningLoop {
        let relay = self.relay();
        RunningLoop::start(|stop| relay.run(stop))
    }

    /// Runs a relay until the outbox is empty.
    pub async fn relay_all(&self) {
        let relaying = self.start_relay();
        self.wait_for_empty_outbox().await;
        relaying.stop().await;
    }

    pub(crate) async fn sender(&self) -> SteppedSender {
        let producer = Producer::new(self.service, &self.config.kafka.connection()).unwrap();
        // It lives as long as the process, as does that of a service.
        let registry: &'static SchemaRegistryClient = Box::leak(Box::new(self.registry_client()));
        let sender = OutboxSender::new(self.service, producer, registry);
        SteppedSender::new(sender, self.db.acquire().await.unwrap())
    }

    /// A consumer with these handlers alone.
    pub fn consumer_of<R: UnitOfWork>(&self, handlers: Handlers<R>) -> Consumer<R> {
        self.consumer_with(watch::channel(self.config.kafka.connection()).1, handlers)
    }

    /// The same, whose settings of Kafka may change.
    pub fn consumer_with<R: UnitOfWork>(
        &self,
        kafka: watch::Receiver<ClientConfig>,
        handlers: Handlers<R>,
    ) -> Consumer<R> {
        let heartbeat = Heartbeats::default().register("consumer", TEST_TIMEOUT);
        let (db, registry) = (self.db.clone(), self.registry());
        let router = Arc::new(handlers.into_router(self.service));
        let wakeups = self.wakeups.clone();
        let scheduler_heartbeat =
            router.has_timers().then(|| Heartbeats::default().register("scheduler", TEST_TIMEOUT));
        let resources =
            ConsumerResources { db, registry, wakeups, heartbeat, scheduler_heartbeat, router };
        Consumer::new(self.service, kafka, resources)
    }

    pub fn handlers(&self) -> Handlers<Tills> {
        Handlers::new().on_with(tally::<TEST>, discard_impact::<TEST>)
    }

    pub fn consumer(&self) -> Consumer<Tills> {
        self.consumer_of(self.handlers())
    }

    pub fn start_consumer(&self) -> RunningLoop {
        let consumer = self.consumer();
        RunningLoop::start(|stop| consumer.run(stop))
    }

    pub fn stepped_consumer(&self) -> SteppedConsumer {
        SteppedConsumer::new(self.consumer(), self.group_client())
    }

    /// The command queue and the loop that executes its commands.
    pub fn commands(&self) -> (Commands<Tills>, RunningLoop) {
        self.commands_of()
    }

    /// The same on other rows.
    pub fn commands_of<R: UnitOfWork>(&self) -> (Commands<R>, RunningLoop) {
        let beat = Heartbeats::default().register("command executor", TEST_TIMEOUT);
        let (commands, writers) =
            command_channel(self.service, self.db.clone(), self.wakeups.clone(), beat);
        (commands, RunningLoop::start(|stop| writers.run(stop)))
    }

    pub fn registry(&self) -> Arc<SchemaRegistryClient> {
        Arc::new(self.registry_client())
    }

    fn registry_client(&self) -> SchemaRegistryClient {
        self.config.schema_registry.client().unwrap().keeping_ids_in(self.db.clone())
    }

    /// Runs a consumer until it has handled everything that its topics hold.
    pub async fn catch_up(&self) {
        let consumer = self.consumer();
        let group = consumer.lag();
        let consuming = RunningLoop::start(|stop| consumer.run(stop));
        eventually("the group has caught up", async || group.caught_up().await.is_some()).await;
        consuming.stop().await;
    }

    /// A client of the consumer's group that owns no partition, so that no offset is stored: as if
    /// the process died after each commit.
    pub fn group_client(&self) -> Arc<StreamConsumer<GroupContext>> {
        let config = kafka::consumer_config(
            self.service,
            &self.config.kafka.connection(),
            Isolation::ReadUncommitted,
        );
        Arc::new(config.create_with_context(GroupContext::default()).unwrap())
    }

    /// The consumer's one step, on a given batch, and further ones until no event of it is deferred.
    pub async fn handle(&self, batch: Vec<OwnedMessage>) {
        self.stepped_consumer().handle(batch).await;
    }

    /// Events as records that Kafka delivers, in one partition from offset 0.
    pub async fn to_records(&self, events: &[Counted<TEST>]) -> Vec<OwnedMessage> {
        let topic = names(TEST).counted;
        let id = self.register_schema(topic, topic.schema).await;
        let record = |(nth, event): (usize, &Counted<TEST>)| {
            let payload = frame(id, &Outgoing::from_event(event).body);
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
            let envelope = envelope(event);
            ids.push(envelope.event_id);
            self.publish_together(&[envelope]).await;
        }
        self.wakeups.relay.notify_one();
        ids
    }

    /// Publishes events, and waits until a relay that runs has sent all that is in the outbox.
    pub async fn deliver(&self, events: &[Counted<TEST>]) {
        self.publish(events).await;
        self.wait_for_empty_outbox().await;
    }

    /// Publishes events in one transaction.
    pub async fn publish_together(&self, events: &[Envelope]) {
        let mut tx = self.db.begin().await.unwrap();
        publish_in(&mut tx, events).await;
        tx.commit().await.unwrap();
    }

    /// Everything that a topic holds, partition by partition.
    pub async fn records(&self, topic: &'static Topic) -> Vec<OwnedMessage> {
        let client = self
            .config
            .kafka
            .client_config("reader")
            .set("group.id", "reader")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        tokio::task::spawn_blocking(move || read_topic(&client, topic.name).unwrap()).await.unwrap()
    }

    /// What was published, as (event id, till, amount), in each till's order of the topic.
    pub async fn published(&self) -> Vec<(Uuid, String, i64)> {
        let records = self.records(names(TEST).counted).await;
        let decode = |record: &OwnedMessage| {
            let codec = names(TEST).counted.codec();
            let event: Counted<TEST> =
                codec.decode(codec, &record.payload().unwrap()[5..]).unwrap();
            (header(record, "ce_id").unwrap().parse().unwrap(), event.till, event.amount)
        };
        records.iter().map(decode).collect()
    }

    /// How many events have been counted into each till, and their sum.
    pub async fn tallies(&self) -> BTreeMap<String, (i64, i64)> {
        let tallies: Vec<Tally> =
            sqlx::query_as("select * from tallies").fetch_all(&self.db).await.unwrap();
        tallies.into_iter().map(|tally| (tally.till, (tally.counted, tally.total))).collect()
    }

    /// How many events have been counted into all tills.
    pub async fn counted(&self) -> i64 {
        self.query_number("select coalesce(sum(counted), 0)::bigint from tallies").await
    }

    /// The number of rows of a table, which may be followed by a condition.
    pub async fn count(&self, rows: &'static str) -> i64 {
        let count = AssertSqlSafe(format!("select count(*) from {rows}"));
        sqlx::query_scalar(count).fetch_one(&self.db).await.unwrap()
    }

    /// The result of a query for one number.
    pub async fn query_number(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.db).await.unwrap()
    }

    pub async fn wait_for_empty_outbox(&self) {
        self.wait_for_outbox(0).await;
    }

    /// Waits until the outbox has this many rows.
    pub async fn wait_for_outbox(&self, rows: i64) {
        eventually("rows are relayed", async || self.count("chassis.outbox").await == rows).await;
    }

    /// Waits until the outbox has no row of a topic; rows of other topics may remain.
    pub async fn wait_until_relayed(&self, topic: &Topic) {
        let left = "select count(*) from chassis.outbox where topic = $1";
        eventually("its rows are relayed", async || {
            let left = sqlx::query_scalar::<_, i64>(left).bind(topic.name);
            left.fetch_one(&self.db).await.unwrap() == 0
        })
        .await;
    }

    /// All dead letters, by partition and offset.
    pub async fn dead_letters(&self) -> Vec<DeadLetterRow> {
        sqlx::query_as("select * from chassis.dead_letters order by partition, \"offset\"")
            .fetch_all(&self.db)
            .await
            .unwrap()
    }

    /// A connection of the superuser.
    pub async fn superuser_connection(&self) -> PgConnection {
        self.superuser.connect().await.unwrap()
    }

    /// Runs a statement as the superuser.
    pub async fn execute_as_superuser(&self, statement: &str) {
        let mut session = self.superuser_connection().await;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.unwrap();
    }

    /// Waits until this many sessions of the service wait for locks.
    pub async fn wait_for_blocked(&self, sessions: i64) {
        eventually("sessions wait for a lock", async || {
            let waiting = "select count(*) from pg_stat_activity
                           where datname = current_database() and wait_event_type = 'Lock'";
            self.query_number(waiting).await >= sessions
        })
        .await;
    }
}

#[derive(Debug, sqlx::FromRow)]
pub struct DeadLetterRow {
    pub partition: i32,
    pub offset: i64,
    pub event_id: Option<Uuid>,
    pub record: Option<Vec<u8>>,
    pub kind: String,
    pub reason: String,
}

pub fn envelope(event: &impl Event) -> Envelope {
    Envelope {
        event: Outgoing::from_event(event),
        event_id: Uuid::now_v7(),
        traceparent: None,
        tracestate: None,
        causation_id: None,
        occurred_at: chrono::Utc::now(),
    }
}

pub fn config(owner: Secret, server: Secret) -> Config {
    let given = |name| std::env::var(name).expect("`make test` sets the variable");
    let mut config = testing::config(owner, server);
    config.kafka.kafka_bootstrap_servers = given("TEST_KAFKA_BOOTSTRAP_SERVERS");
    config.schema_registry.schema_registry_url = given("TEST_SCHEMA_REGISTRY_URL");
    config.schema_registry.schema_registry_lag = Duration::from_secs(3);
    config
}

/// The committed offsets of the group, of the partitions that have one.
pub async fn committed_offsets<const TEST: u32>(fixture: &Fixture<TEST>) -> Vec<i64> {
    let client = fixture.group_client();
    let query = move || {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(names(TEST).counted.name, 0, 2);
        let committed = client.committed_offsets(partitions, TEST_TIMEOUT).unwrap();
        let offsets = committed.elements().into_iter().filter_map(|it| it.offset().to_raw());
        offsets.filter(|offset| *offset >= 0).collect()
    };
    tokio::task::spawn_blocking(query).await.unwrap()
}
