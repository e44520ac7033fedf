//! The check after each load: every order has ended, none is lost, and the books balance.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use launcher::eventually;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::environment::{Baseline, BenchEnvironment, SETTLE_TIMEOUT, min_id_at};
use crate::loads::Measurements;
use crate::preload;

impl BenchEnvironment {
    /// Switches the preloaded orders on or off, and starts a new baseline.
    pub async fn use_preloaded(&mut self, old: bool) -> Result<()> {
        preload::select_tables(&mut self.connect_database().await?, old).await?;
        let unpaid_cents = self.unpaid_cents().await?;
        self.baseline = Baseline { started_at: Utc::now(), unpaid_cents };
        *self.accepted.get_mut() = 0;
        Ok(())
    }

    /// Waits until every order of a finished load has ended. Refuses to report a stack that lost an order or whose books
    /// do not balance. Preloaded orders are only in the books, which sum up all orders.
    pub async fn finish(&self, measurements: &Measurements) -> Result<()> {
        let accepted = measurements.accepted.load(Ordering::Relaxed);
        self.accepted.fetch_add(i64::try_from(accepted)?, Ordering::Relaxed);
        eventually("all orders to have ended", SETTLE_TIMEOUT, async || {
            let open = "status = 'pending' or payment = 'waiting' or stock = 'waiting'";
            let pending = self.count_orders(open).await?;
            ensure!(pending == 0, "{pending} are pending");
            Ok(())
        })
        .await?;
        let there = self.count_orders("true").await?;
        let accepted = self.accepted.load(Ordering::Relaxed);
        ensure!(there == accepted, "{accepted} orders were accepted and {there} are stored");
        let excess = self.unpaid_cents().await? - self.baseline.unpaid_cents;
        ensure!(excess == 0, "the totals of orders exceed the payments by {excess}");
        let mut db = self.connect_database().await?;
        // Of another commit it may be in the schema of the service.
        sqlx::query("set search_path to public, chassis").execute(&mut db).await?;
        let dead_letters: i64 =
            sqlx::query_scalar("select count(*) from dead_letters").fetch_one(&mut db).await?;
        ensure!(dead_letters == 0, "{dead_letters} dead letters");
        let cancelled = self.count_orders("status = 'cancelled'").await?;
        ensure!(cancelled == 0, "{cancelled} orders were cancelled, which is less work");
        Ok(())
    }

    /// The number of orders since the baseline for which a condition holds.
    async fn count_orders(&self, condition: &str) -> Result<i64> {
        let query = format!("select count(*) from orders where order_id >= $1 and ({condition})");
        let query = sqlx::query_scalar(AssertSqlSafe(query));
        let query = query.bind(min_id_at(self.baseline.started_at)?);
        Ok(query.fetch_one(&mut self.connect_database().await?).await?)
    }

    /// The sum of the confirmed orders that payment never received.
    async fn unpaid_cents(&self) -> Result<i64> {
        self.balanced_books("stock").await?;
        let (order, payment) =
            (self.balanced_books("order").await?, self.balanced_books("payment").await?);
        let cents = |of: &Value| of.as_i64().context("books hold sums");
        Ok(cents(&order["confirmed_cents"])? - cents(&payment["taken_cents"])?)
    }

    async fn balanced_books(&self, service: &str) -> Result<Value> {
        let of: Value = self.client.books(service).await?;
        ensure!(of["balanced"] == json!(true), "the books of {service} don't balance: {of}");
        Ok(of)
    }
}
