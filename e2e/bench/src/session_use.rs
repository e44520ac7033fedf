//! How busy the database sessions of the services' loops are.
//!
//! The relay, the consumer and each command executor have a session of their own. A session that is busy all the
//! time limits its service, however many cores there are. A loop also works between two transactions, so this is
//! the least that it is busy.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Result;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};

/// A look takes a third of a millisecond of a database.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(40);

/// Whether each session of a service is busy, and the loop that its last statement is of, if that is known. The
/// database must keep whole statements (`track_activity_query_size`): the end of a statement has the loop's table.
const SESSIONS: &str = "
    select pid, state <> 'idle' as busy,
           case when query like '%insert into chassis.idempotency_keys%' then 'commands'
                when query like '%insert into chassis.inbox%' then 'consumer'
                when query like '%position not in (select unnest%' then 'relay' end as loop
    from pg_stat_activity
    where datname = current_database() and usename = $1 and state is not null";

/// The samples of one session.
#[derive(Default)]
struct Session {
    busy: u32,
    of_loop: Option<String>,
}

/// Reads the sessions of all services, for a while.
pub struct SessionWatch(JoinSet<Result<BTreeMap<String, f64>>>);

impl SessionWatch {
    /// Begins to read after a delay.
    pub fn start(
        databases: &BTreeMap<String, String>,
        delay: Duration,
        lasting: Duration,
    ) -> SessionWatch {
        let from = Instant::now() + delay;
        let mut readers = JoinSet::new();
        for (service, url) in databases.clone() {
            readers.spawn(read_sessions(service, url, from, lasting));
        }
        SessionWatch(readers)
    }

    /// The share of the time in which a loop's session was busy, by service and loop; of several command executors,
    /// their mean.
    pub async fn shares(mut self) -> Result<BTreeMap<String, f64>> {
        let mut shares = BTreeMap::new();
        while let Some(of_service) = self.0.join_next().await {
            shares.extend(of_service??);
        }
        Ok(shares)
    }
}

async fn read_sessions(
    service: String,
    url: String,
    from: Instant,
    lasting: Duration,
) -> Result<BTreeMap<String, f64>> {
    let mut db = PgConnection::connect(&url).await?;
    let (mut sessions, mut samples) = (HashMap::<i32, Session>::new(), 0);
    let mut ticks = interval_at(from, SAMPLE_INTERVAL);
    while ticks.tick().await < from + lasting {
        let found: Vec<(i32, bool, Option<String>)> =
            sqlx::query_as(SESSIONS).bind(&service).fetch_all(&mut db).await?;
        samples += 1;
        for (pid, is_busy, of_loop) in found {
            let session = sessions.entry(pid).or_default();
            session.busy += u32::from(is_busy);
            session.of_loop = of_loop.or(session.of_loop.take());
        }
    }
    db.close().await?;
    Ok(mean_shares(&service, sessions.into_values(), samples))
}

/// A session that was never busy has another purpose, such as the executor of commands whose rows are locked.
fn mean_shares(
    service: &str,
    sessions: impl Iterator<Item = Session>,
    samples: u32,
) -> BTreeMap<String, f64> {
    let mut by_loop = BTreeMap::<String, Vec<f64>>::new();
    for Session { busy, of_loop } in sessions.filter(|session| session.busy > 0) {
        let of_loop = of_loop.unwrap_or_else(|| "others".to_string());
        let shares = by_loop.entry(format!("{service} {of_loop}")).or_default();
        shares.push(f64::from(busy) / f64::from(samples));
    }
    let mean = |shares: Vec<f64>| shares.iter().sum::<f64>() / shares.len() as f64;
    by_loop.into_iter().map(|(name, shares)| (name, mean(shares))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_with_two_sessions_has_their_mean_and_an_idle_session_does_not_count() {
        let session = |busy, of_loop: &str| Session { busy, of_loop: Some(of_loop.to_string()) };
        let sessions = [session(3, "commands"), session(5, "commands"), session(0, "commands")];
        let sessions = sessions.into_iter().chain([session(10, "relay")]);
        let shares = mean_shares("order", sessions, 10);
        assert_eq!(
            shares.into_iter().collect::<Vec<_>>(),
            [("order commands".to_string(), 0.4), ("order relay".to_string(), 1.0),]
        );
    }
}
