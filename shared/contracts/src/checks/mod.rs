//! Checks of contracts, for the tests of the crate that declares the topics.
//!
//! Each function is one check. It panics with the topic and the reason if the check fails, and
//! needs neither Kafka nor a registry. A test names what the check holds:
//!
//! ```no_run
//! # use chassis::event::Topic;
//! # static TOPICS: [&Topic; 0] = [];
//! #[test]
//! fn every_recorded_version_and_the_current_one_can_read_each_other() {
//!     contracts::checks::assert_versions(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas"));
//! }
//! ```

mod declarations;
mod schemas;
mod structs;

pub use declarations::*;
pub use schemas::*;
pub use structs::*;

#[cfg(test)]
mod tests {
    use chassis::event::Topic;

    pub const SOLD: &str = r#"{"type": "record", "name": "Sold", "doc": "Sold.", "fields": [
        {"name": "paid", "type": "long", "doc": "How much."}]}"#;

    pub static SOLD_TOPIC: Topic = Topic::new("shop.sold", "shop", SOLD);

    pub const NAMED: &str = r#"{"type": "record", "name": "Named", "doc": "Named.", "fields": [
        {"name": "all", "doc": "Who.", "type": ["null", {"type": "array", "items": {"type": "record", "name": "One",
            "doc": "One.", "fields": [{"name": "name", "type": "string", "doc": "Who.", "personal": true}]}}]}]}"#;

    pub static NAMED_TOPIC: Topic = Topic::new("shop.named", "shop", NAMED).personal(&["mail"]);
}
