//! The rights in Kafka in the formats of other programs that may bring them about: the arguments of
//! `kafka-acls.sh`, and the objects of Strimzi's user operator.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::Contracts;
use crate::grants::{AclOperation, AclResource, Grant, OBSERVER};
use crate::users::QUOTAS;

const HEAD: &str = "\
# Written by `contracts users` from the declaration of topics: who publishes, and who subscribes. `make schema` rewrites
# it. Strimzi puts the password or the certificate of a user into the Secret of its name.
";

/// The super user that applies the contracts, by its certificate: the Kafka object names it.
const CONTRACTS_USER: &str = "\
apiVersion: kafka.strimzi.io/v1
kind: KafkaUser
metadata: { name: contracts, labels: { strimzi.io/cluster: kafka } }
spec: { authentication: { type: tls } }
";

impl Contracts {
    /// One line of arguments of `kafka-acls.sh` for each right, in quotes where a shell needs them, also for those of
    /// these features.
    pub(crate) fn kafka_acls(&self, features: &[&str]) -> Result<String> {
        let line = |Grant { user, resource, name, is_prefix, operation }: Grant| {
            let option = match resource {
                AclResource::Topic => "topic",
                AclResource::Group => "group",
                AclResource::TransactionalId => "transactional-id",
            };
            let pattern = if is_prefix { "prefixed" } else { "literal" };
            format!(
                "--add --allow-principal User:{user} --operation {operation:?} --{option} '{name}' \
                 --resource-pattern-type {pattern}\n"
            )
        };
        let grants = &self.grants() | &self.grants_of_features(features)?;
        Ok(grants.into_iter().map(line).collect())
    }

    /// One `KafkaUser` of Strimzi for each user: a service has a password, and the observer a certificate. The users of
    /// a feature are a file of their own.
    pub(crate) fn kafka_users(&self, feature: Option<&str>) -> Result<String> {
        let Some(feature) = feature else {
            let objects =
                kafka_users(&self.grants()).into_iter().chain([CONTRACTS_USER.to_owned()]);
            return Ok(HEAD.to_owned() + &objects.collect::<Vec<_>>().join("---\n"));
        };
        Ok(HEAD.to_owned() + &kafka_users(&self.grants_of_features(&[feature])?).join("---\n"))
    }
}

fn kafka_users(grants: &BTreeSet<Grant>) -> Vec<String> {
    let mut users: BTreeMap<&str, Vec<&Grant>> = BTreeMap::new();
    for grant in grants {
        users.entry(&grant.user).or_default().push(grant);
    }
    users.into_iter().map(|(user, grants)| kafka_user(user, &grants)).collect()
}

fn kafka_user(user: &str, grants: &[&Grant]) -> String {
    let authentication = if user == OBSERVER { "tls" } else { "scram-sha-512" };
    let same_resource = |a: &&Grant, b: &&Grant| {
        (a.resource, &a.name, a.is_prefix) == (b.resource, &b.name, b.is_prefix)
    };
    let rules: String = grants.chunk_by(same_resource).map(rule).collect();
    let quotas = QUOTAS.map(|quota| format!("{}: {}", quota.in_strimzi, quota.value)).join(", ");
    format!(
        "apiVersion: kafka.strimzi.io/v1\n\
         kind: KafkaUser\n\
         metadata: {{ name: {user}, labels: {{ strimzi.io/cluster: kafka }} }}\n\
         spec:\n\
         \x20 authentication: {{ type: {authentication} }}\n\
         \x20 quotas: {{ {quotas} }}\n\
         \x20 authorization:\n\
         \x20   type: simple\n\
         \x20   acls:\n\
         {rules}"
    )
}

/// The rights on one resource.
fn rule(grants: &[&Grant]) -> String {
    let Grant { resource, name, is_prefix, .. } = grants[0];
    let kind = match resource {
        AclResource::Topic => "topic",
        AclResource::Group => "group",
        AclResource::TransactionalId => "transactionalId",
    };
    let pattern = if *is_prefix { "prefix" } else { "literal" };
    let operations: Vec<AclOperation> = grants.iter().map(|grant| grant.operation).collect();
    format!(
        "      - {{ resource: {{ type: {kind}, name: \"{name}\", patternType: {pattern} }}, \
         operations: {operations:?} }}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use chassis::event::{Subscriptions, Topic};

    use super::*;

    const SOLD: &str = r#"{"type": "record", "name": "Sold", "fields": []}"#;

    static SOLD_TOPIC: Topic = Topic::new("shop.sold", "shop", SOLD);
    static FURTHER: [Grant; 2] = [
        Grant::new("mail", AclResource::Topic, "mail-", AclOperation::Create).prefix(),
        Grant::new("mail", AclResource::Topic, "mail-", AclOperation::Write).prefix(),
    ];
    static SHOP: LazyLock<Contracts> = LazyLock::new(|| {
        let subscriptions = Subscriptions::new([("mail", vec![&SOLD_TOPIC])]);
        Contracts::new("shop", "1", &[&SOLD_TOPIC], subscriptions).grants_also(&FURTHER)
    });

    #[test]
    fn each_right_is_a_line_for_kafka_acls() {
        let acls = SHOP.kafka_acls(&[]).unwrap();
        let of_mail: Vec<&str> = acls.lines().filter(|it| it.contains("User:mail")).collect();
        let add = |rest: &str| format!("--add --allow-principal User:mail --operation {rest}");
        let expected = [
            add("Write --topic 'mail-' --resource-pattern-type prefixed"),
            add("Create --topic 'mail-' --resource-pattern-type prefixed"),
            add("Read --topic 'shop.sold' --resource-pattern-type literal"),
            add("Read --group 'mail' --resource-pattern-type literal"),
        ];
        assert_eq!(of_mail, expected);
        assert_eq!(acls.lines().count(), SHOP.grants().len());
    }

    #[test]
    fn each_user_is_an_object_for_strimzi() {
        let users = SHOP.kafka_users(None).unwrap();
        let mail = "\
kind: KafkaUser
metadata: { name: mail, labels: { strimzi.io/cluster: kafka } }
spec:
  authentication: { type: scram-sha-512 }
  quotas: { producerByteRate: 50000000, consumerByteRate: 100000000, requestPercentage: 400 }
  authorization:
    type: simple
    acls:
      - { resource: { type: topic, name: \"mail-\", patternType: prefix }, operations: [Write, Create] }
      - { resource: { type: topic, name: \"shop.sold\", patternType: literal }, operations: [Read] }
      - { resource: { type: group, name: \"mail\", patternType: literal }, operations: [Read] }
---
";
        assert!(users.contains(mail), "{users}");
        assert!(users.contains("name: observer, labels: { strimzi.io/cluster: kafka } }\nspec:\n  authentication: { type: tls }"));
        assert_eq!(users.matches("kind: KafkaUser").count(), 4);
    }
}
