//! Values and offsets by topic and partition.

use std::collections::HashMap;

pub(crate) type TopicPartition = (String, i32);

pub(crate) type OffsetsByPartition = HashMap<TopicPartition, i64>;

/// A value for each topic and partition, found without a copy of the topic's name.
pub(super) type ByPartition<T> = HashMap<String, HashMap<i32, T>>;

/// The value of a partition; the default if it has none yet.
pub(super) fn entry_of<'a, T: Default>(
    all: &'a mut ByPartition<T>,
    topic: &str,
    partition: i32,
) -> &'a mut T {
    if !all.contains_key(topic) {
        all.insert(topic.to_string(), HashMap::new());
    }
    all.get_mut(topic).expect("it is there now").entry(partition).or_default()
}

/// The next offset of a partition that is to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub topic: String,
    pub partition: i32,
    pub next: i64,
}
