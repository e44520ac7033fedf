//! The aggregate: the parcel of each order, with the two halves that its step needs.

use std::collections::BTreeSet;

use chassis::{
    HandlerContext, Loader, Loads, PublishedEvent, Record, Republish, Table, UnitOfWork, WriteBatch,
};
use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderCreated};
use events::payments::PaymentVerified;
use uuid::Uuid;

use crate::published::{ParcelPacked, ParcelRefused, ParcelUnpacked};

/// The name by which an order asks this service.
pub const SERVICE: &str = "parcels";

/// The parcel of an order. While it waits, it has one half: the order's units, or payment's yes.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow, Record)]
#[record(table = "parcels", key = "order_id")]
pub struct Parcel {
    pub order_id: Uuid,
    pub state: State,
    pub units: Option<i64>,
    pub paid: bool,
    pub response_event_id: Option<Uuid>,
    pub compensation_event_id: Option<Uuid>,
    /// When it answered. Before that, when the row was created.
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The state of a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// The order or payment's yes is missing.
    Waiting,
    /// Yes.
    Packed,
    /// No.
    Refused,
    /// The yes is undone.
    Unpacked,
    /// The order was cancelled before the step began, so there was and will be no answer.
    Void,
}

/// The events of a parcel. They are made of its row, when they are published and when they are republished: so both are
/// equal.
impl Parcel {
    /// `parcels.packed`
    pub fn packed(&self) -> ParcelPacked {
        let units = self.units.unwrap_or_default();
        ParcelPacked { order_id: self.order_id, units, occurred_at: self.created_at }
    }

    /// `parcels.refused`
    pub fn refused(&self) -> ParcelRefused {
        let units = self.units.unwrap_or_default();
        ParcelRefused { order_id: self.order_id, units, occurred_at: self.created_at }
    }

    /// `parcels.unpacked`, without units if there had been no yes.
    pub fn unpacked(&self) -> ParcelUnpacked {
        let units = self.response_event_id.and(self.units);
        ParcelUnpacked { order_id: self.order_id, units, occurred_at: self.updated_at }
    }
}

impl Republish for Parcel {
    type Events = (ParcelPacked, ParcelRefused, ParcelUnpacked);

    fn published_events(&self) -> Vec<PublishedEvent> {
        let response = self.response_event_id.map(|event_id| match self.state {
            State::Refused => PublishedEvent::new(event_id, self.created_at, &self.refused()),
            _ => PublishedEvent::new(event_id, self.created_at, &self.packed()),
        });
        let compensation = self
            .compensation_event_id
            .map(|event_id| PublishedEvent::new(event_id, self.updated_at, &self.unpacked()));
        response.into_iter().chain(compensation).collect()
    }
}

/// The rows of one batch.
#[derive(Default)]
pub struct Parcels {
    parcels: Table<Parcel>,
}

impl Parcels {
    /// The parcel of an order, if anything was noted.
    pub fn parcel(&self, order_id: Uuid) -> Option<&Parcel> {
        self.parcels.get(&order_id)
    }

    /// The parcel of an order, or a new one that has neither half.
    pub fn parcel_or_new(&self, order_id: Uuid, context: HandlerContext) -> Parcel {
        self.parcel(order_id).cloned().unwrap_or(Parcel {
            order_id,
            state: State::Waiting,
            units: None,
            paid: false,
            response_event_id: None,
            compensation_event_id: None,
            created_at: context.now,
            updated_at: context.now,
        })
    }

    /// Adds or replaces the parcel of an order.
    pub fn put_parcel(&mut self, parcel: Parcel) {
        self.parcels.put(parcel);
    }
}

/// Each of these events needs the row of its order.
macro_rules! loads_by_order_id {
    ($($event:ty),+) => {$(
        impl Loads<$event> for Parcels {
            fn keys(event: &$event, keys: &mut BTreeSet<Uuid>) {
                keys.insert(event.order_id);
            }
        }
    )+};
}
loads_by_order_id!(OrderCreated, PaymentVerified, OrderCancelled);

impl UnitOfWork for Parcels {
    type Keys = BTreeSet<Uuid>;

    async fn load(loader: &mut Loader<'_>, keys: BTreeSet<Uuid>) -> sqlx::Result<Parcels> {
        Ok(Parcels { parcels: loader.lock(keys).await? })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.parcels);
    }
}

/// The numbers of parcels. Balanced if each that has begun has its answer, and no other has one.
pub const BOOKS: &str = "
    select count(*) as parcels,
           count(*) filter (where state = 'waiting') as waiting,
           count(*) filter (where state = 'packed') as packed,
           count(*) filter (where (state in ('waiting', 'void')) <> (response_event_id is null)) = 0
               as balanced
    from parcels";
