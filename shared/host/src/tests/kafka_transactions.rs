//! Kafka transactions of other producers: open ones, aborted ones, and their control records.

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::*;

/// Shorter than the broker's limit, and longer than any test.
const TRANSACTION_TIMEOUT_MS: &str = "600000";

/// A producer that writes in transactions.
struct TransactionalProducer(BaseProducer);

impl TransactionalProducer {
    fn new<const TEST: u32>(fixture: &Fixture<TEST>) -> TransactionalProducer {
        let id = Uuid::now_v7().to_string();
        let producer: BaseProducer = fixture
            .config
            .kafka
            .client_config("foreign")
            .set("transactional.id", id)
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
            .create()
            .unwrap();
        producer.init_transactions(TEST_TIMEOUT).unwrap();
        TransactionalProducer(producer)
    }

    /// Begins a transaction with these records, each in a partition, and leaves it open.
    fn begin(&self, topic: &Topic, records: &[(i32, OwnedMessage)]) {
        self.0.begin_transaction().unwrap();
        for (partition, record) in records {
            let headers = record.headers().unwrap().clone();
            let sent = BaseRecord::<[u8], [u8]>::to(topic.name)
                .partition(*partition)
                .payload(record.payload().unwrap())
                .headers(headers);
            self.0.send(sent).map_err(|(error, _)| error).unwrap();
        }
        self.0.flush(TEST_TIMEOUT).unwrap();
    }

    fn abort(&self) {
        self.0.abort_transaction(TEST_TIMEOUT).unwrap();
    }

    fn commit(&self) {
        self.0.commit_transaction(TEST_TIMEOUT).unwrap();
    }
}

/// Whether the group has committed every partition up to its end, including control records.
async fn has_committed_to_the_end<const TEST: u32>(
    fixture: &Fixture<TEST>,
    topic: &'static Topic,
) -> bool {
    let client: BaseConsumer = fixture
        .config
        .kafka
        .client_config("test")
        .set("group.id", fixture.service)
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let asked = move || {
        let mut all = TopicPartitionList::new();
        all.add_partition_range(topic.name, 0, topic.partitions - 1);
        let committed = client.committed_offsets(all, TEST_TIMEOUT).unwrap();
        committed.elements().iter().all(|element| {
            let (_, end) =
                client.fetch_watermarks(topic.name, element.partition(), TEST_TIMEOUT).unwrap();
            element.offset() == Offset::Offset(end)
        })
    };
    tokio::task::spawn_blocking(asked).await.unwrap()
}

async fn count_of_a<const TEST: u32>(fixture: &Fixture<TEST>) -> i64 {
    fixture.tallies().await.get("a").map_or(0, |(counted, _)| *counted)
}

/// A record of a foreign producer is handled like any other: here it is an event, and has its effect.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_foreign_transaction_blocks_nothing_and_its_control_records_are_no_lag() {
    let fixture = Fixture::<25>::create_with_contracts().await;
    let topic = names(25).counted;
    let consumer = fixture.consumer();
    let group = consumer.lag();
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    let foreign = TransactionalProducer::new(&fixture);
    let records = fixture.to_records(&[counted("a", 1), counted("a", 2), counted("a", 3)]).await;
    let records: Vec<_> = (0..).zip(records).collect();
    foreign.begin(topic, &records);
    let relaying = fixture.start_relay();
    fixture.publish(&[counted("a", 4), counted("b", 1), counted("c", 1), counted("d", 1)]).await;
    eventually("all has its effect", async || fixture.tallies().await.len() == 4).await;
    eventually("the foreign ones too", async || count_of_a(&fixture).await == 4).await;
    foreign.abort();
    let marked = Instant::now();
    eventually("the control records are passed", async || {
        has_committed_to_the_end(&fixture, topic).await
    })
    .await;
    eventually("the group has caught up", async || {
        group.caught_up().await.is_some_and(|ago| ago < marked.elapsed())
    })
    .await;
    consuming.stop().await;
    // The next client reads only control records first.
    foreign.begin(topic, &[]);
    foreign.abort();
    foreign.begin(topic, &records[..1]);
    foreign.commit();
    let consuming = fixture.start_consumer();
    eventually("control records are passed", async || {
        has_committed_to_the_end(&fixture, topic).await
    })
    .await;
    consuming.stop().await;
    relaying.stop().await;
}

const CHARGED_SCHEMA: &str = r#"{"type": "record", "name": "Charged", "fields": [
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"}]}"#;

/// An event whose publisher writes in transactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Charged {
    till: String,
    amount: i64,
}

impl Event for Charged {
    fn topic() -> &'static Topic {
        static TOPIC: LazyLock<Topic> = LazyLock::new(|| {
            let service = names(24).service;
            let name = format!("{service}.charged").leak();
            Topic::new(name, service, CHARGED_SCHEMA).days(1).read_committed()
        });
        &TOPIC
    }
    fn key(&self) -> String {
        self.till.clone()
    }
}

impl Loads<Charged> for Tills {
    fn keys(charged: &Charged, keys: &mut BTreeSet<String>) {
        keys.insert(charged.till.clone());
    }
}

/// `till.charged` → nothing
fn charge(charged: &Charged, tills: &mut Tills, _: HandlerContext) -> HandlerResult<()> {
    tills.add(&charged.till, charged.amount);
    Ok(None)
}

/// Another topic is read uncommitted: each isolation has a client of its own.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_read_committed_topic_only_committed_records_have_an_effect() {
    let fixture = Fixture::<24>::create_with_contracts().await;
    let topic = Charged::topic();
    fixture.create_topic(topic, &[]).await;
    let id = fixture.register_schema(topic, CHARGED_SCHEMA).await;
    let record = |amount| {
        let payload = frame(id, &Outgoing::from_event(&Charged { till: "a".into(), amount }).body);
        let headers = Some(event_id_header(&Uuid::now_v7().to_string()));
        let (name, time) = (topic.name.to_string(), Timestamp::NotAvailable);
        OwnedMessage::new(Some(payload), None, name, time, 0, 0, headers)
    };
    let consumer = fixture.consumer_of(fixture.handlers().on(charge));
    let group = consumer.lag();
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    let publisher = TransactionalProducer::new(&fixture);

    publisher.begin(topic, &[(0, record(1)), (1, record(2))]);
    publisher.commit();
    eventually("what was committed is counted", async || count_of_a(&fixture).await == 2).await;
    publisher.begin(topic, &[(0, record(10)), (1, record(20)), (2, record(30))]);
    publisher.abort();
    eventually("what was aborted is passed", async || {
        has_committed_to_the_end(&fixture, topic).await
    })
    .await;
    let relaying = fixture.start_relay();
    fixture.publish(&[counted("b", 1)]).await;
    eventually("the other topic is read", async || fixture.tallies().await.contains_key("b")).await;

    publisher.begin(topic, &[(2, record(4))]);
    let opened = Instant::now();
    sleep(2 * QUIET_PERIOD).await;
    let caught_up = group.caught_up().await;
    assert!(caught_up.is_none_or(|ago| ago > opened.elapsed() / 2), "it waits: {caught_up:?}");
    assert_eq!(fixture.tallies().await["a"], (2, 3));
    publisher.commit();
    let closed = Instant::now();
    eventually("the last one is counted", async || count_of_a(&fixture).await == 3).await;
    eventually("it has caught up", async || {
        group.caught_up().await.is_some_and(|ago| ago < closed.elapsed())
    })
    .await;
    assert_eq!(fixture.tallies().await["a"], (3, 7));
    assert_eq!(fixture.dead_letters().await.len(), 0);
    consuming.stop().await;
    relaying.stop().await;
}
