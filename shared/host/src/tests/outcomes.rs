//! Outcomes of several events: they are committed together, and each has an id that does not depend on the others.
//!
//! An amount that is counted into a till is tallied, and counted into the safe as well. So the service hears an event
//! that it published itself.

use chrono::{DateTime, Utc};
use messaging::event::response_id;
use serde_json::{Value, json};

use super::admin_client::{admin_of, as_operator, outcome, post};
use super::*;
use crate::admin::republish;
use derive::Outcome;
use messaging::outbox::republish_source::{PublishedEvent, Republish};

const SAFE: &str = "safe";

/// The serving role may change its rows.
const CREATE_RECEIPTS: &str = "
    create table receipts (
        till             text primary key,
        amount           bigint not null,
        total            bigint not null constraint positive check (total > 0),
        tallied_event_id uuid,
        counted_event_id uuid,
        decided_at       timestamptz not null
    );
    grant select, insert, update on receipts to public";

/// What was counted into a till last, and the ids of the events that this published.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow, derive::Record)]
#[record(table = "receipts", key = "till")]
struct Receipt {
    till: String,
    amount: i64,
    total: i64,
    tallied_event_id: Option<Uuid>,
    counted_event_id: Option<Uuid>,
    decided_at: DateTime<Utc>,
}

#[derive(Outcome)]
struct Booking<const TEST: u32> {
    tallied: Tallied<TEST>,
    counted: Counted<TEST>,
}

impl Receipt {
    fn booking<const TEST: u32>(&self) -> Booking<TEST> {
        let tallied = Tallied { till: self.till.clone(), total: self.total };
        Booking { tallied, counted: counted(SAFE, self.amount) }
    }
}

impl Republish for Receipt {
    type Events = (Tallied<804>, Counted<804>);

    fn published_events(&self) -> Vec<PublishedEvent> {
        let Booking { tallied, counted } = self.booking::<804>();
        let tallied =
            self.tallied_event_id.map(|id| PublishedEvent::new(id, self.decided_at, &tallied));
        let counted =
            self.counted_event_id.map(|id| PublishedEvent::new(id, self.decided_at, &counted));
        tallied.into_iter().chain(counted).collect()
    }
}

/// The rows of a batch.
struct Receipts(Table<Receipt>);

impl UnitOfWork for Receipts {
    type Keys = BTreeSet<String>;

    async fn load(loader: &mut Loader<'_>, keys: Self::Keys) -> sqlx::Result<Receipts> {
        Ok(Receipts(loader.lock(keys).await?))
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.0);
    }
}

impl<const TEST: u32> Loads<Counted<TEST>> for Receipts {
    fn keys(counted: &Counted<TEST>, keys: &mut BTreeSet<String>) {
        keys.insert(counted.till.clone());
    }
}

impl<const TEST: u32, E> Loads<Deciding<TEST, E, Receipts>> for Receipts {
    fn keys(Deciding(counted, _): &Deciding<TEST, E, Receipts>, keys: &mut Self::Keys) {
        <Receipts as Loads<Counted<TEST>>>::keys(counted, keys);
    }
}

/// `till.counted` → `till.tallied` and `till.counted` of the safe; of the safe → nothing
fn book<const TEST: u32>(
    event: &Counted<TEST>,
    Receipts(receipts): &mut Receipts,
    context: HandlerContext,
) -> HandlerResult<Booking<TEST>> {
    let Counted { till, amount, .. } = event.clone();
    let total = receipts.get(&till).map_or(0, |receipt| receipt.total) + amount;
    let (is_safe, decided_at) = (till == SAFE, context.now);
    let (tallied_event_id, counted_event_id) = (None, None);
    let mut receipt =
        Receipt { till, amount, total, tallied_event_id, counted_event_id, decided_at };
    let booking = (!is_safe).then(|| receipt.booking());
    receipt.tallied_event_id = booking.as_ref().map(|booking| context.id_of(&booking.tallied));
    receipt.counted_event_id = booking.as_ref().map(|booking| context.id_of(&booking.counted));
    receipts.put(receipt);
    Ok(booking)
}

/// A newer version: it publishes the events in another order, and one more.
fn book_newer<const TEST: u32>(
    event: &Counted<TEST>,
    receipts: &mut Receipts,
    context: HandlerContext,
) -> HandlerResult<(Counted<TEST>, Tallied<TEST>, Option<Counted<TEST>>)> {
    let booking = book(event, receipts, context)?;
    let vault = Some(counted("vault", event.amount));
    Ok(booking.map(|Booking { tallied, counted }| (counted, tallied, vault)))
}

