//! Idempotency keys: a command that comes again is answered as before, and has no second effect.
//!
//! Promise: within 24 hours, a key at a place means one effect and one answer. It is broken by writing
//! the key in another transaction than the effect.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use axum::http::StatusCode;
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::{PgPool, PgTransaction};

use crate::commands::Reply;
use crate::db;
use crate::problem::Problem;

/// How long an answer is remembered; after that a repeat is a new request.
pub(crate) const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A command that is to have its effect once: where it was sent, the client's key, and a hash of
/// what was sent, so that the same key with another wish is refused.
#[derive(Clone, Debug)]
pub struct Once {
    path: String,
    key: String,
    hash: Vec<u8>,
}

impl Once {
    /// `path` is the concrete one, with its ids: a key belongs to one place.
    pub fn new(path: impl Into<String>, key: &str, command: &impl Serialize) -> Once {
        let wish = serde_json::to_vec(command).expect("commands are plain JSON");
        Once { path: path.into(), key: key.into(), hash: Sha256::digest(wish).to_vec() }
    }

    /// What the key is unique by.
    pub(crate) fn place(&self) -> (String, String) {
        (self.path.clone(), self.key.clone())
    }
}

/// Enters the keys of a batch; answers those whose command had its effect before, each by the number
/// it came with. No key stands in a batch twice.
///
/// Keys are entered in order, so that batches wait in one direction only. A key that was there is
/// answered from memory, or refused if the wish was another; a key whose first command is still at
/// work elsewhere is waited for.
pub(crate) async fn admit<'a>(
    tx: &mut PgTransaction<'_>,
    batch: impl Iterator<Item = (usize, &'a Once)>,
) -> sqlx::Result<Vec<(usize, Result<Reply, Problem>)>> {
    let keyed: BTreeMap<(&str, &str), (usize, &Once)> =
        batch.map(|(nth, once)| ((&*once.path, &*once.key), (nth, once))).collect();
    if keyed.is_empty() {
        return Ok(Vec::new());
    }
    let paths: Vec<&str> = keyed.keys().map(|(path, _)| *path).collect();
    let keys: Vec<&str> = keyed.keys().map(|(_, key)| *key).collect();
    sqlx::query(
        "delete from idempotency_keys using unnest($1::text[], $2::text[]) as old (path, key)
         where idempotency_keys.path = old.path and idempotency_keys.key = old.key
           and created_at < now() - make_interval(secs => $3)",
    )
    .bind(&paths)
    .bind(&keys)
    .bind(KEPT.as_secs_f64())
    .execute(&mut **tx)
    .await?;
    let entered: HashSet<(String, String)> = sqlx::query_as(
        "insert into idempotency_keys (path, key, request_hash)
         select * from unnest($1::text[], $2::text[], $3::bytea[])
         on conflict do nothing
         returning path, key",
    )
    .bind(&paths)
    .bind(&keys)
    .bind(keyed.values().map(|(_, once)| once.hash.as_slice()).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await?
    .into_iter()
    .collect();
    if entered.len() == keyed.len() {
        return Ok(Vec::new());
    }
    type Remembered = (String, String, Vec<u8>, Option<i16>, Option<String>, Option<Vec<u8>>);
    let remembered: Vec<Remembered> = sqlx::query_as(
        "select path, key, request_hash, status, location, answer
         from unnest($1::text[], $2::text[]) as wanted (path, key)
         join idempotency_keys using (path, key)",
    )
    .bind(&paths)
    .bind(&keys)
    .fetch_all(&mut **tx)
    .await?;
    // A row that was in the way and has gone since was just pruned: the next try enters its key.
    if remembered.len() < keyed.len() {
        return Err(sqlx::Error::RowNotFound);
    }
    let mut answers = Vec::new();
    for (path, key, hash, status, location, answer) in remembered {
        let (nth, once) = keyed[&(&*path, &*key)];
        if entered.contains(&(path, key)) {
            continue;
        }
        let status = status.and_then(|status| StatusCode::from_u16(status as u16).ok());
        let answer = match (status, answer) {
            _ if hash != once.hash => Err(Problem::key_reused()),
            (Some(status), Some(answer)) => Ok(Reply::again(status, location, answer)),
            _ => Err(Problem::outcome_unknown()),
        };
        answers.push((nth, answer));
    }
    Ok(answers)
}

/// Stores what keyed commands were answered, and forgets the keys of those that were refused: a
/// refusal is not remembered.
pub(crate) async fn remember<'a>(
    tx: &mut PgTransaction<'_>,
    decided: impl Iterator<Item = (&'a Once, &'a Result<Reply, Problem>)>,
) -> sqlx::Result<()> {
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    for (once, answer) in decided {
        match answer {
            Ok(reply) => accepted.push((once, reply)),
            Err(_) => refused.push(once),
        }
    }
    if !accepted.is_empty() {
        sqlx::query(
            "update idempotency_keys set status = a.status, location = a.location, answer = a.answer
             from unnest($1::text[], $2::text[], $3::smallint[], $4::text[], $5::bytea[])
                 as a (path, key, status, location, answer)
             where idempotency_keys.path = a.path and idempotency_keys.key = a.key",
        )
        .bind(accepted.iter().map(|(once, _)| once.path.as_str()).collect::<Vec<_>>())
        .bind(accepted.iter().map(|(once, _)| once.key.as_str()).collect::<Vec<_>>())
        .bind(accepted.iter().map(|(_, reply)| reply.status.as_u16() as i16).collect::<Vec<_>>())
        .bind(accepted.iter().map(|(_, reply)| reply.location.as_deref()).collect::<Vec<_>>())
        .bind(accepted.iter().map(|(_, reply)| reply.answer.as_slice()).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await?;
    }
    if !refused.is_empty() {
        sqlx::query(
            "delete from idempotency_keys using unnest($1::text[], $2::text[]) as r (path, key)
             where idempotency_keys.path = r.path and idempotency_keys.key = r.key",
        )
        .bind(refused.iter().map(|once| once.path.as_str()).collect::<Vec<_>>())
        .bind(refused.iter().map(|once| once.key.as_str()).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

pub(crate) const PRUNE: &str = "
    delete from idempotency_keys where (path, key) in (
        select path, key from idempotency_keys
        where created_at < now() - make_interval(secs => $1) limit $2)";

/// Deletes what is older than [`KEPT`], for as long as the process runs.
pub(crate) async fn prune(db: PgPool) {
    db::prune(db, PRUNE, KEPT).await;
}
