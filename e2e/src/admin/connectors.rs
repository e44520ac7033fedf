//! The connectors of the stack, by their files, and who carries the outboxes of the services.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use launcher::directories::programs_directory;
use launcher::{ConnectorConfig, Stack, eventually};
use sqlx::{Connection, PgConnection};

use crate::stack_description::SERVICES;

/// The connector that carries the outbox of a service. The name of the service stands where it says `<service>`.
const OUTBOX: &str = include_str!("../../../shared/messaging/connectors/outbox.json");

/// How long the connectors may take to send what they captured, and to leave their slots.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
const SLOT_TIMEOUT: Duration = Duration::from_secs(60);

/// The variable of a service that says who carries its outbox.
const VARIABLE: &str = "RELAY";

/// The feature of the contracts that has the users of these connectors.
const FEATURE: &str = "cdc";

/// Who carries the outboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Carrier {
    /// The relay of each service
    Service,
    /// A connector for each service, which reads the log of its database
    Cdc,
}

impl Carrier {
    fn value(self) -> &'static str {
        match self {
            Carrier::Service => "service",
            Carrier::Cdc => "cdc",
        }
    }

    /// The value of the variable `RELAY`, if it is set.
    ///
    /// # Errors
    /// If it has another value than those.
    pub fn from_environment() -> Result<Option<Carrier>> {
        match std::env::var(VARIABLE).unwrap_or_default().as_str() {
            "" => Ok(None),
            "service" => Ok(Some(Carrier::Service)),
            "cdc" => Ok(Some(Carrier::Cdc)),
            other => bail!("RELAY={other} is neither service nor cdc"),
        }
    }
}

/// Lets the services of a native stack be carried so from their next start on. A connector needs Kafka Connect, which
/// starts with the next `up`.
///
/// # Errors
/// If the stack is not native.
pub fn choose(stack: &Stack, carrier: Carrier) -> Result<()> {
    if carrier == Carrier::Cdc {
        stack.connect()?;
        stack.add_feature(FEATURE, &SERVICES.map(outbox_name))?;
    }
    SERVICES
        .iter()
        .try_for_each(|service| stack.set_environment(service, VARIABLE, Some(carrier.value())))
}

/// Creates the connectors of the outboxes, or changes them to what their files say, and waits until they run. Does
/// nothing in a stack whose outboxes no connector carries. It can be repeated.
///
/// # Errors
/// If one of them does not run.
pub async fn apply(stack: &Stack) -> Result<()> {
    if !stack.has_feature(FEATURE)? {
        return Ok(());
    }
    for service in SERVICES {
        let config = outbox(service, stack.connector_database(service)?)?;
        stack.apply_connector(&outbox_name(service), &config).await?;
    }
    Ok(())
}

/// Removes the connectors of the outboxes, their slots, and their users. The services relay by then.
async fn remove(stack: &Stack) -> Result<()> {
    for service in SERVICES {
        stack.remove_connector(&outbox_name(service)).await?;
        let mut db = PgConnection::connect(&stack.maintenance_database_url(service)?).await?;
        // The session of the connector ends a moment after its task.
        eventually(&format!("the slot of {service} to be free"), SLOT_TIMEOUT, async || {
            let dropped = sqlx::query(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1",
            );
            dropped.bind(format!("{service}_outbox")).execute(&mut db).await.map(drop)?;
            Ok(())
        })
        .await?;
        db.close().await?;
    }
    stack.remove_feature(FEATURE)?;
    stack.apply_contracts(&programs_directory()?).await
}

/// Changes who carries the outboxes while the stack runs: the instances of the services start again, one at a time. The
/// connectors go once nothing of theirs is on its way.
///
/// # Errors
/// If a component does not start, or a connector has events after two minutes that Kafka does not confirm.
pub async fn switch(stack: &Stack, carrier: Carrier) -> Result<()> {
    choose(stack, carrier)?;
    stack.up().await?;
    for service in SERVICES {
        // Also grants the role of the connector what it reads.
        stack.migrate(service).await?;
    }
    apply(stack).await?;
    for service in SERVICES {
        for name in stack.instances_of(service)? {
            stack.stop(&name).await?;
            stack.start(&name).await?;
        }
    }
    if carrier == Carrier::Service && stack.has_feature(FEATURE)? {
        wait_until_carried(stack, carrier, DRAIN_TIMEOUT).await?;
        remove(stack).await?;
    }
    Ok(())
}

/// Waits until every outbox is carried so, and nothing is left of the other way.
///
/// # Errors
/// If it is not after this time.
pub async fn wait_until_carried(stack: &Stack, by: Carrier, within: Duration) -> Result<()> {
    for service in SERVICES {
        eventually(&format!("the outbox of {service} to change its carrier"), within, async || {
            let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
            let (captured, drained): (bool, bool) = sqlx::query_as(
                "select tgenabled <> 'D', drain_to is null from pg_trigger, chassis.delivery
                 where tgrelid = 'chassis.outbox'::regclass and tgname = 'capture_event'",
            )
            .fetch_one(&mut db)
            .await?;
            db.close().await?;
            ensure!(captured == (by == Carrier::Cdc) && drained, "{captured}, {drained}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The name of the connector that carries the outbox of a service.
pub fn outbox_name(service: &str) -> String {
    format!("{service}-outbox")
}

/// The settings of that connector. `database` says how it reaches the database of the service.
///
/// # Errors
/// If the file of the connector is no object.
pub fn outbox(service: &str, database: ConnectorConfig) -> Result<ConnectorConfig> {
    let text = OUTBOX.replace("<service>", service);
    let mut config: ConnectorConfig =
        serde_json::from_str(&text).context("the file of the connector is no object")?;
    config.extend(database);
    Ok(config)
}
