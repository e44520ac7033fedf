//! An event has one effect, however often it is delivered and wherever its processing is interrupted.

use messaging::consumer::prefetch;
use messaging::consumer::router::BoundHandler;
use messaging::event::Outcome;
use messaging::telemetry::panics::catch_panic;
use messaging::transaction::incoming_record::EventHandler;
use messaging::transaction::incoming_record::Source;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminOptions, GroupResult};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::CommitMode;
use rdkafka::error::RDKafkaErrorCode::GroupIdNotFound;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::sync::mpsc;

use super::*;

#[tokio::test]
async fn a_duplicate_has_one_effect_in_a_batch_across_batches_and_at_two_consumers_at_once() {
    let fixture = Fixture::<1>::create_with_contracts().await;
    let events: Vec<_> = (0..20).map(|nth| counted(&format!("till {}", nth % 3), 1)).collect();
    let mut batch = fixture.to_records(&events).await;
    batch.extend(batch.clone());
    tokio::join!(fixture.handle(batch.clone()), fixture.handle(batch.clone()));
    fixture.handle(batch).await;

    let tallies = fixture.tallies().await;
    assert_eq!(fixture.counted().await, 20, "{tallies:?}");
    assert_eq!(fixture.count("chassis.outbox").await, 20);
    assert_eq!(fixture.count("chassis.dead_letters").await, 0);
}

