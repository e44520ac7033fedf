//! The check after each load: every order has ended, none is lost, and the books balance.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use launcher::eventually;
use serde_json::{Value, json};

use crate::environment::{BenchEnvironment, SETTLE_TIMEOUT, min_id_at};

impl BenchEnvironment {
    /// Refuses to report a stack that lost an order or whose books do not balance. Preloaded orders
    /// are only in the books, which sum up all orders.
    pub(crate) async fn wait_until_settled(&self) -> Result<()> {
        let mut db = self.connect_database().await?;
        let since = min_id_at(self.baseline.started_at)?;
        eventually("all orders to have ended", SETTLE_TIMEOUT, async || {
            let pending: i64 = sqlx::query_scalar(
                "select count(*) from orders where order_id >= $1
                 and (status = 'pending' or payment = 'waiting' or stock = 'waiting')",
            )
            .bind(since)
            .fetch_one(&mut self.connect_database().await?)
            .await?;
            ensure!(pending == 0, "{pending} are pending");
            Ok(())
        })
        .await?;
        let there: i64 = sqlx::query_scalar("select count(*) from orders where order_id >= $1")
            .bind(since)
            .fetch_one(&mut db)
            .await?;
        let accepted = self.accepted.load(Ordering::Relaxed);
        ensure!(there == accepted, "{accepted} orders were accepted and {there} are stored");
        let [order, payment, _] = self.books().await?;
        let (untaken, before) = (unpaid_cents(&order, &payment)?, self.baseline.unpaid_cents);
        ensure!(
            untaken == before,
            "the totals of orders exceed the payments by {}",
            untaken - before
        );
        // Of another commit it may be in the schema of the service.
        sqlx::query("set search_path to public, chassis").execute(&mut db).await?;
        let dead_letters: i64 =
            sqlx::query_scalar("select count(*) from dead_letters").fetch_one(&mut db).await?;
        ensure!(dead_letters == 0, "{dead_letters} dead letters");
        let cancelled: i64 = sqlx::query_scalar(
            "select count(*) from orders where order_id >= $1 and status = 'cancelled'",
        )
        .bind(since)
        .fetch_one(&mut db)
        .await?;
        ensure!(cancelled == 0, "{cancelled} orders were cancelled, which is less work");
        Ok(())
    }

    pub(crate) async fn books(&self) -> Result<[Value; 3]> {
        let books = ["order", "payment", "stock"].map(|service| async move {
            let of: Value = self.client.books(service).await?;
            ensure!(of["balanced"] == json!(true), "the books of {service} don't balance: {of}");
            Ok(of)
        });
        let [order, payment, stock] = books;
        Ok([order.await?, payment.await?, stock.await?])
    }
}

/// The sum of the confirmed orders that payment never received.
pub fn unpaid_cents(order: &Value, payment: &Value) -> Result<i64> {
    let cents = |of: &Value| of.as_i64().context("books hold sums");
    Ok(cents(&order["confirmed_cents"])? - cents(&payment["taken_cents"])?)
}
