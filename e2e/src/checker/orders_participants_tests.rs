//! Orders that ask some of the participants.

use chassis::event::Topic;

use crate::checker::order_cases::OrderCase;
use crate::checker::test_cases::{
    CREATED, ENDED, RESERVED, case, checked, confirmed, has_finding, id,
};

/// An order that does not ask stock.
fn without_stock(mut case: OrderCase) -> OrderCase {
    case.order.as_mut().unwrap().legs.0.remove("stock");
    case
}

/// The case without stock's answer to the order and to its cancellation.
fn unanswered_by_stock(mut case: OrderCase) -> OrderCase {
    case.parts.remove("stock");
    let is_stocks = |topic: &Topic| topic.publisher == "stock";
    case.history.retain(|row| !row.event.starts_with("stock."));
    case.expected.retain(|e| !is_stocks(e.topic));
    case.records.retain(|record| !is_stocks(record.position.topic));
    case
}

#[test]
fn an_order_needs_the_answers_of_the_participants_that_it_asks_alone() {
    for valid in [
        confirmed(),
        case("confirmed", "verified", "rejected"),
        case("cancelled", "refunded", "released"),
        case("cancelled", "refunded", "void"),
    ] {
        let [answered, unanswered] = [valid.clone(), unanswered_by_stock(valid)].map(without_stock);
        for asks_payment in [answered, unanswered] {
            let (tally, findings) = checked(&asks_payment);
            assert_eq!(findings.kinds(), [""; 0], "{findings:?}");
            assert_eq!(tally.traced, tally.confirmed, "its answer is in the trace of the order");
        }
    }
    let asked = unanswered_by_stock(case("pending", "verified", "waiting"));
    let created = [("stock", id(CREATED))].into();
    assert_eq!(checked(&asked).0.unanswered, created, "an inbox entry would have no effect");
    assert_eq!(checked(&without_stock(asked)).0.unanswered, [].into(), "it rightly has none");
    let cancelled = without_stock(unanswered_by_stock(case("cancelled", "refunded", "waiting")));
    let undoes = [("stock", id(ENDED))].into();
    assert_eq!(
        checked(&cancelled).0.unanswered,
        undoes,
        "it answers the cancellation all the same"
    );
    let open = case("confirmed", "waiting", "reserved");
    assert!(has_finding(&checked(&without_stock(open)).1.kinds(), "I3 open"));
    let keeps = without_stock(case("cancelled", "refunded", "reserved"));
    assert_eq!(checked(&keeps).1.kinds(), ["I3 open"], "it keeps what a cancelled order reserved");
    let mut unrecorded = without_stock(confirmed());
    unrecorded.history.retain(|row| row.event_id != id(RESERVED));
    assert_eq!(checked(&unrecorded).1.kinds(), ["I7 history"]);
    let mut unpublished = without_stock(confirmed());
    unpublished.records.retain(|record| record.event_id != id(RESERVED));
    assert_eq!(checked(&unpublished).1.kinds(), ["I8 lost"]);
}
