//! What is given up: once, for ever, and nothing is lost without being said.

use serde_json::{Value, json};

use super::letters::{ask, get, outcome, post, refusal, states};
use super::*;

/// Its publisher gave one id to two events; or to none, and the aggregate's to all.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_id_came_in_another_topic_is_no_repeat_and_set_aside() {
    let till = Till::<23>::open_with_contracts().await;
    let (consumer, client, stop) = (till.consumer(), till.client(), CancellationToken::new());
    let mut batches = consumer.batches(&client, &stop);
    let events = till.delivered(&[1, 2, 3, 4].map(|amount| counted("a", amount))).await;
    batches.handle(events[..1].to_vec(), &Assigned::default()).await;
    batches.handle(events[1..2].to_vec(), &Assigned::default()).await;
    till.force("update inbox set topic = 'another'").await;
    batches.handle(events[..1].to_vec(), &Assigned::default()).await;
    batches.handle(events[2..3].to_vec(), &Assigned::default()).await;
    batches.handle(events[1..].to_vec(), &Assigned::default()).await;
    assert_eq!(till.tallies().await["a"], (4, 10), "each once, and what came with them too");
    let letters = till.letters().await;
    assert_eq!(letters.iter().map(|letter| letter.offset).collect::<Vec<_>>(), [0, 1]);
    for letter in letters {
        assert_eq!(letter.reason, "its id is that of an event of another");
    }
    // Two in one batch, of which none is in the inbox yet.
    let (topic, event_id) = (names(23).counted, Uuid::now_v7());
    for (entered, is_a_repeat) in [(topic.name, true), ("another", false)] {
        let repeats = [(1, event_id, topic)];
        let mut tx = till.db.begin().await.unwrap();
        let told =
            crate::effect::repeats_of_their_topic(&mut tx, &repeats, &[(event_id, entered)]).await;
        assert_eq!(told.is_ok(), is_a_repeat, "{entered}");
    }
    // Given up twice, as it may come twice, it is written off once.
    till.force(
        "insert into dead_letters (cluster, topic, partition, \"offset\", hash, event_id, key, headers,
                                   record, kind, reason)
         select cluster, topic, partition, 7, hash, event_id, key, headers, record, kind, reason
         from dead_letters where \"offset\" = 0",
    )
    .await;
    let desk = till.desk();
    let listed = get(&desk, "/dead-letters").await;
    let listed = listed["dead_letters"].as_array().unwrap();
    for (letter, before) in listed.iter().zip([false, false, true]) {
        let path = format!("/dead-letters/{}", letter["letter_id"]);
        let told = get(&desk, &path).await;
        let costs = told["if_discarded"]["consequence"].as_str().unwrap();
        assert_eq!(costs.contains("Till a"), !before, "{costs}");
        let discard = json!({ "because": "its id is wrong" });
        let (status, told) = ask(&desk, "POST", &format!("{path}/discard"), discard).await;
        assert_eq!(status, 200, "{told}");
    }
}

#[tokio::test]
async fn what_is_worth_something_is_discarded_only_with_a_write_off_that_the_books_show() {
    let till = Till::<43>::open_with_contracts().await;
    till.refuse("a").await;
    let batch = till.delivered(&[counted("a", 150), counted("a", 40), counted("a", 250)]).await;
    till.handle(batch.clone()).await;
    let desk = till.desk();
    let (path, because) = ("/dead-letters/1/discard", json!({ "because": "nobody knows them" }));

    let asked = get(&desk, "/dead-letters/1").await;
    assert_eq!(asked["if_discarded"]["write_offs"][0]["amount"], 150);
    let (status, kind, detail) = refusal(&desk, path, because.clone()).await;
    assert_eq!((status, kind.as_str()), (409, "write-off-needed"));
    assert!(detail.contains("150 coins (what was not counted)"), "{detail}");
    for no_reason in [json!({ "because": " " }), json!({ "because": "x".repeat(1_001) })] {
        assert_eq!(post(&desk, path, no_reason).await.0, 422);
    }
    assert_eq!(till.states().await, states([("waiting", 3)]), "refused, so nothing is done");

    let agreed = json!({ "because": "nobody knows them", "write_off": true });
    assert_eq!(outcome(&desk, path, agreed.clone()).await, "discarded");
    assert_eq!(outcome(&desk, path, agreed.clone()).await, "done_before");
    assert_eq!(
        outcome(&desk, "/dead-letters/2/discard", because).await,
        "discarded",
        "costs nothing"
    );
    assert_eq!(outcome(&desk, "/dead-letters/3/discard", agreed).await, "discarded");
    let books = crate::loss::written_off(&till.db).await.unwrap();
    assert_eq!(serde_json::to_value(books).unwrap(), json!([{ "unit": "coins", "amount": 400 }]));
    let letter = get(&desk, "/dead-letters/1").await;
    assert_eq!(
        (&letter["state"], &letter["because"]),
        (&json!("discarded"), &json!("nobody knows them"))
    );
    let (status, kind, _) = refusal(&desk, "/dead-letters/1/replay", Value::Null).await;
    assert_eq!((status, kind.as_str()), (409, "discarded"), "discarded is for ever");
}

