//! What becomes of a dead letter: replayed once its cause is gone, or discarded for ever.
//!
//! Promises: a letter's event has its effect in the transaction that closes the letter, and once,
//! however often and by however many operators it is replayed; a fact that was read and discarded never
//! has an effect, even if it comes again. They are broken by settling a letter without the inbox, or
//! without its row locked. What nobody could read may not be what its id says, so the inbox never knows of
//! it: discarded, it may still have its effect should it come again and be readable by then.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::Message as _;
use serde::Serialize;
use serde_json::Value;
use sqlx::{Connection, PgPool, PgTransaction};
use uuid::Uuid;

use crate::avro::{Undecodable, unframe};
use crate::crash;
use crate::db::{self, Failure};
use crate::dead_letter::{self, Cause, Kind, Letter, State};
use crate::effect::{self, Admission, Trouble};
use crate::inbox;
use crate::loss::{self, Loss};
use crate::problem::Problem;
use crate::registry::{Known, Registry};
use crate::route::{Content, Item, Routes, Unread, schema_id};
use crate::rows::{Rows, guarded};
use crate::wake::Wake;

/// How long settling one letter may take, so that its operator gets our answer and not the
/// server's.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// The `kind` of the problem that says a letter can't be handled any better than before.
pub(crate) const STILL_DEAD: &str = "still-dead";

/// The dead letters of a service, with what it takes to settle them.
pub(crate) struct Letters<R: Rows> {
    pub db: PgPool,
    pub registry: Arc<Registry>,
    pub routes: Arc<Routes<R>>,
    pub wake: Arc<Wake>,
}

/// What a replay or a discard came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Settled {
    /// The event has had its effect, just now.
    Replayed,
    /// It had it before, when it came another time; now the letter is closed as well.
    HandledBefore,
    /// The event is given up, just now.
    Discarded,
    /// It was given up before, in another letter; now this one is closed as well.
    DiscardedBefore,
    /// Somebody settled the letter in this way before; nothing is done.
    DoneBefore,
}

/// What a record says, as far as that can be told.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Decoded {
    /// The event.
    pub event: Option<Value>,
    /// By which schema it was read.
    pub read_with: Option<String>,
    /// Why it could not be read, or not by the schema that the record names.
    pub unreadable: Option<String>,
}

impl<R: Rows> Letters<R> {
    pub async fn find(&self, letter_id: i64) -> Result<Letter, Problem> {
        let letter = dead_letter::find(&self.db, letter_id).await?;
        letter.ok_or_else(|| Problem::not_found(format!("There is no dead letter {letter_id}.")))
    }

    /// Lets the event have its effect, and closes the letter with it.
    pub async fn replay(&self, letter_id: i64) -> Result<Settled, Problem> {
        let letter = self.find(letter_id).await?;
        match letter.state {
            State::Waiting => {}
            State::Replayed => return self.done_before(letter_id).await,
            State::Discarded => return Err(given_up(letter_id)),
        }
        let item = self.item(&letter).await?;
        if let Content::Dead(cause) = &item.content {
            return Err(still_dead(letter_id, cause));
        }
        let mut races = 0;
        loop {
            let attempt = self.try_to_replay(&letter, &item);
            let attempt = tokio::time::timeout(SETTLED_WITHIN, attempt).await;
            match attempt.map_err(Problem::cut)?? {
                Ok(settled) => return Ok(settled),
                Err(Trouble::Event(_, cause)) => return Err(still_dead(letter_id, &cause)),
                Err(Trouble::Waiting(because)) => return Err(not_now(because)),
                Err(Trouble::Database(error)) => match db::classify(&error) {
                    Failure::Race if races == 0 => races += 1,
                    Failure::Race | Failure::Refused | Failure::Rule => {
                        return Err(still_dead(letter_id, &Cause::refused(&error)));
                    }
                    Failure::TooSlow | Failure::Locked | Failure::Mismatch | Failure::Transient => {
                        return Err(not_now(error));
                    }
                },
            }
        }
    }

