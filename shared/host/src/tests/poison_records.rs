//! Unprocessable records are stored unchanged as dead letters; the events around them are handled.

use rdkafka::producer::{FutureProducer, FutureRecord};
use tower::ServiceExt;

use super::*;

/// One row while the consumer is paused.
const PAUSED: &str = "chassis.consumer where paused_at is not null";

/// A record as it is to be sent, the header `ce_id`, and a part of the expected reason.
type PoisonRecord = (Option<Vec<u8>>, Option<&'static str>, &'static str);

/// Bytes that are no event: every prefix of `good` and `newer`, and more.
fn poison_records(good: &[u8], newer: &[u8]) -> Vec<PoisonRecord> {
    let event_id: &str = Uuid::now_v7().to_string().leak();
    let cut = |record: &[u8], at: usize| {
        (Some(record[..at].to_vec()), Some(event_id), if at < 5 { "too few" } else { "" })
    };
    let mut poison: Vec<PoisonRecord> = (0..good.len()).map(|at| cut(good, at)).collect();
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
async fn poison_bytes_become_dead_letters_unchanged_and_the_events_around_them_are_handled() {
    let fixture = Fixture::<3>::create_with_contracts().await;
    let topic = names(3).counted;
    let event = Counted::<3> { note: Some("two".into()), ..counted("a", 1) };
    let body = Outgoing::from_event(&event).body;
    let good = frame(fixture.register_schema(topic, topic.schema).await, &body);
    // A record of another version, which is decoded in another way, with one more field at the end.
    let newer = COUNTED_SCHEMA
        .replace("]}", r#", {"name": "by", "type": ["null", "string"], "default": null}]}"#);
    let newer = frame(
        fixture.register_schema(topic, &newer).await,
        &[&body, b"\x02\x06who".as_slice()].concat(),
    );
    let mut poison = poison_records(&good, &newer);

    let producer: FutureProducer =
        kafka::producer_config(fixture.service, &fixture.config.kafka.connection())
            .create()
            .unwrap();
    let send = async |record: Option<&[u8]>, event_id: Option<&str>| {
        let mut message = FutureRecord::<str, [u8]>::to(topic.name).partition(0);
        message.payload = record;
        message.headers = event_id.map(event_id_header);
        producer.send(message, TEST_TIMEOUT).await.unwrap();
    };
    for (record, event_id, _) in &poison {
        send(record.as_deref(), *event_id).await;
        for good in [&good, &newer] {
            send(Some(good), Some(&Uuid::now_v7().to_string())).await;
        }
    }
    let good = 2 * poison.len() as i64;
    // The same again, without good records in between.
    for (record, event_id, _) in &poison {
        send(record.as_deref(), *event_id).await;
    }
    poison.extend(poison.clone());
    fixture.catch_up().await;

    assert_eq!(fixture.tallies().await["a"], (good, good), "each good event once");
    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), poison.len());
    for (nth, (letter, (record, event_id, reason))) in letters.iter().zip(&poison).enumerate() {
        let nth = nth as i64;
        let offset = if nth < good / 2 { 3 * nth } else { nth + good };
        assert_eq!((letter.partition, letter.offset), (0, offset));
        let kept = record.as_deref().map(|it| &it[..it.len().min(4096)]);
        assert_eq!((letter.record.as_deref(), letter.kind.as_str()), (kept, "undecodable"));
        assert!(letter.reason.contains(reason), "{reason}: {letter:?}");
        assert_eq!(letter.event_id, event_id.and_then(|id| id.parse().ok()));
    }
    assert_eq!(committed_offsets(&fixture).await, [2 * good], "the offset is above all of them");
    assert_eq!(fixture.count(PAUSED).await, 0, "undecodable records do not pause it");
}

