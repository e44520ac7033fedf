//! Idempotency keys: a command that comes again is answered as before, and has no second effect.
//!
//! Promise: for 24 hours at least after a command was accepted, its key at its place means one effect and
//! one answer. It is broken by writing the key in another transaction than the effect, and by forgetting
//! it because a clock says so. A refusal is not remembered: nothing was stored, and what was refused may
//! be possible by now.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::clock::newest_tick;
use crate::db;
use crate::problem::Problem;
use crate::reply::Reply;
use crate::writes::Writes;

/// How long an answer is remembered at least. Once it was pruned, a repeat is a new request.
pub(crate) const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A command that is to have its effect once: where it was sent, the client's key, and a hash of
/// what was sent, so that the same key with another wish is refused.
#[derive(Clone, Debug)]
pub struct Once {
    path: String,
    key: String,
    hash: [u8; 32],
}

impl Once {
    /// `path` is the concrete one, with its ids: a key belongs to one place.
    ///
    /// The order of a command's fields, and those that are not said, make no difference to the hash:
    /// a version that adds an optional field takes a repeat for what it is.
    pub fn new(path: impl Into<String>, key: &str, command: &impl Serialize) -> Once {
        let mut wish = serde_json::to_value(command).expect("commands are plain JSON");
        leave_out_nulls(&mut wish);
        let hash = Sha256::digest(wish.to_string()).into();
        Once { path: path.into(), key: key.into(), hash }
    }

    /// For a command whose clients send no key, and that another one may undo: it is given a key here, so
    /// that a try after a cut commit finds that it had its effect, even where that is not to be seen
    /// any longer.
    pub fn by_itself(path: impl Into<String>, command: &impl Serialize) -> Once {
        Once::new(path, &Uuid::now_v7().to_string(), command)
    }

    /// What the key is unique by.
    pub(crate) fn place(&self) -> (&str, &str) {
        (&self.path, &self.key)
    }
}

fn leave_out_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(leave_out_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(leave_out_nulls),
        _ => {}
    }
}

/// A key of the batch that is remembered.
#[derive(sqlx::FromRow)]
struct Row {
    path: String,
    key: String,
    request_hash: Vec<u8>,
    status: i16,
    location: Option<String>,
    answer: Vec<u8>,
}

/// Answers those commands of a batch that had their effect before, each by the number it came with:
/// from memory, or with a refusal if the wish was another.
pub(crate) async fn remembered<'a>(
    tx: &mut PgConnection,
    batch: impl Iterator<Item = (usize, &'a Once)>,
) -> sqlx::Result<HashMap<usize, Result<Reply, Problem>>> {
    let mut keyed = BTreeMap::<(&str, &str), Vec<(usize, &Once)>>::new();
    batch.for_each(|(nth, once)| keyed.entry(once.place()).or_default().push((nth, once)));
    if keyed.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<Row> = sqlx::query_as(
        "select path, key, request_hash, status, location, answer
         from unnest($1::text[], $2::text[]) as wanted (path, key)
         join idempotency_keys using (path, key)",
    )
    .bind(keyed.keys().map(|(path, _)| *path).collect::<Vec<_>>())
    .bind(keyed.keys().map(|(_, key)| *key).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let mut answers = HashMap::new();
    for row in &rows {
        for (nth, once) in &keyed[&(&*row.path, &*row.key)] {
            let answer = match StatusCode::from_u16(row.status as u16) {
                _ if row.request_hash != once.hash => Err(Problem::key_reused()),
                Ok(status) => Ok(Reply::again(status, row.location.clone(), row.answer.clone())),
                Err(_) => Err(Problem::outcome_unknown()),
            };
            answers.insert(*nth, answer);
        }
    }
    Ok(answers)
}

/// Stores what keyed commands were answered that were accepted: each key once.
///
/// Where a key is there already, the whole statement fails, as it is unique: the batch is rolled back
/// and run again, and then finds the answer. One that another transaction is just writing is waited
/// for. Keys are written in order, after every row is locked, so transactions wait in one direction
/// only.
pub(crate) fn remember<'a>(
    writes: &mut Writes<'_>,
    accepted: impl Iterator<Item = (&'a Once, &'a Reply)>,
) {
    let mut accepted: Vec<_> = accepted.collect();
    if accepted.is_empty() {
        return;
    }
    accepted.sort_by_key(|(once, _)| once.place());
    let (onces, replies): (Vec<_>, Vec<_>) = accepted.iter().copied().unzip();
    writes
        .add(concat!(
            "insert into idempotency_keys
             (path, key, request_hash, status, location, answer, tick)
         select unnest($1::text[]), unnest($2::text[]), unnest($3::bytea[]),
                unnest($4::smallint[]), unnest($5::text[]), unnest($6::bytea[]), ",
            newest_tick!()
        ))
        .bind(onces.iter().map(|once| once.path.as_str()).collect::<Vec<_>>())
        .bind(onces.iter().map(|once| once.key.as_str()).collect::<Vec<_>>())
        .bind(onces.iter().map(|once| once.hash.as_slice()).collect::<Vec<_>>())
        .bind(replies.iter().map(|reply| reply.status.as_u16() as i16).collect::<Vec<_>>())
        .bind(replies.iter().map(|reply| reply.location.as_deref()).collect::<Vec<_>>())
        .bind(replies.iter().map(|reply| reply.answer.as_slice()).collect::<Vec<_>>());
}

pub(crate) const PRUNE: &str = "
    delete from idempotency_keys where (path, key) in (
        select path, key from idempotency_keys where tick < $1 order by tick limit $2)";

/// Deletes what is older than [`KEPT`], for as long as the process runs.
pub(crate) async fn prune(db: PgPool) {
    db::prune(db, PRUNE, KEPT).await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_version_that_adds_an_optional_field_knows_the_wishes_of_the_one_before() {
        let hash = |wish: Value| Once::new("/", "key", &wish).hash;
        let before = hash(json!({ "till": "a", "lines": [{ "count": 1 }] }));
        let after = json!({ "gift": null, "lines": [{ "note": null, "count": 1 }], "till": "a" });
        assert_eq!(hash(after), before);
        let other = json!({ "lines": [{ "note": "", "count": 1 }], "till": "a" });
        assert_ne!(hash(other), before);
    }
}
