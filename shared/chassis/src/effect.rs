//! The effect of events: admitted, rows loaded, decided, saved, published, in a transaction that is
//! open already. A batch from Kafka has many of them and commits its offsets afterwards; a replayed
//! letter has one and is closed with it.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use chrono::{DateTime, Utc};
use metrics::{counter, histogram};
use opentelemetry::Context;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::crash;
use crate::db;
use crate::dead_letter::{Cause, Kind};
use crate::event::{At, Impossible, Retention, Topic};
use crate::inbox;
use crate::outbox::{self, Envelope};
use crate::route::{Content, Item};
use crate::rows::{Rows, guarded};
use crate::telemetry;
use crate::wake::Wake;
use crate::writes::Writes;

/// Why events did not have their effect. The transaction is to be rolled back.
pub(crate) enum Trouble {
    Database(sqlx::Error),
    /// The event at this place can't be handled.
    Event(usize, Cause),
    /// Something else that has to pass.
    Waiting(String),
}

impl Trouble {
    /// Whether an event that was taken for new may cause it only because it was handled before.
    pub fn may_be_a_repeat(&self) -> bool {
        match self {
            Trouble::Event(..) => true,
            Trouble::Database(error) => db::classify(error).may_be_a_repeat(),
            Trouble::Waiting(_) => false,
        }
    }
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Trouble {
        Trouble::Database(error)
    }
}

/// What was done, as long as it is not committed.
#[must_use]
pub(crate) struct Effect {
    /// By topic: when each event was decided, where that is told.
    handled: BTreeMap<&'static str, Vec<Option<DateTime<Utc>>>>,
    /// When its transaction began, by the database's clock.
    now: DateTime<Utc>,
    /// When handling began, right after that, by ours.
    begun: Instant,
    /// Those that had had their effect before: place, id and topic.
    repeated: Vec<(usize, Uuid, &'static Topic)>,
    publishes: bool,
    /// End when they are dropped.
    _spans: Vec<Context>,
}

/// How repeats are told from what is new.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Admission {
    /// The inbox is asked first.
    First,
    /// All of it is taken for new, and entered with its effect: a round trip less of five, which is a
    /// tenth of what small batches cost. Where that is wrong, there is trouble of one kind or another,
    /// and the inbox is to be asked first. With the time at which the transaction began.
    ///
    /// Two instances that have the same events at the same moment, one in each way, may wait for one
    /// another. Postgres ends one of them after a second, and it tries again.
    WithEffect(DateTime<Utc>),
}

