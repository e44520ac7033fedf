//! The bounds of a schema: how much memory and stack a short body may claim.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{DecimalSchema, InnerDecimalSchema, Name, UuidSchema};

use crate::event::undecodable::{Undecodable, undecodable};

/// The most memory, in bytes, that one array, map, string, bytes or fixed of a record may claim.
pub(super) const ALLOCATION_BYTES_MAX: usize = 1024 * 1024;

/// Values of one record, at most. A named type counts at each of its uses. Each value takes memory, whether it
/// takes bytes or not.
const VALUES_MAX: usize = 10_000;

/// Values without bytes in one item of an array or a map, at most: a body may have an item for each byte.
const ZERO_BYTE_VALUES_MAX: usize = 16;

/// Refuses schemas with which a few bytes of input may claim any amount of memory or stack. A record names its
/// schema, which may be any schema of the registry.
pub(super) struct SchemaBounds<'a> {
    /// Schemas that are referred to, by name.
    referenced: HashMap<&'a Name, &'a Schema>,
    /// The sizes of named types; `None` while a type is being checked.
    sizes: HashMap<Name, Option<SchemaSize>>,
}

/// The size of a schema. A named type counts at each of its uses.
#[derive(Clone, Copy)]
pub(super) struct SchemaSize {
    values: usize,
    /// Those of them that take no bytes.
    zero_byte_values: usize,
    takes_bytes: bool,
}

