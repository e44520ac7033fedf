//! The AsyncAPI document: what a team that has no access to this code needs to read or write these
//! topics, made of the one declaration and of the schemas.
//!
//! One document describes the whole system. A channel is a topic, and an operation is what one
//! service does with it; its tag names the service.

mod document;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use apache_avro::Schema;
use chassis::event::{DataClass, Isolation, Topic};
use chassis::kafka::RECORD_BYTES_MAX;

use crate::Contracts;
use crate::asyncapi::document::{
    Bindings, Channel, ChannelBinding, Components, Document, Info, Message, MessageBinding,
    MessageTrait, ObjectSchema, Operation, OperationBinding, Payload, Reference, StringSchema, Tag,
    TopicConfiguration,
};
use crate::topic_config::{cleanup_policy, retention_ms};

const ASYNCAPI_VERSION: &str = "3.0.0";
const BINDING_VERSION: &str = "0.5.0";
const AVRO: &str = "application/vnd.apache.avro;version=1.9.0";

/// The header `content-type` of every record.
const CONTENT_TYPE: &str = "application/avro";

/// The name of what all messages have in common.
const MESSAGE_TRAIT: &str = "event";

const WIRE_FORMAT: &str = "A record is one event. Its value is a zero byte, the schema's id in the schema registry as four \
     bytes (big-endian), and the Avro body. The subject of the schema is the topic's name with the \
     suffix `-value`. The headers are those of CloudEvents 1.0 in binary mode. A record may come \
     again with the same `ce_id`; it is a duplicate.";

const KEY: &str = "The records of one key keep the sequence in which their publisher made them.";

const HEAD: &str = "# Written by `contracts asyncapi`. Change the declarations of topics and their schemas instead.\n";

impl Contracts {
    /// The AsyncAPI 3.0 document of these contracts, as YAML. The same contracts always yield the
    /// same text.
    ///
    /// A topic is a channel with its partitions, retention and schema. Its publisher has an
    /// operation that sends, and each subscriber one that receives.
    ///
    /// # Errors
    /// If a schema is not valid Avro.
    pub fn asyncapi(&self) -> Result<String> {
        let (mut channels, mut operations) = (BTreeMap::new(), BTreeMap::new());
        for topic in self.topics {
            let schema = Schema::parse_str(topic.schema)
                .with_context(|| format!("the schema of {} is no valid Avro", topic.name))?;
            let message = record_name(&schema, topic);
            operations.extend(topic_operations(topic, &message));
            channels.insert(topic.name, channel(topic, message, schema));
        }
        let document = Document {
            asyncapi: ASYNCAPI_VERSION,
            info: Info { title: self.title, version: self.version, description: self.description },
            default_content_type: CONTENT_TYPE,
            channels,
            operations,
            components: Components {
                message_traits: BTreeMap::from([(MESSAGE_TRAIT, message_trait())]),
            },
        };
        let yaml = serde_saphyr::to_string(&document).context("no YAML could be made")?;
        Ok(format!("{HEAD}{yaml}"))
    }
}

/// The name of the record, without its namespace; the topic's name for a schema that is no record.
fn record_name(schema: &Schema, topic: &Topic) -> String {
    schema.name().map_or_else(|| topic.name.to_string(), |name| name.name().to_string())
}