/// After a batch without duplicates the next batch expects none, and does not query the inbox first.
#[tokio::test(flavor = "multi_thread")]
async fn unexpected_duplicates_have_no_effect_and_the_other_events_of_their_batch_have() {
    let fixture = Fixture::<17>::create_with_contracts().await;
    let stepped = fixture.stepped_consumer();
    let mut batches = stepped.batches();
    // If these were applied twice, the first would be unprocessable, and the second would be more than a till may
    // hold.
    let events = [ONLY_WHEN_EMPTY, 600_000, 2, 3, 4, 5].map(|amount| counted("a", amount));
    let events = fixture.to_records(&events).await;
    let new = fixture.to_records(&[counted("b", 7)]).await;
    for batch in [
        &events[..2], // the first batch: the inbox is queried
        &events[2..3],
        &events[..1],
        &events[1..4], // after a duplicate: the inbox is queried
        &events[4..5],
        &events[1..2],
        &events[5..],
        &[&events[2..], &new].concat(),
        &new,
    ] {
        batches.handle(batch.to_vec(), &Assignment::default()).await;
    }
    let tallies = fixture.tallies().await;
    assert_eq!(tallies.into_values().collect::<Vec<_>>(), [(6, 711_125), (1, 7)]);
    assert_eq!(fixture.count("chassis.outbox").await, 7);
    assert_eq!(fixture.count("chassis.dead_letters").await, 0);
    assert_eq!(fixture.query_number("select max(attempts)::bigint from chassis.inbox").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_between_commit_and_offset_events_are_handled_again_without_effect() {
    let fixture = Fixture::<2>::create_with_contracts().await;
    let events: Vec<_> = (1..=50).map(|nth| counted(&format!("till {}", nth % 7), nth)).collect();
    fixture.publish(&events).await;
    fixture.relay_all().await;

    // This client owns no partition: it commits the effects and no offset.
    fixture.handle(fixture.records(names(2).counted).await).await;
    let before = fixture.tallies().await;
    assert_eq!(before.values().map(|(counted, _)| counted).sum::<i64>(), 50);
    assert!(committed_offsets(&fixture).await.is_empty());

    fixture.catch_up().await;
    assert_eq!(fixture.tallies().await, before);
    assert_eq!(fixture.count("chassis.outbox").await, 50);
    assert_eq!(committed_offsets(&fixture).await.iter().sum::<i64>(), 50, "all were read again");
}

/// The test itself emits librdkafka's log message about another cluster. The broker is still the same, so that the
/// test can find a stored offset.
#[tokio::test(flavor = "multi_thread")]
async fn records_read_from_a_lost_cluster_store_no_offset_in_the_recreated_one() {
    let fixture = Fixture::<14>::create_with_contracts().await;
    let stepped = fixture.stepped_consumer();
    let client = &stepped.client;
    client.subscribe(&[names(14).counted.name]).unwrap();
    let (ahead, _records) = mpsc::channel(1);
    let polling = tokio::spawn(prefetch::prefetch(client.clone(), fixture.db.clone(), ahead));
    eventually("all partitions are its own", async || {
        client.assignment().unwrap().count() == names(14).counted.partitions as usize
    })
    .await;
    let batch = fixture.to_records(&[counted("a", 1), counted("a", 2)]).await;
    let mut batches = stepped.batches();
    // As if the record had been read before the partitions were assigned.
    batches.handle(batch[..1].to_vec(), &Assignment::default()).await;
    let _ = client.commit_consumer_state(CommitMode::Sync);
    assert!(committed_offsets(&fixture).await.is_empty());
    batches.handle(batch[..1].to_vec(), &client.context().assignment()).await;
    eventually("it is stored and committed", async || committed_offsets(&fixture).await == [1])
        .await;

    client.context().log(RDKafkaLogLevel::Warning, "CLUSTERID", "another one answers");
    batches.handle(batch[1..].to_vec(), &client.context().assignment()).await;
    sleep(QUIET_PERIOD).await;
    // Nothing is stored, so there is nothing to commit, which is an error.
    let _ = client.commit_consumer_state(CommitMode::Sync);
    assert_eq!(committed_offsets(&fixture).await, [1]);
    assert_eq!(fixture.tallies().await["a"], (2, 3), "the event had its effect");
    polling.abort();
}

#[tokio::test]
async fn the_loser_of_a_race_for_a_natural_key_retries_and_finds_the_row() {
    let fixture = Fixture::<5>::create_with_contracts().await;
    let mut other = fixture.db.begin().await.unwrap();
    sqlx::query("insert into tallies values ('a', 1, 100)").execute(&mut *other).await.unwrap();
    let batch = fixture.to_records(&[counted("a", 11)]).await;
    tokio::join!(fixture.handle(batch), async {
        fixture.wait_for_blocked(1).await;
        other.commit().await.unwrap();
    });
    assert_eq!(fixture.tallies().await["a"], (2, 111));
    assert_eq!(fixture.dead_letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_topic_replayed_from_offset_0_changes_nothing() {
    let fixture = Fixture::<10>::create_with_contracts().await;
    let mut events: Vec<_> =
        (1..=300).map(|nth| counted(&format!("till {}", nth % 20), nth)).collect();
    events.push(counted("till 0", 0));
    fixture.publish(&events).await;
    fixture.relay_all().await;
    fixture.catch_up().await;
    let state = async || {
        let tables = ["tallies", "chassis.outbox", "chassis.inbox", "chassis.dead_letters"];
        let mut rows = Vec::new();
        for table in tables {
            let all = format!("select row::text from {table} as row order by 1");
            let all: Vec<String> =
                sqlx::query_scalar(AssertSqlSafe(all)).fetch_all(&fixture.db).await.unwrap();
            rows.extend(all);
        }
        rows
    };
    let before = state().await;
    assert_eq!(before.len(), 20 + 300 + 300 + 1);
    assert_eq!(committed_offsets(&fixture).await.iter().sum::<i64>(), 301);

    eventually("the group is forgotten", async || {
        let forgotten =
            fixture.admin_client().delete_groups(&[fixture.service], &AdminOptions::new()).await;
        let gone = |group: &GroupResult| matches!(group, Ok(_) | Err((_, GroupIdNotFound)));
        forgotten.is_ok_and(|groups| groups.iter().all(gone))
    })
    .await;
    assert!(committed_offsets(&fixture).await.is_empty());
    fixture.catch_up().await;
    assert_eq!(committed_offsets(&fixture).await.iter().sum::<i64>(), 301, "all were read again");
    assert_eq!(state().await, before);
}

#[test]
fn an_event_of_another_service_is_rejected_as_an_answer() {
    let now = chrono::Utc::now();
    let at = HandlerContext { now, event_id: Uuid::now_v7(), causation_id: None };
    let answered = |service| {
        let handler = |received: &Counted<1>, _: &mut Tills, _: HandlerContext| {
            Ok(Some(Tallied::<2> { till: received.till.clone(), total: received.amount }))
        };
        let event = counted::<1>("a", 1);
        let source = Source::Topic(Counted::<1>::topic());
        let received = BoundHandler { service, source, event, handler, on_discard: None };
        catch_panic(|| received.decide(&mut Tills::default(), at))
    };
    assert_eq!(answered(names(2).service).unwrap().unwrap().with_ids(at).count(), 1);
    let because = answered(names(1).service).unwrap_err();
    assert!(because.ends_with(&format!("and not by {}", names(1).service)), "{because}");
}

const LABELLED_SCHEMA: &str = r#"{"type": "record", "name": "Labelled", "fields": [
    {"name": "till", "type": "string"},
    {"name": "version", "type": "long"}]}"#;

/// The current state of a till: the newest version counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Labelled {
    till: String,
    version: i64,
}

impl Event for Labelled {
    fn topic() -> &'static Topic {
        static TOPIC: LazyLock<Topic> = LazyLock::new(|| {
            let service = names(12).service;
            Topic::new("till.labels", service, LABELLED_SCHEMA).compacted()
        });
        &TOPIC
    }
    fn key(&self) -> String {
        self.till.clone()
    }
}

