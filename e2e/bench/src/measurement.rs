//! One measurement: a load, the decisions committed during it, and their cost.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use anyhow::Result;
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::cpu_costs;
use crate::environment::{BenchEnvironment, min_id_at};
use crate::loads::{Load, Measurements, percentile_ms, sample_count};
use crate::plan::MeasurementPlan;
use crate::report::Run;
use crate::workload::Workload;

impl BenchEnvironment {
    /// Runs a load for the warm-up, measures it, then lets it end. It counts the decisions
    /// committed between two readings of the clock.
    pub async fn measure(
        &self,
        name: &str,
        workload: Workload,
        load: Load,
        plan: &MeasurementPlan,
    ) -> Result<Run> {
        let offered = match load {
            Load::PerSecond(offered) => Some(offered),
            Load::Callers(_) => None,
        };
        let load = self.start_load(workload, load)?;
        tokio::time::sleep(plan.warm_up).await;
        let measurements = load.measurements.clone();
        let load_average = cpu_costs::load_average();
        let before = self.measure_costs().await?;
        let refused_before = measurements.refused.load(Ordering::Relaxed);
        measurements.open_window(plan.duration);
        tokio::time::sleep(plan.duration).await;
        let refused = measurements.refused.load(Ordering::Relaxed) - refused_before;
        let after = self.measure_costs().await?;
        let memory = self.memory_bytes().await?;
        self.finish(&*load.stop().await?).await?;
        let ended = self.ended_between(before.at, after.at).await?;
        let commits = self.commit_latencies(&measurements, before.at).await?;
        let (spent, seconds) = (after.since(&before), (after.at - before.at).as_seconds_f64());
        let mut run = Run::from_costs(name, &spent, ended as f64, seconds);
        for (component, bytes) in memory {
            run.set(&format!("MB {component}"), bytes / 1e6);
        }
        let each_second = |count: u64| count as f64 / plan.duration.as_secs_f64();
        let (posts, ends) = (&measurements.post_latency, &measurements.completion_latency);
        run.set("placed/s", each_second(sample_count(posts)?));
        run.set("refused/s", each_second(refused));
        run.set("load average", load_average);
        for (what, of) in [("POST", posts), ("end", ends)] {
            run.set(&format!("{what} p50 ms"), percentile_ms(of, 50.0));
            run.set(&format!("{what} p99 ms"), percentile_ms(of, 99.0));
        }
        // With fewer orders it would be one of the ten slowest.
        if sample_count(ends)? >= 10_000 {
            run.set("end p99.9 ms", percentile_ms(ends, 99.9));
        }
        if let Some(offered) = offered {
            run.set("offered/s", offered);
            run.set("dropped/s", each_second(measurements.dropped.load(Ordering::Relaxed)));
        }
        for (what, of) in [("commit p50 ms", 0.5), ("commit p99 ms", 0.99)] {
            if let Some(took) = commits.get((commits.len() as f64 * of) as usize) {
                run.set(what, *took);
            }
        }
        eprintln!("{}", run.summary_line());
        Ok(run)
    }

    /// The time until the commit of the decision, sorted, in milliseconds, of confirmed orders:
    /// their rows do not change afterwards. Postgres takes the time of a commit right before its
    /// flush. Empty if Postgres does not record it.
    async fn commit_latencies(
        &self,
        measurements: &Measurements,
        since: DateTime<Utc>,
    ) -> Result<Vec<f64>> {
        let mut db = self.connect_database().await?;
        if !tracks_commit_timestamps(&mut db).await? {
            return Ok(Vec::new());
        }
        let committed: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
            "select order_id, pg_xact_commit_timestamp(xmin) from orders
             where order_id >= $1 and status = 'confirmed'",
        )
        .bind(min_id_at(since)?)
        .fetch_all(&mut db)
        .await?;
        let orders = measurements.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let took = |(order_id, at): (Uuid, DateTime<Utc>)| {
            Some((at - *orders.get(&order_id)?).as_seconds_f64() * 1e3)
        };
        let mut took: Vec<f64> = committed.into_iter().filter_map(took).collect();
        took.sort_by(f64::total_cmp);
        Ok(took)
    }

    /// The number of decisions committed in a span of time, by the database's clock. If Postgres does not record commit times, the begin of the transaction counts.
    async fn ended_between(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Result<i64> {
        let mut db = self.connect_database().await?;
        let at = if tracks_commit_timestamps(&mut db).await? {
            "pg_xact_commit_timestamp(xmin)"
        } else {
            "ended_at"
        };
        let count = sqlx::query_scalar(AssertSqlSafe(format!(
            "select count(*) from orders
             where order_id >= $1 and ended_at >= $2 - interval '1 minute' and {at} >= $2 and {at} < $3"
        )))
        .bind(min_id_at(self.baseline.started_at)?)
        .bind(from)
        .bind(to)
        .fetch_one(&mut db)
        .await?;
        Ok(count)
    }
}

/// Whether Postgres records commit times.
async fn tracks_commit_timestamps(db: &mut PgConnection) -> Result<bool> {
    let noted: String = sqlx::query_scalar("show track_commit_timestamp").fetch_one(db).await?;
    Ok(noted == "on")
}
