//! The outbox log: on request, each database records every event that enters its outbox, in a table
//! that the services do not use. It shows an event that was lost on its way, and events that
//! overtook each other.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result};
use chassis::admin::republish;
use chassis::event::{Retention, Topic};
use chrono::{DateTime, Utc};
use futures::stream::StreamExt;
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use crate::findings::Findings;
use crate::invariants::InvariantName;
use crate::invariants::MessagingInvariant::{Ordered, Published};
use crate::quiescence::was_ever_carried;
use crate::record::RecordPosition;
use crate::sources::System;

/// The function runs with the rights of its owner, so the services need none.
const INSTALL: &str = "
    begin;
    select pg_advisory_xact_lock(hashtext('checker'));
    create schema if not exists checker;
    create table if not exists checker.outbox_log (
        nth         bigint generated always as identity primary key,
        event_id    uuid not null,
        topic       text not null,
        key         text not null,
        traceparent text,
        logged_at   timestamptz not null default now()
    );
    create or replace function checker.log_outbox() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
        insert into checker.outbox_log (event_id, topic, key, traceparent)
        select event_id, topic, key, traceparent from fresh order by position;
        return null;
    end $$;
    create or replace trigger checker_outbox_log after insert on chassis.outbox
    referencing new table as fresh for each statement execute function checker.log_outbox();
    commit";

const REMOVE: &str = "
    drop trigger if exists checker_outbox_log on chassis.outbox;
    drop schema if exists checker cascade";

/// Installs the outbox log in every database, whose URLs must be those of a superuser, after each
/// service is migrated. Events from now on are checked. It can be repeated.
pub async fn install(system: &System) -> Result<()> {
    run_everywhere(system, INSTALL).await
}

/// Removes the outbox log from every database.
pub async fn remove(system: &System) -> Result<()> {
    run_everywhere(system, REMOVE).await
}

async fn run_everywhere(system: &System, sql: &'static str) -> Result<()> {
    for (service, url) in &system.databases {
        let mut db = PgConnection::connect(url).await?;
        let ran = sqlx::raw_sql(sql).execute(&mut db).await;
        ran.with_context(|| format!("the outbox log of {service}"))?;
        db.close().await?;
    }
    Ok(())
}

/// An event that entered an outbox.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct LoggedEvent {
    pub(crate) event_id: Uuid,
    pub(crate) topic: String,
    pub(crate) key: String,
    pub(crate) traceparent: Option<String>,
    pub(crate) logged_at: DateTime<Utc>,
}

/// The first record of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) position: RecordPosition,
    pub(crate) appended_ms: i64,
    pub(crate) is_republished: bool,
}

/// Whether a database has the outbox log.
pub(crate) async fn is_installed(db: &PgPool) -> Result<bool> {
    let there = "select to_regclass('checker.outbox_log') is not null";
    Ok(sqlx::query_scalar(there).fetch_one(db).await?)
}

/// Checks the events that a service logged, in the order in which they entered its outbox. Returns
/// their number.
pub(crate) async fn check<I: InvariantName>(
    service: &'static str,
    db: &PgPool,
    check: &mut OutboxCheck<'_>,
    findings: &mut Findings<I>,
) -> Result<u64> {
    let rows = "select event_id, topic, key, traceparent, logged_at
                from checker.outbox_log order by nth";
    let mut rows = sqlx::query_as::<_, LoggedEvent>(rows).fetch(db);
    // A connector sends the records of several topics at once, and waits for none.
    check.compares_topics = !was_ever_carried(db).await?;
    let mut count = 0;
    while let Some(row) = rows.next().await {
        check.check_event(service, &row?, findings);
        count += 1;
    }
    check.finish(findings);
    Ok(count)
}