    async fn try_to_replay(
        &self,
        letter: &Letter,
        item: &Item<R>,
    ) -> Result<Result<Settled, Trouble>, Problem> {
        let work = async {
            let mut tx = db::begin(&self.db).await?;
            let state = dead_letter::lock(&mut tx, letter.letter_id).await?;
            if state != State::Waiting {
                return Ok((tx, None, state));
            }
            let attempts = letter.attempts.saturating_add(1);
            let effect =
                effect::take(&mut tx, std::slice::from_ref(item), Admission::First, attempts)
                    .await?;
            let given_up = !effect.is_new() && self.was_discarded(&mut tx, item).await?;
            let state = if given_up { State::Discarded } else { State::Replayed };
            dead_letter::settle(&mut tx, letter.letter_id, state, None).await?;
            Ok((tx, Some(effect), state))
        };
        let (tx, effect, state) = match work.await {
            Ok(done) => done,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let Some(effect) = effect else {
            if state == State::Discarded {
                return Err(given_up(letter.letter_id));
            }
            tx.commit().await.map_err(Problem::cut)?;
            return Ok(Ok(Settled::DoneBefore));
        };
        crash::point!("replay.prepared");
        tx.commit().await.map_err(Problem::cut)?;
        crash::point!("replay.committed");
        let settled = match (effect.is_new(), state) {
            (true, _) => Settled::Replayed,
            (false, State::Discarded) => Settled::DiscardedBefore,
            (false, _) => Settled::HandledBefore,
        };
        effect.committed(&self.wake);
        Ok(Ok(settled))
    }

    async fn was_discarded(
        &self,
        tx: &mut PgTransaction<'_>,
        item: &Item<R>,
    ) -> sqlx::Result<bool> {
        match item.event_id {
            Some(event_id) => dead_letter::was_discarded(tx, event_id, item.message.topic()).await,
            None => Ok(false),
        }
    }

    /// Gives the event up. It is entered into the inbox like one that was handled, so that it has no
    /// effect when it comes again; what nobody can read is not.
    pub async fn discard(
        &self,
        letter_id: i64,
        because: &str,
        write_off: bool,
    ) -> Result<(Settled, Option<Loss>), Problem> {
        let letter = self.find(letter_id).await?;
        match letter.state {
            State::Waiting => {}
            State::Discarded => return Ok((self.done_before(letter_id).await?, None)),
            State::Replayed => return Err(replayed(letter_id)),
        }
        let item = self.item(&letter).await?;
        let work = async {
            let mut tx = db::begin(&self.db).await.map_err(not_now)?;
            match dead_letter::lock(&mut tx, letter_id).await.map_err(not_now)? {
                State::Waiting => {}
                State::Discarded => return Ok((tx, Settled::DoneBefore, None)),
                State::Replayed => return Err(replayed(letter_id)),
            }
            // What can't be read has no row in the inbox that would keep two letters of one event from
            // costing twice.
            if let Some(event_id) = item.event_id {
                dead_letter::lock_event(&mut tx, event_id).await.map_err(not_now)?;
            }
            let given_up = self.give_up(&mut tx, &letter, &item).await;
            let (settled, loss) = given_up.map_err(not_now)?;
            if !loss.write_offs.is_empty() && !write_off {
                return Err(write_off_needed(letter_id, &loss));
            }
            loss::write_off(&mut tx, letter_id, &loss.write_offs).await.map_err(not_now)?;
            let state = match settled {
                Settled::HandledBefore => State::Replayed,
                _ => State::Discarded,
            };
            let closed = dead_letter::settle(&mut tx, letter_id, state, Some(because)).await;
            closed.map_err(not_now)?;
            Ok((tx, settled, Some(loss)))
        };
        let late = |_| Err(not_now("the database did not answer in time"));
        let done = tokio::time::timeout(SETTLED_WITHIN, work).await;
        let (tx, settled, loss) = done.unwrap_or_else(late)?;
        crash::point!("discard.prepared");
        tx.commit().await.map_err(Problem::cut)?;
        Ok((settled, loss))
    }

    /// The answer for a letter that is settled already. Its lock is noted in the log of the database, so
    /// that the answer is as durable as what settled the letter.
    async fn done_before(&self, letter_id: i64) -> Result<Settled, Problem> {
        let work = async {
            let mut tx = db::begin(&self.db).await.map_err(not_now)?;
            dead_letter::lock(&mut tx, letter_id).await.map_err(not_now)?;
            tx.commit().await.map_err(Problem::cut)?;
            Ok(Settled::DoneBefore)
        };
        tokio::time::timeout(SETTLED_WITHIN, work).await.map_err(Problem::cut)?
    }

    /// What it would cost to discard a letter, as things are now.
    pub async fn if_discarded(&self, letter: &Letter) -> Result<Loss, Problem> {
        let item = self.item(letter).await?;
        let mut tx = db::begin(&self.db).await?;
        let (_, loss) = self.give_up(&mut tx, letter, &item).await?;
        tx.rollback().await?;
        Ok(loss)
    }

    /// Takes the event's place in the inbox, and tells what is lost by that.
    async fn give_up(
        &self,
        tx: &mut PgTransaction<'_>,
        letter: &Letter,
        item: &Item<R>,
    ) -> Result<(Settled, Loss), sqlx::Error> {
        let Content::Event(_, work) = &item.content else {
            return Ok(match self.was_discarded(tx, item).await? {
                true => (Settled::DiscardedBefore, Loss::that(GIVEN_UP_BEFORE)),
                false => (Settled::Discarded, of_unread(letter, item.event_id)),
            });
        };
        if let Some(entering @ (event_id, topic)) = item.entering()
            && inbox::admit(tx, &[entering], letter.attempts).await?.0.is_empty()
        {
            if self.was_discarded(tx, item).await? {
                return Ok((Settled::DiscardedBefore, Loss::that(GIVEN_UP_BEFORE)));
            }
            // Else its id is that of another topic's event, and it was never handled.
            if inbox::topics(tx, &[event_id]).await?.get(&event_id).is_some_and(|it| it == topic) {
                return Ok((Settled::HandledBefore, Loss::that(HANDLED_BEFORE)));
            }
        }
        let mut keys = R::Keys::default();
        work.touch(&mut keys);
        // A key that can't be asked for is no reason to keep the letter for ever.
        let mut asked = tx.begin().await?;
        let loss = match R::load(&mut asked, keys).await {
            Ok(rows) => {
                asked.commit().await?;
                guarded(|| work.loss(&rows))
                    .map_err(|panic| format!("the telling panicked: {panic}"))
            }
            Err(error) if db::classify(&error) == Failure::Refused => {
                asked.rollback().await?;
                Err(format!("the database refuses to look: {error}"))
            }
            Err(error) => return Err(error),
        };
        let untold = |because| Loss::that(format!("What that costs can't be told: {because}."));
        Ok((Settled::Discarded, loss.unwrap_or_else(untold)))
    }

    /// The letter's event with its handler, by the code and the schemas of today.
    async fn item(&self, letter: &Letter) -> Result<Item<R>, Problem> {
        let message = letter.message();
        let schemas = self.registry.schemas_of(schema_id(&message)).await;
        let mut item = self.routes.item(message, &schemas);
        if let Some(reason) = letter.is_cut() {
            item.content = Content::Dead(Cause { kind: Kind::Undecodable, reason });
            return Ok(item);
        }
        if let Content::Unread(Unread { because, is_unknown }) = item.content {
            if !is_unknown {
                return Err(not_now(because));
            }
            item.content = Content::Dead(Cause { kind: Kind::Undecodable, reason: because });
        }
        Ok(item)
    }

    /// What a letter says: by the schema that its record names, or else by this service's own.
    pub async fn decoded(&self, letter: &Letter) -> Decoded {
        let unreadable =
            |because: String| Decoded { unreadable: Some(because), ..Decoded::default() };
        let Some(record) = &letter.record else { return unreadable("the record is empty".into()) };
        if let Some(because) = letter.is_cut() {
            return unreadable(because);
        }
        let (id, body) = match unframe(record) {
            Ok(parts) => parts,
            Err(Undecodable(because)) => return unreadable(because),
        };
        let because = match &self.registry.schemas_of([id]).await[&id] {
            Known::Schema(written) => match written.json(body) {
                Ok(event) => {
                    let read_with = Some(format!("schema {id} of the registry"));
                    return Decoded { event: Some(event), read_with, unreadable: None };
                }
                // The writer's schema does not fit, so what another one reads is made up.
                Err(Undecodable(because)) => return unreadable(because),
            },
            Known::Unreadable(because)
            | Known::Unregistered(because)
            | Known::Unsettled(because) => because.clone(),
        };
        let own = self.routes.topic(&letter.topic).map(|topic| topic.codec().json(body));
        match own {
            Some(Ok(event)) => {
                let read_with = Some("this service's own schema of the topic".into());
                Decoded { event: Some(event), read_with, unreadable: Some(because) }
            }
            Some(Err(_)) | None => unreadable(because),
        }
    }
}

const WHATEVER_IT_SAID: &str =
    "Nobody can read what it said. Whatever that was is lost, and may be waited for elsewhere.";
const HANDLED_BEFORE: &str = "Nothing is lost: the event was handled when it came another time.";
const GIVEN_UP_BEFORE: &str = "Nothing more is lost: the event was given up in another letter.";

/// What it costs to give up what nobody can read. With an event's id and the id of a schema it is no garbage:
/// it may have been worth anything.
fn of_unread(letter: &Letter, event_id: Option<Uuid>) -> Loss {
    let loss = Loss::that(WHATEVER_IT_SAID);
    let framed = letter.record.as_deref().is_some_and(|record| unframe(record).is_ok());
    match event_id.filter(|_| framed) {
        Some(event_id) => loss.writing_off(format!("event {event_id}"), 1, "unread events"),
        None => loss,
    }
}

fn still_dead(letter_id: i64, cause: &Cause) -> Problem {
    let detail =
        format!("Letter {letter_id} stays as it is, for it would be one again: {}.", cause.reason);
    Problem::conflict(STILL_DEAD, detail)
}

fn given_up(letter_id: i64) -> Problem {
    Problem::conflict("discarded", format!("Letter {letter_id} was discarded, which is for ever."))
}

fn replayed(letter_id: i64) -> Problem {
    let detail = format!("Letter {letter_id} was replayed: there is nothing left to discard.");
    Problem::conflict("replayed", detail)
}

fn write_off_needed(letter_id: i64, loss: &Loss) -> Problem {
    let amounts: Vec<String> = loss.write_offs.iter().map(ToString::to_string).collect();
    let detail = format!(
        "{} To discard letter {letter_id} writes off {}. If that is what you want, say so with \"write_off\": true.",
        loss.consequence,
        amounts.join(" and "),
    );
    Problem::conflict("write-off-needed", detail)
}

fn not_now(because: impl std::fmt::Display) -> Problem {
    Problem::unavailable(format!("Not now, and nothing was changed: {because}."))
}
