//! The form of a description that generators of clients read: OpenAPI 3.0. `utoipa` makes 3.1, where null is one of
//! several types of a value; the generator of Go makes nothing of that.
//!
//! Promise: a client that was generated from a description survives a value that a later version adds. A closed `enum`
//! in it breaks that promise, because generators make types of it that accept no other value.

use serde_json::{Map, Value, json};

pub(super) const VERSION: &str = "3.0.3";

/// The list of the values of an open enumeration that are known now. Generators make a text of its schema.
const KNOWN_VALUES: &str = "x-extensible-enum";

/// Rewrites a part of a description, and all parts of it.
pub(super) fn rewrite(part: &mut Value) {
    match part {
        Value::Array(parts) => parts.iter_mut().for_each(rewrite),
        Value::Object(fields) => {
            fields.values_mut().for_each(rewrite);
            rewrite_enumeration(fields);
            rewrite_null(fields);
            relax_required(fields);
            if let Some(Value::Array(examples)) = fields.get_mut("examples") {
                let first = examples.first_mut().map(Value::take);
                fields.remove("examples");
                fields.extend(first.map(|first| ("example".to_owned(), first)));
            }
        }
        _ => {}
    }
}

fn rewrite_enumeration(schema: &mut Map<String, Value>) {
    if schema.get("enum").is_some_and(Value::is_array)
        && let Some(values) = schema.remove("enum")
    {
        schema.insert(KNOWN_VALUES.to_owned(), values);
    }
}

/// A value that may be null is `nullable`.
fn rewrite_null(schema: &mut Map<String, Value>) {
    let null = json!("null");
    if let Some(Value::Array(types)) = schema.get("type")
        && let [one, other] = &types[..]
        && (*one == null || *other == null)
    {
        let named = if *one == null { other } else { one }.clone();
        schema.insert("type".to_owned(), named);
        schema.insert("nullable".to_owned(), true.into());
    }
    if let Some(Value::Array(choices)) = schema.get("oneOf")
        && let [one, other] = &choices[..]
        && (one["type"] == null || other["type"] == null)
    {
        let mut named = if one["type"] == null { other } else { one }.clone();
        // Beside a reference, 3.0 ignores every field.
        let description = named.as_object_mut().and_then(|named| named.remove("description"));
        schema.remove("oneOf");
        schema.insert("allOf".to_owned(), json!([named]));
        schema.insert("nullable".to_owned(), true.into());
        schema.extend(description.map(|text| ("description".to_owned(), text)));
    }
}

/// A field that may be null is not required: generators of Python make no room for null in a required one.
fn relax_required(schema: &mut Map<String, Value>) {
    let is_nullable = |schema: &Map<String, Value>, name: &Value| {
        name.as_str().is_some_and(|name| schema["properties"][name]["nullable"] == true)
    };
    if schema.get("properties").is_none_or(|properties| !properties.is_object()) {
        return;
    }
    let Some(Value::Array(mut required)) = schema.remove("required") else { return };
    required.retain(|name| !is_nullable(schema, name));
    if !required.is_empty() {
        schema.insert("required".to_owned(), required.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_an_enumeration_and_examples_are_written_as_generators_read_them() {
        let mut schema = json!({
            "type": "object",
            "required": ["id", "next", "reason"],
            "properties": {
                "id": { "type": "string", "examples": ["a", "b"] },
                "next": { "type": ["string", "null"], "format": "uuid" },
                "reason": { "oneOf": [
                    { "type": "null" }, { "$ref": "#/Reason", "description": "Why." },
                ] },
                "state": { "type": "string", "enum": ["open", "closed"] },
            },
        });
        rewrite(&mut schema);
        let expected = json!({
            "type": "object",
            "required": ["id"],
            "properties": {
                "id": { "type": "string", "example": "a" },
                "next": { "type": "string", "nullable": true, "format": "uuid" },
                "reason": {
                    "allOf": [{ "$ref": "#/Reason" }], "nullable": true, "description": "Why.",
                },
                "state": { "type": "string", "x-extensible-enum": ["open", "closed"] },
            },
        });
        assert_eq!(schema, expected);
    }
}
