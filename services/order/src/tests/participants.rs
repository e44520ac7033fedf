//! The participants of an order: the rule of a leg, and an order that does not ask each of them.

use chassis::DiscardImpact;
use events::participants::Participant;
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};

use super::*;
use crate::order::participants::{Answer, Asked};

use LegState::{Accepted, Refused as No, UndoRefused, Undone, Void, Waiting};

/// The row of a state is what each answer makes of it: yes, no, undone, void, undo refused.
#[test]
fn a_leg_only_climbs() {
    let rows = [
        (Waiting, [Some(Accepted), Some(No), Some(Undone), Some(Void), Some(UndoRefused)]),
        (Accepted, [Some(Accepted), None, Some(Undone), None, Some(UndoRefused)]),
        (No, [None, Some(No), None, None, None]),
        (Undone, [Some(Undone), None, Some(Undone), None, Some(Undone)]),
        (Void, [None, None, None, Some(Void), None]),
        (UndoRefused, [Some(UndoRefused), None, Some(Undone), None, Some(UndoRefused)]),
    ];
    for (before, row) in rows {
        for (answer, after) in [Accepted, No, Undone, Void, UndoRefused].into_iter().zip(row) {
            let mut leg = Leg::<()>::new(before);
            let may_come = leg.climb(answer);
            let expected = (after.is_some(), after.unwrap_or(before));
            assert_eq!((may_come, leg.state), expected, "{before:?} and then {answer:?}");
        }
    }
}

#[test]
fn an_order_shows_a_leg_for_each_participant_and_handles_its_answers() {
    let also_asks =
        participants().into_iter().skip(ASKED_BY_EVERY_ORDER).map(|it| it.service.to_owned());
    let created = order(ORDER, Status::Pending, Waiting, Waiting).created();
    let created = OrderCreated { also_asks: also_asks.collect(), ..created };
    let order = Order::placed(&created, Uuid::max());
    assert_eq!(order.created(), created);
    let shown = json!(order);
    let topics = crate::handlers().topics();
    let consumed = |topic: &chassis::Topic| topics.iter().any(|it| it.name == topic.name);
    assert_eq!(order.legs().len(), participants().len());
    for participant in participants() {
        assert_eq!(shown[participant.service], "waiting", "{participant:?}");
        assert!(participant.topics().all(consumed), "{participant:?}");
    }
}

#[test]
fn the_words_of_a_leg_are_those_of_the_topics() {
    let words = |order: Order| (json!(order)["payment"].clone(), json!(order)["stock"].clone());
    let expected = [
        ("waiting", "waiting"),
        ("verified", "reserved"),
        ("declined", "rejected"),
        ("refunded", "released"),
        ("void", "void"),
    ];
    for (state, (payment, stock)) in LegState::COMMON.into_iter().zip(expected) {
        let shown = words(order(ORDER, Status::Cancelled, state, state));
        assert_eq!(shown, (json!(payment), json!(stock)));
    }
}

#[test]
fn a_leg_has_a_word_for_an_undo_that_may_fail_and_no_other_leg_has_it() {
    let words = |schema| json!(schema)["enum"].as_array().unwrap().len();
    assert_eq!(words(<Leg<Fraud> as utoipa::PartialSchema>::schema()), 6);
    assert_eq!(words(<Leg<events::participants::Payment> as utoipa::PartialSchema>::schema()), 5);
    assert_eq!(json!(Leg::<Fraud>::new(UndoRefused)), "released");
}

/// A participant that joined later: no order here asks it.
#[derive(Debug)]
enum Fraud {}

impl Participant for Fraud {
    const SERVICE: &'static str = "fraud";
    type Accepted = FraudAnswer<0>;
    type Refused = FraudAnswer<1>;
    type Undone = FraudAnswer<2>;

    fn undo_refused() -> Option<&'static chassis::Topic> {
        Some(FraudAnswer::<3>::topic())
    }
}

impl Asked for Fraud {
    const REFUSAL: Reason = Reason::Deadline;
    fn leg(_: &mut Order) -> Option<&mut Leg<Fraud>> {
        None
    }
    fn write_off(_: &Order, impact: DiscardImpact) -> DiscardImpact {
        impact
    }
}

