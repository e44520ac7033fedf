//! The relay carries the outbox to Kafka.
//!
//! Promises: every row of the outbox reaches its topic at least once, and the records of one key are
//! first acknowledged in the order in which they were made. They rest on four rules. One relay a
//! database is active: it holds an advisory lock on the very session that it reads with. At most one
//! record of a key is unacknowledged. It takes what is there, never what comes after the last row
//! it saw: rows become visible in order of commit, not of position. It deletes exactly the rows that
//! the broker acknowledged, a little later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use metrics::gauge;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Kafka;
use crate::db;
use crate::kafka;
use crate::pace::Crowd;
use crate::probes::Heartbeat;
use crate::producer::Producer;
use crate::registry::Registry;
use crate::round::{Round, TAKEN_MAX, in_time};
use crate::sequences;
use crate::wake::Wake;

/// The advisory lock of the active relay. A lock belongs to a database, and a service has its own,
/// so one number does for all.
const LOCK: i64 = 0x0072_656c_6179;

/// A relay whose session is silent for this long is taken to be frozen or cut off: Postgres ends
/// the session, and with it the lock. The relay itself polls more often than this by far.
const SESSION_IDLE_MAX: &str = "10s";

/// How long a statement of the session may take, and so how long one that was given up holds the lock still.
const STATEMENT_MAX: Duration = Duration::from_secs(30);

/// So many rows sent after one look are a crowd; see [`crate::pace`].
const CROWD: usize = 3;

/// The rest after a look in a crowd, unless there is more than it could take. What the broker says meanwhile
/// is heard afterwards: where a row's wait is told, that is in it.
const REST: Duration = Duration::from_millis(4);

/// How often to look for rows of other replicas, which can't wake us, while there is work.
const POLL_BUSY: Duration = Duration::from_millis(20);

/// The same while there is none.
const POLL_IDLE: Duration = Duration::from_millis(500);

/// For how long after a look that sent something there counts as work.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// The rest after a look beside something that is held up, at least: such looks take longer.
const HELD_LOOK_EVERY: Duration = Duration::from_millis(250);

/// That rest, in times that the look took.
const HELD_RESTS: u32 = 3;

/// That rest, at most: well within [`SESSION_IDLE_MAX`].
const HELD_REST_MAX: Duration = Duration::from_secs(5);

/// How long records in flight may take when the process ends: with the rest before it, less than
/// [`SESSION_IDLE_MAX`].
const LAST_ACKS_WITHIN: Duration = Duration::from_secs(4);

/// How long a producer that is given up is waited for.
const PURGED_WITHIN: Duration = Duration::from_secs(5);

/// How long to rest after a look beside something that is held up.
fn rest_beside_held(took: Duration) -> Duration {
    (took * HELD_RESTS).clamp(HELD_LOOK_EVERY, HELD_REST_MAX)
}

/// One of the three loops of a service.
pub struct Relay {
    service: &'static str,
    config: Kafka,
    db: PgPool,
    registry: Arc<Registry>,
    wake: Arc<Wake>,
    heartbeat: Heartbeat,
}

impl Relay {
    /// A relay of the outbox in `db`, woken by `wake` after each commit here.
    pub(crate) fn new(
        service: &'static str,
        config: &Kafka,
        db: PgPool,
        registry: Arc<Registry>,
        wake: Arc<Wake>,
        heartbeat: Heartbeat,
    ) -> Relay {
        Relay { service, config: config.clone(), db, registry, wake, heartbeat }
    }

