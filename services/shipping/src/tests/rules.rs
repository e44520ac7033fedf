//! What each decision wants.

use chassis::event::{AnsweredTask, Task, Webhook};
use chassis::{Caller, Command, Timer};

use super::*;
use crate::saga::{INQUIRIES_MAX, Refusal};
use crate::{CancelParcel, CancelShipment, Ended, Found, LostParcel, NoNews};
use ParcelState::*;
use events::shipments::*;

fn timer(case: &Case) -> Option<chassis::SetTimer> {
    Some(NoNews { order_id: ORDER }.at(context(case.now).now + NEWS_AFTER))
}

fn cancel(case: &mut Case) -> Result<Option<Wants>, Refusal> {
    case.now += 10;
    let cancel = CancelShipment { order_id: ORDER, caller: Caller::unrestricted() };
    cancel.decide(&mut case.rows, context(case.now)).map(|accepted| accepted.event)
}

fn cancel_answered(case: &mut Case, result: CallResult<Value>) -> Option<Wants> {
    case.decide(answered(CancelParcel { order_id: ORDER }, result), saga::cancelled)
}

fn due(case: &mut Case) -> Option<Wants> {
    case.decide(NoNews { order_id: ORDER }, saga::inquire)
}

fn decide(case: &mut Case, is_cancelling: bool, answer: Found) -> Option<Wants> {
    let task = LostParcel { order_id: ORDER, is_cancelling };
    case.decide(AnsweredTask { task, answer }, saga::decided)
}

/// The published reason, if it is the one of the row.
fn failed(case: &Case, wants: &Option<Wants>) -> Option<FailReason> {
    let Some(Ended::Failed(event)) = &wants.as_ref()?.ended else { return None };
    let shipment = case.shipment();
    assert_eq!(shipment.reason.map(FailReason::from), Some(event.reason));
    let stored = shipment.ended.as_ref().unwrap();
    assert_eq!(stored.event, Ended::Failed(event.clone()));
    assert_eq!(stored.event_id, context(case.now).id_of(event));
    let wants = wants.as_ref().unwrap();
    assert!(wants.timer.is_none() && wants.asked.is_none());
    assert_eq!(wants.no_timer, Some(NoNews::cancel(ORDER)));
    assert!(wants.no_search.is_some() && wants.nothing_else.is_some());
    Some(event.reason)
}

#[test]
fn a_confirmed_order_books_a_parcel_of_its_pieces_once() {
    let mut rows = no_shipments();
    saga::ship(&confirmed(ORDER, &[]), &mut rows, context(1)).unwrap_err();
    let order = confirmed(ORDER, &[2, 1]);
    let wants = saga::ship(&order, &mut rows, context(10)).unwrap().unwrap();
    let call = BookParcel { order_id: ORDER, pieces: 3, nth: 1 };
    assert_eq!(wants.asked, Some(call.make()));
    assert_eq!(call.request().body, Some(json!({"reference": ORDER, "pieces": 3})));
    assert_eq!(wants.timer.map(|timer| timer.due_at()), Some(context(110).now));
    assert_eq!(saga::ship(&order, &mut rows, context(20)), Ok(None));
    assert_eq!(rows.history.len(), 1);
}

#[test]
fn the_answer_to_a_booking_moves_a_shipment_that_waits_for_it() {
    for (result, state, reason) in [
        (done(PARCEL), State::Booked, None),
        (CallResult::DoneLate(BookedParcel { parcel_id: PARCEL }), State::Booked, None),
        (refused(), State::Failed, Some(FailReason::Refused)),
        (unknown(), State::Booking, None),
    ] {
        let mut case = Case::booking();
        let wants = case.book(result.clone());
        assert_eq!((case.state(), failed(&case, &wants)), (state, reason), "{result:?}");
        let booked = wants.and_then(|wants| wants.booked).map(|event| event.parcel_id);
        assert_eq!(booked, (state == State::Booked).then_some(PARCEL));
        // A second answer, also to an earlier booking, has an effect only if the first one was unknown.
        assert_eq!(case.book(done(OTHER_PARCEL)).is_some(), state == State::Booking);
        assert_eq!(case.book(refused()), None);
    }
    let mut case = Case::booking();
    case.book(unknown());
    assert_eq!(case.last(), "it is unknown whether a parcel is booked");
    case.book(CallResult::DoneLate(BookedParcel { parcel_id: PARCEL }));
    assert_eq!(case.state(), State::Booked);
}

#[test]
fn an_answer_to_an_earlier_booking_refuses_nothing_and_books_nevertheless() {
    let mut case = Case::booked();
    case.find(&[]);
    let earlier = || BookParcel { order_id: ORDER, pieces: 3, nth: 1 };
    for result in [refused(), unknown()] {
        assert_eq!(case.decide(answered(earlier(), result), saga::booked), None);
    }
    assert_eq!(case.state(), State::Booking);
    assert!(case.decide(answered(earlier(), done(PARCEL)), saga::booked).is_some());
    assert_eq!(case.state(), State::Booked);
}