#[tokio::test]
async fn a_letter_whose_rows_can_not_even_be_asked_for_is_discarded_like_any_other() {
    let till = Till::<49>::open_with_contracts().await;
    till.handle(till.delivered(&[counted("a\0", 1)]).await).await;
    let desk = till.desk();
    let letter = get(&desk, "/dead-letters/1").await;
    let consequence = letter["if_discarded"]["consequence"].as_str().unwrap();
    assert!(consequence.starts_with("What that costs can't be told"), "{letter}");
    let because = json!({ "because": "no name" });
    assert_eq!(outcome(&desk, "/dead-letters/1/discard", because).await, "discarded");
    assert_eq!(till.states().await, states([("discarded", 1)]));
}

#[tokio::test]
async fn what_was_discarded_has_no_effect_when_its_topic_is_read_again_with_the_cause_gone() {
    let till = Till::<44>::open_with_contracts().await;
    till.refuse("a").await;
    let events: Vec<_> = (0..25).map(|_| counted("a", 7)).collect();
    let batch = till.delivered(&events).await;
    // Fewer than a pause at a time.
    for some in batch.chunks(15) {
        till.handle(some.to_vec()).await;
    }
    // The cause is still there: they are known, so they are neither new nor a reason to pause.
    let again = tokio::time::timeout(WITHIN, till.handle(batch.clone())).await;
    assert!(again.is_ok(), "25 letters that lie there already pause nobody");
    assert_eq!(till.states().await, states([("waiting", 25)]));
    let desk = till.desk();
    for letter_id in 1..=24 {
        let path = format!("/dead-letters/{letter_id}/discard");
        assert_eq!(outcome(&desk, &path, json!({ "because": "lost" })).await, "discarded");
    }
    till.handle(batch.clone()).await;
    assert_eq!(till.states().await, states([("discarded", 24), ("waiting", 1)]));
    till.relent().await;
    till.handle(batch).await;
    assert_eq!(till.tallies().await["a"], (1, 7), "the one that was not discarded");
    assert_eq!(till.states().await, states([("discarded", 24), ("waiting", 1)]));
    assert_eq!(outcome(&desk, "/dead-letters/25/replay", Value::Null).await, "handled_before");
}

#[tokio::test]
async fn of_an_event_with_two_letters_a_discard_is_remembered_by_the_other() {
    let till = Till::<45>::open_with_contracts().await;
    till.refuse("a").await;
    let batch = till.delivered(&[counted("a", 150)]).await;
    let again = OwnedMessage::new(
        batch[0].payload().map(<[u8]>::to_vec),
        None,
        batch[0].topic().to_string(),
        Timestamp::NotAvailable,
        1,
        3,
        batch[0].headers().cloned(),
    );
    till.handle(vec![batch[0].clone(), again.clone(), again.clone()]).await;
    till.handle(vec![again]).await;
    assert_eq!(till.states().await, states([("waiting", 2)]));
    till.relent().await;
    let desk = till.desk();
    let agreed = json!({ "because": "lost", "write_off": true });
    assert_eq!(outcome(&desk, "/dead-letters/1/discard", agreed.clone()).await, "discarded");
    assert_eq!(outcome(&desk, "/dead-letters/2/replay", Value::Null).await, "discarded_before");
    assert_eq!(till.tallies().await.len(), 0);
    assert_eq!(till.number("select sum(amount)::bigint from write_offs").await, 150);
    assert_eq!(till.states().await, states([("discarded", 2)]));
}