#[tokio::test]
async fn only_the_bad_events_of_a_batch_become_dead_letters_and_the_others_take_effect_once() {
    let fixture = Fixture::<4>::create_with_contracts().await;
    let bad = [
        (5, counted("b", 0), "unprocessable", "nothing was counted"),
        (11, counted("a", -1), "handler_failed", "a till can't owe -1"),
        (12, counted("c", 1_000_000), "handler_failed", "check constraint"),
        (30, counted("a\0", 1), "handler_failed", "0x00"),
    ];
    let mut events: Vec<Counted<4>> =
        (0..40).map(|nth| counted(["a", "b", "c"][nth % 3], 1)).collect();
    for (nth, event, ..) in &bad {
        events[*nth] = event.clone();
    }
    let batch = fixture.to_records(&events).await;
    fixture.handle(batch.clone()).await;

    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), bad.len(), "{letters:?}");
    for (letter, (nth, _, kind, reason)) in letters.iter().zip(&bad) {
        assert_eq!((letter.offset as usize, letter.kind.as_str()), (*nth, *kind));
        assert!(letter.reason.contains(reason), "{letter:?}");
        assert_eq!(letter.record.as_deref(), batch[*nth].payload());
    }
    let tallies = fixture.tallies().await;
    assert_eq!(fixture.counted().await, 36, "{tallies:?}");
    assert_eq!(fixture.count("chassis.inbox").await, 36);
    let both = "select count(*) from chassis.inbox join chassis.dead_letters using (event_id)";
    assert_eq!(fixture.query_number(both).await, 0, "a dead letter can be replayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_bad_events_in_a_row_pause_the_consumer_until_an_operator_resumes_it() {
    let fixture = Fixture::<9>::create_with_contracts().await;
    let relaying = fixture.start_relay();
    // A success in between restarts the count.
    let mut events = vec![counted("a", 0); 19];
    events.push(counted("a", 1));
    events.extend(vec![counted("a", 0); 20]);
    events.push(counted("a", 1));
    fixture.deliver(&events).await;

    let consuming = fixture.start_consumer();
    eventually("it is paused", async || fixture.count(PAUSED).await == 1).await;
    assert_eq!(fixture.dead_letters().await.len(), 39);
    let client = fixture.group_client();
    let group = client.fetch_group_list(Some(fixture.service), TEST_TIMEOUT).unwrap();
    assert_eq!(group.groups()[0].members().len(), 1, "it stays in its group");
    consuming.stop().await;

    // The pause outlives the process.
    let consumer = fixture.consumer();
    let group = consumer.lag();
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    eventually("it is in its group again", async || {
        let group = client.fetch_group_list(Some(fixture.service), TEST_TIMEOUT).unwrap();
        group.groups()[0].members().len() == 1 && group.groups()[0].state() == "Stable"
    })
    .await;
    sleep(QUIET_PERIOD).await;
    assert_eq!(fixture.tallies().await["a"], (1, 1));
    let resume = axum::http::Request::post("/consumer/resume").body(axum::body::Body::empty());
    let answer = fixture.admin_router().oneshot(resume.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let resumed = "select count(*) from chassis.consumer where actor = 'ann'";
    assert_eq!(fixture.query_number(resumed).await, 1);
    eventually("it goes on", async || fixture.tallies().await["a"] == (2, 2)).await;
    eventually("to the end", async || group.caught_up().await.is_some()).await;
    consuming.stop().await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_does_not_end_a_series_of_bad_events() {
    let fixture = Fixture::<230>::create_with_contracts().await;
    let mut events = vec![counted("a", 0); 21];
    events[0] = counted("a", 1);
    let mut batch = fixture.to_records(&events).await;
    fixture.handle(batch[..1].to_vec()).await;
    batch.swap(0, 15);
    handle_until_paused(&fixture, batch).await;
}

async fn handle_until_paused<const TEST: u32>(fixture: &Fixture<TEST>, batch: Vec<OwnedMessage>) {
    let mut stepped = fixture.stepped_consumer();
    let handling = RunningLoop::start(|stop| async move {
        stepped.stop = stop;
        stepped.batches().handle(batch, &Assignment::default()).await;
        Ok(())
    });
    eventually("it is paused", async || fixture.count(PAUSED).await == 1).await;
    handling.stop().await;
}

/// This happens in a database that was moved without its sequences.
#[tokio::test]
async fn a_dead_letter_is_stored_though_its_id_was_used_before() {
    let fixture = Fixture::<231>::create_with_contracts().await;
    for letters in 1..=3 {
        let statement = "alter table chassis.dead_letters alter dead_letter_id restart with 1";
        fixture.execute_as_superuser(statement).await;
        fixture.handle(fixture.to_records(&[counted(&format!("till {letters}"), 0)]).await).await;
        assert_eq!(fixture.dead_letters().await.len(), letters);
    }
}

#[tokio::test]
async fn a_dead_letter_that_the_database_rejects_is_retried_with_backoff() {
    let fixture = Fixture::<232>::create_with_contracts().await;
    let statement =
        "alter table chassis.dead_letters add constraint spoilt check (key <> 'a'::bytea)";
    fixture.execute_as_superuser(statement).await;
    let batch = fixture.to_records(&[counted("a", 0)]).await;
    // Each attempt draws an id.
    let tries = async || {
        let tries = "select case when is_called then last_value else 0 end
                     from chassis.dead_letters_dead_letter_id_seq";
        let tries = sqlx::query_scalar::<_, i64>(tries);
        tries.fetch_one(&mut fixture.superuser_connection().await).await.unwrap()
    };
    let drop_constraint = async {
        eventually("it is tried again", async || tries().await >= 2).await;
        sleep(QUIET_PERIOD).await;
        assert!(tries().await < 20, "{} tries", tries().await);
        fixture
            .execute_as_superuser("alter table chassis.dead_letters drop constraint spoilt")
            .await;
    };
    tokio::join!(fixture.handle(batch), drop_constraint);
    assert_eq!(fixture.dead_letters().await.len(), 1);
}

const REJECT_THIRTEEN: &str = "
    create function refuse_thirteen() returns trigger language plpgsql as $$ begin
        if new.till = 'thirteen' then raise exception 'no thirteen here' using errcode = 'AB123'; end if;
        return new;
    end $$;
    create trigger refuse_thirteen before insert on tallies
    for each row execute function refuse_thirteen();";

/// Errors of the database's own rules: `raise exception` and unknown classes.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_rejected_by_a_database_rule_becomes_a_dead_letter_once_others_succeed() {
    let fixture = Fixture::<260>::create_with_contracts().await;
    fixture.execute_as_superuser(REJECT_THIRTEEN).await;
    let relaying = fixture.start_relay();
    let consuming = fixture.start_consumer();
    let mut events: Vec<Counted<260>> = (0..12).map(|_| counted("a", 1)).collect();
    events.insert(4, counted("thirteen", 1));
    fixture.publish(&events).await;
    let began = Instant::now();
    eventually("the others", async || fixture.tallies().await.get("a") == Some(&(12, 12))).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    eventually("it is a dead letter", async || {
        fixture.publish(&[counted("a", 0), counted("b", 1)]).await;
        sleep(Duration::from_millis(500)).await;
        fixture.dead_letters().await.iter().any(|letter| letter.reason.contains("no thirteen here"))
    })
    .await;
    let letters = fixture.dead_letters().await;
    let refused = letters.iter().find(|it| it.reason.contains("thirteen")).unwrap();
    assert_eq!(refused.kind, "handler_failed");
    assert!(refused.reason.contains("SQLSTATE AB123"), "{refused:?}");
    consuming.stop().await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn if_a_database_rule_rejects_every_event_none_becomes_a_dead_letter() {
    let fixture = Fixture::<261>::create_with_contracts().await;
    fixture.execute_as_superuser(&REJECT_THIRTEEN.replace("new.till = 'thirteen'", "true")).await;
    let batch = fixture.to_records(&[counted("a", 1), counted("b", 1)]).await;
    let mut handling = std::pin::pin!(fixture.handle(batch));
    let early = tokio::time::timeout(2 * rejected_for_min(), &mut handling).await;
    assert!(early.is_err() && fixture.dead_letters().await.is_empty());
    fixture.execute_as_superuser("drop trigger refuse_thirteen on tallies").await;
    tokio::time::timeout(TEST_TIMEOUT, handling).await.expect("they have their effect now");
    assert_eq!(fixture.tallies().await.len(), 2);
}

/// Not all replicas of a registry have a new schema at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_recent_record_waits_for_its_schema_and_later_records_do_not() {
    let fixture = Fixture::<262>::create_with_contracts().await;
    let fixture =
        fixture.with_config(|config| config.schema_registry.schema_registry_lag = TEST_TIMEOUT);
    let topic = names(262).counted;
    let good = fixture.register_schema(topic, topic.schema).await;
    let events = [counted("a", 1), counted("b", 1)];
    let mut batch = fixture.to_records(&events).await;
    let body = [Outgoing::from_event(&events[0]).body, b"\0".to_vec()].concat();
    let stepped = fixture.stepped_consumer();
    let mut batches = stepped.batches();
    // All tests share the registry, which assigns consecutive ids.
    let id = good + 100;
    let recent = batch[0].clone().set_timestamp(Timestamp::now());
    batch[0] = recent.clone().set_payload(Some(frame(id, &body)));
    batches.handle(batch, &Assignment::default()).await;
    assert_eq!(fixture.tallies().await.keys().collect::<Vec<_>>(), ["b"]);
    assert!(batches.next_due().is_some() && fixture.dead_letters().await.is_empty());
    drop(batches);
    // The record is read again, with its right id.
    let id = fixture.register_schema(topic, &newer_schema()).await;
    fixture.handle(vec![recent.set_payload(Some(frame(id, &body)))]).await;
    assert_eq!(fixture.tallies().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_store_a_bounded_number_of_bytes_and_too_many_of_them_pause_the_consumer() {
    let fixture = Fixture::<263>::create_with_contracts().await;
    let mut batch = fixture.to_records(&vec![counted("a", 1); 21]).await;
    let long = vec![7; 200 * 1024];
    let headers = (0..5_000).fold(event_id_header("no id"), |headers, nth| {
        headers.insert(Header { key: &format!("h{nth}"), value: Some("x") })
    });
    for message in &mut batch[..20] {
        let lengthened =
            message.clone().set_payload(Some(long.clone())).set_key(Some(long.clone()));
        *message = lengthened.replace_headers(Some(headers.clone()));
    }
    fixture.handle(batch).await;
    assert_eq!(fixture.tallies().await["a"], (1, 1));
    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), 20);
    assert!(letters.iter().all(|letter| letter.record.as_deref() == Some(&long[..4096])));
    let kept = fixture.query_number(
        "select sum(pg_column_size(letter.*))::bigint from chassis.dead_letters as letter",
    );
    assert!(kept.await < 20 * 16 * 1024, "as stored, with keys and headers");

    let replay = axum::http::Request::post("/dead-letters/1/replay")
        .header("content-type", "application/json")
        .body(axum::body::Body::from("{}"));
    let answer = fixture.admin_router().oneshot(replay.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CONFLICT, "it can't be replayed");

    // As many as may wait, then as many bytes as may wait.
    for (nth, (letters, bytes)) in (30..).zip([(20_000, 1), (256, 1 << 20)]) {
        let fill = format!(
            "delete from chassis.dead_letters where cluster = 'other';
             update chassis.consumer set paused_at = null, cause = null;
             insert into chassis.dead_letters
                 (cluster, topic, partition, \"offset\", hash, headers, record, kind, reason)
             select 'other', 'topic', 0, nth, '', '{{}}', convert_to(repeat('x', {bytes}), 'utf8'),
                    'undecodable', 'junk'
             from generate_series(1, {letters}) as nth"
        );
        let mut superuser = fixture.superuser_connection().await;
        sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut superuser).await.unwrap();
        let one_more = fixture.to_records(&vec![counted("a", 1); nth]).await.split_off(nth - 1);
        let one_more = one_more.into_iter().map(|it| it.set_payload(Some(vec![7]))).collect();
        handle_until_paused(&fixture, one_more).await;
    }
}
