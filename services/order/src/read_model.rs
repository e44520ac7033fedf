//! Rebuilds the read model of items from its topic, for an operator who doubts it: `POST /items/rebuild` on the
//! admin port. Everything must fit into the time of one request.
//!
//! Orders are placed meanwhile, at the earlier prices. The last step locks the table and reads the topic to its
//! present end, so that the rebuild has read every record that the consumer had written. Transactions that write items
//! wait for this step.
//!
//! A record that cannot be decoded proves nothing. If the last record of an item, in any partition, is such a
//! record, the item is neither removed nor set back to an older version.
//!
//! Otherwise the topic is trusted. A relay that was frozen may have sent an older record after a newer one, and
//! compaction kept the older one. If prices were set back in this way, stock has to republish its items first.

use std::collections::HashMap;

use axum::Json as JsonResponse;
use axum::extract::State;
use chassis::{CompactedTopic, HandlerContext, Problem, SnapshotReader, db};
use events::stock::{SKU_CHARS_MAX, StockItem, is_text};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::order::{Item, Orders};
use crate::saga;

#[derive(Clone)]
pub(crate) struct ReadModelRebuild {
    db: PgPool,
    topic: CompactedTopic<StockItem>,
}

/// The route of the admin port.
pub fn router(db: PgPool, topic: CompactedTopic<StockItem>) -> OpenApiRouter {
    routes().with_state(ReadModelRebuild { db, topic })
}

/// The route with its description.
pub(crate) fn routes() -> OpenApiRouter<ReadModelRebuild> {
    OpenApiRouter::new().routes(routes!(rebuild_items))
}

/// What the rebuild did.
#[derive(Serialize, sqlx::FromRow, ToSchema)]
struct RebuildReport {
    /// Items in the topic.
    items: i64,
    /// Items of the topic that were missing or different in the table.
    repaired: i64,
    /// Rows whose item is not in the topic.
    removed: i64,
    /// Rows that did not change because the last record of their item cannot be decoded.
    kept: i64,
    /// Records that are no items. The consumer makes dead letters of such records.
    undecodable: i64,
}

/// What was read goes through two tables, because memory is bounded. One rebuild at a time uses them.
const BEGIN_STAGING: &str = "lock table staged_items in exclusive mode";
const END_STAGING: &str = "delete from staged_items; delete from last_records";

const STAGE_ITEMS: &str = "
    insert into staged_items (sku, name, price_cents, currency, version)
    select sku, name, price_cents, currency, version from jsonb_populate_recordset(null::items, $1)
    on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents,
        currency = excluded.currency, version = excluded.version
    where staged_items.version <= excluded.version";

const STAGE_LAST_RECORDS: &str = "
    insert into last_records (sku, partition, undecodable)
    select * from unnest($1::text[], $2::int[], $3::boolean[])
    on conflict (sku, partition) do update set undecodable = excluded.undecodable";

const SWAP: &str = "
    with kept as (
        select sku from items left join staged_items as staged using (sku)
        where (staged.version is null or staged.version < items.version)
          and exists (select from last_records where last_records.sku = items.sku and undecodable)),
    removed as (
        delete from items
        where sku not in (select sku from staged_items) and sku not in (select sku from kept) returning sku),
    repaired as (
        insert into items (sku, name, price_cents, currency, version)
        select sku, name, price_cents, currency, version from staged_items
        where sku not in (select sku from kept)
        on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents,
            currency = excluded.currency, version = excluded.version
        where (items.name, items.price_cents, items.currency, items.version) is distinct from
            (excluded.name, excluded.price_cents, excluded.currency, excluded.version) returning sku)
    select (select count(*) from staged_items) as items, (select count(*) from repaired) as repaired,
           (select count(*) from removed) as removed, (select count(*) from kept) as kept,
           $1::bigint as undecodable";

/// Makes the items that prices come from equal to those that stock published.
#[utoipa::path(post, path = "/items/rebuild", responses(
    (status = 200, description = "What it did.", body = RebuildReport),
    (status = 409, description = "Of type `/problems/nothing-published`: the topic holds no item. Of type \
        `/problems/topic-undecodable`: none of its records is an item."),
))]
async fn rebuild_items(
    State(rebuild): State<ReadModelRebuild>,
) -> Result<JsonResponse<RebuildReport>, Problem> {
    let mut reader = rebuild.topic.read().await.map_err(topic_unavailable)?;
    let mut tx = db::begin(&rebuild.db).await?;
    let now = db::now(&mut tx).await?;
    let context = HandlerContext { now, event_id: Uuid::nil(), causation_id: None };
    sqlx::raw_sql(BEGIN_STAGING).execute(&mut *tx).await?;
    let mut undecodable = read_topic(&mut tx, &mut reader, context).await?;
    sqlx::query("lock table items in share row exclusive mode").execute(&mut *tx).await?;
    reader.extend_to_end().map_err(topic_unavailable)?;
    undecodable += read_topic(&mut tx, &mut reader, context).await?;
    let swap = sqlx::query_as(SWAP).bind(undecodable);
    let report: RebuildReport = swap.fetch_one(&mut *tx).await?;
    sqlx::raw_sql(END_STAGING).execute(&mut *tx).await?;
    // Without the commit, the swap changes nothing.
    match (report.items, undecodable) {
        (0, 0) => Err(Problem::conflict(
            "nothing-published",
            "The topic holds no item: has the broker lost its disk? Nothing was changed.",
        )),
        (0, _) => Err(Problem::conflict(
            "topic-undecodable",
            format!(
                "None of {undecodable} records is an item: is a schema missing, or has the broker lost its \
                 disk? Nothing was changed."
            ),
        )),
        _ => {
            tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
            Ok(JsonResponse(report))
        }
    }
}

/// Stages the records up to the end of the topic, and returns how many are no items.
async fn read_topic(
    tx: &mut PgConnection,
    reader: &mut SnapshotReader<StockItem>,
    context: HandlerContext,
) -> Result<i64, Problem> {
    let mut undecodable = 0;
    while let Some(records) = reader.next_page().await.map_err(topic_unavailable)? {
        let mut page = Orders::default();
        let mut last = HashMap::new();
        for record in records {
            // The handler of the consumer decides what an item is.
            let handled = |item| saga::item_changed(&item, &mut page, context).is_ok();
            let is_item = record.event.is_some_and(handled);
            undecodable += i64::from(!is_item);
            last.insert((record.key, record.partition), !is_item && !record.is_tombstone);
        }
        let items: Vec<&Item> = page.items().collect();
        sqlx::query(STAGE_ITEMS).bind(Json(items)).execute(&mut *tx).await?;
        // The key of every row is such a text, and Postgres does not accept every other text.
        last.retain(|(sku, _), _| is_text(sku, SKU_CHARS_MAX));
        let (keys, are_undecodable): (Vec<_>, Vec<bool>) = last.into_iter().unzip();
        let (skus, partitions): (Vec<String>, Vec<i32>) = keys.into_iter().unzip();
        let stage = sqlx::query(STAGE_LAST_RECORDS).bind(skus).bind(partitions);
        stage.bind(are_undecodable).execute(&mut *tx).await?;
    }
    Ok(undecodable)
}

fn topic_unavailable(error: anyhow::Error) -> Problem {
    Problem::unavailable(format!("The topic can't be read now: {error:#}; nothing was changed."))
}
