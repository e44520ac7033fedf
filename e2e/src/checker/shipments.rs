//! Reconciles the shipments with the ledger of the carrier (I17), in a stack that ships.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Result;
use carrier::{Ledger, Parcel, State};
use checker::Sources;
use futures::TryStreamExt;
use sqlx::FromRow;
use uuid::Uuid;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I17;
use crate::checker::waivers::Waivers;
use crate::stack_description::SHIPPING;

/// A shipment as its service has it.
#[derive(Clone, Debug, Default, FromRow)]
pub struct ShipmentRow {
    pub order_id: Uuid,
    pub state: String,
    pub reason: Option<String>,
    pub parcel_id: Option<Uuid>,
    /// Whether a task waits for a person.
    pub has_task: bool,
    /// Whether a timer or a call will lead to another decision.
    pub is_pending: bool,
}

/// Totals for the report.
#[derive(Debug, Default, PartialEq)]
pub struct Shipments {
    /// Shipments by state.
    pub states: BTreeMap<String, u64>,
    pub tasks: u64,
    /// The parcels in the ledger of the carrier that it did not cancel, if it can be read.
    pub parcels: Option<u64>,
}

/// Shipments that have not ended and wait for no person.
const UNDER_WAY: &str = "
    select count(*) from shipments
    where state not in ('delivered', 'failed', 'cancelled') and not exists
        (select from chassis.calls where target = 'person' and key = order_id::text)";

const ROWS: &str = "
    select order_id, state, reason, parcel_id,
           exists (select from chassis.calls as it where it.key = order_id::text and target = 'person') as has_task,
           exists (select from chassis.calls as it where it.key = order_id::text and target <> 'person')
               or exists (select from chassis.scheduled as it where it.key = order_id::text) as is_pending
    from shipments";

/// The number of shipments that the carrier still has to bring to an end. Without its ledger it may take days.
pub(crate) async fn under_way(sources: &Sources, ledger: Option<&Path>) -> Result<Vec<String>> {
    let (Some(db), Some(_)) = (sources.databases().get(SHIPPING), ledger) else {
        return Ok(Vec::new());
    };
    let open: i64 = sqlx::query_scalar(UNDER_WAY).fetch_one(db).await?;
    Ok(Vec::from_iter((open > 0).then(|| format!("{open} shipments are under way"))))
}

/// Checks every shipment, in a stack that ships.
pub(crate) async fn check(
    sources: &Sources,
    ledger: Option<&Path>,
    waivers: &Waivers,
    findings: &mut Findings,
) -> Result<Option<Shipments>> {
    let Some(db) = sources.databases().get(SHIPPING) else { return Ok(None) };
    let ledger = ledger.map(Ledger::read).transpose()?;
    let mut shipments = Shipments::default();
    let mut rows: HashMap<Uuid, ShipmentRow> = sqlx::query_as::<_, ShipmentRow>(ROWS)
        .fetch(db)
        .map_ok(|row| (row.order_id, row))
        .try_collect()
        .await?;
    if let Some(ledger) = &ledger {
        check_ledger(ledger, &rows, findings);
    }
    let mut confirmed = sqlx::query_scalar::<_, Uuid>(
        "select order_id from orders where status = 'confirmed' order by order_id",
    )
    .fetch(sources.db("order"));
    let parcels = |order_id: Uuid| ledger.as_ref().map(|it| parcels(it, order_id));
    while let Some(order_id) = confirmed.try_next().await? {
        match rows.remove(&order_id) {
            Some(row) => check_shipment(&row, parcels(order_id), &mut shipments, findings),
            None => {
                findings.unless(waivers.covers(&order_id.to_string()), I17, "not shipped", || {
                    format!("{order_id}: the order is confirmed, and has no shipment")
                })
            }
        }
    }
    for order_id in rows.keys() {
        findings.add(I17, "unasked", || format!("{order_id}: is shipped, and not confirmed"));
    }
    Ok(Some(shipments))
}

fn parcels(ledger: &Ledger, order_id: Uuid) -> &[Parcel] {
    ledger.references.get(&order_id).map_or(&[], |it| &it.parcels)
}

/// The carrier has parcels of shipments alone.
pub(crate) fn check_ledger(
    ledger: &Ledger,
    rows: &HashMap<Uuid, ShipmentRow>,
    findings: &mut Findings,
) {
    for (order_id, entry) in &ledger.references {
        let is_known = entry.parcels.is_empty() || rows.contains_key(order_id);
        findings.unless(is_known, I17, "unknown parcel", || {
            format!("{order_id}: the carrier has a parcel of it, and there is no shipment")
        });
    }
}

/// A shipment is one parcel, and says of it what the carrier did. `parcels` is none if the ledger cannot be read.
pub(crate) fn check_shipment(
    row: &ShipmentRow,
    parcels: Option<&[Parcel]>,
    shipments: &mut Shipments,
    findings: &mut Findings,
) {
    let ShipmentRow { order_id, state, reason, parcel_id, has_task, is_pending } = row;
    *shipments.states.entry(state.clone()).or_default() += 1;
    shipments.tasks += u64::from(*has_task);
    let has_ended = ["delivered", "failed", "cancelled"].contains(&&**state);
    findings.unless(has_ended || *has_task || *is_pending, I17, "stuck", || {
        format!("{order_id}: is {state}, and nothing leads to its end")
    });
    let Some(parcels) = parcels else { return };
    let kept: Vec<&Parcel> = parcels.iter().filter(|it| it.state != State::Cancelled).collect();
    *shipments.parcels.get_or_insert_default() += kept.len() as u64;
    findings.unless(kept.len() <= 1, I17, "two parcels", || {
        format!("{order_id}: the carrier has {} parcels", kept.len())
    });
    let expected = match (&**state, reason.as_deref()) {
        ("delivered", _) => Some(State::Delivered),
        ("failed", Some("lost")) => Some(State::Lost),
        ("cancelled", _) | ("failed", Some("refused")) => None,
        _ => return, // under way, or given up by an operator
    };
    let found = kept.first().map(|parcel| parcel.state);
    let is_told = found == expected;
    findings.unless(is_told, I17, "disagreement", || {
        format!("{order_id}: is {state}, and the carrier has {found:?}")
    });
    let is_named =
        state != "delivered" || kept.first().is_some_and(|it| Some(it.parcel_id) == *parcel_id);
    findings.unless(is_named, I17, "disagreement", || {
        format!("{order_id}: was delivered with another parcel than {parcel_id:?}")
    });
}
