//! Committed events reach their topic, in order per key.

use super::*;

/// Publishes one event. Its amount is its number among the till's events, which is drawn under the till's lock.
/// Then the transaction stays open for `tail`.
async fn publish_next<const TEST: u32>(fixture: &Fixture<TEST>, name: &str, tail: Duration) {
    let mut tx = fixture.db.begin().await.unwrap();
    // Many transactions wait for one row.
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
    publish_in(&mut tx, &[envelope(&counted::<TEST>(name, nth))]).await;
    sleep(tail).await;
    tx.commit().await.unwrap();
    fixture.wakeups.relay.notify_one();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_of_16_writers_reaches_its_topic_and_each_key_in_order() {
    let fixture = Fixture::<101>::create_with_contracts().await;
    let relaying = fixture.start_relay();
    let writers = (0..16).map(|writer| {
        let fixture = fixture.clone();
        tokio::spawn(async move {
            for nth in 0..40 {
                // Most tills belong to one writer, and some are shared. A few transactions stay open for longer
                // than the low watermark needs to advance.
                let name = match nth % 4 {
                    0 => format!("shared {}", nth % 3),
                    _ => format!("till {writer}"),
                };
                let tail = match rand::random_range(0..100) {
                    0 => 2_500,
                    1..=5 => 200,
                    _ => rand::random_range(0..15),
                };
                publish_next(&fixture, &name, Duration::from_millis(tail)).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    fixture.wait_for_empty_outbox().await;
    relaying.stop().await;

    let arrivals = first_arrivals(&fixture).await;
    assert_eq!(arrivals.values().map(Vec::len).sum::<usize>(), 16 * 40);
    assert!(in_order(&arrivals), "{arrivals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_loses_the_lock_and_another_relay_continues_where_it_was() {
    let fixture = Fixture::<102>::create_with_contracts().await;
    let leader = async || -> Vec<i32> {
        let holders = "select pid from pg_locks join pg_database d on d.oid = database
                       where locktype = 'advisory' and granted and datname = current_database()";
        sqlx::query_scalar(holders).fetch_all(&fixture.db).await.unwrap()
    };
    // On a separate thread, so that it can freeze.
    let freeze = CancellationToken::new();
    // With a separate pool: others must not use its frozen connections.
    let (frozen, relay) = (freeze.clone(), fixture.with_config(|_| ()).relay());
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
    let second = fixture.relay();
    let second = RunningLoop::start(|stop| second.run(stop));
    let writing = RunningLoop::start(|stop| {
        let fixture = fixture.clone();
        async move {
            for nth in 0u64.. {
                if stop.is_cancelled() {
                    break;
                }
                publish_next(&fixture, &format!("till {}", nth % 5), Duration::from_millis(2))
                    .await;
            }
            Ok(())
        }
    });
    eventually("it relays", async || fixture.published().await.len() > 100).await;
    assert_eq!(leader().await, first, "one is active");
    let published = fixture.published().await;
    let events: BTreeSet<Uuid> = published.iter().map(|(event_id, ..)| *event_id).collect();
    assert_eq!(events.len(), published.len(), "each event is sent by one relay");

    freeze.cancel();
    let frozen_at = Instant::now();
    eventually("another leads", async || {
        let now = leader().await;
        assert!(now.len() <= 1, "two are active");
        now.len() == 1 && now != first
    })
    .await;
    assert!(frozen_at.elapsed() < Duration::from_secs(30), "{:?}", frozen_at.elapsed());
    let before = fixture.published().await.len();
    eventually("it relays on", async || fixture.published().await.len() > before + 50).await;
    thaw.send(()).unwrap();
    writing.stop().await;
    fixture.wait_for_empty_outbox().await;
    stop.cancel();
    tokio::task::spawn_blocking(move || thread.join().unwrap().0.unwrap()).await.unwrap();
    second.stop().await;

    let arrivals = first_arrivals(&fixture).await;
    assert!(in_order(&arrivals), "{arrivals:?}");
    let published = fixture.counted().await;
    assert_eq!(arrivals.values().map(Vec::len).sum::<usize>() as i64, published);
}

/// Records of the other partitions are acknowledged all the time, and must not hide those that are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_leader_delays_only_its_own_topic() {
    let (fixture, mock) = Fixture::<115>::create_with_mock_kafka().await;
    let (counted_into, tallied) = (names(115).counted, names(115).tallied);
    fixture.register_schema(tallied, tallied.schema).await;
    mock.create_topic(tallied.name, tallied.partitions, 1).unwrap();
    mock.partition_leader(counted_into.name, 0, None).unwrap();
    fixture.publish(&[counted("a", 1)]).await;
    // A third of these belong to that partition: more than may be in flight in total.
    let statement =
        "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
         select gen_random_uuid(), topic, 'key ' || nth, schema_fingerprint, body, occurred_at
         from chassis.outbox, generate_series(1, 27000) as nth";
    fixture.execute_as_superuser(statement).await;
    let other = Tallied::<115> { till: "a key of its own".into(), total: 1 };
    fixture.publish_together(&[envelope(&other)]).await;
    let relaying = fixture.start_relay();
    fixture.wait_until_relayed(tallied).await;
    mock.partition_leader(counted_into.name, 0, Some(1)).unwrap();
    fixture.wait_for_empty_outbox().await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_in_flight_of_a_killed_connection_are_purged() {
    let (fixture, mock) = Fixture::<103>::create_with_mock_kafka().await;
    let relaying = fixture.start_relay();
    fixture.deliver(&[counted("a", 1)]).await;
    mock.broker_down(-1).unwrap();
    fixture.publish(&[counted("a", 2), counted("b", 1)]).await;
    sleep(QUIET_PERIOD).await;
    let statement = "select pg_terminate_backend(pid) from pg_locks
         where locktype = 'advisory' and granted
           and database = (select oid from pg_database where datname = current_database())";
    fixture.execute_as_superuser(statement).await;
    sleep(QUIET_PERIOD).await;
    mock.broker_up(-1).unwrap();
    fixture.wait_for_empty_outbox().await;
    relaying.stop().await;
    // Longer than a producer takes to reconnect to its broker.
    sleep(2 * QUIET_PERIOD).await;
    let published = fixture.published().await;
    assert_eq!(published.len(), 3, "each came once: {published:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_relay_whose_connection_stopped_responding_still_takes_over() {
    let fixture = Fixture::<111>::create_with_contracts().await;
    let (proxied, proxy) = fixture.with_database_proxy().await;
    let (first, second) = (fixture.relay(), proxied.relay());
    let first = RunningLoop::start(|stop| first.run(stop));
    fixture.deliver(&[counted("a", 1)]).await;
    let second = RunningLoop::start(|stop| second.run(stop));
    eventually("it stands by", async || {
        let asked = "select count(*) from pg_stat_activity where datname = current_database()
                     and query = 'select pg_try_advisory_lock($1)'";
        fixture.query_number(asked).await == 1
    })
    .await;
    proxy.set_mode(ProxyMode::Blackhole);
    sleep(2 * QUIET_PERIOD).await;
    proxy.set_mode(ProxyMode::PassThrough);
    first.stop().await;
    fixture.deliver(&[counted("a", 2)]).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_delays_only_its_rows_and_later_ones_of_their_keys() {
    let fixture = Fixture::<105>::create().await;
    let (counted_topic, tallied_topic) = (names(105).counted, names(105).tallied);
    fixture.create_topic(counted_topic, &[]).await;
    for topic in [counted_topic, tallied_topic] {
        fixture.register_schema(topic, topic.schema).await;
    }
    let relaying = fixture.start_relay();
    let tallied = Tallied::<105> { till: "held".into(), total: 1 };
    let mut events = vec![envelope(&counted::<105>("held", 1)), envelope(&tallied)];
    events.extend((2..=5).map(|nth| envelope(&counted::<105>("held", nth))));
    events.extend((1..=5).map(|nth| envelope(&counted::<105>("free", nth))));
    fixture.publish_together(&events).await;
    // Until the topic has been refused and retried.
    let (begun, mut free) = (Instant::now(), 5);
    while begun.elapsed() < Duration::from_secs(9) {
        free += 1;
        fixture.publish(&[counted("free", free)]).await;
        fixture.wait_for_outbox(5).await;
    }
    // If the events waited for each backoff of the topic, there would be five at most.
    assert!(free > 15, "the others are held up: {free}");
    fixture.publish(&[counted("held", 6)]).await;
    let arrivals = first_arrivals(&fixture).await;
    assert_eq!((arrivals["held"].len(), arrivals["free"].len()), (1, free as usize));

    fixture.create_topic(tallied_topic, &[]).await;
    fixture.wait_for_empty_outbox().await;
    relaying.stop().await;
    assert_eq!(fixture.records(tallied_topic).await.len(), 1);
    let arrivals = first_arrivals(&fixture).await;
    assert_eq!((arrivals["held"].len(), in_order(&arrivals)), (6, true), "{arrivals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unregistered_schema_delays_only_its_own_topic() {
    let fixture = Fixture::<114>::create().await;
    let (counted_topic, tallied_topic) = (names(114).counted, names(114).tallied);
    fixture.create_topic(counted_topic, &[]).await;
    fixture.create_topic(tallied_topic, &[]).await;
    fixture.register_schema(tallied_topic, tallied_topic.schema).await;
    let tallied = Tallied::<114> { till: "b".into(), total: 1 };
    let events = [envelope(&counted::<114>("a", 1)), envelope(&tallied)];
    fixture.publish_together(&events).await;
    let relaying = fixture.start_relay();
    fixture.wait_for_outbox(1).await;
    fixture.register_schema(counted_topic, counted_topic.schema).await;
    fixture.wait_for_empty_outbox().await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_events_are_stored_and_later_published_in_their_own_versions() {
    let fixture = Fixture::<106>::create_with_contracts().await;
    let topic = names(106).counted;
    let (away, proxy) = fixture.with_registry_proxy().await;
    proxy.set_mode(ProxyMode::Refuse);
    let relaying = away.start_relay();
    let (commands, writing) = away.commands();
    let answer = commands.execute(once(counted::<106>("a", 1))).await;
    assert_eq!(status(&answer), StatusCode::CREATED);

    // A newer replica writes with a schema that this relay was not built with.
    let newer = newer_schema();
    let newer_id = fixture.register_schema(topic, &newer).await;
    let id = fixture.register_schema(topic, topic.schema).await;
    assert_ne!(newer_id, id);
    fixture.publish(&[counted("a", 2)]).await;
    let fingerprint = messaging::event::avro::fingerprint(&newer).unwrap();
    sqlx::query("insert into chassis.outbox_schemas values ($1, $2)")
        .bind(fingerprint.as_slice())
        .bind(&newer)
        .execute(&fixture.db)
        .await
        .unwrap();
    sqlx::query(
        "update chassis.outbox set schema_fingerprint = $1, body = body || '\\x00' where position = 2",
    )
    .bind(fingerprint.as_slice())
    .execute(&mut fixture.superuser_connection().await)
    .await
    .unwrap();
    sleep(QUIET_PERIOD).await;
    assert_eq!(fixture.count("chassis.outbox").await, 2);
    assert_eq!(fixture.records(topic).await.len(), 0);

    proxy.set_mode(ProxyMode::PassThrough);
    fixture.wait_for_empty_outbox().await;
    let records = fixture.records(topic).await;
    let ids: Vec<u32> = records
        .iter()
        .map(|r| messaging::event::avro::unframe(r.payload().unwrap()).unwrap().0)
        .collect();
    assert_eq!(ids, [id, newer_id]);
    fixture.catch_up().await;
    assert_eq!(
        fixture.tallies().await["a"].1,
        1 + 1 + 2,
        "a reader of the older version reads both"
    );
    relaying.stop().await;
    writing.stop().await;
}
