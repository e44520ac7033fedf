//! What an orchestrator asks: `/livez` (do the loops move?), `/readyz` (is our own database
//! there?), `/metrics`.
//!
//! Liveness says nothing about dependencies: restarting a service does not heal its database, and
//! would restart the whole fleet in an outage. Readiness speaks of its own database only: a service
//! serves while Kafka is down.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::problem::Problem;

const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);

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

async fn readyz(State(probes): State<Probes>) -> Result<&'static str, Problem> {
    let phase = *probes.phase.borrow();
    match phase {
        Phase::Starting => return Err(Problem::unavailable("Starting: waiting for the database.")),
        Phase::Stopping => return Err(Problem::unavailable("Stopping.")),
        Phase::Serving => {}
    }
    match timeout(DATABASE_TIMEOUT, sqlx::query("select 1").execute(&probes.db)).await {
        Ok(Ok(_)) => Ok("ok\n"),
        _ => Err(Problem::unavailable("The database does not answer.")),
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
}
