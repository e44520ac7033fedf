//! A service on a database of its own.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chassis::admin::republish;
use chassis::event::avro::Codec;
use chassis::event::{Event, HandlerContext, HandlerResult, Outcome, Unprocessable};
use chassis::http::commands::command_channel;
use chassis::{
    ChangeFeed, Commands, FeedEntry, Handlers, Heartbeats, Loads, RepublishSource, UnitOfWork,
    books, db, testing,
};
use chrono::{DateTime, Utc};
use host::db::{migrate, pool};
use messaging::dead_letter::ReasonKind;
use messaging::flow::wakeups::Wakeups;
use messaging::kafka::writer_schemas::WriterSchemas;
use messaging::transaction::events::apply_events;
use messaging::transaction::failure::Failure;
use messaging::transaction::incoming_record::IncomingRecord;
use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::event_producer::{SCHEMA_ID, kafka_record};
use crate::{TestClient, TestResponse};

/// A service's database and the executors of its commands, without its loops to Kafka. The executors end when it is
/// dropped.
pub struct TestService<R: UnitOfWork> {
    pub(crate) service: &'static str,
    wakeups: Arc<Wakeups>,
    _stop: DropGuard,
    /// The pool of the serving role, which may change rows and no tables, and no row of an append-only table.
    pub db: PgPool,
    /// The pool of the role that owns the tables, for rows that the service itself cannot write.
    pub owner: PgPool,
    /// Takes commands, as the service's API does.
    pub commands: Commands<R>,
}

impl<R: UnitOfWork> TestService<R> {
    /// Creates a database on the cluster of `TEST_DATABASE_URL`, migrates it as its owner, and starts the executors
    /// as the serving role. `service` is the publisher's name in its topics.
    ///
    /// # Panics
    /// If there is no such cluster, or a migration fails.
    pub async fn new(service: &'static str, migrator: Migrator) -> TestService<R> {
        let (owner, server) = testing::fresh_database().await;
        let mut config = testing::config(owner.clone(), server);
        migrate::migrate(service, &config, migrator).await.expect("the migrations run");
        let db = pool::connect(service, &config).expect("the URL can be read");
        config.database_url = owner;
        let owner = pool::connect(service, &config).expect("the URL can be read");
        let heartbeat = Heartbeats::default().register("command executor", Duration::from_secs(60));
        let wakeups = Arc::<Wakeups>::default();
        let (commands, executor) = command_channel(service, db.clone(), wakeups.clone(), heartbeat);
        let stop = CancellationToken::new();
        tokio::spawn(executor.run(stop.clone()));
        TestService { service, wakeups, _stop: stop.drop_guard(), db, owner, commands }
    }

    /// The change feed of this replica. It ends with `stop`.
    pub fn change_feed<E: FeedEntry>(&self, stop: &CancellationToken) -> ChangeFeed<E> {
        ChangeFeed::new(self.db.clone(), self.wakeups.clone(), stop.clone())
    }

    /// The change feed of another replica, on a pool of its own: commits of this replica do not wake it.
    pub fn remote_change_feed<E: FeedEntry>(&self, stop: &CancellationToken) -> ChangeFeed<E> {
        let db = self.db.options().clone().connect_lazy_with((*self.db.connect_options()).clone());
        ChangeFeed::new(db, Arc::default(), stop.clone())
    }

