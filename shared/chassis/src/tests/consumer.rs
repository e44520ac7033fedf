//! What comes in has its effect once, or is set aside; nothing is dropped, whatever fails.

use rdkafka::ClientContext;
use rdkafka::admin::AdminOptions;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::CommitMode;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::postgres::PgPoolOptions;
use tower::ServiceExt;

use super::*;

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

/// The offsets that the group has committed, of the partitions where it has.
async fn committed<const TEST: u32>(till: &Till<TEST>) -> Vec<i64> {
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

/// The message by which librdkafka tells that another cluster answers is said by the test: here it
/// is the same broker still, so that an offset which was stored can be found.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_from_a_cluster_that_is_gone_leaves_no_offset_in_the_one_made_anew() {
    let till = Till::<14>::open_with_contracts().await;
    let (consumer, client, stop) = (till.consumer(), till.client(), CancellationToken::new());
    client.subscribe(&[names(14).counted.name]).unwrap();
    let polled = client.clone();
    let polling = tokio::spawn(async move {
        loop {
            let _ = polled.recv().await;
        }
    });
    eventually("all partitions are its own", async || {
        client.assignment().unwrap().count() == names(14).counted.partitions as usize
    })
    .await;
    let batch = till.delivered(&[counted("a", 1), counted("a", 2)]).await;
    let mut batches = consumer.batches(&client, &stop);
    batches.handle(batch[..1].to_vec()).await;
    client.commit_consumer_state(CommitMode::Sync).unwrap();
    assert_eq!(committed(&till).await, [1]);

    client.context().log(RDKafkaLogLevel::Warning, "CLUSTERID", "another one answers");
    batches.handle(batch[1..].to_vec()).await;
    // Nothing is stored, so there is nothing to commit, which is an error.
    let _ = client.commit_consumer_state(CommitMode::Sync);
    assert_eq!(committed(&till).await, [1]);
    assert_eq!(till.tallies().await["a"], (2, 3), "it had its effect all the same");
    polling.abort();
}

/// A record as it is to be sent, the header `ce_id`, and a word of the reason to be given.
type Poison = (Option<Vec<u8>>, Option<&'static str>, &'static str);

