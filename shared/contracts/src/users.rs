//! The users of Kafka: their passwords, their rights and their quotas. `contracts apply` brings a
//! cluster to exactly what is declared. A cluster holds one system, so a rule that is not declared is
//! one too many, and is removed.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chassis::config::KafkaConfig;
use kafka_protocol::error::ParseResponseErrorCode;
use kafka_protocol::messages::alter_client_quotas_request::{EntityData, EntryData, OpData};
use kafka_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::delete_acls_request::DeleteAclsFilter;
use kafka_protocol::messages::describe_acls_response::DescribeAclsResource;
use kafka_protocol::messages::{
    AlterClientQuotasRequest, AlterUserScramCredentialsRequest, CreateAclsRequest,
    DeleteAclsRequest, DescribeAclsRequest,
};
use kafka_protocol::protocol::StrBytes;
use openssl::hash::MessageDigest;

use crate::Contracts;
use crate::grants::{Grant, OBSERVER};
use crate::kafka_admin::KafkaAdmin;

/// Versions of the requests that every Kafka from 2.8 on supports.
const ACLS_VERSION: i16 = 2;
const SCRAM_VERSION: i16 = 0;
const QUOTAS_VERSION: i16 = 1;

/// Kafka's numbers: any value in a filter, a name that is meant literally or as a prefix, and a rule that allows.
const ANY: i8 = 1;
const LITERAL: i8 = 3;
const PREFIXED: i8 = 4;
const ALLOW: i8 = 3;
const EVERY_HOST: &str = "*";

/// Kafka's number of SCRAM-SHA-512, the least number of iterations that it accepts, and the length of the hash.
const SCRAM_SHA_512: i8 = 2;
const SCRAM_ITERATIONS: usize = 4096;
const SHA_512_BYTES: usize = 64;
const SALT_BYTES: usize = 32;

/// Kafka's number of the error RESOURCE_NOT_FOUND.
const NO_SUCH_RESOURCE: i16 = 91;

/// A limit of what one user may do to one broker, by its name in Kafka and in the objects of Strimzi.
pub(crate) struct Quota {
    in_kafka: &'static str,
    pub(crate) in_strimzi: &'static str,
    pub(crate) value: u32,
}

impl Quota {
    const fn new(in_kafka: &'static str, in_strimzi: &'static str, value: u32) -> Quota {
        Quota { in_kafka, in_strimzi, value }
    }
}

/// The quotas of every user. A service at its measured limit needs a tenth of them; a user that goes round in a
/// loop leaves room for the others.
pub(crate) const QUOTAS: [Quota; 3] = [
    Quota::new("producer_byte_rate", "producerByteRate", 50_000_000),
    Quota::new("consumer_byte_rate", "consumerByteRate", 100_000_000),
    // In percent of one thread of the broker.
    Quota::new("request_percentage", "requestPercentage", 400),
];

/// Brings passwords, rights and quotas to what is declared for a system of which these features run. The directory has a
/// file for each user with a password. The users of the other features have none.
pub async fn apply(
    contracts: &Contracts,
    features: &[String],
    kafka: &KafkaConfig,
    directory: &Path,
) -> Result<()> {
    let declared = &contracts.grants() | &contracts.grants_of_features(features)?;
    let every_feature: Vec<&str> = contracts.features.iter().map(|feature| feature.name).collect();
    let of_features = contracts.grants_of_features(&every_feature)?;
    let (users, absent) = (users_of(&declared), &users_of(&of_features) - &users_of(&declared));
    let mut admin = KafkaAdmin::connect(kafka).await?;
    remove_passwords(&mut admin, &absent).await?;
    set_passwords(&mut admin, &users, directory).await?;
    let (created, removed) = reconcile_grants(&mut admin, &declared).await?;
    set_quotas(&mut admin, &declared).await?;
    println!(
        "{:<20} {} rules, {created} created, {removed} removed",
        "rights in Kafka",
        declared.len()
    );
    Ok(())
}

async fn set_passwords(
    admin: &mut KafkaAdmin,
    users: &BTreeSet<&str>,
    directory: &Path,
) -> Result<()> {
    let upsertion = |service: &str| -> Result<ScramCredentialUpsertion> {
        let file = directory.join(service);
        let password = std::fs::read_to_string(&file);
        let password = password.with_context(|| format!("{} cannot be read", file.display()))?;
        let password = password.strip_suffix('\n').unwrap_or(&password);
        let (mut salt, mut salted) = ([0; SALT_BYTES], [0; SHA_512_BYTES]);
        openssl::rand::rand_bytes(&mut salt)?;
        openssl::pkcs5::pbkdf2_hmac(
            password.as_bytes(),
            &salt,
            SCRAM_ITERATIONS,
            MessageDigest::sha512(),
            &mut salted,
        )?;
        Ok(ScramCredentialUpsertion::default()
            .with_name(text(service))
            .with_mechanism(SCRAM_SHA_512)
            .with_iterations(i32::try_from(SCRAM_ITERATIONS)?)
            .with_salt(Bytes::copy_from_slice(&salt))
            .with_salted_password(Bytes::copy_from_slice(&salted)))
    };
    // The observer has a certificate.
    let with_password = users.iter().filter(|user| **user != OBSERVER);
    let upsertions = with_password.map(|user| upsertion(user)).collect::<Result<_>>()?;
    let request = AlterUserScramCredentialsRequest::default().with_upsertions(upsertions);
    let response = admin.send(SCRAM_VERSION, &request).await?;
    response.results.iter().try_for_each(|result| {
        check(result.error_code, || format!("the password of {} could not be set", &*result.user))
    })
}

