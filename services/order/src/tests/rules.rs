//! The rules of the decider, by table and by property.

use events::orders::CancelReason;
use proptest::prelude::*;

use super::*;
use chassis::Timer;

use crate::order::{CancelOrder, Deadline};
use crate::saga::{Ended, Refusal};

const STATUSES: [Status; 3] = [Status::Pending, Status::Confirmed, Status::Cancelled];

const LEGS: [LegState; 5] = LegState::COMMON;

/// The next state of a leg, by its state: waiting, yes, no, undone, void; `None` if the event is unprocessable.
fn leg_transitions(response: Response) -> [Option<usize>; 5] {
    const WAITING_TO: fn(usize) -> Option<usize> = Some;
    match response {
        Verified | Reserved => [WAITING_TO(1), Some(1), None, Some(3), None],
        Declined | Rejected => [WAITING_TO(2), None, Some(2), None, None],
        Refunded | Released => [WAITING_TO(3), Some(3), None, Some(3), None],
        PaymentVoid | StockVoid => [WAITING_TO(4), None, None, None, Some(4)],
    }
}

#[test]
fn every_response_in_every_state_advances_its_leg_and_decides_once() {
    for (status, payment, stock, response) in every_state() {
        let case = format!("{response:?} received when {status:?}, {payment}, {stock}");
        let before = order(ORDER, status, LEGS[payment], LEGS[stock]);
        let mut rows = rows(before.clone());
        let answer = handle(response, ORDER, &mut rows, context(1));
        let after = rows.order(ORDER).unwrap();
        let history_entry = |nth: usize| (rows.history()[nth].event, rows.history()[nth].event_id);

        let of_payment = matches!(response, Verified | Declined | Refunded | PaymentVoid);
        let undoes = matches!(response, Refunded | PaymentVoid | Released | StockVoid);
        let to = leg_transitions(response)[if of_payment { payment } else { stock }];
        let Some(to) = to.filter(|_| !undoes || status == Status::Cancelled) else {
            assert!(answer.is_err(), "{case}: {answer:?}");
            assert_eq!((after, rows.history().len()), (&before, 0), "{case}");
            continue;
        };
        let mut expected = before.clone();
        match of_payment {
            true => expected.payment.state = LEGS[to],
            false => expected.stock.state = LEGS[to],
        }
        let both = (expected.payment.state, expected.stock.state)
            == (LegState::Accepted, LegState::Accepted);
        let decided = match response {
            Verified | Reserved if both => Some(("orders.confirmed", Status::Confirmed, None)),
            Declined => {
                Some(("orders.cancelled", Status::Cancelled, Some(Reason::PaymentDeclined)))
            }
            Rejected => Some(("orders.cancelled", Status::Cancelled, Some(Reason::StockRejected))),
            _ => None,
        };
        let decided = decided.filter(|_| status == Status::Pending);
        if let Some((_, status, reason)) = decided {
            (expected.status, expected.reason) = (status, reason);
            (expected.ended_at, expected.ended_event_id) =
                (Some(context(1).now), Some(context(1).event_id));
        }
        expected.last_position = rows.history().len() as i64;
        assert_eq!(after, &expected, "{case}");
        assert_eq!(answer, Ok(decided.map(|(topic, ..)| topic)), "{case}");
        assert_eq!(history_entry(0).1, context(1).causation_id.unwrap(), "{case}");
        assert_eq!(rows.history().len(), 1 + usize::from(decided.is_some()), "{case}");
        if let Some((topic, ..)) = decided {
            assert_eq!(history_entry(1), (topic, context(1).event_id), "{case}");
        }
    }
}

fn every_state() -> impl Iterator<Item = (Status, usize, usize, Response)> {
    STATUSES.into_iter().flat_map(|status| {
        (0..25).flat_map(move |legs| {
            RESPONSES.into_iter().map(move |response| (status, legs / 5, legs % 5, response))
        })
    })
}

#[test]
fn a_confirmed_order_is_published_in_full() {
    let mut rows = rows(order(ORDER, Status::Pending, LegState::Waiting, LegState::Accepted));
    let ended = saga::answered(&verified(ORDER), &mut rows, context(1)).unwrap();
    let Some(Ended::Confirmed(event)) = ended else { panic!("{ended:?}") };
    assert_eq!(
        (event.order_id, event.customer_id, event.occurred_at),
        (ORDER, CUSTOMER, context(1).now)
    );
    assert_eq!((event.total_cents, event.currency), (TOTAL_CENTS, euros()));
    let lines: Vec<_> =
        event.lines.iter().map(|l| (l.sku.as_str(), l.quantity, l.unit_price_cents)).collect();
    assert_eq!(lines, [("pen", 2, 150), ("ink", 1, 90)]);
}

