//! Single attempts of a client of Kafka. Each returns whether Kafka allowed it; any answer that is neither a
//! permission nor a denial is an error. An attempt changes nothing that another one needs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::executor::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// How long an attempt may take; Kafka answers within milliseconds.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client searches for the coordinator of a group that it may not see.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(1);

/// A setting that can be changed without harm to other attempts.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    of: ResourceSpecifier<'a>,
    name: &'static str,
}

impl<'a> Setting<'a> {
    pub const OF_BROKER: Setting<'static> =
        Setting { of: ResourceSpecifier::Broker(1), name: "message.max.bytes" };

    pub fn of_topic(topic: &'a str) -> Setting<'a> {
        Setting { of: ResourceSpecifier::Topic(topic), name: "flush.messages" }
    }
}

/// What a client could do with a group.
pub struct GroupAttempts {
    pub joins: bool,
    pub commits: bool,
    pub describes: bool,
}

/// The clients of one identity.
pub struct Client {
    pub identity: &'static str,
    settings: ClientConfig,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
}

impl Client {
    pub fn new(identity: &'static str, mut settings: ClientConfig) -> Result<Client> {
        settings.set_log_level(RDKafkaLogLevel::Emerg);
        let mut producer = settings.clone();
        producer.set("message.timeout.ms", TIMEOUT.as_millis().to_string());
        let (admin, producer) = (settings.create()?, producer.create()?);
        Ok(Client { identity, settings, admin, producer })
    }

    pub fn create_topic(&self, topic: &str) -> Result<()> {
        let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
        let made = block_on(self.admin.create_topics([&new], &AdminOptions::new()))?;
        made.into_iter().next().context("no answer")?.map_err(|(_, code)| code)?;
        Ok(())
    }

    /// A client that may not describe a topic cannot find the brokers of its partitions.
    pub fn reads(&self, topic: &str) -> Result<bool> {
        if !self.describes(topic)? {
            return Ok(false);
        }
        let consumer = self.consumer(self.identity)?;
        consumer.assign(&beginning_of(topic)?)?;
        let began = Instant::now();
        let mut others = Vec::new();
        while began.elapsed() < TIMEOUT {
            match consumer.poll(Duration::from_secs(1)) {
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(true),
                Some(Err(KafkaError::MessageConsumption(Code::TopicAuthorizationFailed))) => {
                    return Ok(false);
                }
                // The group is another matter.
                Some(Err(other)) => others.push(other),
                None => {}
            }
        }
        bail!("no record, and no refusal: {others:?}")
    }

    pub fn writes(&self, topic: &str) -> Result<bool> {
        let record = FutureRecord::to(topic).partition(0).key("denials").payload("denials");
        let sent = self.producer.send_result(record).map_err(|(error, _)| error);
        is_allowed(sent.and_then(|sent| match block_on(sent) {
            Ok(delivered) => delivered.map(drop).map_err(|(error, _)| error),
            Err(_) => Err(KafkaError::Canceled),
        }))
    }

    /// A topic that exists cannot be created, which Kafka says only to a client that may create it.
    pub fn creates(&self, topic: &str) -> Result<bool> {
        let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
        let tried = block_on(self.admin.create_topics([&new], &options()));
        first_is_allowed(tried, |result| result.map(drop).map_err(|(_, code)| code))
    }

    /// No record is before the first offset.
    pub fn deletes_records(&self, topic: &str) -> Result<bool> {
        if !self.describes(topic)? {
            return Ok(false);
        }
        let tried = block_on(self.admin.delete_records(&beginning_of(topic)?, &options()));
        let code = |error: KafkaError| error.rdkafka_error_code().unwrap_or(Code::Unknown);
        first_is_allowed(
            tried.map(|list| list.elements().iter().map(|it| it.error()).collect()),
            |result| result.map_err(code),
        )
    }

    pub fn adds_partitions(&self, topic: &str) -> Result<bool> {
        let more = NewPartitions::new(topic, 9);
        let tried = block_on(self.admin.create_partitions([&more], &options()));
        first_is_allowed(tried, |result| result.map(drop).map_err(|(_, code)| code))
    }

    pub fn describes(&self, topic: &str) -> Result<bool> {
        let metadata = self.producer.client().fetch_metadata(Some(topic), TIMEOUT)?;
        let topic = metadata.topics().first().context("no answer")?;
        let error = topic.error().map(Code::from);
        is_permitted(error.map_or(Ok(()), Err))
    }

    /// Sets a value that names the identity. The library does not return whether Kafka refused.
    pub fn changes_settings(&self, setting: Setting<'_>, value: &str) -> Result<()> {
        let change = AlterConfig::new(setting.of).set(setting.name, value);
        block_on(self.admin.alter_configs([&change], &AdminOptions::new()))?;
        Ok(())
    }