    /// Delivers events of one type, each with its id, in one transaction, on the path of records from Kafka. Returns
    /// the ids of the events that were published in response: none, if the handler publishes nothing or each event
    /// was handled before.
    ///
    /// It applies the events once. The consumer's loop would try them again if another transaction inserted the same
    /// row at the same moment.
    ///
    /// # Errors
    /// The reason, if the handler found one of the events unprocessable. Then the batch leaves nothing behind.
    ///
    /// # Panics
    /// If the database refuses what the handler wrote.
    pub async fn deliver<E: Event, O: Outcome + 'static>(
        &self,
        events: &[(Uuid, &E)],
        handler: fn(&E, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Result<Vec<Uuid>, Unprocessable>
    where
        R: Loads<E>,
    {
        let ids: Vec<Uuid> = events.iter().map(|(id, _)| *id).collect();
        let before = self.event_ids_caused_by(&ids).await.len();
        self.apply(events, handler).await?;
        Ok(self.event_ids_caused_by(&ids).await.split_off(before))
    }

    async fn apply<E: Event, O: Outcome + 'static>(
        &self,
        events: &[(Uuid, &E)],
        handler: fn(&E, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Result<(), Unprocessable>
    where
        R: Loads<E>,
    {
        let routes = Handlers::new().on(handler).into_router(self.service);
        let written = Codec::new(E::topic().schema).expect("the schema is valid");
        let schemas = WriterSchemas::single(SCHEMA_ID, written);
        let records = events.iter().map(|(id, event)| kafka_record(*id, *event));
        let items: Vec<_> = records.map(|record| routes.parse(record, &schemas)).collect();
        let unreadable = items.iter().find_map(IncomingRecord::as_dead_letter);
        assert!(unreadable.is_none(), "an event can't be read");
        self.apply_items(&items).await
    }

    pub(crate) async fn apply_items(
        &self,
        items: &[IncomingRecord<R>],
    ) -> Result<(), Unprocessable> {
        let mut tx = db::begin(&self.db).await.expect("a transaction");
        let now = db::now(&mut tx).await.expect("the time");
        match apply_events(&mut tx, items, now, true, 1).await {
            Ok(effect) => {
                tx.commit().await.expect("the commit");
                effect.after_commit(&self.wakeups);
                Ok(())
            }
            Err(Failure::Undecidable(_, reason)) if reason.kind == ReasonKind::Unprocessable => {
                Err(Unprocessable(reason.detail))
            }
            Err(failure) => panic!("the events were not applied: {failure}"),
        }
    }

    /// The operators' route that publishes the events of these rows again.
    fn republish(&self, sources: Vec<RepublishSource>) -> TestClient {
        let router = republish::router(self.db.clone(), Arc::default(), sources);
        TestClient(router.into())
    }

    /// The ids of the events in the outbox that these events caused.
    async fn event_ids_caused_by(&self, ids: &[Uuid]) -> Vec<Uuid> {
        sqlx::query_scalar(
            "select event_id from chassis.outbox where causation_id = any($1) order by position",
        )
        .bind(ids)
        .fetch_all(&self.db)
        .await
        .expect("the outbox")
    }

    /// Every event of one type that was published so far, in the order of the outbox.
    pub async fn published<E: Event>(&self) -> Vec<E> {
        let records = self.outbox_records().await.into_iter();
        let of_topic = records.filter(|record| record.topic == E::topic().name);
        of_topic.map(|record| record.decode()).collect()
    }

    /// What was published so far, in the order of the outbox: topic, key and event id.
    pub async fn outbox_entries(&self) -> Vec<(String, String, Uuid)> {
        let records = self.outbox_records().await.into_iter();
        records.map(|record| (record.topic, record.key, record.event_id)).collect()
    }

    /// What was published so far, in the order of the outbox.
    pub async fn outbox_records(&self) -> Vec<OutboxRecord> {
        sqlx::query_as(
            "select event_id, topic, key, schema_fingerprint, body, occurred_at
             from chassis.outbox order by position",
        )
        .fetch_all(&self.db)
        .await
        .expect("the outbox")
    }

    /// Requests a republish of the rows of `sources`. Returns the operator's response, and what was added to the
    /// outbox.
    ///
    /// # Panics
    /// If an event of a topic was added that no source names.
    pub async fn republished(
        &self,
        sources: impl IntoIterator<Item = RepublishSource>,
        request: Value,
    ) -> (TestResponse, Vec<OutboxRecord>) {
        let sources = Vec::from_iter(sources);
        let topics = sources.iter().flat_map(RepublishSource::topic_names).copied();
        let topics = HashSet::<&str>::from_iter(topics);
        let before = self.outbox_records().await.len();
        let admin = self.republish(sources);
        let response = admin.post("/republish", None, request).await;
        let added = self.outbox_records().await.split_off(before);
        let is_covered = |record: &OutboxRecord| topics.contains(&*record.topic);
        assert!(added.iter().all(is_covered), "{topics:?} lacks a topic");
        (response, added)
    }

    /// The answer to an operator who requests the events that the rows of `sources` record for a key.
    pub async fn published_events(
        &self,
        sources: impl IntoIterator<Item = RepublishSource>,
        key: &str,
    ) -> TestResponse {
        let admin = self.republish(Vec::from_iter(sources));
        admin.get(&format!("/published-events?key={key}")).await
    }

    /// The number of rows of a table, such as `items` or `chassis.inbox`.
    pub async fn count_rows(&self, table: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {table}")))
            .fetch_one(&self.db)
            .await
            .expect("the table")
    }

    /// The books of the rows, by the statement that the service gives to `Service::run`.
    pub fn books(&self, sums: &'static str) -> TestClient {
        TestClient(books::router(self.db.clone(), sums))
    }

    /// Corrupts and repairs the rows that the books compare, by one pair of statements after the other. The books
    /// must report each corruption and each repair. The owner of the tables runs the statements.
    ///
    /// # Panics
    /// If they do not.
    pub async fn assert_books_detect(
        &self,
        sums: &'static str,
        corruptions: &[(&'static str, &'static str)],
    ) {
        let books = self.books(sums);
        for (corrupt, repair) in corruptions {
            for (statement, balanced) in [(*corrupt, false), (*repair, true)] {
                sqlx::query(statement).execute(&self.owner).await.expect(statement);
                let books = books.get("/books").await.body;
                assert_eq!(books["balanced"], balanced, "{statement}");
            }
        }
    }

    /// Runs a statement that the database has to refuse, even to the owner of the tables; returns its SQLSTATE.
    ///
    /// # Panics
    /// If the database accepts it.
    pub async fn expect_sqlstate(&self, statement: &'static str) -> String {
        let refused = sqlx::query(statement).execute(&self.owner).await.expect_err(statement);
        let refused = refused.into_database_error().expect("the database refuses it");
        refused.code().expect("an SQLSTATE").into_owned()
    }

    /// Tries to change, lock and delete the rows of tables as the serving role.
    ///
    /// # Panics
    /// If these are not all append-only tables of the service, or the database accepts a statement.
    pub async fn assert_append_only(&self, tables: &[&str]) {
        let declared = "select relname::text, attname::text from pg_class
                        join pg_attribute on attrelid = pg_class.oid and attnum = 1
                        where relnamespace = current_schema()::regnamespace
                          and obj_description(pg_class.oid, 'pg_class') like 'append-only%'
                        order by relname";
        let declared = sqlx::query_as(declared).fetch_all(&self.db).await;
        let declared: Vec<(String, String)> = declared.expect("the tables");
        assert!(declared.iter().map(|(table, _)| table).eq(tables), "{declared:?}");
        for (table, column) in declared {
            self.count_rows(&table).await;
            for statement in [
                format!("update {table} set {column} = {column}"),
                format!("delete from {table}"),
                format!("truncate {table}"),
                format!("select from {table} for key share"),
            ] {
                let refused = sqlx::query(AssertSqlSafe(statement.as_str())).execute(&self.db);
                let refused = refused.await.expect_err(&statement).into_database_error();
                let code = refused.and_then(|error| error.code().map(Cow::into_owned));
                assert_eq!(code.as_deref(), Some("42501"), "{statement}");
            }
        }
    }
}

/// An event in the outbox, as its record will be in its topic.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub struct OutboxRecord {
    /// The id of the event.
    pub event_id: Uuid,
    /// Its topic.
    pub topic: String,
    /// Its key.
    pub key: String,
    /// The fingerprint of the schema that the body was written with.
    pub schema_fingerprint: Vec<u8>,
    /// Its Avro body, without the wire header.
    pub body: Vec<u8>,
    /// The time of the decision, by the database's clock.
    pub occurred_at: DateTime<Utc>,
}

impl OutboxRecord {
    /// The event.
    ///
    /// # Panics
    /// If it is no event of this type.
    pub fn decode<E: Event>(&self) -> E {
        assert_eq!(self.topic, E::topic().name);
        let codec = E::topic().codec();
        codec.decode(codec, &self.body).expect("an event has the schema of its topic")
    }
}
