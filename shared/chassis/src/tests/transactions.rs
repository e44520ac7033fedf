//! Transactions of other producers: what is open, what was aborted, and the marks that they leave.

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::*;
use crate::consumer::Consumer;

/// Short of the broker's bound, and longer than any test.
const OPEN_FOR: &str = "600000";

/// A producer that writes in transactions.
struct Transactional(BaseProducer);

impl Transactional {
    fn of<const TEST: u32>(till: &Till<TEST>) -> Transactional {
        let id = Uuid::now_v7().to_string();
        let producer: BaseProducer = kafka::client("stranger", &till.config.kafka)
            .set("transactional.id", id)
            .set("transaction.timeout.ms", OPEN_FOR)
            .create()
            .unwrap();
        producer.init_transactions(WITHIN).unwrap();
        Transactional(producer)
    }

    /// Begins a transaction with these records, each in a partition, and leaves it open.
    fn open(&self, topic: &Topic, records: &[(i32, OwnedMessage)]) {
        self.0.begin_transaction().unwrap();
        for (partition, record) in records {
            let headers = record.headers().unwrap().clone();
            let sent = BaseRecord::<[u8], [u8]>::to(topic.name)
                .partition(*partition)
                .payload(record.payload().unwrap())
                .headers(headers);
            self.0.send(sent).map_err(|(error, _)| error).unwrap();
        }
        self.0.flush(WITHIN).unwrap();
    }

    fn abort(&self) {
        self.0.abort_transaction(WITHIN).unwrap();
    }

    fn commit(&self) {
        self.0.commit_transaction(WITHIN).unwrap();
    }
}

/// Whether the group has committed every partition up to its end, marks and all.
async fn committed_to_the_ends<const TEST: u32>(till: &Till<TEST>, topic: &'static Topic) -> bool {
    let client: BaseConsumer = kafka::client("test", &till.config.kafka)
        .set("group.id", till.service)
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let asked = move || {
        let mut all = TopicPartitionList::new();
        all.add_partition_range(topic.name, 0, topic.partitions - 1);
        let committed = client.committed_offsets(all, WITHIN).unwrap();
        committed.elements().iter().all(|place| {
            let (_, end) = client.fetch_watermarks(topic.name, place.partition(), WITHIN).unwrap();
            place.offset() == Offset::Offset(end)
        })
    };
    tokio::task::spawn_blocking(asked).await.unwrap()
}

async fn counted_into_a<const TEST: u32>(till: &Till<TEST>) -> i64 {
    till.tallies().await.get("a").map_or(0, |(counted, _)| *counted)
}

/// What a stranger writes is handled like any record: here it is an event, and has its effect.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_of_a_stranger_stops_nothing_and_the_marks_that_end_it_are_no_lag() {
    let till = Till::<25>::open_with_contracts().await;
    let topic = names(25).counted;
    let consumer = till.consumer();
    let group = consumer.group();
    let consuming = Running::start(|stop| consumer.run(stop));
    let stranger = Transactional::of(&till);
    let records = till.delivered(&[counted("a", 1), counted("a", 2), counted("a", 3)]).await;
    let records: Vec<_> = (0..).zip(records).collect();
    stranger.open(topic, &records);
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    till.publish(&[counted("a", 4), counted("b", 1), counted("c", 1), counted("d", 1)]).await;
    eventually("all has its effect", async || till.tallies().await.len() == 4).await;
    eventually("the stranger's too", async || counted_into_a(&till).await == 4).await;
    stranger.abort();
    let marked = Instant::now();
    eventually("the marks are passed", async || committed_to_the_ends(&till, topic).await).await;
    eventually("the group has caught up", async || {
        group.caught_up().await.is_some_and(|ago| ago < marked.elapsed())
    })
    .await;
    consuming.stop().await;
    // Nothing of it was read by this client but marks.
    stranger.open(topic, &[]);
    stranger.abort();
    stranger.open(topic, &records[..1]);
    stranger.commit();
    let consumer = till.consumer();
    let consuming = Running::start(|stop| consumer.run(stop));
    eventually("marks are passed", async || committed_to_the_ends(&till, topic).await).await;
    consuming.stop().await;
    relaying.stop().await;
}

const CHARGED: &str = r#"{"type": "record", "name": "Charged", "fields": [
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"}]}"#;

/// Something whose publisher writes in transactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Charged {
    till: String,
    amount: i64,
}

impl Event for Charged {
    fn topic() -> &'static Topic {
        static TOPIC: LazyLock<Topic> = LazyLock::new(|| {
            let service = names(24).service;
            let (name, heard_by) = (format!("{service}.charged").leak(), vec![service].leak());
            Topic::new(name, service, heard_by, 3, Retention::Days(1), CHARGED).read_committed()
        });
        &TOPIC
    }
    fn key(&self) -> String {
        self.till.clone()
    }
}

impl Touches<Charged> for Drawer {
    fn touch(charged: &Charged, keys: &mut BTreeSet<String>) {
        keys.insert(charged.till.clone());
    }
}

/// `till.charged` → nothing
fn charge(charged: &Charged, drawer: &mut Drawer, _: At) -> Answer<()> {
    drawer.add(&charged.till, charged.amount);
    Ok(None)
}

/// Beside a topic that is read uncommitted: each has a client of its own.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_topic_that_is_declared_read_committed_only_what_was_committed_has_an_effect() {
    let till = Till::<24>::open_with_contracts().await;
    let topic = Charged::topic();
    till.create_topic(topic, &[]).await;
    let id = till.register(topic, CHARGED).await;
    let record = |amount| {
        let payload = frame(id, &Outgoing::of(&Charged { till: "a".into(), amount }).body);
        let headers = Some(event_id_header(&Uuid::now_v7().to_string()));
        let (name, time) = (topic.name.to_string(), Timestamp::NotAvailable);
        OwnedMessage::new(Some(payload), None, name, time, 0, 0, headers)
    };
    let consumer: Consumer<Drawer> =
        till.consumer().on(charge, |_, _| Loss::that("It is not charged."));
    let group = consumer.group();
    let consuming = Running::start(|stop| consumer.run(stop));
    let publisher = Transactional::of(&till);

    publisher.open(topic, &[(0, record(1)), (1, record(2))]);
    publisher.commit();
    eventually("what was committed is counted", async || counted_into_a(&till).await == 2).await;
    publisher.open(topic, &[(0, record(10)), (1, record(20)), (2, record(30))]);
    publisher.abort();
    eventually("what was aborted is passed", async || committed_to_the_ends(&till, topic).await)
        .await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    till.publish(&[counted("b", 1)]).await;
    eventually("the other topic is read", async || till.tallies().await.contains_key("b")).await;

    publisher.open(topic, &[(2, record(4))]);
    let opened = Instant::now();
    sleep(2 * MEANWHILE).await;
    let caught_up = group.caught_up().await;
    assert!(caught_up.is_none_or(|ago| ago > opened.elapsed() / 2), "it waits: {caught_up:?}");
    assert_eq!(till.tallies().await["a"], (2, 3));
    publisher.commit();
    let closed = Instant::now();
    eventually("the last one is counted", async || counted_into_a(&till).await == 3).await;
    eventually("it has caught up", async || {
        group.caught_up().await.is_some_and(|ago| ago < closed.elapsed())
    })
    .await;
    assert_eq!(till.tallies().await["a"], (3, 7));
    assert_eq!(till.letters().await.len(), 0);
    consuming.stop().await;
    relaying.stop().await;
}
