//! The content of an event as a hash. A record and the row that it was made from must have the same one.
//! The checker keeps eight bytes of a record instead of its body, since there may be millions.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

/// The hash of the fields of an event. The elements of a list count in any order, since the lines of an
/// order are a set.
pub fn content_hash(content: &Value) -> u64 {
    match content {
        Value::Object(members) => {
            let hashes = members.iter().map(|(name, value)| (name, content_hash(value)));
            let mut members: Vec<(&String, u64)> = hashes.collect();
            members.sort_unstable();
            hash(&members)
        }
        Value::Array(elements) => {
            let mut elements: Vec<u64> = elements.iter().map(content_hash).collect();
            elements.sort_unstable();
            hash(&elements)
        }
        scalar => hash(scalar),
    }
}

pub fn hash(what: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_compared_as_sets_and_everything_else_exactly() {
        let line = |sku: &str, quantity: i64| json!({"sku": sku, "quantity": quantity});
        let hash = |lines: Value, currency: Value| {
            content_hash(&json!({"lines": lines, "currency": currency}))
        };
        let right = hash(json!([line("pen", 2), line("ink", 1)]), Value::Null);
        assert_eq!(hash(json!([line("ink", 1), line("pen", 2)]), Value::Null), right);
        for (lines, currency) in [
            (json!([line("pen", 1), line("ink", 2)]), Value::Null),
            (json!([line("pen", 2), line("ink", 1), line("ink", 1)]), Value::Null),
            (json!([line("pen", 2)]), Value::Null),
            (json!([line("pen", 2), line("ink", 1)]), json!("null")),
        ] {
            assert_ne!(hash(lines.clone(), currency.clone()), right, "{lines} {currency}");
        }
    }
}
