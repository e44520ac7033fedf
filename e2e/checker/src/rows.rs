//! Reads the tables of the chassis, and the queries of a service.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result};
use sqlx::PgPool;
use uuid::Uuid;

/// What a subscriber has handled.
pub(crate) struct Handled {
    pub service: String,
    /// The topic of each event in the inbox.
    pub inbox: HashMap<Uuid, String>,
    /// The position of the record of each dead letter, in any state: topic, partition and offset.
    pub dead_letters: HashSet<(String, i32, i64)>,
    /// The reason of each dead letter that waits.
    pub waiting: Vec<String>,
}

pub(crate) async fn connect(urls: &BTreeMap<String, String>) -> Result<BTreeMap<String, PgPool>> {
    let mut databases = BTreeMap::new();
    for (service, url) in urls {
        let db = PgPool::connect(url).await;
        let db = db.with_context(|| format!("the database of {service} cannot be reached"))?;
        databases.insert(service.clone(), db);
    }
    Ok(databases)
}

/// The work that waits in the databases, in words.
pub(crate) async fn pending(databases: &BTreeMap<String, PgPool>) -> Result<Vec<String>> {
    let mut pending = Vec::new();
    for (service, db) in databases {
        let waiting: i64 =
            sqlx::query_scalar("select count(*) from chassis.outbox").fetch_one(db).await?;
        if waiting > 0 {
            pending.push(format!("{waiting} events wait in the outbox of {service}"));
        }
        let paused = "select reason from chassis.consumer where paused_at is not null";
        let paused: Option<Option<String>> = sqlx::query_scalar(paused).fetch_optional(db).await?;
        if let Some(reason) = paused {
            pending.push(format!("{service} is paused: {}", reason.unwrap_or_default()));
        }
    }
    Ok(pending)
}

pub(crate) async fn handled(db: &PgPool, service: &str) -> Result<Handled> {
    let inbox: Vec<(Uuid, String)> =
        sqlx::query_as("select event_id, topic from chassis.inbox").fetch_all(db).await?;
    let positions: Vec<(String, i32, i64)> =
        sqlx::query_as("select topic, partition, \"offset\" from chassis.dead_letters")
            .fetch_all(db)
            .await?;
    let waiting = "select reason from chassis.dead_letters where state = 'waiting' order by 1";
    Ok(Handled {
        service: service.to_owned(),
        inbox: inbox.into_iter().collect(),
        dead_letters: positions.into_iter().collect(),
        waiting: sqlx::query_scalar(waiting).fetch_all(db).await?,
    })
}

pub(crate) async fn event_ids(db: &PgPool, query: &'static str) -> Result<HashSet<Uuid>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(query).fetch_all(db).await.context(query)?;
    Ok(ids.into_iter().collect())
}