#[test]
fn a_response_to_an_unknown_order_is_unprocessable() {
    for response in RESPONSES {
        let mut rows = Orders::default();
        handle(response, ORDER, &mut rows, context(1)).unwrap_err();
        assert!(rows.order(ORDER).is_none() && rows.history().is_empty());
    }
}

#[test]
fn a_response_that_differs_from_the_order_is_unprocessable() {
    for status in STATUSES {
        let before = order(ORDER, status, LegState::Waiting, LegState::Waiting);
        let mut rows = rows(before.clone());
        let money = [(Some(TOTAL_CENTS - 1), "EUR"), (Some(0), "EUR"), (Some(TOTAL_CENTS), "CHF")];
        for (amount_cents, currency) in money {
            let currency = currency.to_string();
            let event = PaymentRefunded {
                currency: Some(currency.clone()),
                ..refunded(ORDER, amount_cents)
            };
            saga::answered(&event, &mut rows, context(1)).unwrap_err();
            let event = PaymentVerified {
                amount_cents: amount_cents.unwrap(),
                currency,
                ..verified(ORDER)
            };
            saga::answered(&event, &mut rows, context(1)).unwrap_err();
        }
        let without_currency =
            PaymentRefunded { currency: None, ..refunded(ORDER, Some(TOTAL_CENTS)) };
        saga::answered(&without_currency, &mut rows, context(1)).unwrap_err();
        for lines in
            [&[("pen", 2)][..], &[("ink", 1), ("pen", 3)], &[("ink", 1), ("nib", 1), ("pen", 2)]]
        {
            saga::answered(&released(ORDER, lines), &mut rows, context(1)).unwrap_err();
            let line = |(sku, quantity): &(&str, i32)| ReservedLine {
                sku: sku.to_string(),
                quantity: *quantity,
            };
            let event =
                StockReserved { lines: lines.iter().map(line).collect(), ..reserved(ORDER) };
            saga::answered(&event, &mut rows, context(1)).unwrap_err();
        }
        let nothing = StockReserved { lines: vec![], ..reserved(ORDER) };
        saga::answered(&nothing, &mut rows, context(1)).unwrap_err();
        assert_eq!((rows.order(ORDER), rows.history().len()), (Some(&before), 0));
    }
}

#[test]
fn a_placed_order_is_pending_and_published_with_our_prices() {
    let mut rows = items();
    let context = HandlerContext { causation_id: None, ..context(1) };
    let deadline = Some(Duration::from_secs(60));
    let place = PlaceOrder { deadline, ..place(&[("pen", 2), ("ink", 1)]) };
    let accepted = place.decide(&mut rows, context).unwrap();
    let (event, timer) = accepted.event.unwrap();
    assert_eq!(timer, Some(Deadline { order_id: ORDER }.at(context.now + Duration::from_secs(60))));
    assert_eq!(
        (event.order_id, event.customer_id, event.occurred_at),
        (ORDER, CUSTOMER, context.now)
    );
    assert_eq!((event.total_cents, event.currency), (TOTAL_CENTS, euros()));
    let lines: Vec<_> =
        event.lines.iter().map(|l| (l.sku.as_str(), l.quantity, l.unit_price_cents)).collect();
    assert_eq!(lines, [("pen", 2, 150), ("ink", 1, 90)]);
    let placed = order(ORDER, Status::Pending, LegState::Waiting, LegState::Waiting);
    let (created_at, created_event_id) = (context.now, context.event_id);
    let placed = Order { created_at, created_event_id, last_position: 1, ..placed };
    assert_eq!(rows.order(ORDER), Some(&placed));
    assert_eq!((accepted.output, accepted.location), (placed, Some(format!("/orders/{ORDER}"))));
    let history: Vec<_> = rows.history().iter().map(|line| (line.event, line.event_id)).collect();
    assert_eq!(history, [("orders.created", context.event_id)]);
}

#[test]
fn a_refused_order_is_not_stored() {
    for (lines, refusal) in [
        (&[("pen", 1), ("cap", 1)][..], Refusal::NoSuchItem { nth: 1 }),
        (&[("pen", 1), ("ink", 1), ("nib", 1)], Refusal::MixedCurrencies { nth: 2 }),
        (&[("ink", 1), ("gem", 1_000)], Refusal::TotalTooLarge { nth: 1 }),
        (&[("gem", 1), ("gold", 1)], Refusal::TotalTooLarge { nth: 1 }),
    ] {
        let mut rows = items();
        for sku in ["gem", "gold"] {
            saga::item_changed(&item(sku, i64::MAX / 2 + 1, "EUR", 1), &mut rows, context(0))
                .unwrap();
        }
        assert_eq!(place(lines).decide(&mut rows, context(1)), Err(refusal));
        assert!(rows.order(ORDER).is_none() && rows.history().is_empty());
    }
}

