//! The events that the rows record as published: one query for each topic. `records.rs` compares them
//! with the topics.

use std::sync::LazyLock;

use chassis::event::{Event, Topic};
use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use events::participants::{ASKED_BY_EVERY_ORDER, VOID, leg_state, participants};
use events::shipments::{ShipmentBooked, ShipmentDelivered, ShipmentFailed};
use events::stock::StockRejected;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use crate::checker::content_hash::content_hash;
use crate::checker::rows::part_table;

/// For each topic of events of an order, a query on the database of its publisher. The query returns
/// a row for each event that the service must have published, in four columns: the id of the order,
/// the id of the event (null if no row records it, which is a finding), the time of the decision, and
/// the content, which is the fields of the event without `occurred_at`.
///
/// The elements of a list are compared in any order. Bytes and decimals of Avro cannot be compared,
/// because JSON has neither.
static QUERIES: LazyLock<Vec<(&Topic, String)>> = LazyLock::new(|| {
    let decided = "ended_event_id, ended_at";
    let mut queries = vec![
        query(OrderCreated::topic(), "created_event_id, created_at", "orders"),
        query(OrderConfirmed::topic(), decided, "orders where status = 'confirmed'"),
        query(OrderCancelled::topic(), decided, "orders where status = 'cancelled'"),
    ];
    for answers in participants() {
        let (response, table) = ("response_event_id, created_at", part_table(answers.service));
        let [yes, no, undone] = [answers.accepted, answers.refused, answers.undone].map(leg_state);
        let kept = answers.undo_refused.map_or(yes, leg_state);
        let compensation = "compensation_event_id, updated_at";
        for (topic, event, states) in [
            (answers.accepted, response, format!("'{yes}', '{kept}', '{undone}'")),
            (answers.refused, response, format!("'{no}'")),
            (answers.undone, compensation, format!("'{undone}', '{VOID}'")),
        ] {
            queries.push(query(topic, event, &format!("{table} where state in ({states})")));
        }
        if let Some(topic) = answers.undo_refused {
            let rows = format!("{table} where state = '{kept}' or {kept}_event_id is not null");
            queries.push(query(topic, &format!("{kept}_event_id, {kept}_at"), &rows));
        }
    }
    for (topic, column, event, rows) in [
        (ShipmentBooked::topic(), "booked", "{event}", "booked is not null"),
        (ShipmentDelivered::topic(), "ended", "{event,Delivered}", "state = 'delivered'"),
        (ShipmentFailed::topic(), "ended", "{event,Failed}", "state in ('failed', 'cancelled')"),
    ] {
        queries.push((topic, shipment_query(column, event, rows)));
    }
    queries
});

/// The query of an event that a shipment has stored as it was published: the column, the path in it, and the rows.
fn shipment_query(column: &str, event: &str, rows: &str) -> String {
    let event = format!("({column} #> '{event}')");
    format!(
        "select order_id, ({column} ->> 'event_id')::uuid,
                to_timestamp(({event} ->> 'occurred_at')::bigint / 1e6), {event} - 'occurred_at'
         from shipments where {rows}"
    )
}

/// The query of a topic. Each field of an event is a column of the same name. Of a part that is void, only the id of the
/// order is in the event.
fn query(topic: &'static Topic, event_and_time: &str, rows: &str) -> (&'static Topic, String) {
    let schema: Value = serde_json::from_str(topic.schema).expect("a schema is JSON");
    let fields = schema["fields"].as_array().into_iter().flatten();
    let content = fields.filter_map(|field| match field["name"].as_str()? {
        "occurred_at" => None,
        "order_id" => Some("'order_id', order_id".to_string()),
        "also_asks" => {
            Some(format!("'also_asks', to_jsonb(array_remove(array[{}]::text[], null))", asked()))
        }
        name if participants().iter().any(|it| it.undone.name == topic.name) => {
            let nothing = if field["type"]["type"] == "array" { "'[]'" } else { "null" };
            Some(format!("'{name}', case state when '{VOID}' then {nothing} else {name} end"))
        }
        name => Some(format!("'{name}', {name}")),
    });
    let content = match topic.name == StockRejected::topic().name {
        // One column has them all.
        true => "jsonb_build_object('order_id', order_id) || shortfall".to_string(),
        false => format!("jsonb_build_object({})", content.collect::<Vec<_>>().join(", ")),
    };
    (topic, format!("select order_id, {event_and_time}, {content} from {rows}"))
}