    /// The value of a setting. The library returns no settings if Kafka refuses.
    pub fn reads_settings(&self, setting: Setting<'_>) -> Result<Option<String>> {
        let read = block_on(self.admin.describe_configs([&setting.of], &options()))?;
        let settings =
            read.into_iter().next().context("no answer")?.map_err(KafkaError::AdminOp)?;
        Ok(settings.get(setting.name).and_then(|entry| entry.value.clone()))
    }

    pub fn begins_transaction(&self, id: &str) -> Result<bool> {
        let mut settings = self.settings.clone();
        let producer: BaseProducer = settings.set("transactional.id", id).create()?;
        is_allowed(producer.init_transactions(TIMEOUT))
    }

    /// Subscribes as a member of a group. A client that may not describe it cannot find its coordinator, and so cannot
    /// commit either: it gets no answer at all.
    pub fn tries_group(&self, group: &str, may_describe: bool) -> Result<GroupAttempts> {
        let consumer = self.consumer(group)?;
        // Each identity that may join a group may read one of these, and so gets a partition.
        let internal = events::INTERNAL_TOPICS.iter().map(|topic| topic.name);
        let declared = events::topics().iter().map(|topic| topic.name);
        let topics: Vec<&str> = declared.chain(internal).collect();
        consumer.subscribe(&topics)?;
        let joins = joins(&consumer)?;
        let places = beginning_of(topics[0])?;
        let timeout = if may_describe { TIMEOUT } else { COORDINATOR_TIMEOUT };
        let describes = joins || consumer.committed_offsets(places.clone(), timeout).is_ok();
        let commits = describes && self.commits(&consumer, places)?;
        Ok(GroupAttempts { joins, commits, describes })
    }

    /// The offsets of a topic that the client may not read are refused for the topic, once the group is allowed.
    fn commits(&self, consumer: &BaseConsumer, places: TopicPartitionList) -> Result<bool> {
        match consumer.commit(&places, CommitMode::Sync) {
            Err(KafkaError::ConsumerCommit(Code::TopicAuthorizationFailed)) => Ok(true),
            committed => is_allowed(committed),
        }
    }

    pub fn deletes_group(&self, group: &str) -> Result<bool> {
        let tried = block_on(self.admin.delete_groups(&[group], &options()));
        first_is_allowed(tried, |result| result.map(drop).map_err(|(_, code)| code))
    }

    fn consumer(&self, group: &str) -> Result<BaseConsumer> {
        let mut settings = self.settings.clone();
        settings
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest");
        Ok(settings.create()?)
    }
}

fn joins(consumer: &BaseConsumer) -> Result<bool> {
    let began = Instant::now();
    while began.elapsed() < TIMEOUT {
        let polled = consumer.poll(Duration::from_millis(100));
        if let Some(Err(KafkaError::MessageConsumption(Code::GroupAuthorizationFailed))) = polled {
            return Ok(false);
        }
        if consumer.assignment()?.count() > 0 {
            return Ok(true);
        }
    }
    bail!("no assignment, and no refusal")
}

fn beginning_of(topic: &str) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(0))?;
    Ok(list)
}

/// An admin client's attempt, without its effect where Kafka can leave that out.
fn options() -> AdminOptions {
    AdminOptions::new().validate_only(true).request_timeout(Some(TIMEOUT))
}

fn first_is_allowed<T>(
    tried: Result<Vec<T>, KafkaError>,
    code: impl FnOnce(T) -> Result<(), Code>,
) -> Result<bool> {
    match tried {
        Err(error) => is_allowed(Err(error)),
        Ok(results) => is_permitted(code(results.into_iter().next().context("no answer")?)),
    }
}

fn is_allowed(tried: Result<(), KafkaError>) -> Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(error) => match error.rdkafka_error_code() {
            Some(code) => is_permitted(Err(code)),
            None => Err(error.into()),
        },
    }
}

/// Kafka denies, or it allows and finds another obstacle.
fn is_permitted(tried: Result<(), Code>) -> Result<bool> {
    use Code::{
        ClusterAuthorizationFailed, GroupAuthorizationFailed, GroupIdNotFound, InvalidPartitions,
        NonEmptyGroup, PolicyViolation, TopicAlreadyExists, TopicAuthorizationFailed,
        TransactionalIdAuthorizationFailed,
    };
    match tried {
        Ok(()) => Ok(true),
        Err(
            TopicAuthorizationFailed
            | GroupAuthorizationFailed
            | ClusterAuthorizationFailed
            | TransactionalIdAuthorizationFailed,
        ) => Ok(false),
        Err(
            TopicAlreadyExists | InvalidPartitions | PolicyViolation | NonEmptyGroup
            | GroupIdNotFound,
        ) => Ok(true),
        Err(code) => Err(code.into()),
    }
}