/// Bytes that are no event: all that `good` and `newer` are when they are cut short, and more.
fn poison(good: &[u8], newer: &[u8]) -> Vec<Poison> {
    let event_id: &str = Uuid::now_v7().to_string().leak();
    let cut = |record: &[u8], at: usize| {
        (Some(record[..at].to_vec()), Some(event_id), if at < 5 { "too few" } else { "" })
    };
    let mut poison: Vec<Poison> = (0..good.len()).map(|at| cut(good, at)).collect();
    poison.extend((5..newer.len()).map(|at| cut(newer, at)));
    let id = u32::from_be_bytes(good[1..5].try_into().unwrap());
    let body = &good[5..];
    poison.extend([
        (None, Some(event_id), "empty"),
        (Some([good, &[0]].concat()), Some(event_id), "left over"),
        (Some([newer, &[0]].concat()), Some(event_id), "left over"),
        (Some([&[7], &good[1..]].concat()), Some(event_id), "magic"),
        (Some(frame(id + 1_000_000, body)), Some(event_id), "unknown"),
        (Some(frame(u32::MAX, body)), Some(event_id), "no schema id"),
        (Some(good.to_vec()), None, "ce_id"),
        (Some(good.to_vec()), Some("seven"), "ce_id"),
        (Some(frame(id, &[b' '; 300 * 1024])), Some(event_id), "exceeds"),
        // A string that claims 2^41 bytes.
        (Some(frame(id, &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1])), Some(event_id), ""),
    ]);
    poison
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_bytes_are_set_aside_as_they_are_and_the_events_around_them_are_handled() {
    let till = Till::<3>::open_with_contracts().await;
    let topic = names(3).counted;
    let event = Counted::<3> { note: Some("two".into()), ..counted("a", 1) };
    let body = Outgoing::of(&event).body;
    let good = frame(till.register(topic, topic.schema).await, &body);
    // Of another version, which is read in another way, with a note of its own at the end.
    let newer =
        COUNTED.replace("]}", r#", {"name": "by", "type": ["null", "string"], "default": null}]}"#);
    let newer =
        frame(till.register(topic, &newer).await, &[&body, b"\x02\x06who".as_slice()].concat());
    let mut poison = poison(&good, &newer);

    let producer: FutureProducer =
        kafka::producer(till.service, &till.config.kafka).create().unwrap();
    let send = async |record: Option<&[u8]>, event_id: Option<&str>| {
        let mut message = FutureRecord::<str, [u8]>::to(topic.name).partition(0);
        message.payload = record;
        message.headers = event_id.map(event_id_header);
        producer.send(message, WITHIN).await.unwrap();
    };
    for (record, event_id, _) in &poison {
        send(record.as_deref(), *event_id).await;
        for good in [&good, &newer] {
            send(Some(good), Some(&Uuid::now_v7().to_string())).await;
        }
    }
    let good = 2 * poison.len() as i64;
    // And once more, with nothing good in between.
    for (record, event_id, _) in &poison {
        send(record.as_deref(), *event_id).await;
    }
    poison.extend(poison.clone());
    till.catch_up().await;

    assert_eq!(till.tallies().await["a"], (good, good), "each good event once");
    let letters = till.letters().await;
    assert_eq!(letters.len(), poison.len());
    for (nth, (letter, (record, event_id, reason))) in letters.iter().zip(&poison).enumerate() {
        let nth = nth as i64;
        let offset = if nth < good / 2 { 3 * nth } else { nth + good };
        assert_eq!((letter.partition, letter.offset), (0, offset));
        assert_eq!((&letter.record, letter.kind.as_str()), (record, "undecodable"), "{letter:?}");
        assert!(letter.reason.contains(reason), "{reason}: {letter:?}");
        assert_eq!(letter.event_id, event_id.and_then(|id| id.parse().ok()));
    }
    assert_eq!(committed(&till).await, [2 * good], "the offset is past all of them");
    let paused = "select count(*) from consumer where paused_at is not null";
    assert_eq!(till.number(paused).await, 0, "bytes are no sign of a bad deployment");
}

#[tokio::test]
async fn of_a_batch_with_bad_events_exactly_those_are_set_aside_and_the_others_take_effect_once() {
    let till = Till::<4>::open_with_contracts().await;
    let bad = [
        (5, counted("b", 0), "impossible", "nothing was counted"),
        (11, counted("a", -1), "failing", "a till can't owe -1"),
        (12, counted("c", 1_000_000), "failing", "check constraint"),
        (30, counted("a\0", 1), "failing", "0x00"),
    ];
    let mut events: Vec<Counted<4>> =
        (0..40).map(|nth| counted(["a", "b", "c"][nth % 3], 1)).collect();
    for (nth, event, ..) in &bad {
        events[*nth] = event.clone();
    }
    let batch = till.delivered(&events).await;
    till.handle(batch.clone()).await;

    let letters = till.letters().await;
    assert_eq!(letters.len(), bad.len(), "{letters:?}");
    for (letter, (nth, _, kind, reason)) in letters.iter().zip(&bad) {
        assert_eq!((letter.offset as usize, letter.kind.as_str()), (*nth, *kind));
        assert!(letter.reason.contains(reason), "{letter:?}");
        assert_eq!(letter.record.as_deref(), batch[*nth].payload());
    }
    let tallies = till.tallies().await;
    assert_eq!(tallies.values().map(|(counted, _)| counted).sum::<i64>(), 36, "{tallies:?}");
    assert_eq!(till.number("select count(*) from inbox").await, 36);
    let both = "select count(*) from inbox join dead_letters using (event_id)";
    assert_eq!(till.number(both).await, 0, "a letter can be replayed");
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
async fn while_the_left_half_of_a_split_batch_waits_the_offset_stays_before_it() {
    let till = Till::<6>::open_with_contracts().await;
    // So that a locked row splits the batch: its statement takes too long.
    let till = Till { db: impatient(&till).await, ..till };
    till.force("insert into tallies select 'till ' || n, 0, 0 from generate_series(0, 7) n").await;
    let producer: FutureProducer =
        kafka::producer(till.service, &till.config.kafka).create().unwrap();
    let events: Vec<Counted<6>> = (0..8).map(|nth| counted(&format!("till {nth}"), 1)).collect();
    for message in till.delivered(&events).await {
        let mut record = FutureRecord::<[u8], [u8]>::to(message.topic()).partition(0);
        (record.payload, record.headers) = (message.payload(), message.headers().cloned());
        producer.send(record, WITHIN).await.unwrap();
    }
    let mut other = till.db.begin().await.unwrap();
    let locked = "select counted from tallies where till = 'till 1' for update";
    sqlx::query(locked).execute(&mut *other).await.unwrap();
    let (consumer, client, stop) = (till.consumer(), till.client(), CancellationToken::new());
    let mut partition = TopicPartitionList::new();
    partition.add_partition_offset(names(6).counted.name, 0, Offset::Beginning).unwrap();
    client.assign(&partition).unwrap();
    let mut batch = Vec::new();
    while batch.len() < events.len() {
        batch.push(client.recv().await.unwrap().detach());
    }
    let mut batches = consumer.batches(&client, &stop);
    let handling = batches.handle(batch);
    let before_it = async {
        let first = "select counted from tallies where till = 'till 0'";
        eventually("what stands before it is handled", async || till.number(first).await == 1)
            .await;
        sleep(MEANWHILE).await;
    };
    tokio::select! {
        () = handling => panic!("the locked row was passed over"),
        () = before_it => {}
    }
    // The process dies here; at best, what was stored and not yet committed still is.
    let last = move || client.commit_consumer_state(CommitMode::Sync);
    let _ = tokio::task::spawn_blocking(last).await.unwrap();
    assert_eq!(committed(&till).await, [1]);
    other.rollback().await.unwrap();

    till.catch_up().await;
    let tallies = till.tallies().await;
    assert!(tallies.values().all(|counted| *counted == (1, 1)), "{tallies:?}");
    assert_eq!(till.letters().await.len(), 0);
}

/// A pool that gives up a statement long before it gives up a lock.
async fn impatient<const TEST: u32>(till: &Till<TEST>) -> PgPool {
    let options = till.db.connect_options().as_ref().clone();
    let options = options.options([("statement_timeout", "200ms"), ("lock_timeout", "0")]);
    PgPoolOptions::new().connect_with(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_will_pass_is_waited_for_and_never_makes_a_dead_letter() {
    let till = Till::<7>::open_with_contracts().await;
    let role =
        till.config.database_url.expose().split(['/', '@']).nth(2).unwrap().replace("%20", " ");
    let database: String = till.cluster.get_database().unwrap().into();
    let end_sessions = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = '{database}' and usename = '{role}'"
    );
    let troubles = [
        (
            format!("revoke insert on tallies from \"{role}\""),
            format!("grant insert on tallies to \"{role}\""),
        ),
        (
            format!("alter database {database} set default_transaction_read_only = on"),
            format!("alter database {database} reset default_transaction_read_only"),
        ),
        (
            "alter table inbox rename column topic to topic_2".into(),
            "alter table inbox rename column topic_2 to topic".into(),
        ),
    ];
    for (nth, (trouble, cure)) in troubles.iter().enumerate() {
        till.force(trouble).await;
        till.force(&end_sessions).await;
        let batch = till.delivered(&[counted(&format!("till {nth}"), 1), counted("b", 1)]).await;
        let mut handling = std::pin::pin!(till.handle(batch));
        let early = tokio::time::timeout(MEANWHILE, &mut handling).await;
        assert!(early.is_err(), "not waited for: {trouble}");
        till.force(cure).await;
        till.force(&end_sessions).await;
        handling.await;
        assert_eq!(till.tallies().await[&format!("till {nth}")], (1, 1));
    }

    // Its session is ended in the middle of a batch.
    let mut other = till.session().await;
    sqlx::raw_sql("begin; lock table tallies in access exclusive mode")
        .execute(&mut other)
        .await
        .unwrap();
    let batch = till.delivered(&[counted("c", 1), counted("c", 1)]).await;
    tokio::join!(till.handle(batch), async {
        till.blocked(1).await;
        till.force(&format!("{end_sessions} and wait_event_type = 'Lock'")).await;
        sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    });
    assert_eq!(till.tallies().await["c"], (2, 2));
    assert_eq!(till.letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_went_silent_in_the_middle_of_a_batch_is_given_up() {
    let till = Till::<11>::open_with_contracts().await;
    let (proxied, proxy) = till.with_database_proxy().await;
    let batch = till.delivered(&[counted("a", 1), counted("a", 1)]).await;
    let lock = till.lock("a").await;
    tokio::join!(proxied.handle(batch), async {
        till.blocked(1).await;
        proxy.set(Way::Silent);
        sleep(MEANWHILE).await;
        proxy.set(Way::Open);
        lock.rollback().await.unwrap();
    });
    assert_eq!(till.tallies().await["a"], (2, 2));
    assert_eq!(till.letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_registry_is_away_events_wait_and_none_becomes_a_dead_letter() {
    let till = Till::<8>::open_with_contracts().await;
    let batch = till.delivered(&[counted("a", 1)]).await;
    let (away, proxy) = till.with_registry_proxy().await;
    proxy.set(Way::Shut);
    let mut handling = std::pin::pin!(away.handle(batch));
    assert!(tokio::time::timeout(MEANWHILE, &mut handling).await.is_err());
    proxy.set(Way::Open);
    handling.await;
    assert_eq!(till.tallies().await["a"], (1, 1));
    assert_eq!(till.letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_bad_events_in_a_row_pause_the_consumer_until_an_operator_resumes_it() {
    let till = Till::<9>::open_with_contracts().await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    // A success in between counts them from the start.
    let mut events = vec![counted("a", 0); 19];
    events.push(counted("a", 1));
    events.extend(vec![counted("a", 0); 20]);
    events.push(counted("a", 1));
    till.publish(&events).await;
    till.outbox_is_empty_of(names(9).counted).await;

    let consumer = till.consumer();
    let consuming = Running::start(|stop| consumer.run(stop));
    let paused = "select count(*) from consumer where paused_at is not null";
    eventually("it is paused", async || till.number(paused).await == 1).await;
    assert_eq!(till.letters().await.len(), 39);
    let client = till.client();
    let group = client.fetch_group_list(Some(till.service), WITHIN).unwrap();
    assert_eq!(group.groups()[0].members().len(), 1, "it stays in its group");
    consuming.stop().await;

    // The pause outlives the process.
    let consumer = till.consumer();
    let group = consumer.group();
    let consuming = Running::start(|stop| consumer.run(stop));
    sleep(MEANWHILE).await;
    assert_eq!(till.tallies().await["a"], (1, 1));
    let resume = axum::http::Request::post("/consumer/resume").body(axum::body::Body::empty());
    let answer = till.consumer().operator().oneshot(resume.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    eventually("it goes on", async || till.tallies().await["a"] == (2, 2)).await;
    eventually("to the end", async || group.caught_up().await).await;
    consuming.stop().await;
    relaying.stop().await;
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

    let forgotten = till.admin().delete_groups(&[till.service], &AdminOptions::new()).await;
    forgotten.unwrap()[0].as_ref().unwrap();
    assert!(committed(&till).await.is_empty());
    till.catch_up().await;
    assert_eq!(committed(&till).await.iter().sum::<i64>(), 301, "all were read again");
    assert_eq!(state().await, before);
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
        consumer.batches(&client, &stop).handle(batch).await;
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