impl Loads<Labelled> for Tills {
    fn keys(labelled: &Labelled, keys: &mut BTreeSet<String>) {
        keys.insert(labelled.till.clone());
    }
}

/// `till.labels` → nothing: the total is the newest version
fn label(labelled: &Labelled, tills: &mut Tills, _: HandlerContext) -> HandlerResult<()> {
    let Labelled { till, version } = labelled;
    let known = tills.tallies.get(till).map_or(0, |tally| tally.total);
    if known < *version {
        tills.add(till, version - known);
    }
    Ok(None)
}

#[tokio::test]
async fn a_compacted_topic_needs_no_inbox_because_versions_guard_it() {
    let fixture = Fixture::<12>::create().await;
    let id = fixture.register_schema(Labelled::topic(), LABELLED_SCHEMA).await;
    let message = |version: i64, offset: i64| {
        let labelled = Labelled { till: "a".into(), version };
        let record = Some(frame(id, &Outgoing::from_event(&labelled).body));
        let headers = Some(event_id_header(&Uuid::now_v7().to_string()));
        let topic = Labelled::topic().name.to_string();
        OwnedMessage::new(record, None, topic, Timestamp::NotAvailable, 0, offset, headers)
    };
    let consumer = fixture.consumer_of(fixture.handlers().on(label));
    let stepped = SteppedConsumer::new(consumer, fixture.group_client());
    let all: Vec<_> = (1..=3).map(|version| message(version, version)).collect();
    for batch in [vec![all[0].clone(), all[2].clone()], all.clone(), vec![all[1].clone()], all] {
        stepped.handle(batch).await;
        assert_eq!(fixture.tallies().await["a"], (2, 3), "an older version has no effect");
    }
    assert_eq!(fixture.count("chassis.inbox").await, 0);
    assert_eq!(fixture.dead_letters().await.len(), 0);
}

#[test]
fn a_discard_without_an_impact_of_its_own_is_described_by_its_topic() {
    let service = names(1).service;
    fn consequence<E: Event, O: Outcome>(received: BoundHandler<Tills, E, O>) -> String
    where
        Tills: Loads<E>,
    {
        let DiscardImpact { consequence, remedy, write_offs } =
            received.discard_impact(&Tills::default());
        assert!(remedy.is_none() && write_offs.is_empty());
        consequence
    }
    let (handler, event) = (tally::<1>, counted::<1>("a", 1));
    let source = Source::Topic(Counted::<1>::topic());
    let fact = consequence(BoundHandler { service, source, event, handler, on_discard: None });
    assert!(fact.contains("never handles") && fact.contains(names(1).counted.name), "{fact}");
    let event = Labelled { till: "a".into(), version: 1 };
    let (source, handler) = (Source::Topic(Labelled::topic()), label);
    let state = consequence(BoundHandler { service, source, event, handler, on_discard: None });
    assert!(state.contains("until ") && state.contains(Labelled::topic().name), "{state}");
}

/// The last batch was full, so the consumer was busy. Then no more records arrive.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_does_not_delay_commands() {
    let fixture = Fixture::<19>::create_with_contracts().await;
    let consuming = fixture.start_consumer();
    fixture.wakeups.consumer_backpressure.report_busy(true);
    eventually("commands need not wait", async || {
        let began = Instant::now();
        fixture.wakeups.consumer_backpressure.yield_to_busy().await;
        began.elapsed() < Duration::from_millis(100)
    })
    .await;
    consuming.stop().await;
}

/// The client treats the error as an answer, and never fetches its partitions.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_offset_fetch_was_rejected_replaces_its_client() {
    let (fixture, mock) = Fixture::<20>::create_with_mock_kafka().await;
    fixture.publish(&[counted("a", 1)]).await;
    fixture.relay_all().await;

    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
    mock.request_errors(RDKafkaApiKey::OffsetFetch, &[refusal]);
    let consuming = fixture.start_consumer();
    sleep(3 * QUIET_PERIOD).await;
    assert_eq!(fixture.counted().await, 0, "the client recovered by itself");
    eventually("the event is handled", async || fixture.counted().await == 1).await;
    consuming.stop().await;
}
