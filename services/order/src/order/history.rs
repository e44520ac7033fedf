//! The history of an order: every event of it, published and received, in the sequence in which this service
//! committed them.

use chassis::{Event, HandlerContext, WriteBatch};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::participants::Answer;
use super::{NewHistoryEntry, Orders};

impl Orders {
    /// Adds the event that is being handled to its order's history.
    pub fn record_received(&mut self, event: &impl Answer, context: HandlerContext) {
        if let Some(event_id) = context.causation_id {
            let (order_id, occurred_at) = (event.order_id(), event.occurred_at());
            self.append_history(event, order_id, event_id, occurred_at, context);
        }
    }

    /// Adds the event that is being published to its order's history.
    pub fn record_published<E: Event>(
        &mut self,
        event: &E,
        order_id: Uuid,
        context: HandlerContext,
    ) {
        self.append_history(event, order_id, context.event_id, context.now, context);
    }

    fn append_history<E: Event>(
        &mut self,
        event: &E,
        order_id: Uuid,
        event_id: Uuid,
        occurred_at: DateTime<Utc>,
        HandlerContext { now: recorded_at, .. }: HandlerContext,
    ) {
        // Counted in the order's own row, under its lock.
        let order = self.loaded_order(order_id);
        order.last_position += 1;
        let position = order.last_position;
        self.history.push(NewHistoryEntry {
            order_id,
            event_id,
            position,
            event: E::topic().name,
            detail: serde_json::to_string(event).expect("events are plain JSON"),
            occurred_at,
            recorded_at,
        });
    }

    /// What was added to histories.
    #[cfg(test)]
    pub fn history(&self) -> &[NewHistoryEntry] {
        &self.history
    }
}

/// An event is added once. It is handled again if it is received after the inbox has deleted its row, and is then in
/// the history already. No other transaction adds it at the same time, because its order is locked or new.
pub(super) fn insert(writes: &mut WriteBatch<'_>, entries: &[NewHistoryEntry]) {
    if entries.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into history
             (order_id, event_id, position, event, detail, occurred_at, recorded_at)
         select order_id, event_id, position, event, detail, occurred_at, recorded_at
         from (select unnest($1::uuid[]) as order_id, unnest($2::uuid[]) as event_id,
                      unnest($3::bigint[]) as position, unnest($4::text[]) as event,
                      unnest($5::text[])::json as detail,
                      unnest($6::timestamptz[]) as occurred_at,
                      unnest($7::timestamptz[]) as recorded_at) as entry
         where not exists (select from history where history.order_id = entry.order_id
                                                 and history.event_id = entry.event_id)",
        )
        .bind_rows(&Vec::from_iter(entries));
}
