//! Discarding dead letters: once, permanently, and with a record of every loss.

use messaging::db;
use messaging::kafka::record::schema_id;
use messaging::transaction::events::apply_events;
use messaging::transaction::failure::Next;
use messaging::transaction::incoming_record::{Content, Source};
use serde_json::{Value, json};

use super::admin_client::{OPERATOR, get, outcome, post, refused, send_request, state_counts};
use super::*;

/// A faulty publisher gives one id to two events, for example the id of the aggregate.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_id_known_from_another_topic_is_no_duplicate_but_a_dead_letter() {
    let fixture = Fixture::<23>::create_with_contracts().await;
    let stepped = fixture.stepped_consumer();
    let mut batches = stepped.batches();
    let events = fixture.to_records(&[1, 2, 3, 4].map(|amount| counted("a", amount))).await;
    batches.handle(events[..1].to_vec(), &Assignment::default()).await;
    batches.handle(events[1..2].to_vec(), &Assignment::default()).await;
    fixture.execute_as_superuser("update chassis.inbox set topic = 'another'").await;
    batches.handle(events[..1].to_vec(), &Assignment::default()).await;
    batches.handle(events[2..3].to_vec(), &Assignment::default()).await;
    batches.handle(events[1..].to_vec(), &Assignment::default()).await;
    assert_eq!(fixture.tallies().await["a"], (4, 10), "each event has one effect");
    let letters = fixture.dead_letters().await;
    assert_eq!(letters.iter().map(|letter| letter.offset).collect::<Vec<_>>(), [0, 1]);
    for letter in letters {
        assert_eq!(letter.reason, "its id is that of an event of another");
    }
    // Two in one batch, and neither is in the inbox.
    let record = fixture.to_records(&[counted::<23>("b", 1)]).await.remove(0);
    for (topic, is_duplicate) in [(names(23).counted, true), (names(23).tallied, false)] {
        let resources = &stepped.consumer.resources;
        let schemas = resources.registry.get_schemas(schema_id(&record)).await;
        let parse = || resources.router.parse(record.clone(), &schemas);
        let mut items = [parse(), parse()];
        let Content::Event(of, _) = &mut items[1].content else { panic!("it is an event") };
        *of = Source::Topic(topic);
        let mut tx = db::begin(&fixture.db).await.unwrap();
        let now = db::now(&mut tx).await.unwrap();
        let applied = apply_events(&mut tx, &items, now, true, 1).await;
        match applied.map_err(|failure| failure.next(2, true, 0)) {
            Ok(applied) => assert!(is_duplicate && applied.has_duplicates()),
            // In a separate transaction the second one finds the entry of the first, and becomes a dead letter.
            Err(next) => assert!(!is_duplicate && next == Next::Race),
        }
    }
    // The event has two dead letters. Discarding both writes it off once.
    let statement = "insert into chassis.dead_letters (cluster, topic, partition, \"offset\", hash, event_id, key, headers,
                                   record, kind, reason)
         select cluster, topic, partition, 7, hash, event_id, key, headers, record, kind, reason
         from chassis.dead_letters where \"offset\" = 0";
    fixture.execute_as_superuser(statement).await;
    let admin = fixture.admin_router();
    let listed = get(&admin, "/dead-letters").await;
    let listed = listed["dead_letters"].as_array().unwrap();
    for (letter, before) in listed.iter().zip([false, false, true]) {
        let path = format!("/dead-letters/{}", letter["dead_letter_id"]);
        let answer = get(&admin, &path).await;
        let costs = answer["discard_impact"]["consequence"].as_str().unwrap();
        assert_eq!(costs.contains("Till a"), !before, "{costs}");
        let discard = json!({ "reason": "its id is wrong" });
        let (status, answer) =
            send_request(&admin, "POST", &format!("{path}/discard"), discard).await;
        assert_eq!(status, 200, "{answer}");
    }
}

