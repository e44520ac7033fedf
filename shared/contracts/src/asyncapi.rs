//! The AsyncAPI document: what a team that has no access to this code needs to read or write these
//! topics, made of the one declaration and of the schemas.
//!
//! One document describes the whole system. A channel is a topic, and an operation is what one
//! service does with it; its tag names the service.

use anyhow::{Context, Result};
use apache_avro::Schema;
use chassis::event::{DataClass, Isolation, Topic};
use chassis::kafka::RECORD_BYTES_MAX;
use serde_json::{Map, Value, json};

use crate::Contracts;
use crate::topic_config::{cleanup_policy, retention_ms};

const BINDING_VERSION: &str = "0.5.0";
const AVRO: &str = "application/vnd.apache.avro;version=1.9.0";

/// The header `content-type` of every record.
const CONTENT_TYPE: &str = "application/avro";

const WIRE_FORMAT: &str = "A record is one event. Its value is a zero byte, the schema's id in the schema registry as four \
     bytes (big-endian), and the Avro body. The subject of the schema is the topic's name with the \
     suffix `-value`. The headers are those of CloudEvents 1.0 in binary mode. A record may come \
     again with the same `ce_id`; it is a duplicate.";

impl Contracts {
    /// The AsyncAPI 3.0 document of these contracts, as JSON. The same contracts always yield the
    /// same text.
    ///
    /// A topic is a channel with its partitions, retention and schema. Its publisher has an
    /// operation that sends, and each subscriber one that receives.
    ///
    /// # Errors
    /// If a schema is not valid Avro.
    pub fn asyncapi(&self) -> Result<String> {
        let (mut channels, mut operations) = (Map::new(), Map::new());
        for topic in &self.topics {
            let schema = Schema::parse_str(topic.schema)
                .with_context(|| format!("the schema of {} is no valid Avro", topic.name))?;
            // Of a schema that is no record, the topic's name.
            let message = schema.name().map_or(topic.name, |name| name.name()).to_string();
            operations.extend(topic_operations(
                topic,
                &self.subscriptions.subscribers(topic),
                &message,
            ));
            channels.insert(topic.name.to_string(), channel(topic, &message, &schema));
        }
        let mut info = json!({ "title": self.title, "version": self.version });
        if let Some(description) = self.description {
            info["description"] = json!(description);
        }
        let document = json!({
            "asyncapi": "3.0.0",
            "x-written-by": "`contracts asyncapi`: change the declarations of topics and their schemas instead",
            "info": info,
            "defaultContentType": CONTENT_TYPE,
            "channels": channels,
            "operations": operations,
            "components": { "messageTraits": { "event": message_trait() } },
        });
        Ok(format!("{document:#}\n"))
    }
}

fn channel(topic: &Topic, message: &str, schema: &Schema) -> Value {
    let mut settings = json!({
        "cleanup.policy": [cleanup_policy(topic.retention)],
        "max.message.bytes": RECORD_BYTES_MAX,
    });
    if let Some(retention) = retention_ms(topic.retention) {
        settings["retention.ms"] = json!(retention);
    }
    let mut channel = json!({
        "address": topic.name,
        "x-data-class": match topic.class {
            DataClass::Open => "open",
            DataClass::Personal { .. } => "personal",
        },
        "messages": { message: {
            "name": message,
            "traits": [reference("components/messageTraits/event")],
            "headers": { "type": "object", "properties": {
                "ce_type": constant(topic.name),
                "ce_source": constant(&format!("/{}", topic.publisher)),
            } },
            "payload": { "schemaFormat": AVRO, "schema": schema },
        } },
        "bindings": { "kafka": {
            "partitions": topic.partitions,
            "topicConfiguration": settings,
            "bindingVersion": BINDING_VERSION,
        } },
    });
    if let Some(description) = schema.doc() {
        channel["description"] = json!(description);
    }
    channel
}

