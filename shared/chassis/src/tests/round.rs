//! What the relay does at a look, and what it does not: its rounds taken one by one.

use metrics_exporter_prometheus::PrometheusBuilder;
use sqlx::Row;

use super::relay::on_a_mock;
use super::*;
use crate::avro::BODY_BYTES_MAX;
use crate::floor::{Floor, WRITERS};
use crate::look::{TAKEN_BYTES_MAX, look};
use crate::round::{DELETED_AT, DELETED_WITHIN, Round, SILENT_MAX};

/// Lets the next record come back; answers its row's position.
async fn land(round: &mut Round<'_>) -> i64 {
    let (flight, fate) = round.producer.landed().await.unwrap();
    let position = flight.position;
    round.landed((flight, fate)).unwrap();
    position
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_key_at_most_one_record_is_unacknowledged() {
    let till = Till::<104>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    mock.broker_down(-1).unwrap();
    till.publish(&[counted("a", 1), counted("a", 2), counted("b", 1), counted("a", 3)]).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 2, "the first of each key");
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 0);
    mock.broker_up(-1).unwrap();
    let mut sent = 0;
    eventually("all were sent", async || {
        sent += round.turn(&mut db, 1_000).await.unwrap();
        sent == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_is_a_reason_to_look_only_where_something_may_have_waited_for_it() {
    let till = Till::<120>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);

    till.publish(&[counted("a", 1)]).await;
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 1);
    land(&mut round).await;
    assert!(!round.has_to_look(), "nothing else is there");

    till.publish(&[counted("b", 1), counted("b", 2)]).await;
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 1, "the first of the key");
    land(&mut round).await;
    assert!(round.has_to_look(), "the second waited in the same look");
    mock.broker_down(-1).unwrap();
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 1);
    till.publish(&[counted("b", 3)]).await;
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 0, "a later look passes it over");
    mock.broker_up(-1).unwrap();
    land(&mut round).await;
    assert!(round.has_to_look(), "the third waited for the second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_nothing_comes_back_to_for_long_is_given_up_and_one_without_work_is_not() {
    let till = Till::<228>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    let long_ago = std::time::Instant::now() - SILENT_MAX - Duration::from_secs(1);
    round.heard_at = long_ago;
    round.still_of_use().unwrap();
    till.publish(&[counted("a", 1), counted("b", 1)]).await;
    mock.broker_down(-1).unwrap();
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 2);
    round.still_of_use().unwrap();
    round.heard_at = long_ago;
    assert!(round.still_of_use().is_err());
    mock.broker_up(-1).unwrap();
    land(&mut round).await;
    round.still_of_use().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_deleted_when_it_is_much_or_has_waited_and_never_sent_again() {
    let till = Till::<121>::open().await;
    let (till, _mock) = on_a_mock(&till).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    let left = async || till.number("select count(*) from outbox").await;
    let mut relayed = async |count: usize, limit| {
        let events: Vec<_> = (0..count).map(|nth| counted(&format!("till {nth}"), 1)).collect();
        till.publish(&events).await;
        assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), count);
        let sent_at = Instant::now();
        for _ in 0..count {
            land(&mut round).await;
        }
        assert_eq!(round.turn(&mut db, limit).await.unwrap(), 0, "each is sent once");
        sent_at.elapsed() > DELETED_WITHIN
    };
    let slow = relayed(1, 1_000).await;
    assert!(slow || left().await == 1, "a look right after it only looks");
    sleep(DELETED_WITHIN * 2).await;
    let slow = relayed(2, 1_000).await;
    assert!(slow || left().await == 2, "the first was late");
    relayed(DELETED_AT, 1_000).await;
    assert_eq!(left().await, 0, "there was much");
    relayed(1, 0).await;
    assert_eq!(left().await, 0, "there is nothing else to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_at_the_outbox_stay_fast_while_a_snapshot_is_held() {
    let till = Till::<107>::open_with_contracts().await;
    let mut old = till.session().await;
    let hold = "begin isolation level repeatable read; select count(*) from outbox";
    sqlx::raw_sql(hold).execute(&mut old).await.unwrap();
    // As if 200,000 events had gone through: none of these dead rows can be cleared away.
    till.force(
        "insert into outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
         select gen_random_uuid(), 't', 'k', '', '', now() from generate_series(1, 200000);
         delete from outbox",
    )
    .await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    // The first one also asks the registry.
    till.publish(&[counted("a", 1)]).await;
    round.turn(&mut db, 1_000).await.unwrap();
    let mut looks = async || {
        let mut looks = Vec::new();
        for _ in 0..9 {
            till.publish(&[counted("a", 1)]).await;
            round.survey(&mut db).await.unwrap();
            let look = Instant::now();
            round.turn(&mut db, 1_000).await.unwrap();
            looks.push(look.elapsed());
            sleep(Duration::from_millis(30)).await;
        }
        looks.sort();
        looks[looks.len() / 2]
    };
    // The floor moves after two surveys, a second apart.
    let slow = looks().await;
    eventually("looks are fast again", async || looks().await < slow / 4).await;
}

