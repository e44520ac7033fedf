//! Everything that is known of each order: joins the rows of all services and the records of the topics.
//! Each is read once, in order of the id.

use std::collections::BTreeMap;
use std::iter::Peekable;

use anyhow::Result;
use checker::Sources;
use events::participants::participants;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::checker::expected_records::{ExpectedRecord, events_query};
use crate::checker::record::RecordSummary;
use crate::checker::rows::{HistoryRow, OrderRow, PartRow, part_table};
use crate::checker::sources::OrderedRows;

/// All rows and records of one order.
#[derive(Clone, Default)]
pub struct OrderCase {
    pub order_id: Uuid,
    pub order: Option<OrderRow>,
    /// By participant.
    pub parts: BTreeMap<&'static str, PartRow>,
    pub history: Vec<HistoryRow>,
    /// The events that the rows record as published.
    pub expected: Vec<ExpectedRecord>,
    pub records: Vec<RecordSummary>,
}

/// The orders that any row or record names.
pub(crate) struct OrderCases<'a> {
    orders: OrderedRows<'a, OrderRow>,
    history: OrderedRows<'a, HistoryRow>,
    /// By participant.
    parts: Vec<(&'static str, OrderedRows<'a, PartRow>)>,
    /// By service.
    expected: Vec<OrderedRows<'a, ExpectedRecord>>,
    records: Peekable<std::slice::Iter<'a, RecordSummary>>,
}

impl<'a> OrderCases<'a> {
    /// `records` are sorted by their order.
    pub(crate) fn new(sources: &'a Sources, records: &'a [RecordSummary]) -> OrderCases<'a> {
        let expected = sources.databases().iter().filter_map(|(service, db)| {
            let query = AssertSqlSafe(format!("{} order by order_id", events_query(service)?));
            Some(OrderedRows::new(db, query, |row: &ExpectedRecord| row.order_id))
        });
        let parts = participants().map(|it| it.service).into_iter().map(|service| {
            let query = format!("select * from {} order by order_id", part_table(service));
            let (query, id) = (AssertSqlSafe(query), |row: &PartRow| row.order_id);
            (service, OrderedRows::new(sources.db(service), query, id))
        });
        OrderCases {
            orders: OrderedRows::new(
                sources.db("order"),
                "select * from orders order by order_id",
                |row| row.order_id,
            ),
            history: OrderedRows::new(
                sources.db("order"),
                "select order_id, event_id, position, event, detail, occurred_at
                 from history order by order_id, event_id",
                |row| row.order_id,
            ),
            parts: parts.collect(),
            expected: expected.collect(),
            records: records.iter().peekable(),
        }
    }

    pub(crate) async fn next_case(&mut self) -> Result<Option<OrderCase>> {
        let mut ids = vec![
            self.orders.peek_id().await?,
            self.history.peek_id().await?,
            self.records.peek().map(|record| record.order_id),
        ];
        for rows in &mut self.expected {
            ids.push(rows.peek_id().await?);
        }
        for (_, rows) in &mut self.parts {
            ids.push(rows.peek_id().await?);
        }
        let Some(order_id) = ids.into_iter().flatten().min() else {
            return Ok(None);
        };
        let mut case = OrderCase {
            order_id,
            order: self.orders.next_if(order_id).await?,
            ..OrderCase::default()
        };
        for (service, rows) in &mut self.parts {
            case.parts.extend(rows.next_if(order_id).await?.map(|row| (*service, row)));
        }
        while let Some(row) = self.history.next_if(order_id).await? {
            case.history.push(row);
        }
        for rows in &mut self.expected {
            while let Some(row) = rows.next_if(order_id).await? {
                case.expected.push(row);
            }
        }
        while let Some(record) = self.records.next_if(|record| record.order_id == order_id) {
            case.records.push(*record);
        }
        Ok(Some(case))
    }
}
