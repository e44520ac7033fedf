//! The relay's sender, one batch at a time.

use messaging::event::avro::BODY_BYTES_MAX;
use messaging::outbox::in_flight::{DELETE_BATCH_MIN, DELETE_DELAY_MAX};
use messaging::outbox::low_watermark::{LowWatermark, OPEN_WRITERS_QUERY};
use messaging::outbox::producer::Client;
use messaging::outbox::query::{BATCH_BYTES_MAX, select_statement};
use messaging::outbox::sender::DELIVERY_SILENCE_MAX;
use messaging::outbox::session;
use metrics_exporter_prometheus::PrometheusBuilder;
use sqlx::Row;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_key_has_at_most_one_record_in_flight() {
    let (fixture, mock) = Fixture::<104>::create_with_mock_kafka().await;
    mock.broker_down(-1).unwrap();
    fixture.publish(&[counted("a", 1), counted("a", 2), counted("b", 1), counted("a", 3)]).await;
    let mut sender = fixture.sender().await;
    assert_eq!(sender.send(1_000).await, 2, "the first of each key");
    assert_eq!(sender.send(1_000).await, 0);
    mock.broker_up(-1).unwrap();
    let mut sent = 0;
    eventually("all were sent", async || {
        sent += sender.send(1_000).await;
        sent == 2
    })
    .await;
}

