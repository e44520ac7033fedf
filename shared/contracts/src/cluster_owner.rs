//! The owner of a Kafka cluster: the first record of one topic contains the name of a stack, for
//! good.
//!
//! Topics and consumer groups have the same names in every stack. Two stacks on one cluster would
//! each handle half of the other's events, and no service could detect it. The command that creates
//! the topics is the one place that can detect it in time.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use chassis::config::KafkaConfig;
use chassis::config::env::BadConfiguration;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::time::Instant;

/// The topic. It has one partition, whose first record counts: two stacks that claim a cluster at
/// once both find the same one.
pub const TOPIC: &str = "stack.name";

/// The timeout for reading or writing the record.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(30);

/// The timeout of a single request.
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of the topic, by Kafka's names.
pub const TOPIC_CONFIG: [(&str, &str); 3] =
    [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];

/// Whether a name can be that of a stack: letters, digits, underscores and dashes, as in the names
/// of Kubernetes namespaces and compose projects.
pub fn is_stack_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !text.is_empty() && text.len() <= 63 && text.chars().all(is_allowed)
}

/// Reads the name of a stack.
pub fn parse_stack_name(text: &str) -> Result<String, String> {
    match is_stack_name(text) {
        true => Ok(text.to_owned()),
        false => Err("it is not 1 to 63 letters, digits, dashes and underscores".to_owned()),
    }
}

/// Claims the cluster for a stack, unless another stack owns it.
///
/// # Errors
/// [`BadConfiguration`] if the cluster belongs to another stack; any other error if Kafka does not
/// answer in time.
pub async fn claim(config: &KafkaConfig, stack: &str) -> Result<()> {
    let owner = match read_owner(config)? {
        Some(owner) => owner,
        None => {
            write_owner(config, stack).await?;
            read_owner(config)?.context("the name of the stack was written and cannot be read")?
        }
    };
    if owner != stack {
        // A terminal acts on control characters, and any client that may write there chose the text.
        let owner = owner.escape_debug();
        return Err(BadConfiguration::new(format!(
            "STACK_NAME is `{stack}`, and this Kafka cluster belongs to the stack `{owner}`: a cluster \
             holds one stack. Give `{stack}` its own cluster, or set STACK_NAME={owner} to take this \
             one over."
        ))
        .into());
    }
    println!("{TOPIC:<20} the cluster belongs to {owner}");
    Ok(())
}

async fn write_owner(config: &KafkaConfig, stack: &str) -> Result<()> {
    let producer: FutureProducer = config
        .client_config("contracts")
        .set("acks", "all")
        .set("message.timeout.ms", CLAIM_TIMEOUT.as_millis().to_string())
        .set("allow.auto.create.topics", "false")
        .create()?;
    let record = FutureRecord::<(), str>::to(TOPIC).partition(0).payload(stack);
    let written = producer.send(record, CLAIM_TIMEOUT).await;
    written.map(drop).map_err(|(error, _)| error).context("the name of the stack was not written")
}

/// The content of the first record, if there is one.
fn read_owner(config: &KafkaConfig) -> Result<Option<String>> {
    tokio::task::block_in_place(|| {
        let consumer: BaseConsumer = config
            .client_config("contracts")
            // librdkafka needs a group id; the group is never joined, and no offset is committed.
            .set("group.id", "contracts")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            // An open transaction of another producer must not hide the records before it.
            .set("isolation.level", "read_uncommitted")
            .create()?;
        let deadline = Instant::now() + CLAIM_TIMEOUT;
        let (first, end) = loop {
            // A new topic has no leader for a moment.
            match consumer.fetch_watermarks(TOPIC, 0, WATERMARKS_TIMEOUT) {
                Ok(ends) => break ends,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("{TOPIC} cannot be read"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        if first >= end {
            return Ok(None);
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(TOPIC, 0, Offset::Offset(first))?;
        consumer.assign(&assignment)?;
        while Instant::now() < deadline {
            // An error means that a broker is unavailable for a moment; the deadline bounds the
            // retries.
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) {
                let stack = record.payload().and_then(|name| std::str::from_utf8(name).ok());
                return Ok(Some(stack.unwrap_or("(unreadable)").to_owned()));
            }
        }
        bail!("{TOPIC} holds a record that could not be read within {CLAIM_TIMEOUT:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_name_has_letters_digits_dashes_and_underscores() {
        for good in ["holdfast", "till-2", "My_Shop"] {
            assert_eq!(parse_stack_name(good).as_deref(), Ok(good));
        }
        for bad in ["two words", "till.eu", "tühr", &"x".repeat(64)] {
            parse_stack_name(bad).expect_err(bad);
        }
    }
}