#[test]
fn without_news_the_carrier_is_asked_and_after_three_times_a_person() {
    let mut case = Case::booked();
    for nth in 1..=INQUIRIES_MAX {
        let wants = due(&mut case).unwrap();
        let call = FindParcels { order_id: ORDER, bookings: 1, parcel_id: Some(PARCEL) };
        assert_eq!((wants.asked, wants.timer), (Some(call.make()), timer(&case)), "{nth}");
        assert_eq!(call.request().query, [("reference".to_string(), ORDER.to_string())]);
        assert_eq!(case.find(&[(PARCEL, Booked)]), None, "that is no news");
    }
    let wants = due(&mut case).unwrap();
    let task = LostParcel { order_id: ORDER, is_cancelling: false };
    assert_eq!((wants.asked, wants.timer), (Some(task.open()), timer(&case)));
    // The task stays open, and the carrier is asked as well.
    let (entries, wants) = (case.rows.history.len(), due(&mut case).unwrap());
    let call = FindParcels { order_id: ORDER, bookings: 1, parcel_id: Some(PARCEL) };
    assert_eq!((wants.asked, wants.timer), (Some(call.make()), timer(&case)));
    assert_eq!((wants.no_task, case.rows.history.len()), (None, entries));
    let wants = case.find(&[(PARCEL, Collected)]).unwrap();
    assert_eq!(wants.no_task, Some(LostParcel::close(ORDER)), "it told something new");
    for (answer, state) in [
        (Found::Wait, State::Booked),
        (Found::BookAgain, State::Booking),
        (Found::Failed, State::Failed),
    ] {
        let mut case = Case::booked();
        case.shipments_without_news();
        let wants = decide(&mut case, false, answer);
        assert_eq!(case.state(), state);
        match answer {
            Found::Failed => assert_eq!(failed(&case, &wants), Some(FailReason::GivenUp)),
            Found::Wait => assert_eq!(wants, Some(Wants::no_search(ORDER)), "its timer is set"),
            Found::BookAgain => assert_eq!(wants.as_ref().unwrap().timer, timer(&case)),
        }
        let again = BookParcel { order_id: ORDER, pieces: 3, nth: 2 }.make();
        let asked = wants.unwrap().asked;
        assert_eq!(asked == Some(again), answer == Found::BookAgain);
        assert_eq!(case.shipment().inquiries, 0);
    }
}

impl Case {
    fn shipments_without_news(&mut self) {
        for _ in 0..=INQUIRIES_MAX {
            due(self);
        }
    }
}

#[test]
fn a_parcel_that_is_found_is_adopted_and_its_state_counts_like_news() {
    let states = [
        (&[(PARCEL, Booked)][..], State::Booked),
        (&[(PARCEL, Collected)], State::Collected),
        (&[(PARCEL, Delivered)], State::Delivered),
        (&[(PARCEL, Lost)], State::Failed),
        (&[(PARCEL, Lost), (OTHER_PARCEL, Booked)], State::Booked),
        (&[(PARCEL, Delivered), (OTHER_PARCEL, Booked)], State::Delivered),
        (&[(PARCEL, Other)], State::Booking),
    ];
    for answer in [None, Some(unknown())] {
        for (found, state) in states {
            let mut case = Case::booking();
            answer.clone().map(|answer| case.book(answer));
            let wants = case.find(found);
            assert_eq!(case.state(), state, "{found:?}");
            let published = wants.as_ref().is_some_and(|wants| wants.booked.is_some());
            assert_eq!(published, !matches!(state, State::Failed | State::Booking), "{found:?}");
            if published {
                let wants = wants.unwrap();
                assert!(wants.nothing_else.is_some(), "its booking is known from elsewhere");
                assert_eq!(case.hear("parcel.collected", PARCEL).and_then(|it| it.booked), None);
            }
        }
    }
}

