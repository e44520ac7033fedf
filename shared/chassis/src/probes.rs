//! What an orchestrator asks: `/livez` (do the loops move?), `/readyz` (is our own database
//! there?), `/metrics`.
//!
//! Liveness says nothing about dependencies: restarting a service does not heal its database, and
//! would restart the whole fleet in an outage. Readiness speaks of its own database only: a service
//! serves while Kafka is down.
//!
//! Readiness asks on a connection of its own: if it took one of the clients' pool, a table that is locked
//! for some seconds would turn all replicas unready at once, and the clients would get no answer at all in
//! place of a 503.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::problem::Problem;

/// How long one probe waits for the database, its turn to ask included.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the database's answer to one probe answers further ones. However many ask, the database is asked
/// once in that time.
const ANSWER_LIVES_FOR: Duration = Duration::from_secs(1);

/// How long a connection is kept: a database that has moved to another host is found after that.
const CONNECTION_LIVES_FOR: Duration = Duration::from_secs(60);

/// Where a service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its database is away or older than it: probes are answered, nothing else.
    Starting,
    /// The loops run.
    Serving,
    /// The API accepts nobody new. It finishes the requests under way, and answers connections that
    /// wait already and one last request on each kept connection. Then the loops end.
    Stopping,
}

/// The loops that must move, each with a bound.
#[derive(Clone)]
pub struct Heartbeats {
    epoch: Instant,
    loops: Arc<Mutex<Vec<(Heartbeat, Duration)>>>,
}

/// Beaten by a loop on each round, idle or not.
#[derive(Clone)]
pub struct Heartbeat {
    name: &'static str,
    epoch: Instant,
    last_ms: Arc<AtomicU64>,
}

/// What the probes answer from.
#[derive(Clone)]
pub struct Probes {
    /// The service's own database.
    pub db: PgPool,
    /// Where the service is in its life.
    pub phase: watch::Receiver<Phase>,
    /// Its loops.
    pub heartbeats: Heartbeats,
    /// Its metrics.
    pub metrics: PrometheusHandle,
}

/// The router of the probe port.
pub fn router(probes: Probes) -> Router {
    let database = Arc::new(Database::new(&probes.db));
    let readyz = async move |State(probes): State<Probes>| readyz(&probes, &database).await;
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probes)
}

async fn livez(State(probes): State<Probes>) -> Result<&'static str, Problem> {
    // Before and after, the loops are not there to beat; start and stop have bounds of their own.
    let is_serving = *probes.phase.borrow() == Phase::Serving;
    match probes.heartbeats.stalled() {
        Some(stall) if is_serving => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stalled", stall))
        }
        _ => Ok("ok\n"),
    }
}

async fn readyz(probes: &Probes, database: &Database) -> Result<&'static str, Problem> {
    let phase = *probes.phase.borrow();
    match phase {
        Phase::Starting => return Err(Problem::unavailable("Starting: waiting for the database.")),
        Phase::Stopping => return Err(Problem::unavailable("Stopping.")),
        Phase::Serving => {}
    }
    match database.answers().await {
        true => Ok("ok\n"),
        false => Err(Problem::unavailable("The database does not answer.")),
    }
}

/// The service's own database, and the one connection on which probes ask it.
struct Database {
    options: PgConnectOptions,
    asked: tokio::sync::Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    connection: Option<(PgConnection, Instant)>,
    last: Option<(bool, Instant)>,
}

impl Database {
    fn new(db: &PgPool) -> Database {
        Database { options: db.connect_options().as_ref().clone(), asked: Default::default() }
    }

    async fn answers(&self) -> bool {
        let asked_since = Instant::now();
        let answers = async {
            let mut asked = self.asked.lock().await;
            if let Some((answers, at)) = asked.last
                && at.elapsed() < ANSWER_LIVES_FOR
            {
                return answers;
            }
            let left = DATABASE_TIMEOUT.saturating_sub(asked_since.elapsed());
            let asking = timeout(left, self.ask(&mut asked.connection)).await;
            let answers = matches!(asking, Ok(Ok(())));
            asked.last = Some((answers, Instant::now()));
            answers
        };
        timeout(DATABASE_TIMEOUT, answers).await.unwrap_or(false)
    }

    /// Asks on the kept connection, and if that is broken or old, on a new one. A connection on which the
    /// answer did not come in time is dropped.
    async fn ask(&self, kept: &mut Option<(PgConnection, Instant)>) -> sqlx::Result<()> {
        if let Some((mut connection, since)) = kept.take() {
            if since.elapsed() > CONNECTION_LIVES_FOR {
                let _ = connection.close().await;
            } else if connection.execute("select 1").await.is_ok() {
                *kept = Some((connection, since));
                return Ok(());
            }
        }
        let mut connection = self.options.connect().await?;
        connection.execute("select 1").await?;
        *kept = Some((connection, Instant::now()));
        Ok(())
    }
}