/// Lets events have their effect; those that had it before are passed over, and so is what is no
/// event. `attempts` is the number of this attempt, from 1; the inbox stores it.
pub(crate) async fn take<R: Rows>(
    tx: &mut PgConnection,
    items: &[Item<R>],
    admission: Admission,
    attempts: i32,
) -> Result<Effect, Trouble> {
    let begun = Instant::now();
    let entering: Vec<_> = items.iter().filter_map(Item::entering).collect();
    let (mut admitted, now) = match admission {
        Admission::First => inbox::admit(tx, &entering, attempts).await?,
        Admission::WithEffect(now) => {
            (entering.iter().map(|(event_id, _)| *event_id).collect(), now)
        }
    };
    crash::point!("effect.admitted", !admitted.is_empty());
    let mut keys = R::Keys::default();
    let (mut new, mut repeated) = (Vec::with_capacity(items.len()), Vec::new());
    for (nth, item) in items.iter().enumerate() {
        if let Content::Event(topic, work) = &item.content {
            // Removed from the set, so that a repeat within the batch is a repeat too.
            let state = topic.retention == Retention::Compact;
            if state || item.event_id.is_some_and(|id| admitted.remove(&id)) {
                work.touch(&mut keys);
                new.push((nth, *topic, item, work));
            } else if let Some(event_id) = item.event_id {
                repeated.push((nth, event_id, *topic));
            }
        }
    }
    if !repeated.is_empty() {
        repeats_of_their_topic(tx, &repeated, &entering).await?;
    }
    let mut rows = R::load(tx, keys).await?;
    crash::point!("effect.loaded", !new.is_empty());
    let (mut envelopes, mut spans) = (Vec::new(), Vec::with_capacity(new.len()));
    for (nth, topic, item, work) in &new {
        let span = item.span(topic);
        let at = At { now, event_id: Uuid::now_v7(), cause: item.event_id };
        let decided = guarded(|| work.decide(&mut rows, at))
            .map_err(|panic| (Kind::Failing, format!("its handler panicked: {panic}")))
            .and_then(|answer| answer.map_err(|Impossible(why)| (Kind::Impossible, why)));
        match decided {
            Ok(event) => envelopes.extend(event.map(|event| Envelope {
                event,
                event_id: at.event_id,
                traceparent: Some(telemetry::traceparent(&span)),
                cause: item.event_id,
                occurred_at: now,
            })),
            Err((kind, reason)) => return Err(Trouble::Event(*nth, Cause { kind, reason })),
        }
        spans.push(span);
    }
    crash::point!("effect.decided", !new.is_empty());
    let mut writes = Writes::of(tx);
    if admission != Admission::First {
        inbox::enter(&mut writes, &entering, attempts);
    }
    rows.save(&mut writes);
    outbox::publish(&mut writes, &envelopes);
    // Also where all of it was handled before: the places of its records in Kafka are stored next.
    writes.run_durably().await?;
    let mut handled: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (_, topic, item, _) in &new {
        handled.entry(topic.name).or_default().push(item.sent_at);
    }
    let publishes = !envelopes.is_empty();
    Ok(Effect { handled, now, begun, repeated, publishes, _spans: spans })
}

/// Whether each repeat is one of an event of its own topic. Ids are for one event each; where a publisher
/// gives the same to two, the second may not pass for a repeat of the first. `entering` is what is not in
/// the inbox yet.
pub(crate) async fn repeats_of_their_topic(
    tx: &mut PgConnection,
    repeats: &[(usize, Uuid, &'static Topic)],
    entering: &[(Uuid, &'static str)],
) -> Result<(), Trouble> {
    let event_ids: Vec<_> = repeats.iter().map(|(_, event_id, _)| *event_id).collect();
    let known = inbox::topics(tx, &event_ids).await?;
    for (nth, event_id, topic) in repeats {
        let entered = || entering.iter().find(|(id, _)| id == event_id).map(|(_, topic)| *topic);
        let known = known.get(event_id).map(String::as_str).or_else(entered);
        if let Some(other) = known.filter(|known| *known != topic.name) {
            let reason = format!("its id is that of an event of {other}");
            return Err(Trouble::Event(*nth, Cause { kind: Kind::Impossible, reason }));
        }
    }
    Ok(())
}

impl Effect {
    /// Whether any event had had its effect before.
    pub fn has_repeats(&self) -> bool {
        !self.repeated.is_empty()
    }

    /// Whether any event had an effect, rather than having had it before.
    pub fn is_new(&self) -> bool {
        !self.handled.is_empty()
    }

    /// After the commit, never before: wakes the relay and whoever watches, and counts. Answers the
    /// topics of what had its effect.
    pub fn committed(self, wake: &Wake) -> HashSet<&'static str> {
        if self.publishes {
            wake.relay.notify_one();
        }
        wake.watchers.send_replace(());
        let handling = self.begun.elapsed();
        for (topic, decided) in &self.handled {
            counter!("events_handled_total", "topic" => *topic).increment(decided.len() as u64);
            let delivery = histogram!("event_delivery_seconds", "topic" => *topic);
            // Where clocks differ by more than it took, that can't be told.
            let took = |at: &DateTime<Utc>| (self.now - at).to_std().ok();
            let took = decided.iter().flatten().filter_map(took);
            took.for_each(|took| delivery.record(took + handling));
        }
        for (_, _, topic) in &self.repeated {
            counter!("events_repeated_total", "topic" => topic.name).increment(1);
        }
        self.handled.into_keys().collect()
    }
}
