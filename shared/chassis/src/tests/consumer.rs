//! What comes in has its effect once, however often it comes, wherever it is left off.

use rdkafka::ClientContext;
use rdkafka::admin::{AdminOptions, GroupResult, NewPartitions};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::CommitMode;
use rdkafka::error::RDKafkaErrorCode::GroupIdNotFound;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::sync::mpsc;

use super::relay::on_a_mock;
use super::*;
use crate::ahead;
use crate::route::{Heard, Work};
use crate::rows::guarded;

#[tokio::test]
async fn a_duplicate_has_one_effect_in_a_batch_across_batches_and_at_two_consumers_at_once() {
    let till = Till::<1>::open_with_contracts().await;
    let events: Vec<_> = (0..20).map(|nth| counted(&format!("till {}", nth % 3), 1)).collect();
    let mut batch = till.delivered(&events).await;
    batch.extend(batch.clone());
    tokio::join!(till.handle(batch.clone()), till.handle(batch.clone()));
    till.handle(batch).await;

    let tallies = till.tallies().await;
    assert_eq!(tallies.values().map(|(counted, _)| counted).sum::<i64>(), 20, "{tallies:?}");
    assert_eq!(till.number("select count(*) from outbox").await, 20);
    assert_eq!(till.number("select count(*) from dead_letters").await, 0);
}

