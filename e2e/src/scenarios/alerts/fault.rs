//! The faults, each with the alerts that it must cause.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use faults::database_faults::{connect_as_superuser, execute};
use faults::{group_offsets, log_truncation, registry_loss};
use futures::future::LocalBoxFuture;
use launcher::{Stack, eventually};
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::X509;
use tokio::time::sleep;

use crate::admin::republish::{self, RepublishOptions};
use crate::scenarios::order_faults::{self, replay_dead_letters};
use crate::stack_description::SERVICES;

/// How long a repair may take.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(60);

/// A tenth of the week before an expiry is less than a day, and a certificate of today expires within it.
const SHORT_DAYS: u32 = 0;
const LONG_DAYS: u32 = 90;

/// Schemas of strangers that take the first ids of the registry.
const STRANGERS: usize = 3;

const CERTIFICATE_VARIABLE: &str = "SSL_CERT_FILE";

/// Injects a fault, or repairs it.
type Change = for<'a> fn(&'a Stack) -> LocalBoxFuture<'a, Result<()>>;

/// A fault, and the alerts that it must cause.
pub struct AlertFault {
    pub name: &'static str,
    pub description: &'static str,
    /// The alerts that must fire, with the service that each concerns.
    pub alerts: &'static [(&'static str, &'static str)],
    pub inject: Change,
    pub repair: Change,
}

pub static FAULTS: [AlertFault; 11] = [
    AlertFault {
        name: "ServiceAway",
        description: "Stock is killed and stays away",
        alerts: &[("ServiceDown", "stock"), ("ConsumerLagging", "stock")],
        inject: |stack| Box::pin(kill(stack, "stock")),
        repair: |stack| Box::pin(stack.up()),
    },
    AlertFault {
        name: "DatabaseAway",
        description: "The database of order is killed and stays away",
        // EventsWaiting as well, but only if the consumer had read events before.
        alerts: &[("RelayInactive", "order"), ("ErrorsServed", "order")],
        inject: |stack| Box::pin(kill(stack, "order-db")),
        repair: |stack| Box::pin(stack.up()),
    },
    AlertFault {
        name: "KafkaAway",
        description: "Kafka is killed and stays away",
        alerts: &[("OutboxStuck", "order")],
        inject: |stack| Box::pin(kill(stack, "kafka")),
        repair: |stack| Box::pin(stack.up()),
    },
    AlertFault {
        name: "BadMigration",
        description: "A migration makes the database of payment refuse every payment",
        alerts: &[("DeadLettersWaiting", "payment"), ("ConsumerPaused", "payment")],
        inject: |stack| Box::pin(order_faults::apply_bad_migration(stack, "amount_cents < 0")),
        repair: |stack| {
            Box::pin(async move {
                order_faults::revert_bad_migration(stack).await?;
                settle_dead_letters(stack).await
            })
        },
    },
    AlertFault {
        name: "RightRevoked",
        description: "Stock may no longer insert reservations",
        alerts: &[("AccessRefused", "stock"), ("EventsWaiting", "stock")],
        inject: |stack| {
            Box::pin(execute(stack, "stock", &["revoke insert on reservations from stock"]))
        },
        repair: |stack| {
            Box::pin(execute(stack, "stock", &["grant insert on reservations to stock"]))
        },
    },
    AlertFault {
        name: "ShortCertificate",
        description: "A certificate that the services trust expires within hours",
        alerts: &[("CertificateExpires", "stock")],
        inject: |stack| Box::pin(async move { write_certificate(stack, SHORT_DAYS) }),
        repair: |stack| Box::pin(async move { write_certificate(stack, LONG_DAYS) }),
    },
    AlertFault {
        name: "LogTruncated",
        description: "Kafka loses records that order has read",
        alerts: &[("LogTruncated", "order")],
        inject: |stack| Box::pin(truncate_log(stack)),
        repair: |stack| Box::pin(republish(stack)),
    },
    AlertFault {
        name: "RecordsDeleted",
        description: "Orders are deleted from Kafka before payment reads them",
        alerts: &[("RecordsMissed", "payment"), ("OrdersPending", "order")],
        inject: |stack| Box::pin(delete_records(stack)),
        repair: |stack| Box::pin(republish(stack)),
    },
    AlertFault {
        name: "DiskLost",
        description: "Kafka loses its disk and is created again",
        alerts: &[("KafkaUnsteady", "order")],
        inject: |stack| {
            Box::pin(async move {
                republish::lose_disk(stack).await?;
                republish(stack).await
            })
        },
        repair: |_| Box::pin(async move { Ok(()) }),
    },
    AlertFault {
        name: "UnknownTimer",
        description: "A timer of order is due that its version does not know",
        alerts: &[("WorkOverdue", "order")],
        inject: |stack| Box::pin(execute(stack, "order", &[SET_UNKNOWN_TIMER])),
        repair: |stack| Box::pin(execute(stack, "order", &["delete from chassis.scheduled"])),
    },
    AlertFault {
        name: "RegistryLost",
        description: "The registry loses its data and gives other ids",
        alerts: &[("SchemaIdsChanged", "order")],
        inject: |stack| Box::pin(lose_registry(stack)),
        repair: |stack| Box::pin(accept_schema_ids(stack)),
    },
];

/// It was set by a newer version, an hour ago.
const SET_UNKNOWN_TIMER: &str = "
    insert into chassis.scheduled (source, key, event_id, body, due_at, tick, traceparent)
    values ('timer/unknown', 'a', gen_random_uuid(), '{}', now() - interval '1 hour', 0, '')";

/// Replays until no dead letter of any kind waits at payment.
async fn settle_dead_letters(stack: &Stack) -> Result<()> {
    eventually("every dead letter to be replayed", REPAIR_TIMEOUT, async || {
        replay_dead_letters(stack, "payment").await?;
        let waiting = "select count(*) from chassis.dead_letters where settled_at is null";
        let mut db = connect_as_superuser(stack, "payment").await?;
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&mut db).await?;
        ensure!(waiting == 0, "{waiting} wait");
        Ok(())
    })
    .await
}

async fn kill(stack: &Stack, name: &str) -> Result<()> {
    stack.kill(name).await.map(drop)
}

/// What was lost is published again.
async fn republish(stack: &Stack) -> Result<()> {
    republish::run(stack, &RepublishOptions::default()).await.map(drop)
}

async fn delete_records(stack: &Stack) -> Result<()> {
    stack.stop("payment").await?;
    sleep(Duration::from_secs(3)).await;
    group_offsets::delete_records(&stack.kafka_client()?, "orders.created").await?;
    stack.start("payment").await
}

/// Cuts records off that order has read. Payment is down meanwhile, so that none takes their places before order looks.
async fn truncate_log(stack: &Stack) -> Result<()> {
    sleep(Duration::from_secs(5)).await;
    stack.stop("payment").await?;
    sleep(Duration::from_secs(3)).await;
    stack.kill("kafka").await?;
    log_truncation::truncate(stack, "payments.verified", 1, 4)?;
    stack.up().await
}

async fn lose_registry(stack: &Stack) -> Result<()> {
    registry_loss::lose_data(stack, STRANGERS).await?;
    let applied = registry_loss::apply_contracts(stack, Some("1"))?;
    ensure!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    Ok(())
}

async fn accept_schema_ids(stack: &Stack) -> Result<()> {
    for service in SERVICES {
        execute(stack, service, &["delete from chassis.schema_ids"]).await?;
    }
    Ok(())
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