/// Its answers. They look like those of payment in the history.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct FraudAnswer<const NTH: usize>(Uuid);

impl<const NTH: usize> Event for FraudAnswer<NTH> {
    fn topic() -> &'static chassis::Topic {
        let payments =
            [PaymentVerified::topic(), PaymentDeclined::topic(), PaymentRefunded::topic()];
        payments.into_iter().chain([StockReleased::topic()]).nth(NTH).unwrap()
    }
    fn key(&self) -> String {
        self.0.to_string()
    }
}

impl<const NTH: usize> Answer for FraudAnswer<NTH> {
    type Of = Fraud;
    fn order_id(&self) -> Uuid {
        self.0
    }
    fn occurred_at(&self) -> chrono::DateTime<chrono::Utc> {
        context(1).now
    }
    fn state(&self, _: &Order) -> Option<LegState> {
        Some([Accepted, No, Undone, UndoRefused][NTH])
    }
}

#[test]
fn an_answer_that_the_order_does_not_ask_for_is_recorded_and_decides_nothing() {
    for status in [Status::Pending, Status::Confirmed, Status::Cancelled] {
        for leg in LegState::COMMON {
            let before = order(ORDER, status, leg, leg);
            let mut rows = rows(before.clone());
            assert_eq!(saga::answered(&FraudAnswer::<0>(ORDER), &mut rows, context(1)), Ok(None));
            assert_eq!(saga::answered(&FraudAnswer::<1>(ORDER), &mut rows, context(2)), Ok(None));
            let undone = saga::answered(&FraudAnswer::<2>(ORDER), &mut rows, context(3));
            assert_eq!(undone.is_ok(), status == Status::Cancelled);
            let kept = saga::answered(&FraudAnswer::<3>(ORDER), &mut rows, context(4));
            assert_eq!(kept.is_ok(), status == Status::Cancelled);
            let recorded = if status == Status::Cancelled { 4 } else { 2 };
            assert_eq!(rows.history().len(), recorded);
            let after = Order { last_position: recorded as i64, ..before };
            assert_eq!(rows.order(ORDER), Some(&after));
        }
    }
}

#[test]
fn an_order_is_confirmed_by_those_whom_it_asks() {
    let mut rows = rows(order(ORDER, Status::Pending, Waiting, Waiting));
    assert_eq!(saga::answered(&verified(ORDER), &mut rows, context(1)), Ok(None));
    let confirmed = saga::answered(&reserved(ORDER), &mut rows, context(2)).unwrap();
    assert!(matches!(confirmed, Some(saga::Ended::Confirmed(_))), "{confirmed:?}");
    assert_eq!(saga::answered(&FraudAnswer::<1>(ORDER), &mut rows, context(3)), Ok(None));
    assert_eq!(rows.order(ORDER).unwrap().status, Status::Confirmed);
}

/// As if the participant had joined after the order was placed.
#[tokio::test]
async fn a_null_leg_is_neither_missing_nor_waited_for() {
    let (fixture, [_, pending]) = fixture_with_orders().await;
    let owner = async |statement: &'static str| {
        sqlx::query(statement).execute(&fixture.owner).await.expect(statement);
    };
    owner("alter table orders alter column stock drop not null").await;
    let obstacle = async || -> Option<String> {
        let obstacle = sqlx::query_scalar("select erasure_obstacle($1)").bind(CUSTOMER);
        obstacle.fetch_one(&fixture.owner).await.unwrap()
    };
    for (end, is_balanced) in [
        ("update orders set stock = null where status = 'confirmed'", true),
        ("update orders set stock = null where status = 'pending'", false),
        ("update orders set payment = 'waiting' where status = 'pending'", true),
    ] {
        owner(end).await;
        assert_eq!(books(&fixture).await["balanced"], is_balanced, "{end}");
    }
    assert!(obstacle().await.unwrap().contains(&pending.to_string()));
    owner(
        "update orders set status = 'cancelled', reason = 'customer', ended_at = now(),
                ended_event_id = order_id, payment = 'void' where status = 'pending'",
    )
    .await;
    assert_eq!(obstacle().await, None);
}