/// After a batch without repeats none are expected, and the next is entered with its effect.
#[tokio::test(flavor = "multi_thread")]
async fn repeats_that_nobody_expects_have_no_effect_and_what_comes_with_them_has() {
    let till = Till::<17>::open_with_contracts().await;
    let (consumer, client, stop) = (till.consumer(), till.client(), CancellationToken::new());
    let mut batches = consumer.batches(&client, &stop);
    // Taken for new once more, the first one is impossible, and the second one is more than the
    // database lets a till hold.
    let events = [CHANGE, 600_000, 2, 3, 4, 5].map(|amount| counted("a", amount));
    let events = till.delivered(&events).await;
    let new = till.delivered(&[counted("b", 7)]).await;
    for batch in [
        &events[..2], // the very first: the inbox is asked
        &events[2..3],
        &events[..1],
        &events[1..4], // after a repeat: the inbox is asked
        &events[4..5],
        &events[1..2],
        &events[5..],
        &[&events[2..], &new].concat(),
        &new,
    ] {
        batches.handle(batch.to_vec(), &Assigned::default()).await;
    }
    let tallies = till.tallies().await;
    assert_eq!(tallies.into_values().collect::<Vec<_>>(), [(6, 711_125), (1, 7)]);
    assert_eq!(till.number("select count(*) from outbox").await, 7);
    assert_eq!(till.number("select count(*) from dead_letters").await, 0);
    assert_eq!(till.number("select max(attempts)::bigint from inbox").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_between_commit_and_offset_events_are_handled_again_without_effect() {
    let till = Till::<2>::open_with_contracts().await;
    let events: Vec<_> = (1..=50).map(|nth| counted(&format!("till {}", nth % 7), nth)).collect();
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    till.publish(&events).await;
    till.outbox_is_empty().await;
    relaying.stop().await;

    // This client owns no partition: what it handles is committed, and no offset is.
    till.handle(till.records(names(2).counted).await).await;
    let before = till.tallies().await;
    assert_eq!(before.values().map(|(counted, _)| counted).sum::<i64>(), 50);
    assert!(committed(&till).await.is_empty());

    till.catch_up().await;
    assert_eq!(till.tallies().await, before);
    assert_eq!(till.number("select count(*) from outbox").await, 50);
    assert_eq!(committed(&till).await.iter().sum::<i64>(), 50, "all were read again");
}

/// At whatever moment of the rebalance that it brought about itself, and where there is nothing for it to
/// do. A member that is not there any longer and has not said so is waited for until its session ends,
/// which takes ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_stopped_while_the_group_rebalances_or_without_work_is_not_waited_for() {
    let till = Till::<21>::open_with_contracts().await;
    let start = || {
        let consumer = till.consumer();
        Running::start(|stop| consumer.run(stop))
    };
    let members = async || {
        let config = kafka::client(till.service, &till.config.kafka);
        let asked = move || {
            let client: BaseConsumer = config.create().unwrap();
            let groups = client.fetch_group_list(Some(names(21).service), WITHIN).ok()?;
            Some(groups.groups().iter().map(|group| group.members().len()).sum::<usize>())
        };
        tokio::task::spawn_blocking(asked).await.unwrap()
    };
    let is_late = async |member: Running, left: usize| {
        let began = Instant::now();
        member.stop().await;
        eventually("it is gone", async || members().await == Some(left)).await;
        began.elapsed() > Duration::from_secs(7)
    };

    let mut staying = vec![start()];
    eventually("one is in the group", async || members().await == Some(1)).await;
    for after in [0, 150, 300, 500, 750, 1_000, 1_250, 1_500].map(Duration::from_millis) {
        let comes_and_is_late = async || {
            let coming = start();
            eventually("another one has come", async || members().await == Some(2)).await;
            sleep(after).await;
            is_late(coming, 1).await
        };
        // The machine may stand still for some seconds, and not twice.
        let twice = comes_and_is_late().await && comes_and_is_late().await;
        assert!(!twice, "{after:?} after it had come");
    }
    // More than there are partitions.
    staying.extend([start(), start(), start(), start()]);
    eventually("all have come", async || members().await == Some(5)).await;
    sleep(MEANWHILE * 2).await;
    let mut late = 0;
    while let Some(member) = staying.pop() {
        late += u32::from(is_late(member, staying.len()).await);
    }
    assert!(late < 2, "{late} of five that left one after the other");
}

/// As librdkafka loses it where it meets a rebalance: the test pauses the partitions behind the reader's
/// back, right after they were given and right after the reader has resumed them.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_resumed_is_read_though_librdkafka_has_lost_it() {
    let till = Till::<22>::open_with_contracts().await;
    let client = till.client();
    client.subscribe(&[names(22).counted.name]).unwrap();
    let (ahead, mut records) = mpsc::channel(1);
    let reading = tokio::spawn(ahead::read(client.clone(), ahead));
    let pause = || client.pause(&client.assignment().unwrap()).unwrap();
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let events: Vec<_> = (0..5).map(|nth| counted("a", nth)).collect();

    let is_given = async || client.assignment().is_ok_and(|given| given.count() > 0);
    eventually("it has partitions", is_given).await;
    // The reader is told a moment later, and resumes them.
    sleep(MEANWHILE / 10).await;
    pause();
    till.publish(&events).await;
    let first = tokio::time::timeout(WITHIN, records.recv()).await;
    first.expect("it was resumed").unwrap();

    till.outbox_is_empty_of(names(22).counted).await;
    let ends = || client.context().ends.lock().unwrap().values().sum::<i64>();
    let of_all = events.len() as i64;
    eventually("what it does not fetch counts as behind too", async || ends() == of_all).await;
    let second = tokio::time::timeout(WITHIN, records.recv()).await;
    second.expect("it was resumed at all").unwrap();
    eventually("it is fetched again", async || ends() == 0).await;
    pause();
    till.publish(&events).await;
    for nth in 2..2 * events.len() {
        let record = tokio::time::timeout(WITHIN, records.recv()).await;
        record.unwrap_or_else(|_| panic!("it was resumed: {nth}")).unwrap();
    }
    reading.abort();
    relaying.stop().await;
    let _ = kafka::closed(client).await;
}

