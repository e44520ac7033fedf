//! The aggregate: requests that were accepted.

use std::collections::BTreeSet;

use chassis::{Loads, PublishedEvent, Record, Republish, Table, UnitOfWork, WriteBatch};
use chrono::{DateTime, Utc};
use events::{RequestAccepted, RequestCreated};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

/// A request that was accepted. It never changes.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "requests", key = "request_id", immutable)]
pub struct Request {
    pub request_id: Uuid,
    pub subject: String,
    pub accepted_at: DateTime<Utc>,
    /// The event that states the acceptance.
    #[serde(skip)]
    pub accepted_event_id: Uuid,
}

impl Request {
    /// The event of the acceptance.
    pub fn accepted(&self) -> RequestAccepted {
        RequestAccepted { request_id: self.request_id, occurred_at: self.accepted_at }
    }
}

impl Republish for Request {
    fn topic_names() -> Vec<&'static str> {
        vec![events::ACCEPTED.name]
    }

    fn published_events(&self) -> Vec<PublishedEvent> {
        vec![PublishedEvent::new(self.accepted_event_id, self.accepted_at, &self.accepted())]
    }
}

/// The rows of one batch.
#[derive(Default)]
pub struct Requests {
    accepted: Table<Request>,
}

impl Requests {
    /// A request, if it was accepted.
    pub fn request(&self, request_id: Uuid) -> Option<&Request> {
        self.accepted.get(&request_id)
    }

    /// Adds a request.
    pub fn put_request(&mut self, request: Request) {
        self.accepted.put(request);
    }
}

impl Loads<RequestCreated> for Requests {
    fn keys(request: &RequestCreated, keys: &mut BTreeSet<Uuid>) {
        keys.insert(request.request_id);
    }
}

impl UnitOfWork for Requests {
    type Keys = BTreeSet<Uuid>;

    async fn load(tx: &mut PgConnection, keys: BTreeSet<Uuid>) -> sqlx::Result<Requests> {
        Ok(Requests { accepted: Table::lock(tx, keys).await? })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.accepted);
    }
}