/// What the publisher and each subscriber do with a topic, by name.
fn topic_operations(topic: &Topic, subscribers: &[&str], message: &str) -> Vec<(String, Value)> {
    let Topic { name, publisher, .. } = topic;
    let operation = |service: &str, action: &str, summary: String| {
        json!({
            "action": action,
            "channel": reference(&format!("channels/{name}")),
            "summary": summary,
            "tags": [{ "name": service }],
            "messages": [reference(&format!("channels/{name}/messages/{message}"))],
        })
    };
    let sends = operation(publisher, "send", format!("{publisher} publishes {name}."));
    let mut operations = vec![(format!("{publisher}.send.{name}"), sends)];
    for subscriber in subscribers {
        let which = match topic.isolation {
            Isolation::ReadUncommitted => "",
            Isolation::ReadCommitted => " It reads the records of committed transactions only.",
        };
        let summary = format!("{subscriber} handles each event of {name} once.{which}");
        let mut receives = operation(subscriber, "receive", summary);
        receives["bindings"] = json!({ "kafka": {
            "groupId": constant(subscriber),
            "bindingVersion": BINDING_VERSION,
        } });
        operations.push((format!("{subscriber}.receive.{name}"), receives));
    }
    operations
}

/// What every record has, as the relay of the chassis writes it.
fn message_trait() -> Value {
    let described = |text: &str| json!({ "type": "string", "description": text });
    let formatted = |format: &str, text: &str| json!({ "type": "string", "format": format, "description": text });
    json!({
        "contentType": CONTENT_TYPE,
        "description": WIRE_FORMAT,
        "headers": {
            "type": "object",
            "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "content-type"],
            "properties": {
                "ce_specversion": constant("1.0"),
                "ce_id": formatted("uuid", "The event."),
                "ce_type": described("The topic."),
                "ce_source": described("A slash and the publisher."),
                "ce_time": formatted(
                    "date-time",
                    "When the publisher decided it, by the clock of its database, in UTC and microseconds.",
                ),
                "content-type": constant(CONTENT_TYPE),
                "ce_dataschema": described(
                    "The schema of the body: `urn:avro:sha-256:` and the SHA-256 of its parsing canonical form \
                     in hex. It takes precedence if the registry has another schema under the id. Absent in \
                     records of older versions.",
                ),
                "traceparent": described("The trace that the event belongs to (W3C Trace Context)."),
                "tracestate": described(
                    "What the vendors of tracing systems have added to the trace, up to 512 characters. \
                     Absent if they added nothing, and where a connector carries the outbox.",
                ),
                "ce_causationid": formatted(
                    "uuid",
                    "The event that caused this one. Absent if a command caused it, or if the record was \
                     republished.",
                ),
            },
        },
        "bindings": { "kafka": {
            "key": described("The records of one key keep the sequence in which their publisher made them."),
            "bindingVersion": BINDING_VERSION,
        } },
    })
}

fn reference(path: &str) -> Value {
    json!({ "$ref": format!("#/{path}") })
}