    /// Runs until stopped. Whatever fails is tried again, for ever.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            if let Err(error) = self.lead(&stop).await {
                warn!("the relay starts again: {error:#}");
                self.pause(&stop).await;
            }
        }
        Ok(())
    }

    /// Waits to become the active relay, then relays until stopped or until something breaks.
    async fn lead(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut db = self.session().await?;
        // On a standby the lock means nothing. And what can't be deleted would be sent again by each that
        // leads.
        let read_only = AssertSqlSafe(format!("select {}", db::READ_ONLY));
        ensure!(
            !in_time(sqlx::query_scalar::<_, bool>(read_only).fetch_one(&mut db)).await?,
            "the database is read-only"
        );
        let asked_at = Instant::now();
        let locked = "select pg_try_advisory_lock($1)";
        while !in_time(sqlx::query_scalar(locked).bind(LOCK).fetch_one(&mut db)).await? {
            gauge!("relay_active").set(0);
            // Another relay reports this now; what was set while this one led must not stay. Unless it is our
            // own session of before that has the lock still: then nobody does.
            if asked_at.elapsed() > STATEMENT_MAX {
                gauge!("outbox_oldest_seconds").set(0);
            }
            self.pause(stop).await;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        // Whoever leads next may do so because the database failed over.
        sequences::put_ahead(&self.db).await;
        let producer = Producer::new(self.service, &self.config)?;
        gauge!("relay_active").set(1);
        info!("relaying");
        let mut round = Round::new(self.service, producer, &self.registry);
        let ended = self.relay(&mut db, &mut round, stop).await;
        // What is still in flight belongs to whoever relays next. Nothing may be sent from here
        // once the lock is gone, so the producer goes before the session is given up.
        // That waits for librdkafka's threads, so it is done on a thread of its own: one of them may be
        // asking a name server, which takes ten seconds and more where there is none. Such a thread is not
        // connected, and the first thing that it does afterwards is to forget its records.
        let Round { producer, .. } = round;
        let closed = kafka::closed(Arc::new(producer));
        if tokio::time::timeout(PURGED_WITHIN, closed).await.is_err() {
            warn!("the producer could not be closed in time");
        }
        self.wake.relaying.taken(false);
        gauge!("relay_active").set(0);
        // Stopped: whoever leads next reports it. After a failure the value stays: where a relay
        // fails again and again, nobody else would show that events wait.
        if ended.is_ok() {
            gauge!("outbox_oldest_seconds").set(0);
        }
        // To say goodbye it sends what is left to send, to somebody who may not read any more.
        let _ = in_time(db.close()).await;
        ended
    }

    /// The session of the lock, which the outbox is read with.
    pub(crate) async fn session(&self) -> anyhow::Result<PgConnection> {
        let session = self.db.connect_options();
        let session = session.as_ref().clone().options([
            ("idle_session_timeout", SESSION_IDLE_MAX),
            // Its own looks are bounded here, and may take longer than any other statement.
            ("statement_timeout", &format!("{}s", STATEMENT_MAX.as_secs())),
            // There is one way to plan a look. To find it anew at each, as Postgres does where it takes
            // that for cheaper, made a lone order's look a third longer.
            ("plan_cache_mode", "force_generic_plan"),
            ("jit", "off"),
            // Beside a topic that is held, rows are looked up by their keys' hashes. To compare each with
            // each, which is what the planner takes for cheaper, takes as long as both are many.
            ("enable_nestloop", "off"),
            ("enable_mergejoin", "off"),
            // In order of the index, which notes what is dead as it goes: a bitmap would fetch every
            // row that was deleted since the last vacuum, again at each look.
            ("enable_bitmapscan", "off"),
            ("enable_seqscan", "off"),
        ]);
        in_time(session.connect()).await.context("no session with the database")
    }

    async fn relay(
        &self,
        db: &mut PgConnection,
        round: &mut Round<'_>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut worked_at = Instant::now();
        let mut crowd = Crowd::of(CROWD);
        while !stop.is_cancelled() {
            round.still_of_use()?;
            self.heartbeat.beat();
            round.survey(db).await?;
            self.heartbeat.beat();
            let limit = if round.is_full() { 0 } else { TAKEN_MAX };
            let began = Instant::now();
            let sent = round.turn(db, limit).await?;
            let took = began.elapsed();
            crowd.came(sent);
            self.wake.relaying.taken(round.has_more());
            if sent > 0 {
                worked_at = Instant::now();
            }
            if round.has_more() {
                continue;
            }
            crowd.rest(REST).await;
            let poll = match worked_at.elapsed() < BUSY_FOR {
                _ if round.held_up() => rest_beside_held(took),
                true => POLL_BUSY,
                false => POLL_IDLE,
            };
            let poll = tokio::time::Instant::now() + poll;
            loop {
                tokio::select! {
                    Some(landed) = round.producer.landed() => {
                        round.landed(landed)?;
                        if round.has_to_look() {
                            break;
                        }
                    }
                    () = self.wake.relay.notified(), if !round.held_up() => break,
                    () = tokio::time::sleep_until(poll) => break,
                    () = stop.cancelled() => break,
                }
            }
        }
        let last = tokio::time::Instant::now() + LAST_ACKS_WITHIN;
        while round.is_in_flight() {
            match tokio::time::timeout_at(last, round.producer.landed()).await {
                Ok(Some(landed)) => round.landed(landed)?,
                Ok(None) | Err(_) => break,
            }
        }
        round.turn(db, 0).await.map(drop)
    }

    async fn pause(&self, stop: &CancellationToken) {
        self.heartbeat.beat();
        let a_second = Duration::from_millis(rand::random_range(500..1_500));
        tokio::select! {
            () = tokio::time::sleep(a_second) => {}
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;

    #[test]
    fn no_rest_costs_the_session_nor_the_heartbeat() {
        let idle_max = Duration::from_secs(SESSION_IDLE_MAX.trim_end_matches('s').parse().unwrap());
        for took in [0, 1, 4, 30].map(Duration::from_secs) {
            let rest = rest_beside_held(took);
            assert!(rest >= HELD_LOOK_EVERY);
            // A registry that says nothing is waited for between the look and the rest.
            assert!(registry::REQUEST_TIMEOUT + rest < idle_max, "{rest:?} after {took:?}");
            // When the process ends, nothing is asked until the last records have landed.
            assert!(rest + LAST_ACKS_WITHIN < idle_max, "{rest:?} after {took:?}");
        }
    }
}
