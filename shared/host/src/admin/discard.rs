//! The discard of a dead letter: its event is given up permanently, and the loss is written off.
//!
//! Promises: a fact that was decoded and discarded never has an effect, even if it is delivered again; a
//! write-off is shown by the books. Settling a dead letter without the inbox or without a lock on its row
//! breaks the first, and write-offs in another transaction than the discard break the second. Undecodable
//! bytes may not be the event that their id names, so they never enter the inbox: after a discard they may
//! still have an effect, if they are delivered again and can be decoded by then.

use messaging::crash_point;
use messaging::db::{self, DbErrorClass};
use messaging::dead_letter::discard_impact::{DiscardImpact, WriteOff};
use messaging::dead_letter::{self, DeadLetter, DeadLetterState};
use messaging::event::avro::unframe;
use messaging::inbox;
use messaging::telemetry::panics::catch_panic;
use messaging::transaction::incoming_record::{Content, IncomingRecord};
use messaging::unit_of_work::UnitOfWork;
use messaging::unit_of_work::loader::Loader;
use sqlx::{Connection, PgTransaction};
use uuid::Uuid;

use crate::admin::replay::{DeadLetters, SETTLE_TIMEOUT, SettleOutcome, is_settled, unavailable};
use crate::http::callers::caller::Caller;
use crate::http::problem::Problem;

async fn insert_write_offs(
    tx: &mut PgTransaction<'_>,
    dead_letter_id: i64,
    write_offs: &[WriteOff],
    actor: Option<&str>,
) -> sqlx::Result<()> {
    if write_offs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into chassis.write_offs (dead_letter_id, description, amount, unit, actor)
         select $1, *, $5 from unnest($2::text[], $3::bigint[], $4::text[])",
    )
    .bind(dead_letter_id)
    .bind(write_offs.iter().map(|w| w.what.as_str()).collect::<Vec<_>>())
    .bind(write_offs.iter().map(|w| w.amount).collect::<Vec<_>>())
    .bind(write_offs.iter().map(|w| w.unit.as_str()).collect::<Vec<_>>())
    .bind(actor)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl<R: UnitOfWork> DeadLetters<R> {
    /// Discards the event. Its inbox row is written as if it had been handled, so that it has no effect when
    /// it is delivered again. Undecodable bytes get no inbox row.
    pub async fn discard(
        &self,
        dead_letter_id: i64,
        reason: &str,
        write_off: bool,
        actor: &Caller,
    ) -> Result<(SettleOutcome, Option<DiscardImpact>), Problem> {
        let dead_letter = self.find(dead_letter_id).await?;
        if is_settled(&dead_letter, dead_letter.state, DeadLetterState::Discarded)? {
            return Ok((self.already_settled(dead_letter_id).await?, None));
        }
        let item = self.parse(&dead_letter).await?;
        let work = async {
            let mut tx = db::begin(&self.db).await.map_err(unavailable)?;
            let state = dead_letter::lock(&mut tx, dead_letter_id).await.map_err(unavailable)?;
            if is_settled(&dead_letter, state, DeadLetterState::Discarded)? {
                return Ok((tx, SettleOutcome::DoneBefore, None));
            }
            // Undecodable bytes have no inbox row, which would keep two dead letters of one event from being
            // written off twice.
            if let Some(event_id) = item.event_id {
                dead_letter::lock_event(&mut tx, event_id).await.map_err(unavailable)?;
            }
            let prepared = self.prepare_discard(&mut tx, &dead_letter, &item).await;
            let (settled, impact) = prepared.map_err(unavailable)?;
            if !impact.write_offs.is_empty() && !write_off {
                return Err(write_off_needed(dead_letter_id, &impact));
            }
            insert_write_offs(&mut tx, dead_letter_id, &impact.write_offs, actor.subject())
                .await
                .map_err(unavailable)?;
            let state = match settled {
                SettleOutcome::HandledBefore => DeadLetterState::Replayed,
                _ => DeadLetterState::Discarded,
            };
            let actor = actor.subject();
            let closed = dead_letter::settle(&mut tx, dead_letter_id, state, Some(reason), actor);
            closed.await.map_err(unavailable)?;
            Ok((tx, settled, Some(impact)))
        };
        let late = |_| Err(unavailable("the database did not answer in time"));
        let done = tokio::time::timeout(SETTLE_TIMEOUT, work).await;
        let (tx, settled, impact) = done.unwrap_or_else(late)?;
        crash_point!("discard.prepared");
        tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
        Ok((settled, impact))
    }

    /// The impact of discarding a dead letter, by the rows of now.
    pub async fn discard_impact(&self, dead_letter: &DeadLetter) -> Result<DiscardImpact, Problem> {
        let item = self.parse(dead_letter).await?;
        let mut tx = db::begin(&self.db).await?;
        let (_, impact) = self.prepare_discard(&mut tx, dead_letter, &item).await?;
        tx.rollback().await?;
        Ok(impact)
    }

    /// Writes the event's inbox row, and returns the impact of that.
    async fn prepare_discard(
        &self,
        tx: &mut PgTransaction<'_>,
        dead_letter: &DeadLetter,
        item: &IncomingRecord<R>,
    ) -> Result<(SettleOutcome, DiscardImpact), sqlx::Error> {
        let Content::Event(_, work) = &item.content else {
            return Ok(match self.was_discarded(tx, item).await? {
                true => (SettleOutcome::DiscardedBefore, DiscardImpact::new(ALREADY_DISCARDED)),
                false => (SettleOutcome::Discarded, undecodable_impact(dead_letter, item.event_id)),
            });
        };
        let mut keys = R::Keys::default();
        work.keys(&mut keys);
        // A key that the database rejects is no reason to keep the dead letter for ever.
        let mut savepoint = tx.begin().await?;
        let impact = match R::load(&mut Loader::new(&mut savepoint), keys).await {
            Ok(rows) => {
                savepoint.commit().await?;
                catch_panic(|| work.discard_impact(&rows))
                    .map_err(|panic| format!("computing the impact panicked: {panic}"))
            }
            Err(error) if db::classify(&error) == DbErrorClass::Permanent => {
                savepoint.rollback().await?;
                Err(format!("the database rejects the query: {error}"))
            }
            Err(error) => return Err(error),
        };
        // After the rows are locked, as everywhere.
        if let Some(entering @ (event_id, topic)) = item.inbox_key()
            && !inbox::insert_if_new(tx, entering, dead_letter.attempts).await?
        {
            if self.was_discarded(tx, item).await? {
                return Ok((SettleOutcome::DiscardedBefore, DiscardImpact::new(ALREADY_DISCARDED)));
            }
            // Else its id is that of another topic's event, and it was never handled.
            let known = inbox::topics_of(tx, vec![event_id]).await?;
            if known.get(&event_id).is_some_and(|it| it == topic) {
                return Ok((SettleOutcome::HandledBefore, DiscardImpact::new(ALREADY_HANDLED)));
            }
        }
        let unknown_impact =
            |reason| DiscardImpact::new(format!("The impact is unknown: {reason}."));
        Ok((SettleOutcome::Discarded, impact.unwrap_or_else(unknown_impact)))
    }
}

