//! The resource usage of a stack: memory, connections, and the tables that fill and empty. After a
//! run it must be about what it was before.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use checker::group_digits;
use launcher::Stack;
use sqlx::{Connection, PgConnection};

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I16;
use crate::client::http_client::Client;
use crate::stack_description::SERVICES;

/// The accepted permanent growth, as a share of the size before.
const GROWTH_MAX: f64 = 1.2;

/// The accepted growth of a process that has worked, and of a table, even if both were very small
/// before.
pub const MEMORY_ALLOWANCE_BYTES: u64 = 64 * 1024 * 1024;
pub const OUTBOX_ALLOWANCE_BYTES: u64 = 16 * 1024 * 1024;

/// The connections of an instance: its pool, five sessions of its loops, one of its probes, and one
/// that is being replaced.
pub const CONNECTIONS_PER_INSTANCE_MAX: u64 = 16 + 7;

/// The current resource usage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceUsage {
    /// The memory of each running instance.
    pub memory_bytes: BTreeMap<String, u64>,
    pub databases: BTreeMap<String, DatabaseUsage>,
}

/// The resource usage of a service in its database.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatabaseUsage {
    pub instances: u64,
    pub connections: u64,
    pub outbox_rows: u64,
    pub outbox_bytes: u64,
}

impl ResourceUsage {
    pub async fn measure(stack: &Stack, client: &Client) -> Result<ResourceUsage> {
        let mut usage = ResourceUsage::default();
        for component in stack.status().await? {
            let service = component.name.split('-').next().unwrap_or_default();
            if component.pid.is_some()
                && !component.name.ends_with("-db")
                && SERVICES.contains(&service)
            {
                usage.memory_bytes.insert(component.name, component.memory_bytes);
            }
        }
        for service in SERVICES {
            let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
            let (connections, rows, bytes): (i64, i64, i64) = sqlx::query_as(
                "select (select count(*) from pg_stat_activity where usename = $1),
                        (select count(*) from chassis.outbox), pg_total_relation_size('chassis.outbox')",
            )
            .bind(service)
            .fetch_one(&mut db)
            .await
            .with_context(|| format!("the resource usage of {service} cannot be read"))?;
            db.close().await?;
            let database = DatabaseUsage {
                instances: stack.instances_of(service)?.len() as u64,
                connections: u64::try_from(connections)?,
                outbox_rows: u64::try_from(rows)?,
                outbox_bytes: u64::try_from(bytes)?,
            };
            usage.databases.insert(service.to_string(), database);
        }
        Ok(usage)
    }

    /// Compares the current usage with the usage before.
    pub fn check(&self, before: &ResourceUsage, findings: &mut Findings) {
        for (name, bytes) in &self.memory_bytes {
            let was = before.memory_bytes.get(name).copied().unwrap_or_default();
            let max = limit(was, MEMORY_ALLOWANCE_BYTES);
            findings.unless(*bytes <= max, I16, "memory", || {
                format!(
                    "{name} uses {} bytes of memory, and used {} before",
                    group_digits(*bytes),
                    group_digits(was)
                )
            });
        }
        for (service, now) in &self.databases {
            let was = before.databases.get(service).cloned().unwrap_or_default();
            let max = now.instances * CONNECTIONS_PER_INSTANCE_MAX;
            findings.unless(now.connections <= max, I16, "connections", || {
                format!("{service} has {} connections, above the bound of {max}", now.connections)
            });
            findings.unless(now.outbox_rows == 0, I16, "outbox", || {
                format!(
                    "{} rows are left in the outbox of {service}",
                    group_digits(now.outbox_rows)
                )
            });
            let max = limit(was.outbox_bytes, OUTBOX_ALLOWANCE_BYTES);
            findings.unless(now.outbox_bytes <= max, I16, "outbox", || {
                let (now, was) = (group_digits(now.outbox_bytes), group_digits(was.outbox_bytes));
                format!("the outbox of {service} uses {now} bytes, and used {was} before")
            });
        }
    }
}

fn limit(was: u64, allowance: u64) -> u64 {
    (was as f64 * GROWTH_MAX) as u64 + allowance
}
