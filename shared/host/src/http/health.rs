//! The probes of an orchestrator: `/livez` (every loop makes progress), `/readyz` (the service's own database
//! answers), and `/metrics`.
//!
//! Liveness does not depend on other systems: restarting a service does not repair its database, and would restart
//! the whole fleet in an outage. Readiness depends on the service's own database: a service serves while Kafka is
//! down. It also depends on a password that Kafka has never accepted (`telemetry::refusals`).
//!
//! Readiness has a connection of its own. With a connection of the clients' pool, a table that is locked for some
//! seconds would make all replicas unready at once, and clients would get no answer at all rather than a 503.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use messaging::db::login;
use messaging::flow::heartbeat::Heartbeats;
use messaging::telemetry::refusals;
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::http::problem::Problem;

/// How long one probe waits for the database, including the wait for other probes.
const READINESS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the database's answer to one probe is valid for further probes: the database is queried once in that
/// time, however many probes there are.
const READINESS_VALID_FOR: Duration = Duration::from_secs(1);

/// How long a connection is kept: a database that has moved to another host is found after that.
const PROBE_CONNECTION_AGE_MAX: Duration = Duration::from_secs(60);

/// The phase of a service's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its database is unreachable or has an older schema: only probes are answered.
    Starting,
    /// The loops run.
    Serving,
    /// The API accepts no new connection. It finishes the requests under way, and answers connections that wait
    /// already and one last request on each kept connection. Then the loops end.
    Stopping,
}

/// The state from which the probes answer.
#[derive(Clone)]
pub struct ProbeState {
    /// The service's own database.
    pub db: PgPool,
    /// The current phase.
    pub phase: watch::Receiver<Phase>,
    /// Its loops.
    pub heartbeats: Heartbeats,
    /// Its metrics.
    pub metrics: PrometheusHandle,
    /// Whether Kafka has refused its password and never accepted it.
    pub(crate) kafka_denies_access: fn() -> bool,
}

/// The router of the probe port.
pub fn router(probes: ProbeState) -> Router {
    let database = Arc::new(DatabaseProbe::new(&probes.db));
    let readyz = async move |State(probes): State<ProbeState>| readyz(&probes, &database).await;
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probes)
}

async fn livez(State(probes): State<ProbeState>) -> Result<&'static str, Problem> {
    // Before and after serving, the loops do not run; start and stop have timeouts of their own.
    let is_serving = *probes.phase.borrow() == Phase::Serving;
    match probes.heartbeats.stalled() {
        Some(stall) if is_serving => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stalled", stall))
        }
        _ => Ok("ok\n"),
    }
}

async fn readyz(probes: &ProbeState, database: &DatabaseProbe) -> Result<&'static str, Problem> {
    let phase = *probes.phase.borrow();
    match phase {
        Phase::Starting => {
            return Err(Problem::unavailable(
                "Starting: waiting for the database or, with RELAY=cdc, for the schema ids.",
            ));
        }
        Phase::Stopping => return Err(Problem::unavailable("Stopping.")),
        Phase::Serving => {}
    }
    match database.is_reachable().await {
        true if (probes.kafka_denies_access)() => {
            Err(Problem::unavailable("Kafka refuses the password of this service."))
        }
        true => Ok("ok\n"),
        false => Err(Problem::unavailable("The database does not answer.")),
    }
}

/// The service's own database, and the one connection of all probes.
struct DatabaseProbe {
    db: PgPool,
    cache: tokio::sync::Mutex<ProbeCache>,
}

#[derive(Default)]
struct ProbeCache {
    connection: Option<(PgConnection, Instant)>,
    last_result: Option<(bool, Instant)>,
}

impl DatabaseProbe {
    fn new(db: &PgPool) -> DatabaseProbe {
        DatabaseProbe { db: db.clone(), cache: Default::default() }
    }

    async fn is_reachable(&self) -> bool {
        let started = Instant::now();
        let check = async {
            let mut cache = self.cache.lock().await;
            if let Some((answers, at)) = cache.last_result
                && at.elapsed() < READINESS_VALID_FOR
            {
                return answers;
            }
            let left = READINESS_TIMEOUT.saturating_sub(started.elapsed());
            let ping = timeout(left, self.ping(&mut cache.connection)).await;
            if let Ok(Err(error)) = &ping {
                refusals::report_postgres(error);
            }
            let answers = matches!(ping, Ok(Ok(())));
            cache.last_result = Some((answers, Instant::now()));
            answers
        };
        timeout(READINESS_TIMEOUT, check).await.unwrap_or(false)
    }

