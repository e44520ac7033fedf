//! What the events and the handlers declare, and the files that follow from it.

use std::collections::BTreeSet;

use chassis::event::Event;
use contracts::checks;
use events::orders::{OrderCancelled, OrderCreated};
use events::participants::participants;
use events::{connect, insights, saga_topics, shipments, topics};

use crate::{CONTRACTS, SUBSCRIPTIONS, subscribers};

const LIST: &[&str] = &include!("../../../services/list.rs");

#[test]
fn every_service_says_what_it_consumes() {
    let every = BTreeSet::from_iter(LIST.iter().copied().chain([shipments::NAME]));
    assert_eq!(SUBSCRIPTIONS.services().collect::<BTreeSet<_>>(), every);
    for service in every {
        assert!(!SUBSCRIPTIONS.topics(service).is_empty(), "{service}");
    }
}

/// Otherwise an order would wait for an answer without end.
#[test]
fn every_participant_hears_of_orders_and_the_order_service_hears_its_answers() {
    for answers in participants() {
        for topic in [OrderCreated::topic(), OrderCancelled::topic()] {
            let subscribers = subscribers(topic);
            assert!(subscribers.contains(&answers.service), "{} {}", answers.service, topic.name);
        }
        for topic in answers.topics() {
            assert_eq!(topic.publisher, answers.service, "{}", topic.name);
            assert!(subscribers(topic).contains(&"order"), "{}", topic.name);
        }
    }
}

/// The checker reads the records of the saga alone.
#[test]
fn no_service_consumes_what_the_stream_processor_computes() {
    for topic in topics().iter().filter(|topic| topic.publisher == insights::NAME) {
        assert!(subscribers(topic).is_empty(), "{topic:?}");
    }
}

#[test]
fn the_readers_of_a_personal_topic_are_those_that_consume_it() {
    checks::assert_readers(&CONTRACTS);
}

#[test]
fn each_connector_may_carry_the_topics_of_its_service_and_none_writes_without_its_feature() {
    use contracts::grants::{AclOperation, AclResource, Grant};
    let writes = |grant: &&Grant| {
        (grant.resource, grant.operation) == (AclResource::Topic, AclOperation::Write)
    };
    let granted = CONTRACTS.grants_of_features(&["cdc"]).unwrap();
    for topic in saga_topics().iter().filter(|topic| topic.publisher != shipments::NAME) {
        let writers = granted.iter().filter(writes).filter(|grant| grant.name == topic.name);
        let writers: Vec<&str> = writers.map(|grant| &*grant.user).collect();
        assert_eq!(writers, [format!("{}-outbox", topic.publisher)], "{}", topic.name);
    }
    let others = CONTRACTS.grants_of_features(&["connect", "reporting"]).unwrap();
    for grant in others.union(&CONTRACTS.grants()).filter(writes) {
        let topic = topics().iter().find(|topic| topic.name == grant.name);
        assert!(topic.is_none_or(|topic| topic.publisher == grant.user), "{grant:?}");
    }
}

/// `make schema` rewrites the document.
#[test]
fn the_committed_asyncapi_document_is_the_one_that_the_topics_declare() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/asyncapi.json");
    checks::assert_asyncapi_file(&CONTRACTS, file);
}

/// `make schema` rewrites the files.
#[test]
fn the_committed_users_of_kafka_are_those_that_the_topics_declare() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../k8s");
    checks::assert_users_file(&CONTRACTS, None, format!("{folder}/overlays/production/users.yaml"));
    for feature in &connect::FEATURES {
        let file = format!("{folder}/components/{}/users.yaml", feature.name);
        checks::assert_users_file(&CONTRACTS, Some(feature.name), file);
    }
}

/// `make schema` rewrites the file.
#[test]
fn the_committed_topics_of_strimzi_are_those_that_the_events_declare() {
    let file = "/../../k8s/overlays/production/topics.yaml";
    checks::assert_topics_file(&CONTRACTS, format!("{}{file}", env!("CARGO_MANIFEST_DIR")));
}