/// The names of the legs that an order has, beside those that every order has.
fn asked() -> String {
    let further = participants().into_iter().skip(ASKED_BY_EVERY_ORDER).map(|it| it.service);
    let asked = further.map(|leg| format!("case when {leg} is not null then '{leg}' end"));
    asked.collect::<Vec<_>>().join(", ")
}

/// An event that a row records as published.
#[derive(Clone)]
pub struct ExpectedRecord {
    pub topic: &'static Topic,
    pub order_id: Uuid,
    /// `None` if the row has no id of an event that it must have published.
    pub event_id: Option<Uuid>,
    pub decided_at: DateTime<Utc>,
    /// The fields of the event without `occurred_at`.
    pub content: Value,
}

impl FromRow<'_, PgRow> for ExpectedRecord {
    fn from_row(row: &PgRow) -> sqlx::Result<ExpectedRecord> {
        let query: i32 = row.try_get("query")?;
        Ok(ExpectedRecord {
            topic: QUERIES[query as usize].0,
            order_id: row.try_get("order_id")?,
            event_id: row.try_get("event_id")?,
            decided_at: row.try_get("decided_at")?,
            content: row.try_get::<Option<Value>, _>("content")?.unwrap_or_default(),
        })
    }
}

impl ExpectedRecord {
    /// Whether a record whose content has this hash is the expected one.
    ///
    /// A record with a symbol that is newer than this checker has null in its place (`decoder.rs`).
    /// The row may have any symbol then.
    pub fn has_content(&self, hash: u64) -> bool {
        hash == content_hash(&self.content) || hash == content_hash(&self.without_symbols())
    }

    /// The content with null in place of the symbol of every enum.
    fn without_symbols(&self) -> Value {
        let mut content = self.content.clone();
        let schema: Value = serde_json::from_str(self.topic.schema).unwrap_or_default();
        let fields = schema["fields"].as_array().into_iter().flatten();
        for field in fields.filter(|field| field["type"]["type"] == "enum") {
            if let Some(symbol) = content.get_mut(field["name"].as_str().unwrap_or_default()) {
                *symbol = Value::Null;
            }
        }
        content
    }
}

/// The topics whose records are compared with the rows.
pub fn compared_topics() -> impl Iterator<Item = &'static Topic> {
    QUERIES.iter().map(|(topic, _)| *topic)
}

/// The query of all events of a service, if one of its topics has a query.
pub(crate) fn events_query(service: &str) -> Option<String> {
    let of_service = |(_, (topic, _)): &(usize, &(&Topic, String))| topic.publisher == service;
    let queries = QUERIES.iter().enumerate().filter(of_service).map(|(nth, (_, query))| {
        format!(
            "select {nth} as query, *
             from ({query}) as events (order_id, event_id, decided_at, content)"
        )
    });
    let queries = queries.collect::<Vec<_>>().join(" union all ");
    (!queries.is_empty()).then(|| format!("select * from ({queries}) as events"))
}

#[cfg(test)]
mod tests {
    use events::saga_topics;
    use serde_json::json;

    use super::*;
    use crate::checker::test_cases::{id, now};

    #[test]
    fn every_topic_whose_events_name_an_order_has_a_query() {
        for topic in saga_topics() {
            let schema: Value = serde_json::from_str(topic.schema).unwrap();
            let mut fields = schema["fields"].as_array().unwrap().iter();
            let of_order = fields.any(|field| field["name"] == "order_id");
            let compared = compared_topics().any(|compared| compared.name == topic.name);
            assert_eq!(of_order, compared, "{}: a query belongs here", topic.name);
        }
    }

    #[test]
    fn a_symbol_that_is_newer_than_the_checker_agrees_with_every_row_and_an_unknown_one_does_not() {
        let content = |reason| json!({"order_id": id(1), "reason": reason});
        let expected = ExpectedRecord {
            topic: OrderCancelled::topic(),
            order_id: id(1),
            event_id: Some(id(2)),
            decided_at: now(),
            content: content(Some("customer")),
        };
        for (reason, agrees) in [
            (Some("customer"), true),
            (None, true),
            (Some("deadline"), false),
            (Some("unknown"), false),
        ] {
            let hash = content_hash(&content(reason));
            assert_eq!(expected.has_content(hash), agrees, "{reason:?}");
        }
    }
}
