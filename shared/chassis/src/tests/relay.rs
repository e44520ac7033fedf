//! What was decided reaches its topic, each key in the order in which it was made.

use std::collections::HashMap;

use rdkafka::mocking::MockCluster;

use super::*;

/// First arrivals, per till: what the broker was first given of each event, in order.
pub async fn first_arrivals<const TEST: u32>(till: &Till<TEST>) -> HashMap<String, Vec<i64>> {
    let mut seen = BTreeSet::new();
    let mut arrivals: HashMap<String, Vec<i64>> = HashMap::new();
    for (event_id, till, amount) in till.published().await {
        if seen.insert(event_id) {
            arrivals.entry(till).or_default().push(amount);
        }
    }
    arrivals
}

/// Whether each till's amounts are 1, 2, 3 … without a gap.
pub fn in_order(arrivals: &HashMap<String, Vec<i64>>) -> bool {
    arrivals.values().all(|amounts| amounts.iter().copied().eq(1..=amounts.len() as i64))
}

/// Publishes one event: its amount is its number among the till's events, drawn under the till's
/// lock. Then the transaction takes its time.
async fn publish_next<const TEST: u32>(till: &Till<TEST>, name: &str, tail: Duration) {
    let mut tx = till.db.begin().await.unwrap();
    // Many wait for one row.
    let patience = "set local lock_timeout = '60s'; set local statement_timeout = '60s'";
    sqlx::raw_sql(patience).execute(&mut *tx).await.unwrap();
    let nth: i64 = sqlx::query_scalar(
        "insert into tallies values ($1, 1, 0)
         on conflict (till) do update set counted = tallies.counted + 1 returning counted",
    )
    .bind(name)
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    publish(&mut tx, &[envelope(&counted::<TEST>(name, nth))]).await;
    sleep(tail).await;
    tx.commit().await.unwrap();
    till.wake.relay.notify_one();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_of_16_writers_reaches_its_topic_and_each_key_in_order() {
    let till = Till::<101>::open_with_contracts().await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let writers = (0..16).map(|writer| {
        let till = till.clone();
        tokio::spawn(async move {
            for nth in 0..40 {
                // Most tills are a writer's own, some are fought for; the tails are long, and a few longer
                // than the floor takes to move.
                let name = match nth % 4 {
                    0 => format!("shared {}", nth % 3),
                    _ => format!("till {writer}"),
                };
                let tail = match rand::random_range(0..100) {
                    0 => 2_500,
                    1..=5 => 200,
                    _ => rand::random_range(0..15),
                };
                publish_next(&till, &name, Duration::from_millis(tail)).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    till.outbox_is_empty().await;
    relaying.stop().await;

    let arrivals = first_arrivals(&till).await;
    assert_eq!(arrivals.values().map(Vec::len).sum::<usize>(), 16 * 40);
    assert!(in_order(&arrivals), "{arrivals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_loses_the_lock_and_the_other_relay_goes_on_where_it_was() {
    let till = Till::<102>::open_with_contracts().await;
    let leader = async || -> Vec<i32> {
        let holders = "select pid from pg_locks join pg_database d on d.oid = database
                       where locktype = 'advisory' and granted and datname = current_database()";
        sqlx::query_scalar(holders).fetch_all(&till.db).await.unwrap()
    };
    // On a thread of its own, which is what can freeze.
    let freeze = CancellationToken::new();
    // With a pool of its own: what is frozen with it must not be used by others.
    let (frozen, relay) = (freeze.clone(), till.with(|_| ()).relay());
    let (thaw, thawed) = std::sync::mpsc::channel::<()>();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::join!(relay.run(stopped), async {
                frozen.cancelled().await;
                thawed.recv().unwrap();
            })
        })
    });
    eventually("the first relay leads", async || leader().await.len() == 1).await;
    let first = leader().await;
    let second = till.relay();
    let second = Running::start(|stop| second.run(stop));
    let writing = Running::start(|stop| {
        let till = till.clone();
        async move {
            for nth in 0u64.. {
                if stop.is_cancelled() {
                    break;
                }
                publish_next(&till, &format!("till {}", nth % 5), Duration::from_millis(2)).await;
            }
            Ok(())
        }
    });
    eventually("it relays", async || till.published().await.len() > 100).await;
    assert_eq!(leader().await, first, "one is active");
    let published = till.published().await;
    let events: BTreeSet<Uuid> = published.iter().map(|(event_id, ..)| *event_id).collect();
    assert_eq!(events.len(), published.len(), "and what it sends, no other sends");

    freeze.cancel();
    let frozen_at = Instant::now();
    eventually("another leads", async || {
        let now = leader().await;
        assert!(now.len() <= 1, "two are active");
        now.len() == 1 && now != first
    })
    .await;
    assert!(frozen_at.elapsed() < Duration::from_secs(30), "{:?}", frozen_at.elapsed());
    let before = till.published().await.len();
    eventually("it relays on", async || till.published().await.len() > before + 50).await;
    thaw.send(()).unwrap();
    writing.stop().await;
    till.outbox_is_empty().await;
    stop.cancel();
    tokio::task::spawn_blocking(move || thread.join().unwrap().0.unwrap()).await.unwrap();
    second.stop().await;

    let arrivals = first_arrivals(&till).await;
    assert!(in_order(&arrivals), "{arrivals:?}");
    let published: i64 = till.tallies().await.values().map(|(counted, _)| counted).sum();
    assert_eq!(arrivals.values().map(Vec::len).sum::<usize>() as i64, published);
}

/// A broker that can be made to misbehave, in the place of the real one.
pub async fn on_a_mock<const TEST: u32>(
    till: &Till<TEST>,
) -> (Till<TEST>, MockCluster<'static, rdkafka::producer::DefaultProducerContext>) {
    let topic = names(TEST).counted;
    till.register(topic, topic.schema).await;
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic(topic.name, topic.partitions, 1).unwrap();
    let there = mock.bootstrap_servers();
    (till.with(|config| config.kafka.kafka_bootstrap_servers = there), mock)
}

/// What is for the others comes back all the while, and must not hide what does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_leader_holds_up_its_own_topic_and_no_other() {
    let till = Till::<115>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let (counted_into, tallied) = (names(115).counted, names(115).tallied);
    till.register(tallied, tallied.schema).await;
    mock.create_topic(tallied.name, tallied.partitions, 1).unwrap();
    mock.partition_leader(counted_into.name, 0, None).unwrap();
    till.publish(&[counted("a", 1)]).await;
    // A third of them for that partition: more than may be in flight in all.
    till.force(
        "insert into outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
         select gen_random_uuid(), topic, 'key ' || nth, schema_fingerprint, body, occurred_at
         from outbox, generate_series(1, 27000) as nth",
    )
    .await;
    let mut tx = till.db.begin().await.unwrap();
    let event = Outgoing::of(&Tallied::<115> { till: "a key of its own".into(), total: 1 });
    publish(&mut tx, &[Envelope { event, ..envelope(&counted::<115>("", 0)) }]).await;
    tx.commit().await.unwrap();
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    till.outbox_is_empty_of(tallied).await;
    mock.partition_leader(counted_into.name, 0, Some(1)).unwrap();
    till.outbox_is_empty().await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_session_had_in_flight_is_purged() {
    let till = Till::<103>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    till.publish(&[counted("a", 1)]).await;
    till.outbox_is_empty().await;
    mock.broker_down(-1).unwrap();
    till.publish(&[counted("a", 2), counted("b", 1)]).await;
    sleep(MEANWHILE).await;
    till.force(
        "select pg_terminate_backend(pid) from pg_locks
         where locktype = 'advisory' and granted
           and database = (select oid from pg_database where datname = current_database())",
    )
    .await;
    sleep(MEANWHILE).await;
    mock.broker_up(-1).unwrap();
    till.outbox_is_empty().await;
    relaying.stop().await;
    // Longer than a producer takes to come back to its broker.
    sleep(2 * MEANWHILE).await;
    let published = till.published().await;
    assert_eq!(published.len(), 3, "each came once: {published:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_session_went_silent_while_it_stood_by_takes_over_all_the_same() {
    let till = Till::<111>::open_with_contracts().await;
    let (proxied, proxy) = till.with_database_proxy().await;
    let (first, second) = (till.relay(), proxied.relay());
    let first = Running::start(|stop| first.run(stop));
    till.publish(&[counted("a", 1)]).await;
    till.outbox_is_empty().await;
    let second = Running::start(|stop| second.run(stop));
    eventually("it stands by", async || {
        let asked = "select count(*) from pg_stat_activity where datname = current_database()
                     and query = 'select pg_try_advisory_lock($1)'";
        till.number(asked).await == 1
    })
    .await;
    proxy.set(Way::Silent);
    sleep(2 * MEANWHILE).await;
    proxy.set(Way::Open);
    first.stop().await;
    till.publish(&[counted("a", 2)]).await;
    till.outbox_is_empty().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_holds_its_rows_and_later_ones_of_their_keys_and_nothing_else() {
    let till = Till::<105>::open().await;
    let (counted_topic, tallied_topic) = (names(105).counted, names(105).tallied);
    till.create_topic(counted_topic, &[]).await;
    for topic in [counted_topic, tallied_topic] {
        till.register(topic, topic.schema).await;
    }
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let mut tx = till.db.begin().await.unwrap();
    let tallied = Envelope {
        event: Outgoing::of(&Tallied::<105> { till: "held".into(), total: 1 }),
        ..envelope(&counted::<105>("held", 1))
    };
    let mut events = vec![envelope(&counted::<105>("held", 1)), tallied];
    events.extend((2..=5).map(|nth| envelope(&counted::<105>("held", nth))));
    events.extend((1..=5).map(|nth| envelope(&counted::<105>("free", nth))));
    publish(&mut tx, &events).await;
    tx.commit().await.unwrap();
    // Until the topic has been refused and tried again.
    let (begun, mut free) = (Instant::now(), 5);
    while begun.elapsed() < Duration::from_secs(9) {
        free += 1;
        till.publish(&[counted("free", free)]).await;
        eventually("the others go on", async || {
            till.number("select count(*) from outbox").await == 5
        })
        .await;
    }
    // Behind the refusal, or behind each hold, it would be no more than five.
    assert!(free > 15, "the others are held up: {free}");
    till.publish(&[counted("held", 6)]).await;
    let arrivals = first_arrivals(&till).await;
    assert_eq!((arrivals["held"].len(), arrivals["free"].len()), (1, free as usize));

    till.create_topic(tallied_topic, &[]).await;
    till.outbox_is_empty().await;
    relaying.stop().await;
    assert_eq!(till.records(tallied_topic).await.len(), 1);
    let arrivals = first_arrivals(&till).await;
    assert_eq!((arrivals["held"].len(), in_order(&arrivals)), (6, true), "{arrivals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_nobody_registered_holds_up_its_own_topic_and_no_other() {
    let till = Till::<114>::open().await;
    let (counted_topic, tallied_topic) = (names(114).counted, names(114).tallied);
    till.create_topic(counted_topic, &[]).await;
    till.create_topic(tallied_topic, &[]).await;
    till.register(tallied_topic, tallied_topic.schema).await;
    let mut tx = till.db.begin().await.unwrap();
    let tallied = Envelope {
        event: Outgoing::of(&Tallied::<114> { till: "b".into(), total: 1 }),
        ..envelope(&counted::<114>("b", 1))
    };
    publish(&mut tx, &[envelope(&counted::<114>("a", 1)), tallied]).await;
    tx.commit().await.unwrap();
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    eventually("the registered one is published", async || {
        till.number("select count(*) from outbox").await == 1
    })
    .await;
    till.register(counted_topic, counted_topic.schema).await;
    till.outbox_is_empty().await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_events_are_stored_and_wait_and_each_goes_out_as_its_own_version() {
    let till = Till::<106>::open_with_contracts().await;
    let topic = names(106).counted;
    let (away, proxy) = till.with_registry_proxy().await;
    proxy.set(Way::Shut);
    let relay = away.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let (commands, writing) = away.commands();
    let answer = commands.run(counted::<106>("a", 1), None, count).await;
    assert_eq!(status(&answer), StatusCode::CREATED);

    // A newer replica beside us writes with a schema that this relay was not built with.
    let newer = COUNTED.replace("]}", r#", {"name": "by", "type": "string", "default": ""}]}"#);
    let newer_id = till.register(topic, &newer).await;
    let id = till.register(topic, topic.schema).await;
    assert_ne!(newer_id, id);
    till.publish(&[counted("a", 2)]).await;
    let fingerprint = crate::avro::fingerprint(&newer).unwrap();
    sqlx::query("insert into outbox_schemas values ($1, $2)")
        .bind(fingerprint.as_slice())
        .bind(&newer)
        .execute(&till.db)
        .await
        .unwrap();
    sqlx::query(
        "update outbox set schema_fingerprint = $1, body = body || '\\x00' where position = 2",
    )
    .bind(fingerprint.as_slice())
    .execute(&till.db)
    .await
    .unwrap();
    sleep(MEANWHILE).await;
    assert_eq!(till.number("select count(*) from outbox").await, 2);
    assert_eq!(till.records(topic).await.len(), 0);

    proxy.set(Way::Open);
    till.outbox_is_empty().await;
    let records = till.records(topic).await;
    let ids: Vec<u32> =
        records.iter().map(|r| crate::avro::unframe(r.payload().unwrap()).unwrap().0).collect();
    assert_eq!(ids, [id, newer_id]);
    till.catch_up().await;
    assert_eq!(till.tallies().await["a"].1, 1 + 1 + 2, "a reader of the older version reads both");
    relaying.stop().await;
    writing.stop().await;
}