#[test]
fn where_no_parcel_is_found_the_answer_to_the_booking_decides() {
    // Under way.
    let mut case = Case::booking();
    assert_eq!(case.find(&[]), None);
    // Done: the carrier has lost it.
    let mut case = Case::booked();
    let wants = case.find(&[]).unwrap();
    let again = BookParcel { order_id: ORDER, pieces: 3, nth: 2 };
    assert_eq!((wants.asked, wants.timer), (Some(again.make()), timer(&case)));
    assert_eq!((case.state(), case.shipment().parcel_id), (State::Booking, None));
    assert_eq!(case.find(&[]), None, "the second booking is under way");
    let wants = case.book(done(OTHER_PARCEL)).unwrap();
    assert_eq!((wants.booked, case.shipment().parcel_id), (None, Some(OTHER_PARCEL)));
    let stored = &case.shipment().booked.as_ref().unwrap().event;
    assert_eq!(stored.parcel_id, PARCEL, "it was published once, with the first parcel");
    // Unknown, or adopted and gone again.
    for is_adopted in [false, true] {
        let mut case = Case::booking();
        case.book(unknown());
        assert!(!is_adopted || case.find(&[(PARCEL, Booked)]).is_some());
        let wants = case.find(&[]).unwrap();
        let task = LostParcel { order_id: ORDER, is_cancelling: false };
        assert_eq!((wants.asked, wants.timer), (Some(task.open()), None));
        assert_eq!(case.find(&[]), None, "a person is asked once");
    }
    // Collected: news will come, or the next inquiry.
    let mut case = Case::booked();
    case.hear("parcel.collected", PARCEL);
    assert_eq!(case.find(&[]), None);
}

#[test]
fn an_inquiry_from_before_the_booking_books_no_second_parcel() {
    let mut case = Case::booking();
    let early = FindParcels { order_id: ORDER, bookings: 1, parcel_id: None };
    case.book(done(PARCEL));
    assert_eq!(case.decide(answered(early.clone(), parcels(&[])), saga::found), None);
    assert_eq!((case.state(), case.shipment().bookings), (State::Booked, 1));
    for without_result in [refused(), unknown()] {
        assert_eq!(case.decide(answered(early.clone(), without_result), saga::found), None);
    }
}

/// Every sequence of three pieces of news, each of which may come twice, from before the booking is answered on.
#[test]
fn news_has_the_same_end_in_any_order() {
    let kinds = ["parcel.collected", "parcel.delivered", "parcel.lost", "parcel.weighed"];
    for nth in 0..256_usize {
        let sequence = [nth % 4, nth / 4 % 4, nth / 16 % 4, nth / 64].map(|kind| kinds[kind]);
        for start in [Case::booking, Case::booked] {
            let (mut case, mut events) = (start(), Vec::new());
            for kind in sequence {
                let wants = case.hear(kind, PARCEL).unwrap_or_default();
                events.extend(wants.booked.map(|_| "booked"));
                events.extend(wants.ended.map(|ended| match ended {
                    Ended::Delivered(_) => "delivered",
                    Ended::Failed(_) => "failed",
                }));
            }
            case.book(done(PARCEL));
            let first = sequence.iter().find(|it| ["parcel.delivered", "parcel.lost"].contains(it));
            let expected = match first {
                Some(&"parcel.delivered") => State::Delivered,
                Some(_) => State::Failed,
                None if sequence.contains(&"parcel.collected") => State::Collected,
                None => State::Booked,
            };
            assert_eq!(case.state(), expected, "{sequence:?}");
            let ended = matches!(expected, State::Delivered | State::Failed);
            assert_eq!(events.iter().filter(|it| **it != "booked").count(), usize::from(ended));
            assert!(events.iter().filter(|it| **it == "booked").count() <= 1, "{events:?}");
            let delivered_unbooked = events.first() == Some(&"delivered");
            assert!(!delivered_unbooked || case.shipment().booked.is_some(), "{sequence:?}");
        }
    }
}

#[test]
fn news_moves_the_timer_and_closes_what_is_open_and_its_trace_is_that_of_the_timer() {
    let mut case = Case::booked();
    case.shipments_without_news();
    let wants = case.hear("parcel.collected", PARCEL).unwrap();
    assert_eq!((wants.timer, case.shipment().inquiries), (timer(&case), 0));
    assert!(wants.no_search.is_some());
    let wants = case.hear("parcel.delivered", PARCEL).unwrap();
    let delivered = ShipmentDelivered {
        order_id: ORDER,
        parcel_id: PARCEL,
        occurred_at: context(case.now).now,
    };
    assert_eq!(wants.ended, Some(Ended::Delivered(delivered)));
    assert_eq!(wants.no_timer, Some(NoNews::cancel(ORDER)));
    assert!(wants.no_search.is_some() && wants.nothing_else.is_some());
    let heard: CarrierNews = serde_json::from_value(news("parcel.lost", ORDER, PARCEL)).unwrap();
    assert_eq!(heard.awaited_by(), Some(NoNews::named(ORDER)));
}

#[test]
fn news_of_other_kinds_is_ignored_whatever_it_says_and_that_of_an_unknown_order_is_unprocessable() {
    let strange = json!({"type": "invoice.paid", "data": ["a"], "amount": 7});
    let strange: CarrierNews = serde_json::from_value(strange).unwrap();
    assert_eq!(strange.awaited_by(), None);
    assert_eq!(saga::hear(&strange, &mut Shipments::default(), context(1)), Ok(None));
    let early: CarrierNews = serde_json::from_value(news("parcel.lost", ORDER, PARCEL)).unwrap();
    saga::hear(&early, &mut Shipments::default(), context(1)).unwrap_err();
    serde_json::from_value::<CarrierNews>(json!({"type": "parcel.lost", "data": {}})).unwrap_err();
}