/// Its outcome has two events of one topic and key.
fn book_twice<const TEST: u32>(
    event: &Counted<TEST>,
    receipts: &mut Receipts,
    context: HandlerContext,
) -> HandlerResult<(Tallied<TEST>, Tallied<TEST>)> {
    let booking = book(event, receipts, context)?;
    Ok(booking.map(|Booking { tallied, .. }| (tallied.clone(), tallied)))
}

type Handler<const TEST: u32, O> =
    fn(&Counted<TEST>, &mut Receipts, HandlerContext) -> HandlerResult<O>;

/// The topic, the key and the id of an event.
type Published = (String, String, Uuid);

fn with_id<E: Event>(event: &E, context: HandlerContext) -> Published {
    (E::topic().name.to_string(), event.key(), context.id_of(event))
}

impl<const TEST: u32> Fixture<TEST> {
    async fn create_with_receipts() -> Fixture<TEST> {
        let fixture = Fixture::create().await;
        fixture.execute_as_superuser(CREATE_RECEIPTS).await;
        fixture
    }

    async fn handle_by<O: Outcome + 'static>(
        &self,
        handler: Handler<TEST, O>,
        batch: &[OwnedMessage],
    ) {
        let consumer = self.consumer_of(Handlers::new().on(handler));
        SteppedConsumer::new(consumer, self.group_client()).handle(batch.to_vec()).await;
    }

    /// What is in the outbox, in its order.
    async fn outbox(&self) -> Vec<Published> {
        sqlx::query_as("select topic, key, event_id from chassis.outbox order by position")
            .fetch_all(&self.db)
            .await
            .unwrap()
    }

    async fn receipts(&self) -> Vec<Receipt> {
        let receipts = sqlx::query_as("select * from receipts order by till");
        receipts.fetch_all(&self.db).await.unwrap()
    }

    /// What [`book`] publishes in response to a record of till `a`.
    fn expected(&self, record: &OwnedMessage) -> [Published; 2] {
        let cause: Uuid = header(record, "ce_id").unwrap().parse().unwrap();
        let event_id = response_id(self.service, cause);
        let context = HandlerContext { now: Utc::now(), event_id, causation_id: Some(cause) };
        let tallied = Tallied::<TEST> { till: "a".to_string(), total: 0 };
        [with_id(&tallied, context), with_id(&counted::<TEST>(SAFE, 0), context)]
    }

    /// Sets the rows back to a backup that has none of them.
    async fn set_back(&self) {
        let rows = "delete from receipts; delete from chassis.inbox; delete from chassis.outbox";
        self.execute_as_superuser(rows).await;
    }
}

#[tokio::test]
async fn a_decision_commits_all_its_events_or_none_and_a_redelivery_adds_none() {
    let fixture = Fixture::<801>::create_with_receipts().await;
    // The database refuses the receipt of the second record.
    let batch = fixture.to_records(&[counted("a", 5), counted("b", -1)]).await;
    for _ in 0..2 {
        fixture.handle_by(book, &batch).await;
        assert_eq!(fixture.outbox().await, fixture.expected(&batch[0]));
        let receipts = fixture.receipts().await;
        assert_eq!(receipts.iter().map(|it| (&*it.till, it.total)).collect::<Vec<_>>(), [("a", 5)]);
        let letters = fixture.dead_letters().await;
        assert_eq!(letters.iter().map(|letter| letter.offset).collect::<Vec<_>>(), [1]);
    }
    let alike = "select count(distinct (causation_id, traceparent, occurred_at))
                 from chassis.outbox where causation_id is not null and traceparent is not null";
    assert_eq!(fixture.query_number(alike).await, 1, "one cause, one trace, one time");
}

#[tokio::test]
async fn a_replayed_dead_letter_publishes_its_events_under_the_ids_of_its_cause() {
    let fixture = Fixture::<802>::create_with_receipts().await;
    let refuse = "alter table receipts add constraint spoilt check (till <> 'a')";
    fixture.execute_as_superuser(refuse).await;
    let batch = fixture.to_records(&[counted("a", 5)]).await;
    fixture.handle_by(book, &batch).await;
    assert_eq!((fixture.dead_letters().await.len(), fixture.outbox().await.len()), (1, 0));

    fixture.execute_as_superuser("alter table receipts drop constraint spoilt").await;
    let admin = as_operator(admin_of(&fixture.consumer_of(Handlers::new().on(book::<802>))));
    assert_eq!(outcome(&admin, "/dead-letters/1/replay", Value::Null).await, "replayed");
    assert_eq!(fixture.outbox().await, fixture.expected(&batch[0]));
    fixture.handle_by(book, &batch).await;
    assert_eq!(fixture.outbox().await, fixture.expected(&batch[0]));
}