#[test]
fn an_order_committed_by_an_earlier_attempt_is_not_placed_again() {
    let before = order(ORDER, Status::Confirmed, LegState::Accepted, LegState::Accepted);
    let mut rows = rows(before.clone());
    let accepted = place(&[("cap", 1)]).decide(&mut rows, context(1)).unwrap();
    assert_eq!((accepted.output, accepted.event), (before.clone(), None));
    assert_eq!((rows.order(ORDER), rows.history().len()), (Some(&before), 0));
}

#[test]
fn a_customer_and_the_deadline_end_a_pending_order_and_no_other() {
    let cancel = CancelOrder { order_id: ORDER, caller: Caller::unrestricted() };
    let deadline = Deadline { order_id: ORDER };
    for (reason, published) in
        [(Reason::Customer, CancelReason::Customer), (Reason::Deadline, CancelReason::Deadline)]
    {
        for legs in 0..25 {
            let (payment, stock) = (LEGS[legs / 5], LEGS[legs % 5]);
            let pending = order(ORDER, Status::Pending, payment, stock);
            let mut rows_of_pending = rows(pending.clone());
            let ended = match reason {
                Reason::Deadline => saga::overdue(&deadline, &mut rows_of_pending, context(1)),
                _ => {
                    let accepted = cancel.decide(&mut rows_of_pending, context(1)).unwrap();
                    assert_eq!(Some(&accepted.output), rows_of_pending.order(ORDER));
                    Ok(accepted.event)
                }
            };
            let Ok(Some(Ended::Cancelled(event))) = ended else { panic!("{ended:?}") };
            assert_eq!(
                (event.order_id, event.reason, event.occurred_at),
                (ORDER, published, context(1).now)
            );
            let (ended_at, ended_event_id) = (Some(context(1).now), Some(context(1).event_id));
            let (status, reason) = (Status::Cancelled, Some(reason));
            let ended =
                Order { status, reason, ended_at, ended_event_id, last_position: 1, ..pending };
            assert_eq!(rows_of_pending.order(ORDER), Some(&ended));
            assert_eq!(rows_of_pending.history().len(), 1);

            for status in [Status::Cancelled, Status::Confirmed] {
                let before = order(ORDER, status, payment, stock);
                let mut rows = rows(before.clone());
                // A customer is told that it is too late. The deadline asks for nothing more.
                let answer = match status {
                    Status::Confirmed => Err(Refusal::AlreadyConfirmed),
                    _ => Ok(CancelOrder::ok(before.clone())),
                };
                assert_eq!(cancel.decide(&mut rows, context(1)), answer);
                assert_eq!(saga::overdue(&deadline, &mut rows, context(1)), Ok(None));
                assert_eq!((rows.order(ORDER), rows.history().len()), (Some(&before), 0));
            }
        }
    }
    let mut none = Orders::default();
    assert_eq!(cancel.decide(&mut none, context(1)), Err(Refusal::NoSuchOrder));
    assert_eq!(saga::overdue(&deadline, &mut none, context(1)), Ok(None), "its row is gone");
}

#[test]
fn the_highest_version_of_an_item_wins_in_any_order() {
    let mut rows = Orders::default();
    for (version, known) in [(2, 2), (1, 2), (2, 2), (5, 5), (4, 5)] {
        assert_eq!(
            saga::item_changed(&item("pen", version, "EUR", version), &mut rows, context(0)),
            Ok(None)
        );
        assert_eq!(
            rows.item("pen").map(|item| (item.version, item.price_cents)),
            Some((known, known))
        );
    }
    saga::item_changed(&item("pen", -1, "EUR", 9), &mut rows, context(0)).unwrap_err();
    saga::item_changed(&item("pen", 1, "EUR", 0), &mut rows, context(0)).unwrap_err();
    for currency in ["", "EU\0", "eur", "EURO", "E1R"] {
        saga::item_changed(&item("pen", 1, currency, 9), &mut rows, context(0)).unwrap_err();
    }
    let long = "x".repeat(65);
    for sku in ["", "a\0", "a\nb", " pen", "pe\u{200b}n", "o\u{308}l", &long] {
        saga::item_changed(&item(sku, 1, "EUR", 1), &mut rows, context(0)).unwrap_err();
    }
    assert_eq!(rows.item("pen").unwrap().version, 5);
}

