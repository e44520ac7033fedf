//! The aggregate: what fraud answered to each order.

use std::collections::BTreeSet;

use chassis::{
    HandlerContext, Loader, Loads, PublishedEvent, Record, Republish, Table, UnitOfWork, WriteBatch,
};
use chrono::{DateTime, Utc};
use events::fraud::{FraudCleared, FraudFlagged, FraudKept, FraudWithdrawn, RefusalReason};
use events::orders::{OrderCancelled, OrderCreated};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// What fraud answered to an order. The answer never changes. It can be undone once.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "fraud_responses", key = "order_id")]
pub struct Response {
    pub order_id: Uuid,
    pub state: State,
    #[record(immutable)]
    pub total_cents: i64,
    #[record(immutable)]
    #[schema(required)]
    pub reason: Option<Reason>,
    #[record(immutable)]
    #[serde(skip)]
    pub response_event_id: Option<Uuid>,
    #[serde(skip)]
    pub kept_event_id: Option<Uuid>,
    /// When the service refused to undo its yes, if it did.
    #[schema(required)]
    pub kept_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    pub compensation_event_id: Option<Uuid>,
    #[record(immutable)]
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The state of a response. Only a yes changes its state: it is undone if its order is cancelled, at once or by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// Yes.
    Cleared,
    /// No.
    Flagged,
    /// The order is cancelled, and an operator has to undo the yes.
    Kept,
    /// The yes is undone.
    Withdrawn,
    /// The cancellation arrived before the order, so there was and will be no answer.
    Void,
}

/// Why an order got a no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Reason {
    /// The total is above the limit.
    TotalTooLarge,
}

impl Response {
    /// The response after its yes was undone.
    pub fn undone(self, context: HandlerContext) -> Response {
        Response {
            state: State::Withdrawn,
            compensation_event_id: Some(context.event_id),
            updated_at: context.now,
            ..self
        }
    }
}

/// The events of a response. They are made of its row, when they are published and when they are republished: so both
/// are equal.
impl Response {
    /// `fraud.cleared`
    pub fn cleared(&self) -> FraudCleared {
        let Response { order_id, total_cents, created_at, .. } = *self;
        FraudCleared { order_id, total_cents, occurred_at: created_at }
    }

    /// `fraud.flagged`
    pub fn flagged(&self) -> FraudFlagged {
        let reason = match self.reason {
            Some(Reason::TotalTooLarge) => RefusalReason::TotalTooLarge,
            None => RefusalReason::Unknown,
        };
        FraudFlagged { order_id: self.order_id, reason, occurred_at: self.created_at }
    }

    /// `fraud.kept`
    pub fn kept(&self, occurred_at: DateTime<Utc>) -> FraudKept {
        FraudKept { order_id: self.order_id, occurred_at }
    }

    /// `fraud.withdrawn`, without a total if there had been no yes.
    pub fn withdrawn(&self) -> FraudWithdrawn {
        let total_cents = self.response_event_id.map(|_| self.total_cents);
        FraudWithdrawn { order_id: self.order_id, total_cents, occurred_at: self.updated_at }
    }
}

impl Republish for Response {
    type Events = (FraudCleared, FraudFlagged, FraudKept, FraudWithdrawn);

    fn published_events(&self) -> Vec<PublishedEvent> {
        let response = self.response_event_id.map(|event_id| match self.state {
            State::Flagged => PublishedEvent::new(event_id, self.created_at, &self.flagged()),
            _ => PublishedEvent::new(event_id, self.created_at, &self.cleared()),
        });
        let kept = self.kept_event_id.zip(self.kept_at);
        let kept = kept.map(|(event_id, at)| PublishedEvent::new(event_id, at, &self.kept(at)));
        let compensation = self
            .compensation_event_id
            .map(|event_id| PublishedEvent::new(event_id, self.updated_at, &self.withdrawn()));
        response.into_iter().chain(kept).chain(compensation).collect()
    }
}

/// The command of an operator who has undone by hand what the service could not.
#[derive(Clone, Debug)]
pub struct Settle {
    pub order_id: Uuid,
}

/// The rows of one batch.
#[derive(Default)]
pub struct Responses {
    responses: Table<Response>,
}

impl Responses {
    /// What fraud answered to an order, if anything.
    pub fn response(&self, order_id: Uuid) -> Option<&Response> {
        self.responses.get(&order_id)
    }

    /// Adds or replaces what fraud answered to an order.
    pub fn put_response(&mut self, response: Response) {
        self.responses.put(response);
    }
}

impl Loads<OrderCreated> for Responses {
    fn keys(order: &OrderCreated, keys: &mut BTreeSet<Uuid>) {
        keys.insert(order.order_id);
    }
}

impl Loads<OrderCancelled> for Responses {
    fn keys(order: &OrderCancelled, keys: &mut BTreeSet<Uuid>) {
        keys.insert(order.order_id);
    }
}

impl Loads<Settle> for Responses {
    fn keys(settle: &Settle, keys: &mut BTreeSet<Uuid>) {
        keys.insert(settle.order_id);
    }
}

impl UnitOfWork for Responses {
    type Keys = BTreeSet<Uuid>;

    async fn load(loader: &mut Loader<'_>, keys: BTreeSet<Uuid>) -> sqlx::Result<Responses> {
        Ok(Responses { responses: loader.lock(keys).await? })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.responses);
    }
}