#[tokio::test]
async fn a_service_that_was_set_back_publishes_the_same_ids_also_in_another_order() {
    let fixture = Fixture::<803>::create_with_receipts().await;
    let batch = fixture.to_records(&[counted("a", 5)]).await;
    fixture.handle_by(book, &batch).await;
    let [tallied, into_safe] = fixture.expected(&batch[0]);
    fixture.set_back().await;
    fixture.handle_by(book, &batch).await;
    assert_eq!(fixture.outbox().await, [tallied.clone(), into_safe.clone()]);
    fixture.set_back().await;
    fixture.handle_by(book_newer, &batch).await;
    let by_newer = fixture.outbox().await;
    assert_eq!(by_newer[..2], [into_safe.clone(), tallied.clone()]);
    assert_eq!((by_newer.len(), &*by_newer[2].1), (3, "vault"));
    assert!(![into_safe.2, tallied.2].contains(&by_newer[2].2), "{by_newer:?}");
}

#[tokio::test]
async fn events_that_are_republished_from_their_row_have_the_ids_of_their_decision() {
    let fixture = Fixture::<804>::create_with_receipts().await;
    let batch = fixture.to_records(&[counted("a", 5), counted("b", 7)]).await;
    fixture.handle_by(book, &batch).await;
    let published = fixture.outbox().await;
    assert_eq!(published.len(), 4);

    let source = [Receipt::source()];
    let admin = as_operator(republish::router(fixture.db.clone(), Arc::default(), source));
    let (status, progress) = post(&admin, "/republish", json!({})).await;
    assert_eq!((status, &progress["republished"]), (200, &json!(4)), "{progress}");
    assert_eq!(fixture.outbox().await, [published.clone(), published].concat());
    let distinct = "select count(distinct (event_id, body, occurred_at)) from chassis.outbox";
    assert_eq!(fixture.query_number(distinct).await, 4, "each event is as it was");
}

#[tokio::test]
async fn two_events_of_one_topic_and_key_are_refused_and_nothing_is_stored() {
    let fixture = Fixture::<805>::create_with_receipts().await;
    let batch = fixture.to_records(&[counted("a", 5)]).await;
    fixture.handle_by(book_twice, &batch).await;
    let letters = fixture.dead_letters().await;
    let expected = format!("two events of {} with the key a", names(805).tallied.name);
    assert!(letters[0].reason.contains(&expected), "{letters:?}");
    assert_eq!(letters[0].kind, "handler_failed");

    let (commands, writing) = fixture.commands_of::<Receipts>();
    let twice: DecideFn<805, _, Receipts> = |request, receipts, context| {
        let outcome = book_twice(request, receipts, context).unwrap();
        Ok(accepted(json!(null)).publishing(outcome))
    };
    let answer = commands.execute(once(Deciding(counted("a", 5), twice)));
    assert_eq!(status(&answer.await), StatusCode::INTERNAL_SERVER_ERROR);
    writing.stop().await;
    assert_eq!((fixture.outbox().await.len(), fixture.receipts().await.len()), (0, 0));
}

#[tokio::test]
async fn a_command_may_publish_several_events_whose_ids_its_row_knows() {
    let fixture = Fixture::<806>::create_with_receipts().await;
    let (commands, writing) = fixture.commands_of::<Receipts>();
    let books: DecideFn<806, _, Receipts> = |request, receipts, context| {
        let outcome = book(request, receipts, context).unwrap();
        Ok(accepted(json!(null)).publishing(outcome))
    };
    let answer = commands.execute(once(Deciding(counted("a", 5), books)));
    answer.await.unwrap();
    writing.stop().await;
    let published = fixture.outbox().await;
    let ids: Vec<_> = published.iter().map(|(.., event_id)| Some(*event_id)).collect();
    let receipt = &fixture.receipts().await[0];
    assert_eq!(ids, [receipt.tallied_event_id, receipt.counted_event_id]);
    assert_eq!((&*published[0].1, &*published[1].1), ("a", SAFE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_hears_its_own_event() {
    let fixture = Fixture::<807>::create_with_contracts().await;
    fixture.execute_as_superuser(CREATE_RECEIPTS).await;
    let relaying = fixture.start_relay();
    let consumer = fixture.consumer_of(Handlers::new().on(book::<807>));
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    fixture.publish(&[counted("a", 5), counted("b", 7)]).await;
    let in_safe = "select coalesce(sum(total), 0)::bigint from receipts where till = 'safe'";
    let is_there = async || fixture.query_number(in_safe).await == 12;
    eventually("both amounts are in the safe", is_there).await;
    fixture.wait_for_empty_outbox().await;
    for running in [consuming, relaying] {
        running.stop().await;
    }
    assert_eq!(fixture.count("chassis.inbox").await, 4, "two amounts, and both into the safe");
    assert_eq!(fixture.records(names(807).tallied).await.len(), 2);
    assert_eq!(fixture.dead_letters().await.len(), 0);
}