/// How far a leg has climbed.
fn leg_rank(leg: usize) -> usize {
    [0, 1, 2, 2, 2][leg]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Whatever arrives, in whatever order and however often: an order ends once and stays ended, legs
    /// only climb, and what is unprocessable or refused changes nothing.
    #[test]
    fn an_order_ends_once_and_its_legs_only_advance(
        steps in prop::collection::vec((0..3_u128, prop_oneof![9 => (0..RESPONSES.len()).prop_map(Some), 1 => Just(None)]), 1..60),
    ) {
        let mut rows = Orders::default();
        for nth in 0..2 { // the third was never placed
            rows.put_order(order(Uuid::from_u128(nth), Status::Pending, LegState::Waiting, LegState::Waiting));
        }
        let mut ends = [0; 3];
        for (now, (nth, step)) in steps.into_iter().enumerate() {
            let (order_id, context) = (Uuid::from_u128(nth), context(now as u128 + 1));
            let (before, lines) = (rows.order(order_id).cloned(), rows.history().len());
            let published = match step {
                Some(response) => handle(RESPONSES[response], order_id, &mut rows, context).map_err(|_| ()),
                None => {
                    let cancel = CancelOrder { order_id, caller: Caller::unrestricted() };
                    let cancelled = cancel.decide(&mut rows, context).map_err(|_| ());
                    cancelled.map(|accepted| accepted.event.map(|_| "orders.cancelled"))
                }
            };
            let after = rows.order(order_id).cloned();
            if published.is_err() {
                prop_assert_eq!((&after, rows.history().len()), (&before, lines));
            }
            let (Some(before), Some(after)) = (before, after) else { continue };
            if let Ok(Some(topic)) = published {
                ends[nth as usize] += 1;
                let confirmed = (topic == "orders.confirmed", after.status == Status::Confirmed);
                prop_assert!(confirmed.0 == confirmed.1 && after.status != Status::Pending);
                prop_assert_eq!((before.status, after.ended_event_id), (Status::Pending, Some(context.event_id)));
            } else {
                prop_assert_eq!(
                    (before.status, before.reason, before.ended_at, before.ended_event_id),
                    (after.status, after.reason, after.ended_at, after.ended_event_id)
                );
            }
            let place = |leg: LegState| LEGS.iter().position(|it| *it == leg).unwrap();
            let legs = [(before.payment.state, after.payment.state), (before.stock.state, after.stock.state)];
            for (was, is) in legs.map(|(was, is)| (place(was), place(is))) {
                prop_assert!(was == is || leg_rank(was) < leg_rank(is));
            }
            let (payment, stock) = (after.payment.state, after.stock.state);
            let no = payment == LegState::Refused || stock == LegState::Refused;
            prop_assert!(!no || after.status == Status::Cancelled);
            let both = (payment, stock) == (LegState::Accepted, LegState::Accepted);
            prop_assert!(after.status != Status::Confirmed || both);
        }
        prop_assert!(ends.iter().all(|times| *times <= 1));
    }
}

#[test]
fn the_impact_of_discarding_an_event_is_stated() {
    let pending = rows(order(ORDER, Status::Pending, LegState::Waiting, LegState::Waiting));
    let ended = rows(order(ORDER, Status::Cancelled, LegState::Accepted, LegState::Accepted));
    let nothing = Orders::default();
    for (orders, offers) in [(&pending, true), (&ended, false), (&nothing, false)] {
        for loss in [
            discard::response(&verified(ORDER), orders),
            discard::response(&declined(ORDER), orders),
            discard::response(&reserved(ORDER), orders),
            discard::response(&rejected(ORDER), orders),
        ] {
            let path = loss.remedy.as_ref().map(|offer| offer.path.clone());
            assert_eq!(path, offers.then(|| format!("/orders/{ORDER}/cancel")), "{loss:?}");
            assert_eq!(loss.write_offs, []);
        }
    }
    let write_offs = |loss: chassis::DiscardImpact| {
        let write_offs = loss.write_offs.into_iter();
        write_offs.map(|w| (w.amount, w.unit)).collect::<Vec<(i64, String)>>()
    };
    let refund = |amount, orders| write_offs(discard::undone(&refunded(ORDER, amount), orders));
    assert_eq!(refund(Some(TOTAL_CENTS), &ended), [(TOTAL_CENTS, "EUR cents".to_string())]);
    assert_eq!(refund(None, &ended), [], "nothing had been taken");
    assert_eq!(refund(Some(TOTAL_CENTS), &nothing), [], "there is no such order");
    assert_eq!(refund(Some(TOTAL_CENTS), &pending), [], "nothing is to be undone");
    assert_eq!(refund(Some(-1), &ended), [(TOTAL_CENTS, "EUR cents".to_string())]);
    let release = released(ORDER, &[("ink", 1), ("pen", 2)]);
    let due = [(2, "pen".to_string()), (1, "ink".to_string())];
    assert_eq!(write_offs(discard::undone(&release, &ended)), due);
    assert_eq!(write_offs(discard::undone(&release, &pending)), []);
    let strange = released(ORDER, &[("\0", i32::MAX)]);
    assert_eq!(write_offs(discard::undone(&strange, &ended)), due);
    assert_eq!(write_offs(discard::undone(&release, &nothing)), []);
}