fn constant(value: &str) -> Value {
    json!({ "type": "string", "const": value })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    use chassis::event::Subscriptions;

    use super::*;
    use crate::topic_config::topic_config;

    /// With a name that is used twice.
    const SOLD: &str = r##"{"type": "record", "name": "Sold", "namespace": "shop",
        "doc": "Something was sold: the till knows what, when and for how much, and the shop's \"books\" follow # soon.",
        "fields": [
            {"name": "id", "type": {"type": "string", "logicalType": "uuid"}, "doc": "1.0"},
            {"name": "paid", "type": "long", "default": 0, "doc": "yes", "personal": true},
            {"name": "note", "type": ["null", "string"], "default": null, "doc": "  "},
            {"name": "why", "doc": "null", "type": {"type": "enum", "name": "Why", "namespace": "shop",
                "doc": "-", "symbols": ["need", "no", "unknown"],
                "default": "unknown"}},
            {"name": "others", "doc": "{}", "type": {"type": "array", "items": "shop.Why"}, "default": []}]}"##;

    static FACT: Topic = Topic::new("shop.sold", "shop", SOLD).personal(&["books", "crm"]);
    static STATE: Topic = Topic::new("shop.prices", "shop", SOLD).partitions(6).compacted();
    static COMMITTED: Topic =
        Topic::new("shop.tips", "till", SOLD).partitions(1).days(1).read_committed();
    static CONTRACTS: LazyLock<Contracts> =
        LazyLock::new(|| contracts(&[&STATE, &FACT, &COMMITTED]));

    fn contracts(topics: &[&'static Topic]) -> Contracts {
        let subscriptions =
            Subscriptions::new([("books", vec![&FACT, &COMMITTED]), ("crm", vec![&FACT])]);
        Contracts::new("shop", "1.2", topics, subscriptions).title("A shop: \"ours\"")
    }

    fn document() -> Value {
        serde_json::from_str(&CONTRACTS.asyncapi().unwrap()).unwrap()
    }

    #[test]
    fn the_channel_of_a_topic_has_its_partitions_and_the_settings_that_apply_makes() {
        let document = document();
        for topic in &CONTRACTS.topics {
            let channel = &document["channels"][topic.name];
            assert_eq!(channel["address"], topic.name);
            let class = if topic.name == "shop.sold" { "personal" } else { "open" };
            assert_eq!(channel["x-data-class"], class, "{}", topic.name);
            let kafka = &channel["bindings"]["kafka"];
            assert_eq!(kafka["partitions"], topic.partitions);
            let settings = kafka["topicConfiguration"].as_object().unwrap();
            let stated = settings.iter().map(|(name, value)| match value {
                Value::Array(values) => (&**name, values[0].as_str().unwrap().to_string()),
                value => (&**name, value.to_string()),
            });
            let applied = topic_config(topic, None).into_iter();
            let applied = applied
                .filter(|(name, _)| !["message.timestamp.type", "compression.type"].contains(name));
            assert_eq!(BTreeMap::from_iter(stated), BTreeMap::from_iter(applied), "{}", topic.name);
        }
    }

    #[test]
    fn the_payload_is_the_schema_word_for_word() {
        let document = document();
        let message = &document["channels"]["shop.sold"]["messages"]["Sold"];
        let schema: Value = serde_json::from_str(SOLD).unwrap();
        assert_eq!(message["payload"], json!({ "schemaFormat": AVRO, "schema": schema }));
        assert_eq!(document["channels"]["shop.sold"]["description"], schema["doc"]);
        let info = json!({ "title": "A shop: \"ours\"", "version": "1.2" });
        assert_eq!(document["info"], info);
    }

    #[test]
    fn the_publisher_sends_and_each_subscriber_receives_in_its_group() {
        let document = document();
        let operations = document["operations"].as_object().unwrap();
        let groups: Vec<_> = operations
            .iter()
            .map(|(name, operation)| {
                let channel = operation["channel"]["$ref"].as_str().unwrap();
                let message = operation["messages"][0]["$ref"].as_str().unwrap();
                assert_eq!(message, format!("{channel}/messages/Sold"));
                for target in [channel, message] {
                    let pointer = target.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{target}");
                }
                let group = operation["bindings"]["kafka"]["groupId"]["const"].as_str();
                (&**name, operation["tags"][0]["name"].as_str().unwrap(), group)
            })
            .collect();
        let expected = [
            ("books.receive.shop.sold", "books", Some("books")),
            ("books.receive.shop.tips", "books", Some("books")),
            ("crm.receive.shop.sold", "crm", Some("crm")),
            ("shop.send.shop.prices", "shop", None),
            ("shop.send.shop.sold", "shop", None),
            ("till.send.shop.tips", "till", None),
        ];
        assert_eq!(groups, expected);
        let committed = operations["books.receive.shop.tips"]["summary"].as_str().unwrap();
        assert!(committed.ends_with("committed transactions only."), "{committed}");
    }

    #[test]
    fn the_order_of_the_topics_changes_nothing() {
        let turned = contracts(&[&COMMITTED, &FACT, &STATE]);
        assert_eq!(turned.asyncapi().unwrap(), CONTRACTS.asyncapi().unwrap());
    }

    #[test]
    fn a_schema_that_is_no_avro_is_an_error_with_its_topic() {
        static BROKEN: Topic = Topic::new("shop.broken", "shop", r#"{"type": "recrd"}"#);
        let broken = Contracts::new("shop", "1", &[&BROKEN], Subscriptions::default());
        let error = broken.asyncapi().unwrap_err().to_string();
        assert!(error.contains("shop.broken"), "{error}");
    }
}