fn channel(topic: &'static Topic, message: String, schema: Schema) -> Channel<'static> {
    let description = schema.doc().map(|doc| doc.to_string());
    let kafka = ChannelBinding {
        partitions: topic.partitions,
        topic_configuration: TopicConfiguration {
            cleanup_policy: [cleanup_policy(topic.retention)],
            retention_ms: retention_ms(topic.retention),
            max_message_bytes: RECORD_BYTES_MAX,
        },
        binding_version: BINDING_VERSION,
    };
    let described = Message {
        name: message.clone(),
        traits: [reference(&format!("components/messageTraits/{MESSAGE_TRAIT}"))],
        headers: object(
            vec![],
            [
                ("ce_type", constant(topic.name)),
                ("ce_source", constant(&format!("/{}", topic.publisher))),
            ],
        ),
        payload: Payload { schema_format: AVRO, schema },
    };
    Channel {
        address: topic.name,
        description,
        class: match topic.class {
            DataClass::Open => "open",
            DataClass::Personal => "personal",
        },
        messages: BTreeMap::from([(message, described)]),
        bindings: Bindings { kafka },
    }
}

/// What the publisher and each subscriber do with a topic, by name.
fn topic_operations(topic: &'static Topic, message: &str) -> Vec<(String, Operation<'static>)> {
    let Topic { name, publisher, .. } = topic;
    let operation = |service, action, summary, bindings| {
        let channel = format!("channels/{name}");
        let messages = [reference(&format!("{channel}/messages/{message}"))];
        let (channel, tags) = (reference(&channel), [Tag { name: service }]);
        let operation = Operation { action, channel, summary, tags, bindings, messages };
        (format!("{service}.{action}.{name}"), operation)
    };
    let sends = operation(*publisher, "send", format!("{publisher} publishes {name}."), None);
    let receives = topic.subscribers.iter().map(|subscriber| {
        let which = match topic.isolation {
            Isolation::ReadUncommitted => "",
            Isolation::ReadCommitted => " It reads the records of committed transactions only.",
        };
        let summary = format!("{subscriber} handles each event of {name} once.{which}");
        let group_id = constant(subscriber);
        let kafka = OperationBinding { group_id, binding_version: BINDING_VERSION };
        operation(*subscriber, "receive", summary, Some(Bindings { kafka }))
    });
    [sends].into_iter().chain(receives).collect()
}

/// What every record has, as the relay of the chassis writes it.
fn message_trait() -> MessageTrait {
    let described = |description| StringSchema { description: Some(description), ..string() };
    let formatted = |format, text| StringSchema { format: Some(format), ..described(text) };
    let headers = [
        ("ce_specversion", constant("1.0")),
        ("ce_id", formatted("uuid", "The event.")),
        ("ce_type", described("The topic.")),
        ("ce_source", described("A slash and the publisher.")),
        (
            "ce_time",
            formatted(
                "date-time",
                "When the publisher decided it, by the clock of its database, in UTC and \
                 microseconds.",
            ),
        ),
        ("content-type", constant(CONTENT_TYPE)),
        (
            "ce_dataschema",
            described(
                "The schema of the body: `urn:avro:sha-256:` and the SHA-256 of its parsing canonical form \
                 in hex. It counts if the registry has another schema under the id. Absent in records of \
                 older versions.",
            ),
        ),
        ("traceparent", described("The trace that the event belongs to (W3C Trace Context).")),
        (
            "tracestate",
            described(
                "What the vendors of tracing systems have added to the trace, up to 512 characters. \
                 Absent if they added nothing, and where a connector carries the outbox.",
            ),
        ),
        (
            "ce_causationid",
            formatted(
                "uuid",
                "The event that caused this one. Absent if a command caused it, or if the record was \
                 republished.",
            ),
        ),
    ];
    let optional = ["ce_dataschema", "traceparent", "tracestate", "ce_causationid"];
    let is_optional = |name: &str| optional.contains(&name);
    let required = headers.iter().map(|(name, _)| *name).filter(|name| !is_optional(name));
    let kafka = MessageBinding { key: described(KEY), binding_version: BINDING_VERSION };
    MessageTrait {
        content_type: CONTENT_TYPE,
        description: WIRE_FORMAT,
        headers: object(required.collect(), headers),
        bindings: Bindings { kafka },
    }
}

fn reference(path: &str) -> Reference {
    Reference { target: format!("#/{path}") }
}

fn object<const N: usize>(
    required: Vec<&'static str>,
    properties: [(&'static str, StringSchema); N],
) -> ObjectSchema {
    ObjectSchema { kind: "object", required, properties: BTreeMap::from(properties) }
}

fn string() -> StringSchema {
    StringSchema { kind: "string", constant: None, format: None, description: None }
}

fn constant(value: &str) -> StringSchema {
    StringSchema { constant: Some(value.to_string()), ..string() }
}

#[cfg(test)]
mod tests {
    use chassis::event::Retention;
    use serde_json::{Value, json};

    use super::*;
    use crate::topic_config::topic_config;

    /// What YAML could read as something else: a long text, a colon, a hash, quotes, `yes`, numbers,
    /// and a name that is used twice.
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

    static FACT: Topic =
        Topic::new("shop.sold", "shop", &["books", "crm"], 3, Retention::Days(14), SOLD).personal();
    static STATE: Topic = Topic::new("shop.prices", "shop", &[], 6, Retention::Compact, SOLD);
    static COMMITTED: Topic =
        Topic::new("shop.tips", "till", &["books"], 1, Retention::Days(1), SOLD).read_committed();
    static CONTRACTS: Contracts =
        Contracts::new("shop", "1.2", &[&STATE, &FACT, &COMMITTED]).title("A shop: \"ours\"");

    fn document() -> Value {
        serde_saphyr::from_str(&CONTRACTS.asyncapi().unwrap()).unwrap()
    }

    #[test]
    fn the_channel_of_a_topic_has_its_partitions_and_the_settings_that_apply_makes() {
        let document = document();
        for topic in CONTRACTS.topics {
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
        static TURNED: Contracts =
            Contracts::new("shop", "1.2", &[&COMMITTED, &FACT, &STATE]).title("A shop: \"ours\"");
        let turned = TURNED.asyncapi().unwrap();
        assert_eq!(turned, CONTRACTS.asyncapi().unwrap());
        assert!(turned.starts_with("# "), "{turned}");
    }

    #[test]
    fn a_schema_that_is_no_avro_is_an_error_with_its_topic() {
        static BROKEN: Topic =
            Topic::new("shop.broken", "shop", &[], 1, Retention::Compact, r#"{"type": "recrd"}"#);
        static CONTRACTS: Contracts = Contracts::new("shop", "1", &[&BROKEN]);
        let error = CONTRACTS.asyncapi().unwrap_err().to_string();
        assert!(error.contains("shop.broken"), "{error}");
    }
}