const UNKNOWN_CONTENT: &str =
    "Its content cannot be decoded. It is lost, and another service may be waiting for it.";
const ALREADY_HANDLED: &str = "Nothing is lost: the event was already handled in another delivery.";
const ALREADY_DISCARDED: &str =
    "Nothing more is lost: the event was already discarded with another dead letter.";

/// The impact of discarding undecodable bytes. With an event id and a schema id they are no garbage, and their
/// value is unknown.
fn undecodable_impact(dead_letter: &DeadLetter, event_id: Option<Uuid>) -> DiscardImpact {
    let impact = DiscardImpact::new(UNKNOWN_CONTENT);
    let framed = dead_letter.record.as_deref().is_some_and(|record| unframe(record).is_ok());
    match event_id.filter(|_| framed) {
        Some(event_id) => impact.with_write_off(format!("event {event_id}"), 1, "unread events"),
        None => impact,
    }
}

fn write_off_needed(dead_letter_id: i64, impact: &DiscardImpact) -> Problem {
    let amounts: Vec<String> = impact.write_offs.iter().map(ToString::to_string).collect();
    let detail = format!(
        "{} Discarding dead letter {dead_letter_id} writes off {}. Confirm it with \"write_off\": true.",
        impact.consequence,
        amounts.join(" and "),
    );
    Problem::conflict("write-off-needed", detail)
}
