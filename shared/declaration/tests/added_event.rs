//! A new event is a schema, a struct and a handler. This test adds one, and everything else follows.

use std::collections::BTreeSet;

use chassis::event::{Subscriptions, declared_events, topics};
use chassis::{
    Event, HandlerContext, HandlerResult, Handlers, Loader, Loads, UnitOfWork, WriteBatch,
};
use contracts::grants::{AclOperation, AclResource, Grant};
use contracts::{Contracts, checks};
use serde::{Deserialize, Serialize};

/// What an event of `shared/events` has as the file `schemas/parcels.sent.avsc`.
const SCHEMA: &str = r#"{"type": "record", "name": "ParcelSent", "namespace": "parcels", "doc": "It is on its way.",
    "fields": [{"name": "parcel_id", "type": "string", "doc": "The parcel; also the key."},
               {"name": "receiver_id", "type": "string", "doc": "Who gets it.", "personal": true}]}"#;

/// A parcel is on its way.
#[derive(Event, Serialize, Deserialize)]
#[event(
    topic = "parcels.sent",
    publisher = "parcel",
    key = "parcel_id",
    schema = SCHEMA,
    personal("order")
)]
struct ParcelSent {
    parcel_id: String,
    receiver_id: String,
}

/// The unit of work of the subscriber.
struct Nothing;

impl UnitOfWork for Nothing {
    type Keys = BTreeSet<String>;

    async fn load(_: &mut Loader<'_>, _: BTreeSet<String>) -> sqlx::Result<Nothing> {
        Ok(Nothing)
    }

    fn save(&self, _: &mut WriteBatch<'_>) {}
}

impl Loads<ParcelSent> for Nothing {
    fn keys(_: &ParcelSent, _: &mut BTreeSet<String>) {}
}

/// `parcels.sent` → nothing
fn parcel_sent(_: &ParcelSent, _: &mut Nothing, _: HandlerContext) -> HandlerResult<()> {
    Ok(None)
}

/// The subscriptions of the system with the subscriber's new handler.
fn subscriptions() -> Subscriptions {
    let earlier = declaration::SUBSCRIPTIONS.services();
    Subscriptions::new(earlier.map(|service| {
        let mut consumed = declaration::SUBSCRIPTIONS.topics(service).to_vec();
        if service == "order" {
            consumed.extend(Handlers::<Nothing>::new().on(parcel_sent).topics());
        }
        (service, consumed)
    }))
}

#[test]
fn an_added_event_is_in_everything_that_follows_from_the_declaration() {
    let (subscriptions, topic) = (subscriptions(), ParcelSent::topic());
    assert_eq!(subscriptions.subscribers(topic), ["order"]);
    let contracts = Contracts::new("holdfast", "1", topics(), subscriptions);
    assert!(topics().iter().any(|it| it.name == topic.name), "the topics that `apply` creates");
    let grants = contracts.grants();
    for (user, operation) in [("parcel", AclOperation::Write), ("order", AclOperation::Read)] {
        assert!(grants.contains(&Grant::new(user, AclResource::Topic, topic.name, operation)));
    }
    let document = contracts.asyncapi().unwrap();
    for operation in ["parcel.send.parcels.sent", "order.receive.parcels.sent"] {
        assert!(document.contains(&format!("\"{operation}\"")), "{operation}");
    }
    // The checks of `shared/events`, the fuzz target and the samples of the scenarios go by these lists.
    assert!(declared_events().iter().any(|event| event.topic.name == topic.name));
    checks::assert_round_trips(declared_events());
    checks::assert_documented(topics());
    checks::assert_personal_fields(topics());
    checks::assert_inbox_outlasts_retention(topics());
    checks::assert_readers(&contracts);
    assert!(contracts::samples::event(topic).unwrap()["receiver_id"].is_string());
    let key = ParcelSent { parcel_id: "7".into(), receiver_id: "8".into() }.key();
    assert_eq!(key, "7");
}