#[tokio::test]
async fn the_floor_waits_for_whoever_writes_to_the_outbox_and_for_nobody_else() {
    let till = Till::<123>::open().await;
    let [mut old, mut forgotten, mut writer] =
        [till.session().await, till.session().await, till.session().await];
    let hold = "begin isolation level repeatable read; select count(*) from outbox";
    sqlx::raw_sql(hold).execute(&mut old).await.unwrap();
    let write =
        "begin; insert into inbox (event_id, topic, tick) values (gen_random_uuid(), 't', 0)";
    sqlx::raw_sql(write).execute(&mut forgotten).await.unwrap();
    sqlx::raw_sql("begin").execute(&mut writer).await.unwrap();
    let write = "insert into outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
                 select gen_random_uuid(), 't', 'k', '', '', now()";
    sqlx::raw_sql(write).execute(&mut writer).await.unwrap();
    till.publish(&[counted("a", 1)]).await;
    till.force("delete from outbox").await;
    let mut floor = Floor::new();
    floor.deleted(&[2]);
    let mut see = async || {
        let writers = sqlx::query_scalar(WRITERS).fetch_all(&till.db).await.unwrap();
        let lowest = "select min(position) from outbox where position > $1";
        let lowest = sqlx::query_scalar(lowest).bind(floor.below()).fetch_one(&till.db).await;
        floor.seen(writers, lowest.unwrap());
        floor.below()
    };
    for _ in 0..9 {
        assert_eq!(see().await, 0, "the first row may come yet");
    }
    sqlx::raw_sql("commit").execute(&mut writer).await.unwrap();
    for _ in 0..9 {
        assert_eq!(see().await, 0, "the first row waits");
    }
    till.force("delete from outbox").await;
    assert_eq!((see().await, see().await), (2, 2), "nobody writes to the outbox");
}

/// No `insert` of a service does that; one by hand can, or a sequence that was set back.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_appears_below_the_floor_is_found_and_goes_before_the_next_of_its_key() {
    let till = Till::<124>::open().await;
    let (till, _mock) = on_a_mock(&till).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    till.publish(&[counted("a", 1)]).await;
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 1);
    land(&mut round).await;
    round.turn(&mut db, 0).await.unwrap();
    eventually("the floor is above it", async || {
        round.survey(&mut db).await.unwrap();
        round.floor().below() == 1
    })
    .await;
    till.publish(&[counted("a", 2)]).await;
    till.force(
        "insert into outbox overriding system value
         select 1, gen_random_uuid(), topic, key, schema_fingerprint, body, traceparent, cause, occurred_at
         from outbox",
    )
    .await;
    round.floor().expect_full_look();
    for position in [1, 2] {
        assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 1);
        assert_eq!(round.floor().below(), 0, "it went below the row, and back before the next");
        assert_eq!(land(&mut round).await, position);
    }
    round.turn(&mut db, 0).await.unwrap();
    assert_eq!(till.number("select count(*) from outbox").await, 0);
}

/// As an operator does it, or a failover to a copy that did not get the sequence: rows come that are numbered
/// like those that were sent long ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_is_set_back_below_the_floor_is_noticed_and_its_rows_are_sent_at_once() {
    let till = Till::<264>::open().await;
    let (till, _mock) = on_a_mock(&till).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    till.publish(&[counted("a", 1), counted("b", 1)]).await;
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 2);
    for _ in 0..2 {
        land(&mut round).await;
    }
    round.turn(&mut db, 0).await.unwrap();
    eventually("the floor is above them", async || {
        round.survey(&mut db).await.unwrap();
        round.floor().below() == 2
    })
    .await;
    till.force("alter table outbox alter column position restart with 1").await;
    till.publish(&[counted("a", 2)]).await;
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 0, "it lies below the floor");
    eventually("it is sent", async || {
        round.survey(&mut db).await.unwrap();
        round.turn(&mut db, 1_000).await.unwrap() == 1
    })
    .await;
    till.publish(&[counted("a", 3)]).await;
    assert_eq!(till.number("select max(position) from outbox").await, 3);
}

