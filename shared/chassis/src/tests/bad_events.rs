//! What can never be handled is set aside as it is; everything around it goes on.

use rdkafka::producer::{FutureProducer, FutureRecord};
use tower::ServiceExt;

use super::*;

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
        let kept = record.as_deref().map(|it| &it[..it.len().min(4096)]);
        assert_eq!((letter.record.as_deref(), letter.kind.as_str()), (kept, "undecodable"));
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
    eventually("it is in its group again", async || {
        let group = client.fetch_group_list(Some(till.service), WITHIN).unwrap();
        group.groups()[0].members().len() == 1 && group.groups()[0].state() == "Stable"
    })
    .await;
    sleep(MEANWHILE).await;
    assert_eq!(till.tallies().await["a"], (1, 1));
    let resume = axum::http::Request::post("/consumer/resume").body(axum::body::Body::empty());
    let answer = till.consumer().operator().oneshot(resume.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    eventually("it goes on", async || till.tallies().await["a"] == (2, 2)).await;
    eventually("to the end", async || group.caught_up().await.is_some()).await;
    consuming.stop().await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_had_its_effect_before_does_not_end_a_row_of_bad_ones() {
    let till = Till::<230>::open_with_contracts().await;
    let mut events = vec![counted("a", 0); 21];
    events[0] = counted("a", 1);
    let mut batch = till.delivered(&events).await;
    till.handle(batch[..1].to_vec()).await;
    batch.swap(0, 15);
    let (consumer, client) = (till.consumer(), till.client());
    let handling = Running::start(|stop| async move {
        consumer.batches(&client, &stop).handle(batch, &Assigned::default()).await;
        Ok(())
    });
    let paused = "select count(*) from consumer where paused_at is not null";
    eventually("it is paused", async || till.number(paused).await == 1).await;
    handling.stop().await;
}

/// As in a database that was moved without its sequences.
#[tokio::test]
async fn a_letter_is_kept_though_its_number_was_given_before() {
    let till = Till::<231>::open_with_contracts().await;
    for letters in 1..=3 {
        till.force("alter table dead_letters alter letter_id restart with 1").await;
        till.handle(till.delivered(&[counted(&format!("till {letters}"), 0)]).await).await;
        assert_eq!(till.letters().await.len(), letters);
    }
}

#[tokio::test]
async fn a_letter_that_the_database_refuses_is_waited_for_and_asked_for_now_and_then() {
    let till = Till::<232>::open_with_contracts().await;
    till.force("alter table dead_letters add constraint spoilt check (key <> 'a'::bytea)").await;
    let batch = till.delivered(&[counted("a", 0)]).await;
    // Each try draws one.
    let tries = async || {
        let tries = "select case when is_called then last_value else 0 end
                     from dead_letters_letter_id_seq";
        let tries = sqlx::query_scalar::<_, i64>(tries);
        tries.fetch_one(&mut till.session().await).await.unwrap()
    };
    let relent = async {
        eventually("it is tried again", async || tries().await >= 2).await;
        sleep(MEANWHILE).await;
        assert!(tries().await < 20, "{} tries", tries().await);
        till.force("alter table dead_letters drop constraint spoilt").await;
    };
    tokio::join!(till.handle(batch), relent);
    assert_eq!(till.letters().await.len(), 1);
}

const REFUSE_THIRTEEN: &str = "
    create function refuse_thirteen() returns trigger language plpgsql as $$ begin
        if new.till = 'thirteen' then raise exception 'no thirteen here' using errcode = 'AB123'; end if;
        return new;
    end $$;
    create trigger refuse_thirteen before insert on tallies
    for each row execute function refuse_thirteen();";

/// Errors of the database's own rules, `raise exception` and classes that are not Postgres' own.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_a_rule_of_the_database_refuses_is_set_aside_once_others_went_on() {
    let till = Till::<260>::open_with_contracts().await;
    till.force(REFUSE_THIRTEEN).await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let consumer = till.consumer();
    let consuming = Running::start(|stop| consumer.run(stop));
    let mut events: Vec<Counted<260>> = (0..12).map(|_| counted("a", 1)).collect();
    events.insert(4, counted("thirteen", 1));
    till.publish(&events).await;
    let began = Instant::now();
    eventually("the others", async || till.tallies().await.get("a") == Some(&(12, 12))).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    eventually("it is set aside", async || {
        till.publish(&[counted("a", 0), counted("b", 1)]).await;
        sleep(Duration::from_millis(500)).await;
        till.letters().await.iter().any(|letter| letter.reason.contains("no thirteen here"))
    })
    .await;
    let letters = till.letters().await;
    let refused = letters.iter().find(|it| it.reason.contains("thirteen")).unwrap();
    assert_eq!(refused.kind, "failing");
    assert!(refused.reason.contains("SQLSTATE AB123"), "{refused:?}");
    consuming.stop().await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_rule_refuses_every_event_none_is_set_aside() {
    let till = Till::<261>::open_with_contracts().await;
    till.force(&REFUSE_THIRTEEN.replace("new.till = 'thirteen'", "true")).await;
    let batch = till.delivered(&[counted("a", 1), counted("b", 1)]).await;
    let mut handling = std::pin::pin!(till.handle(batch));
    let early = tokio::time::timeout(2 * REFUSED_FOR_MIN, &mut handling).await;
    assert!(early.is_err() && till.letters().await.is_empty());
    till.force("drop trigger refuse_thirteen on tallies").await;
    tokio::time::timeout(WITHIN, handling).await.expect("they have their effect now");
    assert_eq!(till.tallies().await.len(), 2);
}

/// The registry's replicas do not all know a new schema at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_young_record_waits_for_its_schema_and_those_behind_it_do_not() {
    let till = Till::<262>::open_with_contracts().await;
    let till = till.with(|config| config.schema_registry.schema_registry_lag = WITHIN);
    let topic = names(262).counted;
    let newer = COUNTED.replace("]}", r#", {"name": "by", "type": "string", "default": ""}]}"#);
    let (good, events) =
        (till.register(topic, topic.schema).await, [counted("a", 1), counted("b", 1)]);
    let mut batch = till.delivered(&events).await;
    let body = [Outgoing::of(&events[0]).body, b"\0".to_vec()].concat();
    let (consumer, client, stop) = (till.consumer(), till.client(), CancellationToken::new());
    let mut batches = consumer.batches(&client, &stop);
    // Ids are given one after the other, to all tests.
    let id = good + 100;
    let payload = |message: &OwnedMessage, payload| {
        OwnedMessage::new(
            Some(payload),
            message.key().map(<[u8]>::to_vec),
            message.topic().to_string(),
            Timestamp::now(),
            message.partition(),
            message.offset(),
            message.headers().cloned(),
        )
    };
    let unknown = batch.remove(0);
    batch.insert(0, payload(&unknown, frame(id, &body)));
    batches.handle(batch, &Assigned::default()).await;
    assert_eq!(till.tallies().await.keys().collect::<Vec<_>>(), ["b"]);
    assert!(batches.next_due().is_some() && till.letters().await.is_empty());
    drop(batches);
    // Read again, by its right id.
    let id = till.register(topic, &newer).await;
    till.handle(vec![payload(&unknown, frame(id, &body))]).await;
    assert_eq!(till.tallies().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_keep_a_bounded_number_of_bytes_and_too_many_of_them_pause_the_consumer() {
    let till = Till::<263>::open_with_contracts().await;
    let mut batch = till.delivered(&vec![counted("a", 1); 21]).await;
    let long = vec![7; 200 * 1024];
    let headers = (0..5_000).fold(event_id_header("no id"), |headers, nth| {
        headers.insert(Header { key: &format!("h{nth}"), value: Some("x") })
    });
    for message in &mut batch[..20] {
        *message = OwnedMessage::new(
            Some(long.clone()),
            Some(long.clone()),
            message.topic().to_string(),
            Timestamp::NotAvailable,
            message.partition(),
            message.offset(),
            Some(headers.clone()),
        );
    }
    till.handle(batch).await;
    assert_eq!(till.tallies().await["a"], (1, 1));
    let letters = till.letters().await;
    assert_eq!(letters.len(), 20);
    assert!(letters.iter().all(|letter| letter.record.as_deref() == Some(&long[..4096])));
    let kept =
        till.number("select sum(pg_column_size(letter.*))::bigint from dead_letters as letter");
    assert!(kept.await < 20 * 16 * 1024, "as it is kept, with keys and headers");

    let replay = axum::http::Request::post("/dead-letters/1/replay")
        .header("content-type", "application/json")
        .body(axum::body::Body::from("{}"));
    let answer = till.consumer().operator().oneshot(replay.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CONFLICT, "it can't be replayed");

    till.force(
        "insert into dead_letters (cluster, topic, partition, \"offset\", hash, headers, kind, reason)
         select 'other', 'topic', 0, nth, '', '{}', 'undecodable', 'junk'
         from generate_series(1, 20000) as nth",
    )
    .await;
    let one_more = till.delivered(&vec![counted("a", 1); 30]).await.split_off(29);
    let one_more = one_more.into_iter().map(|it| it.set_payload(Some(vec![7]))).collect();
    let (consumer, client) = (till.consumer(), till.client());
    let handling = Running::start(|stop| async move {
        consumer.batches(&client, &stop).handle(one_more, &Assigned::default()).await;
        Ok(())
    });
    let paused = "select count(*) from consumer where paused_at is not null";
    eventually("it is paused", async || till.number(paused).await == 1).await;
    handling.stop().await;
}