/// Compares the logged events of one service with the first records of all events.
pub(crate) struct OutboxCheck<'a> {
    pub(crate) topics: &'a [&'static Topic],
    pub(crate) arrivals: &'a HashMap<Uuid, Arrival>,
    /// Events older than this may have left their topics.
    pub(crate) retained_since: DateTime<Utc>,
    pub(crate) clock_skew_ms: i64,
    /// Whether events of one key in two topics must arrive in their order.
    pub(crate) compares_topics: bool,
    seen: HashSet<Uuid>,
    /// The event of each key that entered the outbox last, with its arrival.
    last: HashMap<String, (Uuid, Arrival)>,
    /// The newest event of each key of a compacted topic: the only one that must stay.
    newest: BTreeMap<(&'static str, String), Uuid>,
}

impl<'a> OutboxCheck<'a> {
    pub(crate) fn new(
        topics: &'a [&'static Topic],
        arrivals: &'a HashMap<Uuid, Arrival>,
        retained_since: DateTime<Utc>,
        clock_skew_ms: i64,
    ) -> OutboxCheck<'a> {
        let (seen, last, newest) = (HashSet::new(), HashMap::new(), BTreeMap::new());
        OutboxCheck {
            topics,
            arrivals,
            retained_since,
            clock_skew_ms,
            compares_topics: true,
            seen,
            last,
            newest,
        }
    }

    /// Checks the next event of the service.
    pub(crate) fn check_event<I: InvariantName>(
        &mut self,
        service: &'static str,
        event: &LoggedEvent,
        findings: &mut Findings<I>,
    ) {
        let LoggedEvent { event_id, key, .. } = event;
        let declared = self.topics.iter().find(|topic| topic.name == event.topic);
        let Some(topic) = declared.copied() else {
            return findings.add(Published, "undeclared topic", || {
                format!("{service} published {event_id} to {}", event.topic)
            });
        };
        let is_republished = event.traceparent.as_deref() == Some(&*republish::traceparent(key));
        if !self.seen.insert(*event_id) || is_republished {
            return;
        }
        let arrival = self.arrivals.get(event_id).copied();
        if topic.retention == Retention::Compact {
            self.newest.insert((topic.name, key.clone()), *event_id);
        } else {
            let is_there = arrival.is_some() || event.logged_at < self.retained_since;
            findings.unless(is_there, Published, "lost", || {
                format!("{service} published {event_id} for {key}, and it is not in {}", topic.name)
            });
        }
        let Some(arrival) = arrival.filter(|arrival| !arrival.is_republished) else { return };
        if let Some((before_id, before)) = self.last.insert(key.clone(), (*event_id, arrival)) {
            findings.unless(self.is_behind(&before, &arrival), Ordered, "overtaken", || {
                format!(
                    "{service} published {before_id} before {event_id} for {key}, and they are at \
                     {} and {}",
                    before.position, arrival.position
                )
            });
        }
    }

    /// Whether a record arrived after another one. In one topic offsets are compared, since a key has
    /// one partition, and in two topics the append times of the broker, unless a connector sent them.
    fn is_behind(&self, before: &Arrival, after: &Arrival) -> bool {
        let (first, second) = (before.position, after.position);
        if first.topic.name == second.topic.name && first.partition == second.partition {
            return first.offset < second.offset;
        }
        !self.compares_topics || before.appended_ms - after.appended_ms <= self.clock_skew_ms
    }

    /// Checks the newest event of each key of the compacted topics, after the last event.
    pub(crate) fn finish<I: InvariantName>(&mut self, findings: &mut Findings<I>) {
        for ((topic, key), event_id) in std::mem::take(&mut self.newest) {
            findings.unless(self.arrivals.contains_key(&event_id), Published, "lost", || {
                format!("{event_id}, the newest event for {key}, is not in {topic}")
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::MessagingInvariant;

    static HAPPENED: Topic = Topic::new("a.happened", "a", "");
    static ENDED: Topic = Topic::new("a.ended", "a", "");
    static STATE: Topic = Topic::new("a.state", "a", "").compacted();

    /// The findings if a service published these events for one key, and these arrived: each with its
    /// topic, offset and append time.
    fn kinds_of(
        published: &[(u128, &Topic)],
        arrived: &[(u128, &'static Topic, i64, i64)],
    ) -> Vec<String> {
        kinds_by(published, arrived, true)
    }

    fn kinds_by(
        published: &[(u128, &Topic)],
        arrived: &[(u128, &'static Topic, i64, i64)],
        compares_topics: bool,
    ) -> Vec<String> {
        let arrivals = arrived.iter().map(|(event_id, topic, offset, appended_ms)| {
            let position = RecordPosition { topic, partition: 0, offset: *offset };
            let arrival = Arrival { position, appended_ms: *appended_ms, is_republished: false };
            (Uuid::from_u128(*event_id), arrival)
        });
        let arrivals = arrivals.collect();
        let topics = [&HAPPENED, &ENDED, &STATE];
        let mut check = OutboxCheck::new(&topics, &arrivals, DateTime::UNIX_EPOCH, 0);
        check.compares_topics = compares_topics;
        let mut findings = Findings::<MessagingInvariant>::default();
        for (event_id, topic) in published {
            let event = LoggedEvent {
                event_id: Uuid::from_u128(*event_id),
                topic: topic.name.to_string(),
                key: "key".to_string(),
                traceparent: None,
                logged_at: Utc::now(),
            };
            check.check_event("a", &event, &mut findings);
        }
        check.finish(&mut findings);
        findings.kinds()
    }

    #[test]
    fn a_lost_event_is_found_and_of_a_compacted_topic_only_the_newest() {
        assert_eq!(kinds_of(&[(1, &HAPPENED)], &[(1, &HAPPENED, 0, 5)]), [""; 0]);
        assert_eq!(kinds_of(&[(1, &HAPPENED)], &[]), ["Published lost"]);
        assert_eq!(kinds_of(&[(1, &STATE), (2, &STATE)], &[(2, &STATE, 9, 5)]), [""; 0]);
        assert_eq!(kinds_of(&[(1, &STATE), (2, &STATE)], &[(1, &STATE, 8, 5)]), ["Published lost"]);
    }

    #[test]
    fn events_of_one_key_that_overtake_each_other_are_found_within_and_between_topics() {
        let published = [(1, &HAPPENED), (2, &HAPPENED), (3, &ENDED)];
        let right = [(1, &HAPPENED, 0, 5), (2, &HAPPENED, 1, 5), (3, &ENDED, 0, 5)];
        assert_eq!(kinds_of(&published, &right), [""; 0]);
        let within = [(1, &HAPPENED, 1, 5), (2, &HAPPENED, 0, 5), (3, &ENDED, 0, 5)];
        assert_eq!(kinds_of(&published, &within), ["Ordered overtaken"]);
        let between = [(1, &HAPPENED, 0, 5), (2, &HAPPENED, 1, 6), (3, &ENDED, 0, 5)];
        assert_eq!(kinds_of(&published, &between), ["Ordered overtaken"]);
        assert_eq!(kinds_by(&published, &between, false), [""; 0], "a connector sent them");
        assert_eq!(kinds_by(&published, &within, false), ["Ordered overtaken"]);
    }

    /// They have one cause, one key and one append time.
    #[test]
    fn each_event_of_one_decision_is_expected_in_the_order_of_its_outcome() {
        let published = [(1, &HAPPENED), (2, &ENDED), (3, &STATE)];
        let right = [(1, &HAPPENED, 0, 5), (2, &ENDED, 0, 5), (3, &STATE, 0, 5)];
        assert_eq!(kinds_of(&published, &right), [""; 0]);
        let one_is_missing = [right[0], right[2]];
        assert_eq!(kinds_of(&published, &one_is_missing), ["Published lost"]);
        let turned = [right[0], (2, &ENDED, 0, 4), right[2]];
        assert_eq!(kinds_of(&published, &turned), ["Ordered overtaken"]);
    }
}