/// The database's clock, or the service's, is an hour off.
#[tokio::test]
async fn a_row_that_waits_grows_older_though_its_time_is_yet_to_come() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let told = recorder.handle();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    let oldest = || {
        let told = told.render();
        let line =
            told.lines().find_map(|line| line.strip_prefix("outbox_oldest_seconds ")).unwrap();
        line.parse::<f64>().unwrap()
    };
    let till = Till::<265>::open().await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    till.publish(&[counted("a", 1)]).await;
    till.force("update outbox set occurred_at = now() + interval '1 hour'").await;
    round.survey(&mut db).await.unwrap();
    assert!(oldest() < 1.0);
    // So that the next survey is due in a second.
    round.floor().deleted(&[1]);
    sleep(Duration::from_millis(1_100)).await;
    round.survey(&mut db).await.unwrap();
    assert!(oldest() >= 1.1, "{}", oldest());
    // By the database's own clock it may be older still.
    till.force("update outbox set occurred_at = now() - interval '1 hour'").await;
    sleep(Duration::from_millis(1_100)).await;
    round.survey(&mut db).await.unwrap();
    assert!(oldest() > 3_599.0, "{}", oldest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_more_rows_than_a_look_takes_holds_up_no_other() {
    let till = Till::<125>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    mock.broker_down(-1).unwrap();
    let many: Vec<_> = (0..15).map(|nth| counted("a", nth)).collect();
    till.publish(&many).await;
    till.publish(&[counted("b", 1)]).await;
    assert_eq!(round.turn(&mut db, 10).await.unwrap(), 1, "the first of ten of one key");
    assert!(round.has_more());
    assert_eq!(round.turn(&mut db, 10).await.unwrap(), 1, "the other key");
    assert!(!round.has_more());
    mock.broker_up(-1).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_rows_are_taken_a_few_at_a_time_and_none_is_left() {
    let till = Till::<127>::open().await;
    let (till, _mock) = on_a_mock(&till).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    let fit = TAKEN_BYTES_MAX / BODY_BYTES_MAX;
    let many: Vec<_> = (0..4 * fit).map(|nth| counted(&format!("till {nth}"), 1)).collect();
    till.publish(&many).await;
    till.force(&format!(
        "update outbox set body = convert_to(repeat('x', {BODY_BYTES_MAX}), 'utf8')"
    ))
    .await;
    let mut landed = Vec::new();
    for _ in 0..4 {
        assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), fit);
        assert!(round.has_more());
        for _ in 0..fit {
            landed.push(land(&mut round).await);
        }
    }
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 0);
    assert!(!round.has_more());
    landed.sort();
    assert!(landed.into_iter().eq(1..=many.len() as i64));
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_topic_that_is_held_a_backlog_of_others_is_worked_off_without_a_rest() {
    let till = Till::<126>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    mock.broker_down(-1).unwrap();
    let unregistered = Envelope {
        event: Outgoing::of(&Tallied::<126> { till: "held".into(), total: 1 }),
        ..envelope(&counted::<126>("held", 1))
    };
    let mut tx = till.db.begin().await.unwrap();
    publish(&mut tx, &[unregistered]).await;
    tx.commit().await.unwrap();
    assert_eq!(round.turn(&mut db, 10).await.unwrap(), 0);
    assert!(round.held_up());
    let others: Vec<_> = (0..15).map(|nth| counted(&format!("till {nth}"), 1)).collect();
    till.publish(&others).await;
    assert_eq!(round.turn(&mut db, 10).await.unwrap(), 10);
    assert!(round.held_up() && round.has_more(), "all that was taken was sent");
    assert_eq!(round.turn(&mut db, 10).await.unwrap(), 5);
    assert!(!round.has_more());
    mock.broker_up(-1).unwrap();
}

/// Whatever waits: hours of an outage may be millions of rows, and the first thousand are asked for.
#[tokio::test]
async fn a_look_reads_in_order_what_it_answers_and_not_the_whole_outbox() {
    let till = Till::<122>::open().await;
    let mut db = till.relay().session().await.unwrap();
    for deletes in [false, true] {
        let explain = format!("explain (generic_plan) {}", look(deletes, false));
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
