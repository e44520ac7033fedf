//! The faults, each with the alerts that it must cause.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use faults::{database_faults, group_offsets, log_truncation, registry_loss};
use launcher::{Stack, eventually};
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::X509;

use crate::admin::dead_letters::{self, DeadLetterCommand};
use crate::admin::republish::{self, RepublishOptions};
use crate::client::http_client::Client;
use crate::monitoring::server::Prometheus;
use crate::scenarios::order_faults;
use crate::stack_description::SERVICES;

/// How long a repair may take.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(60);

/// A tenth of the week before an expiry is less than a day, and a certificate of today expires within it.
const SHORT_DAYS: u32 = 0;
const LONG_DAYS: u32 = 90;

/// Schemas of strangers that take the first ids of the registry.
const STRANGERS: usize = 3;

const CERTIFICATE_VARIABLE: &str = "SSL_CERT_FILE";

/// What the faults act on.
pub struct Context<'a> {
    pub stack: &'a Stack,
    pub client: Client,
    pub prometheus: Prometheus,
}

/// A fault that is made on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlertFault {
    ServiceAway,
    DatabaseAway,
    KafkaAway,
    BadMigration,
    RightRevoked,
    ShortCertificate,
    LogTruncated,
    RecordsDeleted,
    DiskLost,
    RegistryLost,
}

impl AlertFault {
    pub const ALL: [AlertFault; 10] = [
        AlertFault::ServiceAway,
        AlertFault::DatabaseAway,
        AlertFault::KafkaAway,
        AlertFault::BadMigration,
        AlertFault::RightRevoked,
        AlertFault::ShortCertificate,
        AlertFault::LogTruncated,
        AlertFault::RecordsDeleted,
        AlertFault::DiskLost,
        AlertFault::RegistryLost,
    ];

    pub fn description(self) -> &'static str {
        match self {
            AlertFault::ServiceAway => "Stock is killed and stays away",
            AlertFault::DatabaseAway => "The database of order is killed and stays away",
            AlertFault::KafkaAway => "Kafka is killed and stays away",
            AlertFault::BadMigration => {
                "A migration makes the database of payment refuse every payment"
            }
            AlertFault::RightRevoked => "Stock may no longer insert reservations",
            AlertFault::ShortCertificate => {
                "A certificate that the services trust expires within hours"
            }
            AlertFault::LogTruncated => "Kafka loses records that order has read",
            AlertFault::RecordsDeleted => "Orders are deleted from Kafka before payment reads them",
            AlertFault::DiskLost => "Kafka loses its disk and is created again",
            AlertFault::RegistryLost => "The registry loses its data and gives other ids",
        }
    }

    /// The alerts that must fire, with the service that each concerns.
    pub fn alerts(self) -> &'static [(&'static str, &'static str)] {
        match self {
            AlertFault::ServiceAway => &[("ServiceDown", "stock"), ("ConsumerLagging", "stock")],
            // EventsWaiting as well, but only if the consumer had read events before.
            AlertFault::DatabaseAway => &[("RelayInactive", "order"), ("ErrorsServed", "order")],
            AlertFault::KafkaAway => &[("OutboxStuck", "order")],
            AlertFault::BadMigration => {
                &[("DeadLettersWaiting", "payment"), ("ConsumerPaused", "payment")]
            }
            AlertFault::RightRevoked => &[("AccessRefused", "stock"), ("EventsWaiting", "stock")],
            AlertFault::ShortCertificate => &[("CertificateExpires", "stock")],
            AlertFault::LogTruncated => &[("LogTruncated", "order")],
            AlertFault::RecordsDeleted => {
                &[("RecordsMissed", "payment"), ("OrdersPending", "order")]
            }
            AlertFault::DiskLost => &[("KafkaUnsteady", "order")],
            AlertFault::RegistryLost => &[("SchemaIdsChanged", "order")],
        }
    }

    pub async fn inject(self, context: &Context<'_>) -> Result<()> {
        let stack = context.stack;
        match self {
            AlertFault::ServiceAway => stack.kill("stock").await.map(drop),
            AlertFault::DatabaseAway => stack.kill("order-db").await.map(drop),
            AlertFault::KafkaAway => stack.kill("kafka").await.map(drop),
            AlertFault::BadMigration => {
                let add = "alter table payments add constraint too_strict check (amount_cents < 0) not valid";
                database_faults::execute(stack, "payment", &[add]).await
            }
            AlertFault::RightRevoked => {
                let revoke = "revoke insert on reservations from stock";
                database_faults::execute(stack, "stock", &[revoke]).await
            }
            AlertFault::ShortCertificate => write_certificate(stack, SHORT_DAYS),
            AlertFault::LogTruncated => truncate_log(context).await,
            AlertFault::RecordsDeleted => {
                stack.stop("payment").await?;
                tokio::time::sleep(Duration::from_secs(3)).await;
                group_offsets::delete_records(&stack.kafka_client()?, "orders.created").await?;
                stack.start("payment").await
            }
            AlertFault::DiskLost => {
                republish::lose_disk(stack).await?;
                republish::run(stack, &RepublishOptions::default()).await.map(drop)
            }
            AlertFault::RegistryLost => {
                registry_loss::lose_data(stack, STRANGERS).await?;
                let applied = registry_loss::apply_contracts(stack, Some("1"))?;
                ensure!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
                Ok(())
            }
        }
    }

    pub async fn repair(self, context: &Context<'_>) -> Result<()> {
        let stack = context.stack;
        match self {
            AlertFault::ServiceAway | AlertFault::DatabaseAway | AlertFault::KafkaAway => {
                stack.up().await
            }
            AlertFault::BadMigration => {
                order_faults::revert_bad_migration(stack).await?;
                settle_dead_letters(stack).await
            }
            AlertFault::RightRevoked => {
                let grant = "grant insert on reservations to stock";
                database_faults::execute(stack, "stock", &[grant]).await
            }
            AlertFault::ShortCertificate => write_certificate(stack, LONG_DAYS),
            // What was lost is published again.
            AlertFault::LogTruncated | AlertFault::RecordsDeleted => {
                republish::run(stack, &RepublishOptions::default()).await.map(drop)
            }
            AlertFault::DiskLost => Ok(()),
            AlertFault::RegistryLost => {
                for service in SERVICES {
                    let accept = "delete from chassis.schema_ids";
                    database_faults::execute(stack, service, &[accept]).await?;
                }
                Ok(())
            }
        }
    }
}

