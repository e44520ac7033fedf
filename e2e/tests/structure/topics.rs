//! Topics, their schemas, and the handlers that a service wires for them.

use std::collections::BTreeSet;

use events::{COMPUTED_TOPICS, DECLARED_TOPICS, TOPICS, insights};
use serde_json::Value;

use super::{read, root, services};

/// The handlers that a `main.rs` wires, by name.
fn wired_handlers(service: &str) -> BTreeSet<String> {
    let main = read(&format!("services/{service}/src/main.rs"));
    let handlers = main.split(".on(saga::").skip(1);
    handlers.map(|rest| rest.split([')', ',']).next().unwrap().to_string()).collect()
}

/// The topic of an event's struct, whose name is that of its record.
fn topic_of(event: &str) -> String {
    let named = TOPICS.into_iter().find(|topic| {
        let schema: Value = serde_json::from_str(topic.schema).unwrap();
        schema["name"] == event
    });
    named.unwrap_or_else(|| panic!("there is no event {event}")).name.to_string()
}

/// The topic that a handler consumes, from the type of its first argument.
fn consumed_topic(service: &str, handler: &str) -> String {
    let saga = read(&format!("services/{service}/src/saga.rs"));
    let signature = saga.split(&format!("pub fn {handler}(")).nth(1).expect("a handler in saga.rs");
    let event = signature.split(": &").nth(1).and_then(|rest| rest.split(',').next());
    topic_of(event.expect("a handler's first argument is a reference to its event"))
}

#[test]
fn a_service_handles_exactly_the_topics_that_name_it_as_subscriber() {
    for service in services() {
        let handlers = wired_handlers(&service);
        let consumed: Vec<String> =
            handlers.iter().map(|handler| consumed_topic(&service, handler)).collect();
        let subscribed = TOPICS.iter().filter(|topic| topic.subscribers.contains(&&*service));
        let subscribed: BTreeSet<String> = subscribed.map(|topic| topic.name.to_string()).collect();
        assert_eq!(consumed.len(), subscribed.len(), "{service}: one handler a topic");
        assert_eq!(BTreeSet::from_iter(consumed), subscribed, "services/{service}/src/main.rs");
    }
}

/// `stock.items` belongs to stock, `orders.created` to order.
fn is_named_after(publisher: &str, topic: &str) -> bool {
    let first = topic.split('.').next().unwrap();
    first.strip_prefix(publisher).is_some_and(|rest| ["", "s"].contains(&rest))
}

#[test]
fn a_topic_is_named_after_its_publisher_and_its_schema_file_after_it() {
    assert!(is_named_after("sms", "sms.sent"), "a service's name may end in s");
    assert!(!is_named_after("order", "ordering.begun") && !is_named_after("sms", "sm.sent"));
    for topic in DECLARED_TOPICS {
        assert!(is_named_after(topic.publisher, topic.name), "{}", topic.name);
        assert_eq!(read(&format!("schemas/{}.avsc", topic.name)), topic.schema);
        assert!(topic.subscribers.iter().all(|subscriber| services().contains(*subscriber)));
        assert!(!topic.subscribers.contains(&topic.publisher));
    }
    let files = std::fs::read_dir(root().join("schemas")).unwrap();
    let files = files.filter(|file| file.as_ref().unwrap().path().is_file());
    assert_eq!(files.count(), DECLARED_TOPICS.len());
    for topic in COMPUTED_TOPICS {
        assert_eq!(
            (topic.publisher, topic.subscribers),
            (insights::NAME, &[][..]),
            "{}",
            topic.name
        );
        assert!(!services().contains(topic.publisher), "it is no service of the saga");
    }
}

#[test]
fn the_table_of_topics_matches_the_declaration() {
    let text = read("shared/events/src/lib.rs");
    for topic in TOPICS {
        let row = text.lines().find_map(|line| line.strip_prefix(&format!("/// {} ", topic.name)));
        let row = row.unwrap_or_else(|| panic!("{} is not in the table", topic.name));
        let words: Vec<&str> =
            row.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(words[0], topic.publisher, "{}", topic.name);
        // Subscribers in brackets are optional: they are no part of the saga.
        if !words[1].starts_with('(') {
            assert_eq!(words[1], topic.subscribers.join(", "), "{}", topic.name);
        }
    }
}
