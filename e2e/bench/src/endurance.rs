//! `make bench PART=hour`: whether an hour at half of the peak changes anything.
//!
//! Each measurement takes five minutes, so that a drift shows, and the last one has the dead rows that the hour left:
//! rows that were deleted or replaced, and that vacuum has not removed yet.

use std::time::Duration;

use anyhow::Result;
use e2e::stack_description::SERVICES;
use sqlx::{Connection, PgConnection};

use crate::environment::BenchEnvironment;
use crate::loads::Load;
use crate::plan::MeasurementPlan;
use crate::report::{Report, SAGAS_PER_SECOND};
use crate::workload::Workload;

const MEASUREMENT_MINUTES: u64 = 5;
const MEASUREMENTS: u64 = 12;

pub async fn measure(
    environment: &BenchEnvironment,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    let (workload, saturating) = (Workload::default(), Load::SATURATING);
    let peak = environment.measure("the peak", workload, saturating, plan).await?;
    let half = Load::PerSecond(peak.get(SAGAS_PER_SECOND) / 2.0);
    report.add(peak);
    let duration = Duration::from_secs(60 * MEASUREMENT_MINUTES);
    let plan = MeasurementPlan { duration, ..plan.clone() };
    for nth in 1..=MEASUREMENTS {
        let name = format!("half of the peak, until minute {}", nth * MEASUREMENT_MINUTES);
        report.add(environment.measure(&name, workload, half, &plan).await?);
    }
    for service in SERVICES {
        for (table, dead) in dead_rows(environment, service).await? {
            report.last_run().set(&format!("dead rows {service} {table}"), dead);
        }
    }
    Ok(())
}

/// The tables of a service that have dead rows.
async fn dead_rows(environment: &BenchEnvironment, service: &str) -> Result<Vec<(String, f64)>> {
    let mut db = PgConnection::connect(&environment.client.addresses.databases[service]).await?;
    let found = sqlx::query_as(
        "select relname::text, n_dead_tup::float8 from pg_stat_user_tables where n_dead_tup > 0",
    );
    let found = found.fetch_all(&mut db).await?;
    db.close().await?;
    Ok(found)
}