/// The message by which librdkafka tells that another cluster answers is said by the test: here it
/// is the same broker still, so that an offset which was stored can be found.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_from_a_cluster_that_is_gone_leaves_no_offset_in_the_one_made_anew() {
    let till = Till::<14>::open_with_contracts().await;
    let (consumer, client, stop) = (till.consumer(), till.client(), CancellationToken::new());
    client.subscribe(&[names(14).counted.name]).unwrap();
    let (ahead, _records) = mpsc::channel(1);
    let polling = tokio::spawn(ahead::read(client.clone(), ahead));
    eventually("all partitions are its own", async || {
        client.assignment().unwrap().count() == names(14).counted.partitions as usize
    })
    .await;
    let batch = till.delivered(&[counted("a", 1), counted("a", 2)]).await;
    let mut batches = consumer.batches(&client, &stop);
    // As if it had been read before the partitions were given to it, this time or the last.
    batches.handle(batch[..1].to_vec(), &Assigned::default()).await;
    let _ = client.commit_consumer_state(CommitMode::Sync);
    assert!(committed(&till).await.is_empty());
    batches.handle(batch[..1].to_vec(), &client.context().assigned()).await;
    eventually("it is stored and committed", async || committed(&till).await == [1]).await;

    client.context().log(RDKafkaLogLevel::Warning, "CLUSTERID", "another one answers");
    batches.handle(batch[1..].to_vec(), &client.context().assigned()).await;
    sleep(MEANWHILE).await;
    // Nothing is stored, so there is nothing to commit, which is an error.
    let _ = client.commit_consumer_state(CommitMode::Sync);
    assert_eq!(committed(&till).await, [1]);
    assert_eq!(till.tallies().await["a"], (2, 3), "it had its effect all the same");
    polling.abort();
}

#[tokio::test]
async fn the_loser_of_a_race_for_a_natural_key_starts_again_and_finds_the_row() {
    let till = Till::<5>::open_with_contracts().await;
    let mut other = till.db.begin().await.unwrap();
    sqlx::query("insert into tallies values ('a', 1, 100)").execute(&mut *other).await.unwrap();
    let batch = till.delivered(&[counted("a", 11)]).await;
    tokio::join!(till.handle(batch), async {
        till.blocked(1).await;
        other.commit().await.unwrap();
    });
    assert_eq!(till.tallies().await["a"], (2, 111));
    assert_eq!(till.letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_topic_replayed_from_offset_0_changes_nothing() {
    let till = Till::<10>::open_with_contracts().await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let mut events: Vec<_> =
        (1..=300).map(|nth| counted(&format!("till {}", nth % 20), nth)).collect();
    events.push(counted("till 0", 0));
    till.publish(&events).await;
    till.outbox_is_empty_of(names(10).counted).await;
    relaying.stop().await;
    till.catch_up().await;
    let state = async || {
        let tables = ["tallies", "outbox", "inbox", "dead_letters"];
        let mut rows = Vec::new();
        for table in tables {
            let all = format!("select {table}::text from {table} order by 1");
            let all: Vec<String> =
                sqlx::query_scalar(AssertSqlSafe(all)).fetch_all(&till.db).await.unwrap();
            rows.extend(all);
        }
        rows
    };
    let before = state().await;
    assert_eq!(before.len(), 20 + 300 + 300 + 1);
    assert_eq!(committed(&till).await.iter().sum::<i64>(), 301);

    eventually("the group is forgotten", async || {
        let forgotten = till.admin().delete_groups(&[till.service], &AdminOptions::new()).await;
        let gone = |group: &GroupResult| matches!(group, Ok(_) | Err((_, GroupIdNotFound)));
        forgotten.is_ok_and(|groups| groups.iter().all(gone))
    })
    .await;
    assert!(committed(&till).await.is_empty());
    till.catch_up().await;
    assert_eq!(committed(&till).await.iter().sum::<i64>(), 301, "all were read again");
    assert_eq!(state().await, before);
}

#[test]
fn what_another_service_publishes_is_no_answer() {
    let answered = |service| {
        let handler = |heard: &Counted<1>, _: &mut Drawer, _: At| {
            Ok(Some(Tallied::<2> { till: heard.till.clone(), total: heard.amount }))
        };
        let event = counted::<1>("a", 1);
        let heard = Heard { service, event, handler, if_discarded: uncounted };
        let at = At { now: chrono::Utc::now(), event_id: Uuid::now_v7(), cause: None };
        guarded(|| heard.decide(&mut Drawer::default(), at))
    };
    assert!(answered(names(2).service).unwrap().unwrap().is_some());
    let because = answered(names(1).service).unwrap_err();
    assert!(because.ends_with(&format!("and not by {}", names(1).service)), "{because}");
}

const LABELLED: &str = r#"{"type": "record", "name": "Labelled", "fields": [
    {"name": "till", "type": "string"},
    {"name": "version", "type": "long"}]}"#;