/// Takes the passwords of these users away, so that none of them can sign in.
async fn remove_passwords(admin: &mut KafkaAdmin, users: &BTreeSet<&str>) -> Result<()> {
    let deletion = |user: &&str| {
        ScramCredentialDeletion::default().with_name(text(user)).with_mechanism(SCRAM_SHA_512)
    };
    let request = AlterUserScramCredentialsRequest::default()
        .with_deletions(users.iter().map(deletion).collect());
    let response = admin.send(SCRAM_VERSION, &request).await?;
    // A user without a password is the rule.
    let mut failed = response.results.iter().filter(|it| it.error_code != NO_SUCH_RESOURCE);
    failed.try_for_each(|result| {
        check(result.error_code, || {
            format!("the password of {} could not be removed", &*result.user)
        })
    })
}

fn users_of(grants: &BTreeSet<Grant>) -> BTreeSet<&str> {
    grants.iter().map(|grant| &*grant.user).collect()
}

/// Creates the rules that lack and removes those that are not declared. Returns the number of each.
async fn reconcile_grants(
    admin: &mut KafkaAdmin,
    declared: &BTreeSet<Grant>,
) -> Result<(usize, usize)> {
    // The default of the library is an empty name, which no rule has.
    let every = DescribeAclsRequest::default()
        .with_resource_name_filter(None)
        .with_principal_filter(None)
        .with_host_filter(None)
        .with_resource_type_filter(ANY)
        .with_pattern_type_filter(ANY)
        .with_operation(ANY)
        .with_permission_type(ANY);
    let described = admin.send(ACLS_VERSION, &every).await?;
    check(described.error_code, || "the rules could not be read".to_owned())?;
    let existing: BTreeSet<Rule> = described.resources.iter().flat_map(rules_of).collect();
    let wanted: BTreeSet<Rule> = declared.iter().map(Rule::from_grant).collect();

    let lacking: Vec<&Rule> = wanted.difference(&existing).collect();
    let creations = lacking.iter().map(|rule| rule.creation()).collect();
    let created = CreateAclsRequest::default().with_creations(creations);
    for (result, rule) in admin.send(ACLS_VERSION, &created).await?.results.iter().zip(&lacking) {
        check(result.error_code, || format!("{rule:?} could not be created"))?;
    }
    let surplus: Vec<&Rule> = existing.difference(&wanted).collect();
    let filters = surplus.iter().map(|rule| rule.filter()).collect();
    let deleted = DeleteAclsRequest::default().with_filters(filters);
    let deleted = admin.send(ACLS_VERSION, &deleted).await?;
    for (result, rule) in deleted.filter_results.iter().zip(&surplus) {
        check(result.error_code, || format!("{rule:?} could not be removed"))?;
    }
    Ok((lacking.len(), surplus.len()))
}

async fn set_quotas(admin: &mut KafkaAdmin, grants: &BTreeSet<Grant>) -> Result<()> {
    let limit = |quota: Quota| {
        let value = f64::from(quota.value);
        OpData::default().with_key(text(quota.in_kafka)).with_value(value).with_remove(false)
    };
    let entries = users_of(grants).into_iter().map(|user| {
        let entity = EntityData::default()
            .with_entity_type(StrBytes::from_static_str("user"))
            .with_entity_name(Some(text(user)));
        let ops = QUOTAS.map(limit).to_vec();
        EntryData::default().with_entity(vec![entity]).with_ops(ops)
    });
    let request = AlterClientQuotasRequest::default().with_entries(entries.collect());
    let response = admin.send(QUOTAS_VERSION, &request).await?;
    response
        .entries
        .iter()
        .try_for_each(|entry| check(entry.error_code, || "a quota could not be set".to_owned()))
}

/// A rule of access, as Kafka holds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    principal: String,
    host: String,
    resource: i8,
    name: String,
    pattern: i8,
    operation: i8,
    permission: i8,
}

impl Rule {
    fn from_grant(grant: &Grant) -> Rule {
        Rule {
            principal: format!("User:{}", grant.user),
            host: EVERY_HOST.to_owned(),
            resource: grant.resource as i8,
            name: grant.name.to_string(),
            pattern: if grant.is_prefix { PREFIXED } else { LITERAL },
            operation: grant.operation as i8,
            permission: ALLOW,
        }
    }

    fn creation(&self) -> AclCreation {
        AclCreation::default()
            .with_resource_type(self.resource)
            .with_resource_name(text(&self.name))
            .with_resource_pattern_type(self.pattern)
            .with_principal(text(&self.principal))
            .with_host(text(&self.host))
            .with_operation(self.operation)
            .with_permission_type(self.permission)
    }

    fn filter(&self) -> DeleteAclsFilter {
        DeleteAclsFilter::default()
            .with_resource_type_filter(self.resource)
            .with_resource_name_filter(Some(text(&self.name)))
            .with_pattern_type_filter(self.pattern)
            .with_principal_filter(Some(text(&self.principal)))
            .with_host_filter(Some(text(&self.host)))
            .with_operation(self.operation)
            .with_permission_type(self.permission)
    }
}

fn rules_of(resource: &DescribeAclsResource) -> Vec<Rule> {
    let rule = |acl: &kafka_protocol::messages::describe_acls_response::AclDescription| Rule {
        principal: acl.principal.to_string(),
        host: acl.host.to_string(),
        resource: resource.resource_type,
        name: resource.resource_name.to_string(),
        pattern: resource.pattern_type,
        operation: acl.operation,
        permission: acl.permission_type,
    };
    resource.acls.iter().map(rule).collect()
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn check(error_code: i16, what: impl FnOnce() -> String) -> Result<()> {
    match error_code.err() {
        None => Ok(()),
        Some(error) => bail!("{}: {error:?}", what()),
    }
}