async fn metrics(State(probes): State<Probes>) -> String {
    probes.metrics.render()
}

impl Heartbeats {
    /// None yet.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { epoch: Instant::now(), loops: Arc::default() }
    }

    /// A loop that must beat at least once in every `bound`.
    pub fn register(&self, name: &'static str, bound: Duration) -> Heartbeat {
        let beat = Heartbeat { name, epoch: self.epoch, last_ms: Arc::default() };
        beat.beat();
        self.lock().push((beat.clone(), bound));
        beat
    }

    /// Counts from now on, for all: they were registered long before they run.
    pub(crate) fn restart(&self) {
        self.lock().iter().for_each(|(heartbeat, _)| heartbeat.beat());
    }

    fn stalled(&self) -> Option<String> {
        self.lock().iter().find_map(|(heartbeat, bound)| {
            let still = heartbeat.since();
            let name = heartbeat.name;
            (still > *bound).then(|| format!("The {name} has not moved for {still:.1?}."))
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Heartbeat, Duration)>> {
        self.loops.lock().expect("nothing panics while it is held")
    }
}

impl Heartbeat {
    /// The loop has come round.
    pub fn beat(&self) {
        self.last_ms.store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn since(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.epoch.elapsed().saturating_sub(last)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tower::ServiceExt;

    use super::*;

    fn probes(phase: Phase) -> Probes {
        let (_, phase) = watch::channel(phase);
        // Nothing listens there: only readiness may notice.
        let db = PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/nowhere").unwrap();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        Probes { db, phase, heartbeats: Heartbeats::new(), metrics }
    }

    async fn get(probes: &Probes, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(probes.clone()).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_loop_that_does_not_move_turns_livez_red_and_is_named() {
        let probes = probes(Phase::Serving);
        let bound = Duration::from_millis(500);
        let relay = probes.heartbeats.register("relay", bound);
        let _consumer = probes.heartbeats.register("consumer", Duration::from_secs(60));
        assert_eq!(get(&probes, "/livez").await.0, 200, "without a database");
        tokio::time::sleep(2 * bound).await;
        let (status, body) = get(&probes, "/livez").await;
        assert_eq!(status, 503);
        assert!(body.contains("The relay has not moved"), "{body}");
        relay.beat();
        assert_eq!(get(&probes, "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn loops_are_not_expected_to_move_before_they_run() {
        let probes = probes(Phase::Starting);
        probes.heartbeats.register("relay", Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(get(&probes, "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn readyz_is_red_without_its_database_and_while_it_starts_or_stops() {
        for (phase, why) in [
            (Phase::Starting, "Starting"),
            (Phase::Serving, "The database does not answer"),
            (Phase::Stopping, "Stopping"),
        ] {
            let (status, body) = get(&probes(phase), "/readyz").await;
            assert_eq!(status, 503);
            assert!(body.contains(why), "{body}");
        }
    }

    fn probes_of(db: PgPool) -> Probes {
        Probes { db, ..probes(Phase::Serving) }
    }

    async fn sessions(db: &PgPool) -> Vec<i32> {
        let asked = "select pid from pg_stat_activity
                     where datname = current_database() and query = 'select 1'";
        sqlx::query_scalar(asked).fetch_all(db).await.unwrap()
    }

    #[tokio::test]
    async fn readyz_does_not_wait_for_a_connection_that_clients_hold() {
        let (owner, server) = crate::testing::fresh_database().await;
        let mut config = crate::testing::config(owner, server);
        config.database_pool_size = 1;
        let probes = probes_of(crate::schema::connect("till", &config).unwrap());
        let _held = probes.db.acquire().await.unwrap();
        let began = Instant::now();
        assert_eq!(get(&probes, "/readyz").await.0, 200);
        assert!(began.elapsed() < DATABASE_TIMEOUT, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn all_probes_share_one_session_which_is_replaced_once_it_is_broken() {
        let (owner, server) = crate::testing::fresh_database().await;
        let config = crate::testing::config(owner, server);
        let probes = probes_of(crate::schema::connect("till", &config).unwrap());
        let router = router(probes.clone());
        let ready = async || {
            let request = Request::get("/readyz").body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        let all = futures::future::join_all((0..50).map(|_| ready())).await;
        assert!(all.iter().all(|status| *status == 200), "{all:?}");
        let asked = sessions(&probes.db).await;
        assert_eq!(asked.len(), 1, "{asked:?}");
        let end = "select pg_terminate_backend($1)";
        sqlx::query(end).bind(asked[0]).execute(&probes.db).await.unwrap();
        tokio::time::sleep(ANSWER_LIVES_FOR).await;
        assert_eq!(ready().await, 200, "asked again, on another");
        let asked_again = sessions(&probes.db).await;
        assert!(asked_again.len() == 1 && asked_again != asked, "{asked_again:?}");
    }
}
