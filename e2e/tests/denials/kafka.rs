//! Kafka's part of the matrix: topics, groups, settings of the broker and transactions.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use contracts::grants::AclOperation::{
    Alter, AlterConfigs, Create, Delete, Describe, DescribeConfigs, Read, Write,
};
use contracts::grants::{AclOperation, AclResource, Grant, OBSERVER};
use declaration::CONTRACTS;
use e2e::admin::connectors::{self, Carrier};
use e2e::admin::reporting;
use e2e::stack_description::SERVICES;
use events::{INTERNAL_TOPICS, connect, insights};
use launcher::directories::programs_directory;
use launcher::{Stack, eventually};
use rdkafka::ClientConfig;

use super::kafka_attempts::{Client, Setting};
use super::{Matrix, cells, compare, surplus};
use crate::fixture::*;
use crate::wires::reaches_kafka;

/// A client with a valid certificate and without rights.
const STRANGER: &str = "stranger";

/// The topics that no service may touch, beside the internal ones: the one that names the owner of the cluster, one of
/// another system, and one that the stream processor alone may touch.
const OTHER_TOPICS: [&str; 3] = ["stack.name", "reports.made", INTERNAL_TOPIC];

/// A topic as Kafka Streams creates it for the stream processor.
const INTERNAL_TOPIC: &str = "insights-orders-changelog";

/// A topic that is created after all attempts.
const LAST_TOPIC: &str = "last";

const BROKER: &str = "1";

/// The worker of Kafka Connect and its connectors.
static USERS_OF_FEATURES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    grants_of_features().into_iter().map(|grant| grant.user.into_owned()).collect()
});

/// The group of a connector of the reporting database.
const SINK_GROUP: &str = "connect-reporting-orders";

/// A group of another system.
const OTHER_GROUP: &str = "reports";

/// What can be attempted, with its letter and the right that it needs.
const TOPIC_ACTS: [(char, AclOperation); 8] = [
    ('r', Read),
    ('w', Write),
    ('c', Create),
    ('x', Delete),
    ('p', Alter),
    ('d', Describe),
    ('s', AlterConfigs),
    ('g', DescribeConfigs),
];
const GROUP_ACTS: [(char, AclOperation); 4] =
    [('j', Read), ('o', Read), ('d', Describe), ('x', Delete)];

#[tokio::test(flavor = "multi_thread")]
async fn each_identity_can_do_in_kafka_what_is_declared_and_nothing_else() -> Result<()> {
    let _permit = stack_permit().await?;
    let stack = secured_stack()?;
    connectors::choose(&stack, Carrier::Cdc)?;
    reporting::add(&stack).await?;
    stack.up_infrastructure().await?;
    stack.apply_contracts(&programs_directory()?).await?;
    // The second time, the command removes what was added by hand.
    surplus::give_right_of("order", "--operation Write --topic", "stock", &stack).await?;
    stack.apply_contracts(&programs_directory()?).await?;
    let administrator = Client::new("administrator", stack.kafka_client()?)?;
    administrator.create_topic(OTHER_TOPICS[1])?;
    administrator.create_topic(INTERNAL_TOPIC)?;
    let grants = &CONTRACTS.grants() | &grants_of_features();
    let attempts = identities().map(|identity| {
        let client = Client::new(identity, stack.kafka_client_as(identity)?)?;
        let declared = declare(&grants, identity);
        anyhow::Ok(tokio::task::spawn_blocking(move || observe(&client, &declared)))
    });
    let mut observed = Matrix::new();
    for attempts in attempts.collect::<Result<Vec<_>>>()? {
        observed.extend(attempts.await??);
    }
    add_changed_settings(&administrator, &mut observed).await?;
    let expected = identities().flat_map(|identity| declare(&grants, identity)).collect();
    compare(&observed, &expected, "kafka.txt")?;
    the_users_of_a_feature_end_with_it(&stack).await
}

/// A connector that does not run has no user: Kafka refuses its former password.
async fn the_users_of_a_feature_end_with_it(stack: &Stack) -> Result<()> {
    let connectors = USERS_OF_FEATURES.iter().filter(|user| *user != connect::NAME);
    let clients = connectors.map(|user| Ok((user, stack.kafka_client_as(user)?)));
    let clients: Vec<(&String, ClientConfig)> = clients.collect::<Result<_>>()?;
    for (user, client) in &clients {
        reaches_kafka(client.clone()).await.with_context(|| format!("{user} has no password"))?;
    }
    stack.remove_feature("cdc")?;
    stack.remove_feature(reporting::NAME)?;
    stack.apply_contracts(&programs_directory()?).await?;
    for (user, client) in &clients {
        let refused = reaches_kafka(client.clone()).await.is_err();
        ensure!(refused, "{user} still has a password");
    }
    Ok(())
}

fn grants_of_features() -> BTreeSet<Grant> {
    let features = connect::FEATURES.each_ref().map(|feature| feature.name);
    CONTRACTS.grants_of_features(&features).expect("they are declared")
}

fn identities() -> impl Iterator<Item = &'static str> {
    let of_features = USERS_OF_FEATURES.iter().map(String::as_str);
    SERVICES.into_iter().chain([insights::NAME, OBSERVER, STRANGER]).chain(of_features)
}

fn topics() -> impl Iterator<Item = &'static str> {
    let internal = INTERNAL_TOPICS.iter().map(|topic| topic.name);
    events::topics().iter().map(|topic| topic.name).chain(internal).chain(OTHER_TOPICS)
}

