//! The parts of an AsyncAPI 3.0 document that contracts need, in the order in which they are
//! written. The names are those of the specification.

use std::collections::BTreeMap;

use apache_avro::Schema;
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    pub asyncapi: &'static str,
    pub info: Info<'a>,
    pub default_content_type: &'static str,
    pub channels: BTreeMap<&'a str, Channel<'a>>,
    pub operations: BTreeMap<String, Operation<'a>>,
    pub components: Components,
}

#[derive(Serialize)]
pub struct Info<'a> {
    pub title: &'a str,
    pub version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<&'a str>,
}

#[derive(Serialize)]
pub struct Channel<'a> {
    pub address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether the events are about persons.
    #[serde(rename = "x-data-class")]
    pub class: &'static str,
    pub messages: BTreeMap<String, Message>,
    pub bindings: Bindings<ChannelBinding>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelBinding {
    pub partitions: i32,
    pub topic_configuration: TopicConfiguration,
    pub binding_version: &'static str,
}

#[derive(Serialize)]
pub struct TopicConfiguration {
    #[serde(rename = "cleanup.policy")]
    pub cleanup_policy: [&'static str; 1],
    #[serde(rename = "retention.ms", skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<i64>,
    #[serde(rename = "max.message.bytes")]
    pub max_message_bytes: usize,
}

#[derive(Serialize)]
pub struct Message {
    pub name: String,
    pub traits: [Reference; 1],
    pub headers: ObjectSchema,
    pub payload: Payload,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payload {
    pub schema_format: &'static str,
    pub schema: Schema,
}

#[derive(Serialize)]
pub struct Operation<'a> {
    pub action: &'static str,
    pub channel: Reference,
    pub summary: String,
    pub tags: [Tag<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bindings: Option<Bindings<OperationBinding>>,
    pub messages: [Reference; 1],
}

#[derive(Serialize)]
pub struct Tag<'a> {
    pub name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationBinding {
    pub group_id: StringSchema,
    pub binding_version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Components {
    pub message_traits: BTreeMap<&'static str, MessageTrait>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageTrait {
    pub content_type: &'static str,
    pub description: &'static str,
    pub headers: ObjectSchema,
    pub bindings: Bindings<MessageBinding>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageBinding {
    pub key: StringSchema,
    pub binding_version: &'static str,
}

/// The bindings of the one protocol.
#[derive(Serialize)]
pub struct Bindings<B> {
    pub kafka: B,
}

#[derive(Serialize)]
pub struct Reference {
    #[serde(rename = "$ref")]
    pub target: String,
}

/// JSON Schema of an object whose members are strings.
#[derive(Serialize)]
pub struct ObjectSchema {
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<&'static str>,
    pub properties: BTreeMap<&'static str, StringSchema>,
}

/// JSON Schema of a string.
#[derive(Serialize)]
pub struct StringSchema {
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(rename = "const", skip_serializing_if = "Option::is_none")]
    pub constant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<&'static str>,
}