#[tokio::test]
async fn an_event_of_value_is_discarded_only_with_a_write_off_that_the_books_show() {
    let fixture = Fixture::<43>::create_with_contracts().await;
    fixture.reject_till("a").await;
    let batch = fixture.to_records(&[counted("a", 150), counted("a", 40), counted("a", 250)]).await;
    fixture.handle(batch.clone()).await;
    let admin = fixture.admin_router();
    let (path, because) = ("/dead-letters/1/discard", json!({ "reason": "no till has them" }));

    let asked = get(&admin, "/dead-letters/1").await;
    assert_eq!(asked["discard_impact"]["write_offs"][0]["amount"], 150);
    let detail = refused(&admin, path, because.clone(), (409, "write-off-needed")).await;
    assert!(detail.contains("150 coins (what was not counted)"), "{detail}");
    for no_reason in [json!({ "reason": " " }), json!({ "reason": "x".repeat(1_001) })] {
        assert_eq!(post(&admin, path, no_reason).await.0, 422);
    }
    assert_eq!(
        fixture.dead_letter_counts().await,
        state_counts([("waiting", 3)]),
        "refused, so nothing is done"
    );

    let agreed = json!({ "reason": "no till has them", "write_off": true });
    assert_eq!(outcome(&admin, path, agreed.clone()).await, "discarded");
    assert_eq!(outcome(&admin, path, agreed.clone()).await, "done_before");
    assert_eq!(
        outcome(&admin, "/dead-letters/2/discard", because).await,
        "discarded",
        "without a write-off"
    );
    assert_eq!(outcome(&admin, "/dead-letters/3/discard", agreed).await, "discarded");
    let books = crate::http::books::router(fixture.db.clone(), "select true as balanced");
    let books = get(&books, "/books").await;
    let written_off = json!([{ "unit": "coins", "amount": 400 }]);
    assert_eq!(books, json!({ "balanced": true, "written_off": written_off }));
    let letter = get(&admin, "/dead-letters/1").await;
    assert_eq!(
        (&letter["state"], &letter["discard_reason"], &letter["actor"]),
        (&json!("discarded"), &json!("no till has them"), &json!(OPERATOR))
    );
    let listed = get(&admin, "/dead-letters?state=discarded").await;
    assert_eq!(listed["dead_letters"][0]["actor"], OPERATOR);
    let actors = "select count(*) from chassis.write_offs where actor = 'ann'";
    assert_eq!(fixture.query_number(actors).await, 2);
    // A discard is final.
    refused(&admin, "/dead-letters/1/replay", Value::Null, (409, "discarded")).await;
}

#[tokio::test]
async fn a_dead_letter_whose_rows_cannot_be_loaded_is_discarded_like_any_other() {
    let fixture = Fixture::<49>::create_with_contracts().await;
    fixture.handle(fixture.to_records(&[counted("a\0", 1)]).await).await;
    let admin = fixture.admin_router();
    let letter = get(&admin, "/dead-letters/1").await;
    let consequence = letter["discard_impact"]["consequence"].as_str().unwrap();
    assert!(consequence.starts_with("The impact is unknown"), "{letter}");
    let because = json!({ "reason": "no name" });
    assert_eq!(outcome(&admin, "/dead-letters/1/discard", because).await, "discarded");
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("discarded", 1)]));
}

#[tokio::test]
async fn a_discarded_event_has_no_effect_when_it_is_read_again_with_its_cause_fixed() {
    let fixture = Fixture::<44>::create_with_contracts().await;
    fixture.reject_till("a").await;
    let events: Vec<_> = (0..25).map(|_| counted("a", 7)).collect();
    let batch = fixture.to_records(&events).await;
    // Fewer at a time than pause the consumer.
    for some in batch.chunks(15) {
        fixture.handle(some.to_vec()).await;
    }
    // The cause is still there. These dead letters exist already, so they do not pause the consumer.
    let again = tokio::time::timeout(TEST_TIMEOUT, fixture.handle(batch.clone())).await;
    assert!(again.is_ok(), "25 known dead letters do not pause the consumer");
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("waiting", 25)]));
    let admin = fixture.admin_router();
    for dead_letter_id in 1..=24 {
        let path = format!("/dead-letters/{dead_letter_id}/discard");
        assert_eq!(outcome(&admin, &path, json!({ "reason": "lost" })).await, "discarded");
    }
    fixture.handle(batch.clone()).await;
    assert_eq!(
        fixture.dead_letter_counts().await,
        state_counts([("discarded", 24), ("waiting", 1)])
    );
    fixture.accept_tills().await;
    fixture.handle(batch).await;
    assert_eq!(fixture.tallies().await["a"], (1, 7), "the one that was not discarded");
    assert_eq!(
        fixture.dead_letter_counts().await,
        state_counts([("discarded", 24), ("waiting", 1)])
    );
    assert_eq!(outcome(&admin, "/dead-letters/25/replay", Value::Null).await, "handled_before");
    assert_eq!(get(&admin, "/dead-letters/25").await["actor"], OPERATOR);
}

#[tokio::test]
async fn discarding_one_of_two_dead_letters_of_an_event_discards_the_event() {
    let fixture = Fixture::<45>::create_with_contracts().await;
    fixture.reject_till("a").await;
    let batch = fixture.to_records(&[counted("a", 150)]).await;
    let again = batch[0].clone().set_key(None).set_partition(1).set_offset(3);
    fixture.handle(vec![batch[0].clone(), again.clone(), again.clone()]).await;
    fixture.handle(vec![again]).await;
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("waiting", 2)]));
    fixture.accept_tills().await;
    let admin = fixture.admin_router();
    let agreed = json!({ "reason": "lost", "write_off": true });
    assert_eq!(outcome(&admin, "/dead-letters/1/discard", agreed.clone()).await, "discarded");
    assert_eq!(outcome(&admin, "/dead-letters/2/replay", Value::Null).await, "discarded_before");
    assert_eq!(fixture.tallies().await.len(), 0);
    assert_eq!(
        fixture.query_number("select sum(amount)::bigint from chassis.write_offs").await,
        150
    );
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("discarded", 2)]));
}