fn groups() -> impl Iterator<Item = String> {
    let own = SERVICES.into_iter().flat_map(|it| [it.to_string(), format!("{it}-rebuild")]);
    own.chain([insights::NAME, connect::NAME, SINK_GROUP, OTHER_GROUP].map(String::from))
}

/// Kafka Streams and Kafka Connect name their transactions in this way.
fn transaction_of(identity: &str) -> String {
    match identity {
        connect::NAME => format!("connect-cluster-{identity}"),
        connector if USERS_OF_FEATURES.contains(connector) => format!("connect-{connector}-0"),
        other => format!("{other}-1"),
    }
}

/// Attempts everything with one identity. What it is declared to be able to do decides only how long an answer is awaited.
fn observe(client: &Client, declared: &Matrix) -> Result<Matrix> {
    let mut matrix = Matrix::new();
    let identity = client.identity;
    let value = value_of(identity);
    for topic in topics() {
        let attempts = [
            ('r', client.reads(topic)),
            ('w', client.writes(topic)),
            ('c', client.creates(topic)),
            ('x', client.deletes_records(topic)),
            ('p', client.adds_partitions(topic)),
            ('d', client.describes(topic)),
            ('g', client.reads_settings(Setting::of_topic(topic)).map(|value| value.is_some())),
        ];
        matrix.insert(cells(identity, "topic", topic), allowed(attempts)?);
        client.changes_settings(Setting::of_topic(topic), &value)?;
    }
    for group in groups() {
        let declared = declared.get(&cells(identity, "group", &group));
        let may_describe = declared.is_some_and(|letters| letters.contains(&'d'));
        let able = client.tries_group(&group, may_describe)?;
        let attempts = [
            ('j', Ok(able.joins)),
            ('o', Ok(able.commits)),
            ('d', Ok(able.describes)),
            ('x', client.deletes_group(&group)),
        ];
        matrix.insert(cells(identity, "group", &group), allowed(attempts)?);
    }
    let reads = client.reads_settings(Setting::OF_BROKER).map(|value| value.is_some());
    matrix.insert(cells(identity, "broker", BROKER), allowed([('g', reads)])?);
    client.changes_settings(Setting::OF_BROKER, &value)?;
    let transaction = transaction_of(identity);
    let begins = client.begins_transaction(&transaction);
    matrix.insert(cells(identity, "transaction", &transaction), allowed([('w', begins)])?);
    Ok(matrix)
}

/// The letters of the acts that Kafka allowed.
fn allowed<const N: usize>(attempts: [(char, Result<bool>); N]) -> Result<BTreeSet<char>> {
    let mut letters = BTreeSet::new();
    for (letter, attempt) in attempts {
        if attempt.with_context(|| format!("act {letter}"))? {
            letters.insert(letter);
        }
    }
    Ok(letters)
}

/// The value of a setting that names an identity.
fn value_of(identity: &str) -> String {
    let others = identities().take_while(|it| *it != identity);
    (1_000_001 + others.count()).to_string()
}

/// Adds who changed which setting, as its value tells. A broker applies all changes in order: once it has the last
/// topic, it has every change before that.
async fn add_changed_settings(administrator: &Client, matrix: &mut Matrix) -> Result<()> {
    administrator.create_topic(LAST_TOPIC)?;
    eventually("the last topic", TIMEOUT, async || {
        administrator.reads_settings(Setting::of_topic(LAST_TOPIC))?.context("it is not there")
    })
    .await?;
    let settings = topics().map(|topic| ("topic", topic, Setting::of_topic(topic)));
    for (kind, name, setting) in settings.chain([("broker", BROKER, Setting::OF_BROKER)]) {
        let value = administrator.reads_settings(setting)?;
        for identity in identities().filter(|it| value == Some(value_of(it))) {
            matrix.entry(cells(identity, kind, name)).or_default().insert('s');
        }
    }
    Ok(())
}

/// What the grants allow one identity. Only a super user changes or reads the settings of a broker.
fn declare(grants: &BTreeSet<Grant>, identity: &str) -> Matrix {
    let of = |kind: &str, name: &str, resource, acts: &[(char, AclOperation)]| {
        let granted =
            acts.iter().filter(|(_, act)| is_granted(grants, identity, resource, name, *act));
        (cells(identity, kind, name), granted.map(|(letter, _)| *letter).collect())
    };
    let topics = topics().map(|topic| of("topic", topic, AclResource::Topic, &TOPIC_ACTS));
    let groups = groups().map(|group| of("group", &group, AclResource::Group, &GROUP_ACTS));
    let broker = (cells(identity, "broker", BROKER), BTreeSet::new());
    let own = transaction_of(identity);
    let transaction = of("transaction", &own, AclResource::TransactionalId, &[('w', Write)]);
    topics.chain(groups).chain([broker, transaction]).collect()
}

/// Kafka's rule: a right holds for one name, for all or for a prefix, and some operations imply that to describe.
fn is_granted(
    grants: &BTreeSet<Grant>,
    identity: &str,
    resource: AclResource,
    name: &str,
    wanted: AclOperation,
) -> bool {
    grants.iter().any(|grant| {
        let is_named = match grant.is_prefix {
            true => name.starts_with(&*grant.name),
            false => grant.name == "*" || grant.name == name,
        };
        let implies = match wanted {
            Describe => matches!(grant.operation, Read | Write | Delete | Alter | Describe),
            DescribeConfigs => matches!(grant.operation, AlterConfigs | DescribeConfigs),
            _ => grant.operation == wanted,
        };
        grant.user == identity && grant.resource == resource && is_named && implies
    })
}
