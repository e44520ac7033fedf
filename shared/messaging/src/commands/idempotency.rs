//! Idempotency keys: a command that is sent again gets the same answer, and has no second effect.
//!
//! Promise: for at least 24 hours after a command was accepted, its key at its path stands for one effect and one
//! answer. A key that is written in another transaction than the effect breaks it, and so does a key that is
//! deleted because a clock jumped. A refusal is not stored: nothing was changed, and the same request may be
//! accepted later.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};

use crate::commands::refusal::{HostRefusal, Refusal};
use crate::commands::reply::Reply;
use crate::db;
use crate::db::clock::newest_tick;
use crate::unit_of_work::write_batch::WriteBatch;

/// How long a reply is stored at least. After it was pruned, a duplicate is a new request.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// The identity of a command that has its effect once: its path, the client's key, and a hash of the request, so
/// that the same key with another request is refused.
#[derive(Clone, Debug)]
pub struct IdempotentRequest {
    path: String,
    key: String,
    hash: [u8; 32],
}

impl IdempotentRequest {
    /// `path` is the concrete one, with its ids: a key belongs to one path.
    ///
    /// The order of a command's fields and absent fields do not change the hash: a version that adds an optional
    /// field recognises duplicates of requests to the version before.
    pub fn new(path: impl Into<String>, key: &str, command: &impl Serialize) -> IdempotentRequest {
        let mut request = serde_json::to_value(command).expect("commands are plain JSON");
        remove_nulls(&mut request);
        let hash = Sha256::digest(request.to_string()).into();
        IdempotentRequest { path: path.into(), key: key.into(), hash }
    }

    pub fn scope(&self) -> (&str, &str) {
        (&self.path, &self.key)
    }
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

#[derive(sqlx::FromRow)]
struct StoredReply {
    path: String,
    key: String,
    request_hash: Vec<u8>,
    status: i16,
    location: Option<String>,
    body: Vec<u8>,
}

/// Finds the commands of a batch that had their effect before, by their indexes. Each gets its stored reply, or a
/// refusal if the request differs.
pub(crate) async fn find_stored_replies<'a, P: HostRefusal>(
    tx: &mut PgConnection,
    batch: impl Iterator<Item = (usize, &'a IdempotentRequest)>,
) -> sqlx::Result<HashMap<usize, Result<Reply, P>>> {
    let mut keyed = BTreeMap::<(&str, &str), Vec<(usize, &IdempotentRequest)>>::new();
    batch.for_each(|(nth, once)| keyed.entry(once.scope()).or_default().push((nth, once)));
    if keyed.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<StoredReply> = sqlx::query_as(
        "select path, key, request_hash, status, location, body
         from unnest($1::text[], $2::text[]) as wanted (path, key)
         join chassis.idempotency_keys using (path, key)",
    )
    .bind(keyed.keys().map(|(path, _)| *path).collect::<Vec<_>>())
    .bind(keyed.keys().map(|(_, key)| *key).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let mut answers = HashMap::new();
    for row in &rows {
        for (nth, once) in &keyed[&(&*row.path, &*row.key)] {
            let answer = match row.request_hash == once.hash {
                true => {
                    let (status, location) = (row.status as u16, row.location.clone());
                    Ok(Reply { status, location, body: row.body.clone() })
                }
                false => Err(Refusal::KeyReused.into()),
            };
            answers.insert(*nth, answer);
        }
    }
    Ok(answers)
}

/// Stores the replies to accepted commands that have a key: each key once.
///
/// If a key is already stored, its unique constraint fails the whole statement. The batch is rolled back and run
/// again, and then finds the stored reply. The statement waits for a key that another transaction is writing.
/// Keys are written in order, after every row is locked, so that transactions wait in one direction only.
pub(crate) fn store_replies<'a>(
    writes: &mut WriteBatch<'_>,
    accepted: impl Iterator<Item = (&'a IdempotentRequest, &'a Reply)>,
) {
    let mut accepted: Vec<_> = accepted.collect();
    if accepted.is_empty() {
        return;
    }
    accepted.sort_by_key(|(once, _)| once.scope());
    let (requests, replies): (Vec<_>, Vec<_>) = accepted.iter().copied().unzip();
    writes
        .statement(concat!(
            "insert into chassis.idempotency_keys
             (path, key, request_hash, status, location, body, tick)
         select unnest($1::text[]), unnest($2::text[]), unnest($3::bytea[]),
                unnest($4::smallint[]), unnest($5::text[]), unnest($6::bytea[]), ",
            newest_tick!()
        ))
        .bind(requests.iter().map(|once| once.path.as_str()).collect::<Vec<_>>())
        .bind(requests.iter().map(|once| once.key.as_str()).collect::<Vec<_>>())
        .bind(requests.iter().map(|once| once.hash.as_slice()).collect::<Vec<_>>())
        .bind(replies.iter().map(|reply| reply.status as i16).collect::<Vec<_>>())
        .bind(replies.iter().map(|reply| reply.location.as_deref()).collect::<Vec<_>>())
        .bind(replies.iter().map(|reply| reply.body.as_slice()).collect::<Vec<_>>());
}

pub const PRUNE_STATEMENT: &str = "
    delete from chassis.idempotency_keys where (path, key) in (
        select path, key from chassis.idempotency_keys where tick < $1 order by tick limit $2)";

/// Deletes what is older than [`RETENTION`], for as long as the process runs.
pub(crate) async fn prune(db: PgPool) {
    db::retention::prune_forever(db, PRUNE_STATEMENT, RETENTION).await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_version_that_adds_an_optional_field_recognises_requests_of_the_one_before() {
        let hash = |request: Value| IdempotentRequest::new("/", "key", &request).hash;
        let before = hash(json!({ "till": "a", "lines": [{ "count": 1 }] }));
        let after = json!({ "gift": null, "lines": [{ "note": null, "count": 1 }], "till": "a" });
        assert_eq!(hash(after), before);
        let other = json!({ "lines": [{ "note": "", "count": 1 }], "till": "a" });
        assert_ne!(hash(other), before);
    }
}