/// A recreated cluster could take a record of one client for a duplicate of the other's.
#[tokio::test(flavor = "multi_thread")]
async fn the_records_of_a_topic_in_flight_are_of_one_client() {
    let (fixture, mock) = Fixture::<129>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    mock.broker_down(-1).unwrap();
    fixture.publish(&[counted("a", 1)]).await;
    assert_eq!(sender.send(1_000).await, 1, "it comes alone");
    fixture.publish(&[counted("b", 1), counted("c", 1)]).await;
    assert_eq!(sender.send(1_000).await, 0, "a batch waits for it");
    mock.broker_up(-1).unwrap();
    sender.next_delivery().await;
    assert!(sender.should_poll(), "the batch has waited for this report");
    mock.broker_down(-1).unwrap();
    assert_eq!(sender.send(1_000).await, 2);
    fixture.publish(&[counted("d", 1)]).await;
    let client = sender.in_flight.client_for(names(129).counted.name, true);
    assert!(client == Some(Client::Batching), "it joins the batch");
    assert_eq!(sender.send(1_000).await, 1);
    mock.broker_up(-1).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_triggers_a_poll_only_if_a_row_may_have_waited_for_it() {
    let (fixture, mock) = Fixture::<120>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;

    fixture.publish(&[counted("a", 1)]).await;
    assert_eq!(sender.send(1_000).await, 1);
    sender.next_delivery().await;
    assert!(!sender.should_poll(), "nothing else is there");

    fixture.publish(&[counted("b", 1), counted("b", 2)]).await;
    assert_eq!(sender.send(1_000).await, 1, "the first of the key");
    sender.next_delivery().await;
    assert!(sender.should_poll(), "the second waited in the same poll");
    mock.broker_down(-1).unwrap();
    assert_eq!(sender.send(1_000).await, 1);
    fixture.publish(&[counted("b", 3)]).await;
    assert_eq!(sender.send(1_000).await, 0, "a later poll skips it");
    mock.broker_up(-1).unwrap();
    sender.next_delivery().await;
    assert!(sender.should_poll(), "the third waited for the second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_without_delivery_reports_is_replaced_and_an_idle_one_is_not() {
    let (fixture, mock) = Fixture::<228>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    let long_ago = std::time::Instant::now() - DELIVERY_SILENCE_MAX - Duration::from_secs(1);
    sender.in_flight.last_delivery_at = long_ago;
    sender.check_producer().unwrap();
    fixture.publish(&[counted("a", 1), counted("b", 1)]).await;
    mock.broker_down(-1).unwrap();
    assert_eq!(sender.send(1_000).await, 2);
    sender.check_producer().unwrap();
    sender.in_flight.last_delivery_at = long_ago;
    assert!(sender.check_producer().is_err());
    mock.broker_up(-1).unwrap();
    sender.next_delivery().await;
    sender.check_producer().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_rows_are_deleted_in_batches_or_after_a_delay_and_never_sent_again() {
    let (fixture, _mock) = Fixture::<121>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    let left = async || fixture.count("chassis.outbox").await;
    let mut relayed = async |count: usize, limit: usize| {
        let events: Vec<_> = (0..count).map(|nth| counted(&format!("till {nth}"), 1)).collect();
        fixture.publish(&events).await;
        assert_eq!(sender.send(1_000).await, count);
        let sent_at = Instant::now();
        for _ in 0..count {
            sender.next_delivery().await;
        }
        assert_eq!(sender.send(limit).await, 0, "each is sent once");
        sent_at.elapsed() > DELETE_DELAY_MAX
    };
    let slow = relayed(1, 1_000).await;
    assert!(slow || left().await == 1, "a poll right after it only reads");
    sleep(DELETE_DELAY_MAX * 2).await;
    let slow = relayed(2, 1_000).await;
    assert!(slow || left().await == 2, "the first was late");
    relayed(DELETE_BATCH_MIN, 1_000).await;
    assert_eq!(left().await, 0, "the batch is large enough");
    relayed(1, 0).await;
    assert_eq!(left().await, 0, "the poll reads nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_queries_stay_fast_while_a_snapshot_is_open() {
    let fixture = Fixture::<107>::create_with_contracts().await;
    let mut old = fixture.superuser_connection().await;
    let hold = "begin isolation level repeatable read; select count(*) from chassis.outbox";
    sqlx::raw_sql(hold).execute(&mut old).await.unwrap();
    // As if 200,000 events had been sent. The open snapshot keeps these dead rows.
    let statement =
        "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
         select gen_random_uuid(), 't', 'k', '', '', now() from generate_series(1, 200000);
         delete from chassis.outbox";
    fixture.execute_as_superuser(statement).await;
    let mut sender = fixture.sender().await;
    // The first poll also requests the schema id.
    fixture.publish(&[counted("a", 1)]).await;
    sender.send(1_000).await;
    let mut polls = async || {
        let mut polls = Vec::new();
        for _ in 0..9 {
            fixture.publish(&[counted("a", 1)]).await;
            sender.measure_lag().await;
            let began = Instant::now();
            sender.send(1_000).await;
            polls.push(began.elapsed());
            sleep(Duration::from_millis(30)).await;
        }
        polls.sort();
        polls[polls.len() / 2]
    };
    // The low watermark advances after two measurements, a second apart.
    let slow = polls().await;
    eventually("polls are fast again", async || polls().await < slow / 4).await;
}

#[tokio::test]
async fn the_low_watermark_waits_only_for_open_writers_of_the_outbox() {
    let fixture = Fixture::<123>::create().await;
    let mut old = fixture.superuser_connection().await;
    let mut forgotten = fixture.superuser_connection().await;
    let mut writer = fixture.superuser_connection().await;
    let hold = "begin isolation level repeatable read; select count(*) from chassis.outbox";
    sqlx::raw_sql(hold).execute(&mut old).await.unwrap();
    let write = "begin; insert into chassis.inbox (event_id, topic, tick) values (gen_random_uuid(), 't', 0)";
    sqlx::raw_sql(write).execute(&mut forgotten).await.unwrap();
    sqlx::raw_sql("begin").execute(&mut writer).await.unwrap();
    let write =
        "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
                 select gen_random_uuid(), 't', 'k', '', '', now()";
    sqlx::raw_sql(write).execute(&mut writer).await.unwrap();
    fixture.publish(&[counted("a", 1)]).await;
    fixture.execute_as_superuser("delete from chassis.outbox").await;
    let mut watermark = LowWatermark::default();
    watermark.record_deleted(&[2]);
    let mut see = async || {
        let writers = sqlx::query_scalar(OPEN_WRITERS_QUERY).fetch_all(&fixture.db).await.unwrap();
        let lowest = "select min(position) from chassis.outbox where position > $1";
        let lowest = sqlx::query_scalar(lowest).bind(watermark.get()).fetch_one(&fixture.db).await;
        watermark.advance(writers, lowest.unwrap());
        watermark.get()
    };
    for _ in 0..9 {
        assert_eq!(see().await, 0, "the first row may still appear");
    }
    sqlx::raw_sql("commit").execute(&mut writer).await.unwrap();
    for _ in 0..9 {
        assert_eq!(see().await, 0, "the first row waits");
    }
    fixture.execute_as_superuser("delete from chassis.outbox").await;
    assert_eq!((see().await, see().await), (2, 2), "the outbox has no open writer");
}

/// No service inserts such a row. A manual insert can, or a sequence that was set back.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_appears_below_the_low_watermark_is_sent_before_the_next_of_its_key() {
    let (fixture, _mock) = Fixture::<124>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    fixture.publish(&[counted("a", 1)]).await;
    assert_eq!(sender.send(1_000).await, 1);
    sender.next_delivery().await;
    sender.send(0).await;
    eventually("the low watermark is above it", async || {
        sender.measure_lag().await;
        sender.lag.low_watermark.get() == 1
    })
    .await;
    fixture.publish(&[counted("a", 2)]).await;
    let statement = "insert into chassis.outbox
             (position, event_id, topic, key, schema_fingerprint, body, traceparent, causation_id, occurred_at)
         overriding system value
         select 1, gen_random_uuid(), topic, key, schema_fingerprint, body, traceparent, causation_id, occurred_at
         from chassis.outbox";
    fixture.execute_as_superuser(statement).await;
    sender.lag.low_watermark.force_full_scan();
    for position in [1, 2] {
        assert_eq!(sender.send(1_000).await, 1);
        assert_eq!(sender.lag.low_watermark.get(), 0, "it was lowered below the row");
        assert_eq!(sender.next_delivery().await, position);
    }
    sender.send(0).await;
    assert_eq!(fixture.count("chassis.outbox").await, 0);
}

/// An operator may do this, or a failover to a replica that did not receive the sequence. New rows then have the
/// positions of rows that were sent long ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_reset_below_the_low_watermark_is_detected_and_its_rows_are_sent_at_once() {
    let (fixture, _mock) = Fixture::<264>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    fixture.publish(&[counted("a", 1), counted("b", 1)]).await;
    assert_eq!(sender.send(1_000).await, 2);
    for _ in 0..2 {
        sender.next_delivery().await;
    }
    sender.send(0).await;
    eventually("the low watermark is above them", async || {
        sender.measure_lag().await;
        sender.lag.low_watermark.get() == 2
    })
    .await;
    fixture
        .execute_as_superuser("alter table chassis.outbox alter column position restart with 1")
        .await;
    fixture.publish(&[counted("a", 2)]).await;
    assert_eq!(sender.send(1_000).await, 0, "it lies below the low watermark");
    eventually("it is sent", async || {
        sender.measure_lag().await;
        sender.send(1_000).await == 1
    })
    .await;
    fixture.publish(&[counted("a", 3)]).await;
    assert_eq!(fixture.query_number("select max(position) from chassis.outbox").await, 3);
}

/// The clock of the database or of the service is an hour off.
#[tokio::test]
async fn a_waiting_row_ages_though_its_timestamp_is_in_the_future() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let exported = recorder.handle();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    let oldest = || {
        let exported = exported.render();
        let line =
            exported.lines().find_map(|line| line.strip_prefix("outbox_oldest_seconds ")).unwrap();
        line.parse::<f64>().unwrap()
    };
    let fixture = Fixture::<265>::create().await;
    let mut sender = fixture.sender().await;
    fixture.publish(&[counted("a", 1)]).await;
    fixture
        .execute_as_superuser("update chassis.outbox set occurred_at = now() + interval '1 hour'")
        .await;
    sender.measure_lag().await;
    assert!(oldest() < 1.0);
    // So that the next measurement is due in a second.
    sender.lag.low_watermark.record_deleted(&[1]);
    sleep(Duration::from_millis(1_100)).await;
    sender.measure_lag().await;
    assert!(oldest() >= 1.1, "{}", oldest());
    // By the database's own clock it may be older still.
    fixture
        .execute_as_superuser("update chassis.outbox set occurred_at = now() - interval '1 hour'")
        .await;
    sleep(Duration::from_millis(1_100)).await;
    sender.measure_lag().await;
    assert!(oldest() > 3_599.0, "{}", oldest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_more_rows_than_a_batch_delays_no_other_key() {
    let (fixture, mock) = Fixture::<125>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    mock.broker_down(-1).unwrap();
    let many: Vec<_> = (0..15).map(|nth| counted("a", nth)).collect();
    fixture.publish(&many).await;
    fixture.publish(&[counted("b", 1)]).await;
    assert_eq!(sender.send(10).await, 1, "the first of ten of one key");
    assert!(sender.has_more());
    assert_eq!(sender.send(10).await, 1, "the other key");
    assert!(!sender.has_more());
    mock.broker_up(-1).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_rows_are_fetched_a_few_at_a_time_and_none_is_left() {
    let (fixture, _mock) = Fixture::<127>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    let fit = BATCH_BYTES_MAX / BODY_BYTES_MAX;
    let many: Vec<_> = (0..4 * fit).map(|nth| counted(&format!("till {nth}"), 1)).collect();
    fixture.publish(&many).await;
    fixture
        .execute_as_superuser(&format!(
            "update chassis.outbox set body = convert_to(repeat('x', {BODY_BYTES_MAX}), 'utf8')"
        ))
        .await;
    let mut landed = Vec::new();
    for _ in 0..4 {
        assert_eq!(sender.send(1_000).await, fit);
        assert!(sender.has_more());
        for _ in 0..fit {
            landed.push(sender.next_delivery().await);
        }
    }
    assert_eq!(sender.send(1_000).await, 0);
    assert!(!sender.has_more());
    landed.sort();
    assert!(landed.into_iter().eq(1..=many.len() as i64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_other_topics_is_sent_without_a_pause_beside_a_topic_that_backs_off() {
    let (fixture, mock) = Fixture::<126>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    mock.broker_down(-1).unwrap();
    let unregistered = Tallied::<126> { till: "held".into(), total: 1 };
    fixture.publish_together(&[envelope(&unregistered)]).await;
    assert_eq!(sender.send(10).await, 0);
    assert!(sender.has_backoff());
    let others: Vec<_> = (0..15).map(|nth| counted(&format!("till {nth}"), 1)).collect();
    fixture.publish(&others).await;
    assert_eq!(sender.send(10).await, 10);
    assert!(sender.has_backoff() && sender.has_more(), "all that was taken was sent");
    assert_eq!(sender.send(10).await, 5);
    assert!(!sender.has_more());
    mock.broker_up(-1).unwrap();
}

/// An outage may leave millions of rows, and a poll requests the first thousand.
#[tokio::test]
async fn the_outbox_query_reads_only_the_rows_that_it_returns_and_in_order() {
    let fixture = Fixture::<122>::create().await;
    let mut db = session::open(&fixture.db).await.unwrap().session;
    for deletes in [false, true] {
        let explain = format!("explain (generic_plan) {}", select_statement(deletes, false));
        let plan: Vec<String> = sqlx::raw_sql(AssertSqlSafe(explain))
            .fetch_all(&mut db)
            .await
            .unwrap()
            .iter()
            .map(|line| line.get(0))
            .collect();
        let plan = plan.join("\n");
        assert!(!plan.contains("Sort") && plan.contains("Index Scan using outbox_pkey"), "{plan}");
    }
}
