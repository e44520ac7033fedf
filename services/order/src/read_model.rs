//! Makes the read model of items anew from its topic, for when it is doubted: `POST /items/rebuild`
//! on the admin port.
//!
//! Orders are placed all the while, at the prices of before. Whoever writes items waits for the last
//! step, with all that is in the same batch: the table is locked, the topic is read on to the end it
//! has by then, and so whatever the consumer had written is among what was read. A row that is newer
//! than its topic can then only be wrong.
//!
//! What can't be read is no proof that there is nothing: an item whose last record, in any partition, is such
//! a one is neither removed nor set back to an older version.
//!
//! The topic is believed otherwise. A relay that was frozen may have sent an older record after a newer one,
//! or after one that can't be read, and compaction have kept that: where prices came to be those of
//! before, have stock republish its items first.

use chassis::{CompactedTopic, HandlerContext, Payload, Problem, SnapshotReader, db};
use std::collections::HashMap;

use axum::extract::State;
use axum::{Json as JsonResponse, Router, routing::post};
use events::stock::{SKU_CHARS_MAX, StockItem, is_text};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::order::{Item, Orders};
use crate::saga;

#[derive(Clone)]
struct ReadModelRebuild {
    db: PgPool,
    topic: CompactedTopic<StockItem>,
}

/// What operators may ask for.
pub fn router(db: PgPool, topic: CompactedTopic<StockItem>) -> Router {
    Router::new().route("/items/rebuild", post(rebuild)).with_state(ReadModelRebuild { db, topic })
}

/// What the rebuild came to.
#[derive(Serialize)]
struct RebuildReport {
    /// Items that the topic has, and the table from now on.
    items: u64,
    /// Of them, those that were missing or said something else.
    repaired: u64,
    /// Rows of which the topic knows nothing.
    removed: u64,
    /// Rows that stay as they are, since the topic may say of them what can't be read.
    kept: i64,
    /// Records that are no items.
    undecodable: u64,
}

