//! Checks of the declarations as a whole: who reads, how long an inbox lasts, and what is written of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use chassis::event::{DataClass, Retention, Topic};

use crate::Contracts;

/// Checks that the readers of each personal topic are the services that consume it.
///
/// # Panics
/// If a service consumes a topic and is not among its readers, which it does not start with, or if a reader consumes it
/// no more.
#[track_caller]
pub fn assert_readers(contracts: &Contracts) {
    for topic in &contracts.topics {
        if let DataClass::Personal { readers } = topic.class {
            let subscribers = contracts.subscriptions.subscribers(topic);
            let [readers, subscribers] =
                [readers, &subscribers].map(|names| names.iter().copied().collect::<BTreeSet<_>>());
            assert_eq!(readers, subscribers, "the readers of {topic:?}, and who consumes it");
        }
    }
}

/// Checks that consumers keep their inbox for longer than Kafka can redeliver an event of these
/// topics. Otherwise an event could have its effect twice.
///
/// # Panics
/// If a topic is kept for too long.
#[track_caller]
pub fn assert_inbox_outlasts_retention(topics: &[&Topic]) {
    for topic in topics {
        if let Retention::Days(days) = topic.retention {
            // A segment is deleted as a whole, up to a week after its first record has expired.
            let gone = Duration::from_secs(u64::from(days + 7) * 86_400);
            assert!(gone < chassis::inbox::RETENTION, "{topic:?} is kept for {days} days");
        }
    }
}

/// Checks that a file is the AsyncAPI document of these contracts. `contracts asyncapi` writes it.
///
/// # Panics
/// If the file differs or cannot be read, or if a schema is not valid Avro.
#[track_caller]
pub fn assert_asyncapi_file(contracts: &Contracts, file: impl AsRef<Path>) {
    let document = contracts.asyncapi().unwrap_or_else(|why| panic!("{why:#}"));
    assert_written_by("asyncapi", &document, file.as_ref());
}

/// Checks that a file has the users of Kafka with their rights, without those of the features, or those of one feature alone.
/// `contracts users` writes it.
///
/// # Panics
/// If the file differs or cannot be read, or the system has no such feature.
#[track_caller]
pub fn assert_users_file(contracts: &Contracts, feature: Option<&str>, file: impl AsRef<Path>) {
    let users = contracts.kafka_users(feature).unwrap_or_else(|why| panic!("{why:#}"));
    let command = feature.map_or("users".to_owned(), |feature| format!("users {feature}"));
    assert_written_by(&command, &users, file.as_ref());
}

/// Checks that a file has the topics as objects of Strimzi. `contracts topics` writes it.
///
/// # Panics
/// If the file differs or cannot be read.
#[track_caller]
pub fn assert_topics_file(contracts: &Contracts, file: impl AsRef<Path>) {
    assert_written_by("topics", &contracts.kafka_topics(), file.as_ref());
}

#[track_caller]
fn assert_written_by(command: &str, document: &str, file: &Path) {
    let written =
        std::fs::read_to_string(file).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    let pairs = written.lines().zip(document.lines()).zip(1..);
    let first = pairs.filter(|((was, is), _)| was != is).map(|(_, line)| line).next();
    assert!(
        written == document,
        "{} is not what `contracts {command}` writes{}",
        file.display(),
        first.map(|line| format!(", from line {line} on")).unwrap_or_default()
    );
}

#[cfg(test)]
mod tests {
    use chassis::event::Subscriptions;

    use super::*;
    use crate::checks::tests::{NAMED_TOPIC, SOLD, SOLD_TOPIC};

    #[test]
    #[should_panic(expected = "the readers of shop.named")]
    fn a_reader_that_consumes_nothing_is_found() {
        let subscriptions = Subscriptions::new([("books", vec![&SOLD_TOPIC])]);
        let topics = [&SOLD_TOPIC, &NAMED_TOPIC];
        assert_readers(&Contracts::new("shop", "1", &topics, subscriptions));
    }

    #[test]
    #[should_panic(expected = "shop.sold is kept for 30 days")]
    fn a_topic_that_outlives_the_inbox_is_found() {
        static LONG: Topic = Topic::new("shop.sold", "shop", SOLD).days(30);
        assert_inbox_outlasts_retention(&[&SOLD_TOPIC, &LONG]);
    }

    #[test]
    #[should_panic(expected = "from line 4 on")]
    fn a_document_of_another_declaration_is_found() {
        let lending = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/lending/asyncapi.json");
        let shop = Contracts::new("shop", "1", &[&SOLD_TOPIC], Subscriptions::default());
        assert_asyncapi_file(&shop, lending);
    }
}
