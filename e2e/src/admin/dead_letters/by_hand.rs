//! Two ways to make a dead letter by hand: a record that is not an event, and a statement in a
//! service's database after which a handler fails.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use chassis::event::Topic;
use launcher::Stack;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::client::sample_events::POISON_KEY;
use crate::console::printable;

const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Produces a record that is not an event.
pub async fn produce_poison(stack: &Stack, topic: &Topic, out: &mut impl Write) -> Result<()> {
    let producer: FutureProducer = stack.kafka_client()?.create()?;
    let event_id = Uuid::now_v7().to_string();
    let headers = OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(&event_id) });
    let topic = topic.name;
    let record =
        FutureRecord::to(topic).key(POISON_KEY).payload("this is no event").headers(headers);
    let position = producer.send(record, SEND_TIMEOUT).await.map_err(|(error, _)| error)?;
    writeln!(
        out,
        "\"this is no event\" is at {topic}[{}]@{}",
        position.partition, position.offset
    )?;
    Ok(())
}

pub async fn run_sql(
    stack: &Stack,
    service: &str,
    statement: &str,
    out: &mut impl Write,
) -> Result<()> {
    let service = service.trim_end_matches("-db");
    let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
    // The statement does not wait for a table in use, since all other sessions would then wait
    // behind it.
    db.execute("set lock_timeout = '5s'").await?;
    if statement.trim_start().to_lowercase().starts_with("select") {
        let statement = statement.trim_end().trim_end_matches(';');
        let rows = format!("select row_to_json(row)::text from ({statement}) as row");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_all(&mut db).await?;
        rows.iter().try_for_each(|row| writeln!(out, "{}", printable(row)))?;
    } else {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut db).await?;
        writeln!(out, "executed in the database of {service}")?;
    }
    Ok(())
}
