//! Topics and their schemas.

use std::collections::BTreeSet;

use events::{insights, saga_topics, topics};

use e2e::stack_description::SHIPPING;

use super::{programs, read, root, services};

/// `stock.items` belongs to stock, `orders.created` to order, and `shipments.booked` to shipping.
fn is_named_after(publisher: &str, topic: &str) -> bool {
    let first = topic.split('.').next().unwrap();
    let publisher = if publisher == SHIPPING { "shipment" } else { publisher };
    first.strip_prefix(publisher).is_some_and(|rest| ["", "s"].contains(&rest))
}

#[test]
fn a_topic_is_named_after_its_publisher_and_its_schema_file_after_it() {
    assert!(is_named_after("sms", "sms.sent"), "a service's name may end in s");
    assert!(!is_named_after("order", "ordering.begun") && !is_named_after("sms", "sm.sent"));
    for topic in topics() {
        assert!(is_named_after(topic.publisher, topic.name), "{}", topic.name);
        assert_eq!(read(&format!("schemas/{}.avsc", topic.name)), topic.schema);
    }
    let files = std::fs::read_dir(root().join("schemas")).unwrap();
    let files = files.filter(|file| file.as_ref().unwrap().path().is_file());
    assert_eq!(files.count(), topics().len());
    let publishers: BTreeSet<&str> = saga_topics().iter().map(|topic| topic.publisher).collect();
    assert!(publishers.iter().all(|publisher| programs().contains(*publisher)), "{publishers:?}");
    assert!(!services().contains(insights::NAME), "it is no service of the saga");
}