impl<'a> SchemaBounds<'a> {
    pub(super) fn new(others: &'a [Schema]) -> SchemaBounds<'a> {
        let named = others.iter().filter_map(|schema| Some((schema.name()?, schema)));
        SchemaBounds { referenced: named.collect(), sizes: HashMap::new() }
    }

    pub(super) fn check(&mut self, schema: &Schema) -> Result<SchemaSize, Undecodable> {
        // No sum overflows: each part has VALUES_MAX values at most.
        let size = match schema {
            Schema::Ref { name } => match (self.sizes.get(name), self.referenced.get(name)) {
                (Some(Some(size)), _) => *size,
                (Some(None), _) => return Err(undecodable(format!("{name} recurses"))),
                (None, Some(other)) => self.check(other)?,
                (None, None) => {
                    let unknown = format!("the schema refers to {name}, which is not known");
                    return Err(undecodable(unknown));
                }
            },
            Schema::Record(record) => {
                self.sizes.insert(record.name.clone(), None);
                let mut size = SchemaSize { values: 1, zero_byte_values: 0, takes_bytes: false };
                for field in &record.fields {
                    let field = self.check(&field.schema)?;
                    size.values += field.values;
                    size.zero_byte_values += field.zero_byte_values;
                    size.takes_bytes |= field.takes_bytes;
                }
                size.zero_byte_values += usize::from(!size.takes_bytes);
                size
            }
            Schema::Array(array) => self.check_items(&array.items, true)?,
            Schema::Map(map) => self.check_items(&map.types, false)?,
            Schema::Union(union) => {
                let mut size = SchemaSize { values: 0, zero_byte_values: 0, takes_bytes: true };
                for variant in union.variants() {
                    let variant = self.check(variant)?;
                    size.values = size.values.max(variant.values);
                    size.zero_byte_values = size.zero_byte_values.max(variant.zero_byte_values);
                }
                SchemaSize { values: size.values + 1, ..size }
            }
            schema => {
                let bytes = fixed_bytes(schema);
                // The reader allocates memory for it before it reads its bytes.
                if let Some(bytes) = bytes.filter(|bytes| *bytes > ALLOCATION_BYTES_MAX) {
                    return Err(undecodable(format!("the schema has a fixed of {bytes} bytes")));
                }
                let takes_bytes = bytes != Some(0) && *schema != Schema::Null;
                let zero_byte_values = usize::from(!takes_bytes);
                SchemaSize { values: 1, zero_byte_values, takes_bytes }
            }
        };
        if size.values > VALUES_MAX {
            return Err(undecodable(format!("the schema comes to more than {VALUES_MAX} values")));
        }
        if let Some(name) = schema.name() {
            self.sizes.insert(name.clone(), Some(size));
        }
        Ok(size)
    }

    /// An array may have any number of items that take no bytes. An entry of a map has a key, which takes a byte.
    fn check_items(&mut self, items: &Schema, is_array: bool) -> Result<SchemaSize, Undecodable> {
        let item = self.check(items)?;
        if is_array && !item.takes_bytes {
            return Err(undecodable("the schema has an array of items that take no bytes"));
        }
        if item.zero_byte_values > ZERO_BYTE_VALUES_MAX {
            let because = "the schema has many items with many values that take no bytes";
            return Err(undecodable(because));
        }
        Ok(SchemaSize { values: item.values + 1, zero_byte_values: 0, takes_bytes: true })
    }
}

fn fixed_bytes(schema: &Schema) -> Option<usize> {
    match schema {
        Schema::Fixed(fixed)
        | Schema::Duration(fixed)
        | Schema::Uuid(UuidSchema::Fixed(fixed))
        | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Fixed(fixed), .. }) => {
            Some(fixed.size)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::avro::Codec;

    fn rejection(fields: &str) -> Option<String> {
        let schema = format!(
            r#"{{"type": "record", "name": "R", "fields": [{{"name": "f", "type": {fields}}}]}}"#
        );
        Codec::new(&schema).err().map(|Undecodable(why)| why)
    }

    #[test]
    fn schemas_that_turn_a_few_bytes_into_unbounded_memory_are_refused() {
        let huge = r#"{"type": "fixed", "name": "F", "size": 1000000000000}"#;
        for (of, why) in [
            (huge.to_string(), "fixed"),
            (format!(r#"["null", {huge}]"#), "fixed"),
            (format!(r#"{{"type": "map", "values": {huge}}}"#), "fixed"),
            (
                r#"{"type": "array", "items": {"type": "array", "items": "null"}}"#.into(),
                "no bytes",
            ),
            (
                r#"{"type": "array", "items": {"type": "record", "name": "E", "fields": []}}"#
                    .into(),
                "no bytes",
            ),
            (
                r#"{"type": "array", "items": {"type": "fixed", "name": "Z", "size": 0}}"#.into(),
                "no bytes",
            ),
            (r#"["null", "R"]"#.into(), "recurse"),
            (
                format!(
                    r#"{{"type": "array", "items": {{"type": "record", "name": "M", "fields": [
                        {{"name": "n", "type": "int"}}{}]}}}}"#,
                    (0..20).fold(String::new(), |fields, nth| fields
                        + &format!(r#", {{"name": "f{nth}", "type": "null"}}"#))
                ),
                "many values",
            ),
            // Twenty types, each of which names the one before it twice.
            (
                (1..20).fold(r#""null""#.to_string(), |of, nth| {
                    format!(
                        r#"{{"type": "record", "name": "D{nth}", "fields": [
                            {{"name": "a", "type": {of}}}, {{"name": "b", "type": {}}}]}}"#,
                        if nth == 1 {
                            r#""null""#.to_string()
                        } else {
                            format!(r#""D{}""#, nth - 1)
                        }
                    )
                }),
                "values",
            ),
        ] {
            let refused = rejection(&of);
            assert!(
                refused.as_ref().is_some_and(|message| message.contains(why)),
                "{of}: {refused:?}"
            );
        }
        for of in [
            r#"{"type": "map", "values": {"type": "record", "name": "P", "fields": [
                {"name": "a", "type": {"type": "enum", "name": "E", "symbols": ["x"]}},
                {"name": "b", "type": ["null", "E"]}]}}"#,
            r#"{"type": "fixed", "name": "F", "size": 16}"#,
            r#"{"type": "array", "items": ["null", "int"]}"#,
            r#"{"type": "array", "items": {"type": "array", "items": "int"}}"#,
            r#"{"type": "map", "values": "null"}"#,
            r#""null""#,
        ] {
            assert_eq!(rejection(of), None, "{of}");
        }
    }
}