/// A till as it is now: state, of which the newest version counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Labelled {
    till: String,
    version: i64,
}

impl Event for Labelled {
    fn topic() -> &'static Topic {
        static TOPIC: LazyLock<Topic> = LazyLock::new(|| {
            let service = names(12).service;
            let heard_by = vec![service].leak();
            Topic::new("till.labels", service, heard_by, 3, Retention::Compact, LABELLED)
        });
        &TOPIC
    }
    fn key(&self) -> String {
        self.till.clone()
    }
}

impl Touches<Labelled> for Drawer {
    fn touch(labelled: &Labelled, keys: &mut BTreeSet<String>) {
        keys.insert(labelled.till.clone());
    }
}

/// `till.labels` → nothing: the total is the newest version
fn label(labelled: &Labelled, drawer: &mut Drawer, _: At) -> Answer<()> {
    let Labelled { till, version } = labelled;
    let known = drawer.tallies.get(till).map_or(0, |tally| tally.total);
    if known < *version {
        drawer.add(till, version - known);
    }
    Ok(None)
}

#[tokio::test]
async fn a_compacted_topic_needs_no_inbox_for_its_versions_guard_it() {
    let till = Till::<12>::open().await;
    let id = till.register(Labelled::topic(), LABELLED).await;
    let message = |version: i64, offset: i64| {
        let labelled = Labelled { till: "a".into(), version };
        let record = Some(frame(id, &Outgoing::of(&labelled).body));
        let headers = Some(event_id_header(&Uuid::now_v7().to_string()));
        let topic = Labelled::topic().name.to_string();
        OwnedMessage::new(record, None, topic, Timestamp::NotAvailable, 0, offset, headers)
    };
    let consumer = till.consumer().on(label, |_, _| Loss::that("An older label stays."));
    let (client, stop) = (till.client(), CancellationToken::new());
    let all: Vec<_> = (1..=3).map(|version| message(version, version)).collect();
    for batch in [vec![all[0].clone(), all[2].clone()], all.clone(), vec![all[1].clone()], all] {
        consumer.batches(&client, &stop).handle(batch, &client.context().assigned()).await;
        assert_eq!(till.tallies().await["a"], (2, 3), "of what is older, nothing takes effect");
    }
    assert_eq!(till.number("select count(*) from inbox").await, 0);
    assert_eq!(till.letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_paused_when_a_rebalance_took_it_away_is_read_when_it_is_back() {
    let till = Till::<13>::open_with_contracts().await;
    let topic = names(13).counted.name;
    let assigned = |client: &StreamConsumer<Reports>| {
        let assigned = client.assignment().unwrap();
        assigned.elements().iter().map(|place| place.partition()).collect::<BTreeSet<i32>>()
    };
    let heard: Arc<Mutex<BTreeSet<i32>>> = Arc::default();
    let reading = |client: Arc<StreamConsumer<Reports>>| {
        let heard = heard.clone();
        tokio::spawn(async move {
            loop {
                if let Ok(message) = client.recv().await {
                    heard.lock().unwrap().insert(message.partition());
                }
            }
        })
    };
    let (one, other) = (till.client(), till.client());
    one.subscribe(&[topic]).unwrap();
    let _reading = reading(one.clone());
    eventually("all are its own", async || assigned(&one).len() == 3).await;
    one.pause(&one.assignment().unwrap()).unwrap();

    other.subscribe(&[topic]).unwrap();
    let leaving = reading(other.clone());
    eventually("some went to another", async || !assigned(&other).is_empty()).await;
    let moved = assigned(&other);
    leaving.abort();
    let _ = leaving.await;
    tokio::task::spawn_blocking(move || drop(other)).await.unwrap();
    eventually("they are back", async || assigned(&one).len() == 3).await;

    let producer: FutureProducer =
        kafka::producer(till.service, &till.config.kafka).create().unwrap();
    for partition in &moved {
        let record = FutureRecord::<str, str>::to(topic).partition(*partition).payload("news");
        producer.send(record, WITHIN).await.unwrap();
    }
    eventually("each is heard", async || moved.is_subset(&heard.lock().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_cannot_see_one_of_its_topics_has_not_caught_up() {
    let till = Till::<18>::open().await;
    till.create_topic(names(18).counted, &[]).await;
    let never = |_: &Tallied<18>, _: &Drawer| Loss::that("never");
    let consumer = till.consumer().on(noted::<18>, never);
    let group = consumer.group();
    let consuming = Running::start(|stop| consumer.run(stop));
    let until = Instant::now() + 3 * MEANWHILE;
    while Instant::now() < until {
        assert!(group.caught_up().await.is_none(), "there may be something in it");
        sleep(Duration::from_millis(100)).await;
    }
    till.create_topic(names(18).tallied, &[]).await;
    eventually("it is there, and empty", async || group.caught_up().await.is_some()).await;
    consuming.stop().await;
}

/// It was, when the last batch was full; then Kafka went away.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_has_nothing_to_handle_is_not_behind() {
    let till = Till::<19>::open_with_contracts().await;
    let consumer = till.consumer();
    let consuming = Running::start(|stop| consumer.run(stop));
    till.wake.consuming.taken(true);
    eventually("commands need not wait", async || {
        let asked = Instant::now();
        till.wake.consuming.after_you().await;
        asked.elapsed() < Duration::from_millis(100)
    })
    .await;
    consuming.stop().await;
}

/// A question of an idle client waits behind its fetch, half a second each time.
#[tokio::test(flavor = "multi_thread")]
async fn whether_the_group_has_caught_up_is_told_within_seconds_however_many_partitions_there_are()
{
    let till = Till::<15>::open_with_contracts().await;
    let more = NewPartitions::new(names(15).counted.name, 24);
    let made = till.admin().create_partitions([&more], &AdminOptions::new()).await.unwrap();
    made[0].as_ref().unwrap();
    let consumer = till.consumer();
    let group = consumer.group();
    let consuming = Running::start(|stop| consumer.run(stop));
    eventually("nothing is left to read", async || group.caught_up().await.is_some()).await;

    eventually("it is told in time", async || {
        let began = Instant::now();
        group.caught_up().await.is_some() && began.elapsed() < Duration::from_secs(5)
    })
    .await;
    consuming.stop().await;
}

/// The client takes the refusal for an answer, and never fetches what it was given.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_not_told_how_far_its_group_has_come_goes_on_with_a_new_client() {
    let till = Till::<20>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    till.publish(&[counted("a", 1)]).await;
    till.outbox_is_empty().await;
    relaying.stop().await;

    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
    mock.request_errors(RDKafkaApiKey::OffsetFetch, &[refusal]);
    let consumer = till.consumer();
    let consuming = Running::start(|stop| consumer.run(stop));
    sleep(3 * MEANWHILE).await;
    assert_eq!(till.tallies().await.get("a"), None, "the client found out by itself");
    eventually("the event is handled", async || {
        till.tallies().await.get("a").is_some_and(|(counted, _)| *counted == 1)
    })
    .await;
    consuming.stop().await;
}
