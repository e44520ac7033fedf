//! F37. No single clock decides: neither a service's own nor a database's.

use chrono::{DateTime, Utc};
use e2e::scenarios::order_faults;
use faults::skewed_clock::SkewedClock;
use sqlx::{Connection, PgConnection};

use super::*;

/// In seconds.
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// Old rows are deleted once a minute.
const PRUNE_WAIT: Duration = Duration::from_secs(75);

/// The deadline is swept every five seconds.
const SWEEP_WAIT: Duration = Duration::from_secs(16);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn services_whose_clocks_are_an_hour_or_a_year_off_lose_and_repeat_nothing() -> Result<()> {
    on_ephemeral_stack(wrong_clocks).await
}

async fn wrong_clocks(stack: &Stack) -> Result<()> {
    let client = start_and_seed(stack).await?;
    for (service, off) in [("order", HOUR), ("payment", -HOUR), ("stock", YEAR), ("order", -YEAR)] {
        let clock = SkewedClock::new(stack, service)?;
        clock.set_offset(off)?;
        clock.apply_to(stack, service)?;
        restart(stack, service).await?;
        let is_off = (service_time(stack, service).await? - Utc::now()).num_seconds();
        ensure!(
            is_off.abs_diff(off) < TIMEOUT.as_secs(),
            "the clock of {service} is off by {is_off} s"
        );
        confirm_orders(&client, 20).await?;
    }
    assert_verified(&client).await
}

/// The time according to a service, from the `Date` header of a response.
async fn service_time(stack: &Stack, service: &str) -> Result<DateTime<Utc>> {
    let answer = reqwest::get(format!("{}/openapi.json", stack.url(service)?)).await?;
    let date = answer.headers().get("date").context("an answer has a date")?.to_str()?;
    Ok(DateTime::parse_from_rfc2822(date)?.to_utc())
}

/// Sets a database's clock, and reads the time from the database.
async fn jump_clock(stack: &Stack, service: &str, clock: &SkewedClock, seconds: i64) -> Result<()> {
    clock.set_offset(seconds)?;
    let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
    let now: DateTime<Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut db).await?;
    let is_off = (now - Utc::now()).num_seconds();
    ensure!(is_off.abs_diff(seconds) < 5, "the clock is off by {is_off} s and not {seconds}");
    Ok(())
}

/// A virtual machine that resumes, or a wrong time server: a day ahead, a day behind, and back.
/// Deposits are protected from a second booking by their keys alone.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes five minutes: make faults"]
async fn a_database_whose_clock_jumps_a_day_and_back_books_no_deposit_twice() -> Result<()> {
    on_ephemeral_stack(keys_outlive_a_jump).await
}

async fn keys_outlive_a_jump(stack: &Stack) -> Result<()> {
    let clock = SkewedClock::new(stack, "payment-db")?;
    clock.apply_to(stack, "payment-db")?;
    let client = start_and_seed(stack).await?;
    let customer = Uuid::now_v7();
    let deposit = async |key: &str| client.deposit(customer, 100_000, key).await;
    let mut keys = Vec::new();
    for (nth, off) in [0, DAY + HOUR, 0, -DAY - HOUR, 0].into_iter().enumerate() {
        jump_clock(stack, "payment", &clock, off).await?;
        let key = format!("deposit-{nth}");
        keys.push((key.clone(), deposit(&key).await?));
        if nth > 0 {
            sleep(PRUNE_WAIT).await;
        }
        confirm_orders(&client, 5).await?;
    }
    let account = format!("/accounts/{customer}");
    let before: serde_json::Value = client.get("payment", &account).await?;
    for (key, first) in keys {
        ensure!(deposit(&key).await? == first, "{key} got another response");
    }
    let after: serde_json::Value = client.get("payment", &account).await?;
    ensure!(before == after, "{before} and then {after}");
    assert_verified(&client).await
}

/// The first sweep after a start goes through all orders.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn a_database_whose_clock_jumps_ends_no_order_that_is_younger_than_the_deadline() -> Result<()>
{
    on_ephemeral_stack(deadline_outlives_a_jump).await
}

async fn deadline_outlives_a_jump(stack: &Stack) -> Result<()> {
    let clock = SkewedClock::new(stack, "order-db")?;
    clock.apply_to(stack, "order-db")?;
    stack.set_environment("order", order_faults::DEADLINE_VARIABLE, Some(&HOUR.to_string()))?;
    // The clock is ahead when everything starts, and correct soon after.
    clock.set_offset(HOUR)?;
    let client = start_and_seed(stack).await?;
    stack.stop("stock").await?;
    let mut orders = place_orders(&client, 4).await?;
    jump_clock(stack, "order", &clock, 0).await?;
    // As if the processes had run for long: a new process has no record of a past hour.
    let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
    sqlx::raw_sql(
        "delete from chassis.clock_ticks; insert into chassis.clock_ticks (tick, elapsed_ms, recorded_at)
         select minute, minute * 60000, now() - (180 - minute) * interval '1 minute'
         from generate_series(0, 180) as minute",
    )
    .execute(&mut db)
    .await?;
    for off in [0, 2 * HOUR, -2 * HOUR, 0, 2 * HOUR] {
        jump_clock(stack, "order", &clock, off).await?;
        orders.extend(place_orders(&client, 2).await?);
        restart(stack, "order").await?;
        sleep(SWEEP_WAIT).await;
    }
    jump_clock(stack, "order", &clock, 0).await?;
    sleep(SWEEP_WAIT).await;
    for order in &orders {
        let order = client.get_order(order.order_id).await?;
        ensure!(order.status == "pending", "{order:?}");
    }
    stack.start("stock").await?;
    wait_until_confirmed(&client, &orders).await?;
    assert_verified(&client).await
}