    /// Queries the kept connection, or a new one if that is broken or old. A connection without an answer in time is
    /// dropped.
    async fn ping(&self, kept: &mut Option<(PgConnection, Instant)>) -> sqlx::Result<()> {
        if let Some((mut connection, since)) = kept.take() {
            if since.elapsed() > PROBE_CONNECTION_AGE_MAX {
                let _ = connection.close().await;
            } else if connection.execute("select 1").await.is_ok() {
                *kept = Some((connection, since));
                return Ok(());
            }
        }
        let (mut connection, _) = login::connect(&self.db, |options| options).await?;
        connection.execute("select 1").await?;
        *kept = Some((connection, Instant::now()));
        Ok(())
    }
}

async fn metrics(State(probes): State<ProbeState>) -> String {
    probes.metrics.render()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tower::ServiceExt;

    use super::*;

    fn probe_state(phase: Phase) -> ProbeState {
        let (_, phase) = watch::channel(phase);
        // Nothing listens at this address: only readiness may depend on it.
        let db = PgPool::connect_lazy("postgres://till@127.0.0.1:1/nowhere").unwrap();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        ProbeState {
            db,
            phase,
            heartbeats: Heartbeats::default(),
            metrics,
            kafka_denies_access: || false,
        }
    }

    async fn get(probes: &ProbeState, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(probes.clone()).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_loop_that_does_not_move_turns_livez_red_and_is_named() {
        let probes = probe_state(Phase::Serving);
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
        let probes = probe_state(Phase::Starting);
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
            let (status, body) = get(&probe_state(phase), "/readyz").await;
            assert_eq!(status, 503);
            assert!(body.contains(why), "{body}");
        }
    }

    fn probe_state_with(db: PgPool) -> ProbeState {
        ProbeState { db, ..probe_state(Phase::Serving) }
    }

    async fn probe_connections(db: &PgPool) -> Vec<i32> {
        let statement = "select pid from pg_stat_activity
                     where datname = current_database() and query = 'select 1'";
        sqlx::query_scalar(statement).fetch_all(db).await.unwrap()
    }

    #[tokio::test]
    async fn readyz_does_not_wait_for_a_connection_that_clients_hold() {
        let (owner, server) = crate::testing::fresh_database().await;
        let mut config = crate::testing::config(owner, server);
        config.database_pool_size = 1;
        let probes = probe_state_with(crate::db::pool::connect("till", &config).unwrap());
        let _held = probes.db.acquire().await.unwrap();
        let began = Instant::now();
        assert_eq!(get(&probes, "/readyz").await.0, 200);
        assert!(began.elapsed() < READINESS_TIMEOUT, "{:?}", began.elapsed());
        let denied = ProbeState { kafka_denies_access: || true, ..probes };
        let (status, body) = get(&denied, "/readyz").await;
        assert_eq!(status, 503);
        assert!(body.contains("Kafka refuses the password"), "{body}");
        assert_eq!(get(&denied, "/livez").await.0, 200, "a restart mends no password");
    }

    #[tokio::test]
    async fn all_probes_share_one_connection_which_is_replaced_once_it_is_broken() {
        let (owner, server) = crate::testing::fresh_database().await;
        let config = crate::testing::config(owner, server);
        let probes = probe_state_with(crate::db::pool::connect("till", &config).unwrap());
        let router = router(probes.clone());
        let ready = async || {
            let request = Request::get("/readyz").body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        let all = futures::future::join_all((0..50).map(|_| ready())).await;
        assert!(all.iter().all(|status| *status == 200), "{all:?}");
        let connections = probe_connections(&probes.db).await;
        assert_eq!(connections.len(), 1, "{connections:?}");
        let end = "select pg_terminate_backend($1)";
        sqlx::query(end).bind(connections[0]).execute(&probes.db).await.unwrap();
        tokio::time::sleep(READINESS_VALID_FOR).await;
        assert_eq!(ready().await, 200, "on another connection");
        let new_connections = probe_connections(&probes.db).await;
        assert!(
            new_connections.len() == 1 && new_connections != connections,
            "{new_connections:?}"
        );
    }
}