/// Gives the services a certificate that they trust beside the others; on this stack nothing presents it. A bundle that
/// the environment of this process names may contain an authority that has expired.
pub fn prepare(stack: &Stack) -> Result<()> {
    write_certificate(stack, LONG_DAYS)?;
    let file = certificate_file(stack).display().to_string();
    for service in SERVICES {
        stack.set_environment(service, CERTIFICATE_VARIABLE, Some(&file))?;
    }
    Ok(())
}

fn certificate_file(stack: &Stack) -> PathBuf {
    stack.directory().join("trusted.pem")
}

fn write_certificate(stack: &Stack, days: u32) -> Result<()> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut certificate = X509::builder()?;
    certificate.set_version(2)?;
    certificate.set_pubkey(&key)?;
    certificate.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
    certificate.set_not_after(Asn1Time::days_from_now(days)?.as_ref())?;
    certificate.sign(&key, MessageDigest::sha256())?;
    std::fs::create_dir_all(stack.directory())?;
    std::fs::write(certificate_file(stack), certificate.build().to_pem()?)?;
    Ok(())
}

/// Lets the consumer of payment continue, and replays until no dead letter waits.
async fn settle_dead_letters(stack: &Stack) -> Result<()> {
    let service = "payment".to_string();
    let resume = DeadLetterCommand::Resume { service: service.clone() };
    let replay = DeadLetterCommand::Replay { service, id: "all".to_string() };
    let mut output = Vec::new();
    dead_letters::run(stack, &resume, &mut output).await?;
    eventually("every dead letter to be replayed", REPAIR_TIMEOUT, async || {
        dead_letters::run(stack, &replay, &mut Vec::new()).await?;
        let waiting = "select count(*) from chassis.dead_letters where settled_at is null";
        let mut db = database_faults::connect_as_superuser(stack, "payment").await?;
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&mut db).await?;
        ensure!(waiting == 0, "{waiting} wait");
        Ok(())
    })
    .await
}

/// Cuts records off that order has read. Payment is down meanwhile, so that none takes their places before order looks.
async fn truncate_log(context: &Context<'_>) -> Result<()> {
    let stack = context.stack;
    tokio::time::sleep(Duration::from_secs(5)).await;
    stack.stop("payment").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stack.kill("kafka").await?;
    log_truncation::truncate(stack, "payments.verified", 1, 4)?;
    stack.up().await
}