async fn rebuild(
    State(rebuild): State<ReadModelRebuild>,
) -> Result<JsonResponse<RebuildReport>, Problem> {
    let mut reading = rebuild.topic.read().await.map_err(topic_unavailable)?;
    let mut tx = db::begin(&rebuild.db).await?;
    let now = db::now(&mut tx).await?;
    let context = HandlerContext { now, event_id: Uuid::nil(), causation_id: None };
    // Beside the table and not in memory, which is bounded. All of it has to fit into the time of one
    // request.
    for beside in [
        "create temporary table staged_items (like items including defaults including indexes) on commit drop",
        "create temporary table undecodable_items (sku text, partition int, primary key (sku, partition))
         on commit drop",
    ] {
        sqlx::query(beside).execute(&mut *tx).await?;
    }
    let mut undecodable = read_topic(&mut tx, &mut reading, context).await?;
    sqlx::query("lock table items in share row exclusive mode").execute(&mut *tx).await?;
    reading.extend_to_end().map_err(topic_unavailable)?;
    undecodable += read_topic(&mut tx, &mut reading, context).await?;

    let items: i64 =
        sqlx::query_scalar("select count(*) from staged_items").fetch_one(&mut *tx).await?;
    match (items, undecodable) {
        (0, 0) => {
            let detail =
                "The topic holds no item: has the broker lost its disk? Nothing was changed.";
            return Err(Problem::conflict("nothing-published", detail));
        }
        (0, _) => {
            let detail = format!(
                "None of {undecodable} records is an item: is a schema missing, or has the broker lost its \
                 disk? Nothing was changed."
            );
            return Err(Problem::conflict("topic-undecodable", detail));
        }
        _ => {}
    }
    let set_back = "delete from staged_items using items
                    where staged_items.sku = items.sku and staged_items.version < items.version
                      and exists (select from undecodable_items where undecodable_items.sku = items.sku)";
    sqlx::query(set_back).execute(&mut *tx).await?;
    let kept = "select count(*) from items
                where not exists (select from staged_items where staged_items.sku = items.sku)
                  and exists (select from undecodable_items where undecodable_items.sku = items.sku)";
    let kept = sqlx::query_scalar(kept).fetch_one(&mut *tx).await?;
    let removed = sqlx::query(
        "delete from items where not exists (select from staged_items where staged_items.sku = items.sku)
                             and not exists (select from undecodable_items where undecodable_items.sku = items.sku)",
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    let repaired = sqlx::query(
        "insert into items (sku, name, price_cents, currency, version)
         select sku, name, price_cents, currency, version from staged_items
         on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents,
             currency = excluded.currency, version = excluded.version
         where (items.name, items.price_cents, items.currency, items.version) is distinct from
             (excluded.name, excluded.price_cents, excluded.currency, excluded.version)",
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
    Ok(JsonResponse(RebuildReport {
        items: items.unsigned_abs(),
        repaired,
        removed,
        kept,
        undecodable,
    }))
}

/// Reads to the end. Answers how many records are no items; live, they become dead letters.
async fn read_topic(
    tx: &mut PgConnection,
    reading: &mut SnapshotReader<StockItem>,
    context: HandlerContext,
) -> Result<u64, Problem> {
    let mut undecodable = 0;
    while let Some(records) = reading.next_page().await.map_err(topic_unavailable)? {
        let mut page = Orders::default();
        // By key and partition: whether the last record was understood.
        let mut last = HashMap::new();
        for record in records {
            let (is_item, understood) = match record.payload {
                // What the handler takes, and nothing else.
                Payload::Event(item) => {
                    let taken = saga::item_changed(&item, &mut page, context).is_ok();
                    (taken, taken)
                }
                Payload::Tombstone => (false, true),
                Payload::Undecodable => (false, false),
            };
            undecodable += u64::from(!is_item);
            last.insert((record.key, record.partition), understood);
        }
        stage(tx, page.items().collect()).await?;
        // No row has another key, nor can Postgres be asked for each of them.
        last.retain(|(sku, _), _| is_text(sku, SKU_CHARS_MAX));
        let (places, understood): (Vec<_>, Vec<_>) = last.into_iter().unzip();
        let (skus, partitions): (Vec<_>, Vec<_>) = places.into_iter().unzip();
        sqlx::query(
            "with last as (select * from unnest($1::text[], $2::int[], $3::bool[])
                                as last (sku, partition, understood)),
                  cleared as (delete from undecodable_items using last
                              where (undecodable_items.sku, undecodable_items.partition) = (last.sku, last.partition)
                                and last.understood)
             insert into undecodable_items select sku, partition from last where not understood
             on conflict do nothing",
        )
        .bind::<Vec<String>>(skus)
        .bind::<Vec<i32>>(partitions)
        .bind::<Vec<bool>>(understood)
        .execute(&mut *tx)
        .await?;
    }
    Ok(undecodable)
}

async fn stage(tx: &mut PgConnection, items: Vec<&Item>) -> sqlx::Result<()> {
    sqlx::query(
        "insert into staged_items (sku, name, price_cents, currency, version)
         select unnest($1::text[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::text[]),
                unnest($5::bigint[])
         on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents,
             currency = excluded.currency, version = excluded.version
         where staged_items.version <= excluded.version",
    )
    .bind(items.iter().map(|i| i.sku.as_str()).collect::<Vec<_>>())
    .bind(items.iter().map(|i| i.name.as_str()).collect::<Vec<_>>())
    .bind(items.iter().map(|i| i.price_cents).collect::<Vec<_>>())
    .bind(items.iter().map(|i| i.currency.as_str()).collect::<Vec<_>>())
    .bind(items.iter().map(|i| i.version).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

fn topic_unavailable(error: anyhow::Error) -> Problem {
    Problem::unavailable(format!("The topic can't be read now: {error:#}; nothing was changed."))
}