#[test]
fn a_parcel_that_was_replaced_is_lost_without_an_effect() {
    let mut case = Case::booked();
    case.find(&[]);
    assert_eq!(case.hear("parcel.lost", PARCEL), None, "another one is booked");
    case.book(done(OTHER_PARCEL));
    assert_eq!(case.hear("parcel.lost", PARCEL), None);
    assert_eq!(case.state(), State::Booked);
    let wants = case.hear("parcel.lost", OTHER_PARCEL);
    assert_eq!(failed(&case, &wants), Some(FailReason::Lost));
}

#[test]
fn a_shipment_is_cancelled_while_it_is_booked_and_not_collected() {
    let mut booking = Case::booking();
    assert_eq!(cancel(&mut booking), Err(Refusal::NotBooked));
    let mut case = Case::booked();
    let wants = cancel(&mut case).unwrap().unwrap();
    let call = CancelParcel { order_id: ORDER };
    assert_eq!((wants.asked, wants.timer), (Some(call.make()), None), "its timer is set");
    assert_eq!(call.request().path, ["parcels".to_string(), ORDER.to_string()]);
    assert_eq!((case.state(), cancel(&mut case)), (State::Cancelling, Ok(None)));
    assert_eq!(due(&mut case).unwrap(), Wants { timer: timer(&case), ..Wants::default() });
    let wants = cancel_answered(&mut case, CallResult::Done(Value::Null));
    assert_eq!(failed(&case, &wants), Some(FailReason::Cancelled));
    assert_eq!((case.state(), cancel(&mut case)), (State::Cancelled, Ok(None)));
    for kind in ["parcel.collected", "parcel.delivered", "parcel.lost"] {
        assert_eq!(case.hear(kind, PARCEL), None);
        let mut case = Case::booked();
        case.hear(kind, PARCEL);
        assert_eq!(cancel(&mut case), Err(Refusal::TooLate), "{kind}");
    }
}

#[test]
fn a_cancellation_that_fails_leaves_the_shipment_as_it_was() {
    let mut case = Case::booked();
    cancel(&mut case).unwrap();
    let wants = cancel_answered(&mut case, refused()).unwrap();
    assert_eq!((case.state(), wants), (State::Booked, Wants::nothing_else(ORDER)));
    assert_eq!(case.last(), "the carrier refuses to cancel: 422 it is collected");
    assert_eq!(cancel_answered(&mut case, refused()), None);
    // It was collected while the cancellation was under way.
    cancel(&mut case).unwrap();
    let wants = case.hear("parcel.collected", PARCEL).unwrap();
    assert!(wants.nothing_else.is_some(), "the cancellation is taken back");
    assert_eq!((case.state(), cancel_answered(&mut case, refused())), (State::Collected, None));
    // The carrier did both, or the answer was on its way.
    let wants = cancel_answered(&mut case, CallResult::DoneLate(Value::Null));
    assert_eq!(failed(&case, &wants), Some(FailReason::Cancelled));
}

#[test]
fn a_person_decides_whether_a_parcel_is_cancelled() {
    for (answer, state) in [(Found::Wait, State::Booked), (Found::Failed, State::Cancelled)] {
        let mut case = Case::booked();
        cancel(&mut case).unwrap();
        let wants = cancel_answered(&mut case, unknown()).unwrap();
        let task = LostParcel { order_id: ORDER, is_cancelling: true };
        assert_eq!((wants.asked, wants.timer), (Some(task.open()), None));
        assert_eq!(decide(&mut case, false, answer), None, "that was another question");
        let wants = decide(&mut case, true, answer);
        assert_eq!(case.state(), state);
        let cancelled = (state == State::Cancelled).then_some(FailReason::Cancelled);
        assert_eq!(failed(&case, &wants), cancelled);
        assert!(wants.unwrap().nothing_else.is_some(), "its call is taken back");
        assert_eq!(decide(&mut case, true, answer), None);
    }
}

#[test]
fn an_order_that_was_confirmed_before_the_start_is_not_shipped() {
    let (mut rows, order) = (no_shipments(), confirmed(ORDER, &[1]));
    rows.settings.ship_since = order.occurred_at + TimeDelta::microseconds(1);
    assert_eq!(saga::ship(&order, &mut rows, context(1)), Ok(None));
    rows.settings.ship_since = order.occurred_at;
    assert!(saga::ship(&order, &mut rows, context(1)).unwrap().is_some());
}
