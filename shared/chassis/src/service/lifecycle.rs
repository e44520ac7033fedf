//! The lifecycle of a service: it listens, waits for its database, serves, and stops.
//!
//! The first of its loops to end ends them all. A stop takes bounded time and has an order: the API
//! first, since its requests need the loops; then the loops, each at the end of its batch; the probes
//! last.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::reject_browser_requests;
use crate::config::Config;
use crate::config::env::BadConfiguration;
use crate::crash_point;
use crate::db;
use crate::db::clock;
use crate::db::migrate;
use crate::db::sequences;
use crate::http::health::{self, Phase, ProbeState};
use crate::http::limits::Limits;
use crate::http::problem::Problem;
use crate::http::server;
use crate::outbox;
use crate::service::open_files;
use crate::service::tasks::Tasks;
use crate::service::{Routers, Service, ServiceLoop};

const API_TASK: &str = "API";
const PROBES_TASK: &str = "probes";
const CLOCK_TASK: &str = "clock";
const ADMIN_TASK: &str = "admin port";

const INTERNAL_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout of storing the schemas beside the outbox.
const STORE_SCHEMAS_TIMEOUT: Duration = Duration::from_secs(8);
const STORE_SCHEMAS_RETRY_INTERVAL: Duration = Duration::from_secs(1);

impl Service {
    /// Serves the three ports and runs the loops, until a signal or until the first of them ends.
    ///
    /// # Errors
    /// If a loop failed, or one did not end in time; and before the start, if this service publishes events that
    /// it can't republish.
    pub async fn run(
        self,
        routers: Routers,
        loops: impl IntoIterator<Item = ServiceLoop>,
    ) -> anyhow::Result<()> {
        self.ensure_republishable()?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown_signal = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        self.run_until(shutdown_signal, routers, loops).await
    }

    async fn run_until(
        self,
        shutdown_signal: impl Future<Output = ()>,
        routers: Routers,
        loops: impl IntoIterator<Item = ServiceLoop>,
    ) -> anyhow::Result<()> {
        let mut shutdown_signal = pin!(shutdown_signal);
        let (phase, phase_receiver) = watch::channel(Phase::Starting);
        let mut tasks = Tasks::default();
        let stop_internal_ports = CancellationToken::new();
        self.listen(routers, phase_receiver, &stop_internal_ports, &mut tasks)?;

        let ended_early = tokio::select! {
            () = shutdown_signal.as_mut() => Some(Ok(())),
            failure = tasks.join_first() => Some(Err(failure)),
            () = self.wait_until_prepared() => None,
        };
        let mut names = Vec::new();
        let ended = match ended_early {
            Some(ended) => ended,
            None => {
                for ServiceLoop { name, run } in loops {
                    names.push(name);
                    tasks.spawn(name, run(self.stop.clone()));
                }
                names.push(CLOCK_TASK);
                tasks.spawn(CLOCK_TASK, clock::run(self.db.clone(), self.stop.clone()));
                self.heartbeats.beat_all();
                phase.send_replace(Phase::Serving);
                tracing::info!("serving on {}", self.config.http_addr);
                tokio::select! {
                    () = shutdown_signal => Ok(()),
                    failure = tasks.join_first() => Err(failure),
                }
            }
        };

        phase.send_replace(Phase::Stopping);
        match &ended {
            Ok(()) => tracing::info!("stopping, as requested"),
            Err(failure) => tracing::warn!("stopping: {failure}"),
        }
        crash_point!("service.stopping");
        let bound = self.config.shutdown_timeout;
        let deadline = Instant::now() + bound;
        self.draining.cancel();
        let drained = tasks.join(&[API_TASK], deadline).await;
        crash_point!("service.drained");
        self.stop.cancel();
        let stopped = tasks.join(&names, deadline).await;
        crash_point!("service.stopped");
        let late: Vec<_> =
            tasks.running().into_iter().filter(|task| names.contains(task)).collect();
        stop_internal_ports.cancel();
        let closed =
            tasks.join(&[PROBES_TASK, ADMIN_TASK], Instant::now() + INTERNAL_DRAIN_TIMEOUT).await;
        // Transactions that are cut off here are rolled back; the timeout is for an unavailable database.
        let _ = timeout(INTERNAL_DRAIN_TIMEOUT, self.db.close()).await;

        let mut ended = ended.and(drained).and(stopped).and(closed);
        if !late.is_empty() {
            let late = format!("did not stop within {bound:?}: {}", late.join(", "));
            ended = Err(match ended {
                Ok(()) => anyhow::anyhow!(late),
                Err(failure) => failure.context(late),
            });
        }
        ended.inspect(|()| tracing::info!("stopped"))
    }

    /// Waits, without a limit, until the database has the migrations of this version and the schema of every event
    /// that this version may write. An older relay can then publish what this process commits, even if this
    /// process dies right afterwards.
    async fn wait_until_prepared(&self) {
        migrate::wait_for_migrations(&self.db, &self.migrator).await;
        // Before anything is numbered: the database may have failed over while no process ran.
        sequences::advance_all(&self.db).await;
        let Some(published) = self.published_topics.get() else { return };
        let stored =
            || db::with_timeout(STORE_SCHEMAS_TIMEOUT, outbox::store_schemas(&self.db, published));
        while let Err(error) = stored().await {
            tracing::warn!("the schemas of the published topics could not be stored: {error}");
            sleep(STORE_SCHEMAS_RETRY_INTERVAL).await;
        }
    }

    /// Binds all three ports, so that a port in use is reported at once, and serves them from then on.
    fn listen(
        &self,
        routers: Routers,
        phase: watch::Receiver<Phase>,
        stop_internal_ports: &CancellationToken,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        let probes = ProbeState {
            db: self.db.clone(),
            phase: phase.clone(),
            heartbeats: self.heartbeats.clone(),
            metrics: self.metrics.clone(),
        };
        let probes = health::router(probes).merge(routers.books);
        let api = routers.api.layer(middleware::from_fn_with_state(phase, reject_until_started));
        let admin = routers.admin.layer(middleware::from_fn(reject_browser_requests));
        let connections = open_files::connection_limits(self.config.database_pool_size)?;
        let idle_timeout = self.config.http_idle_timeout;
        let limits = Limits { connections_max: connections.internal, ..Limits::default() };
        let api_limits = Limits { connections_max: connections.api, idle_timeout, ..limits };

        let mut serve = |task, variable, addr, router, limits, stop: &CancellationToken, drain| {
            let listener = bind(variable, addr)?;
            let stop = stop.clone();
            tasks.spawn(task, server::serve(listener, router, limits, stop, drain));
            anyhow::Ok(())
        };
        let Config { http_addr, probe_addr, admin_addr, shutdown_timeout, .. } = self.config;
        let (stop, drain) = (stop_internal_ports, INTERNAL_DRAIN_TIMEOUT);
        let (api_stop, api_drain) = (&self.draining, shutdown_timeout / 2);
        serve(API_TASK, "HTTP_ADDR", http_addr, api, api_limits, api_stop, api_drain)?;
        serve(PROBES_TASK, "PROBE_ADDR", probe_addr, probes, limits, stop, drain)?;
        serve(ADMIN_TASK, "ADMIN_ADDR", admin_addr, admin, limits, stop, drain)
    }
}

fn bind(variable: &str, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let message = format!("{variable} is {addr}, where nothing can listen");
    server::listen(addr).map_err(|error| match error.kind() {
        // Another process may end and free its port.
        ErrorKind::AddrInUse => anyhow::Error::new(error).context(message),
        _ => BadConfiguration::new(format!("{message}: {error}")).into(),
    })
}

/// Rejects requests until the database is migrated: the loops that would run them do not run yet.
async fn reject_until_started(
    State(phase): State<watch::Receiver<Phase>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if *phase.borrow() == Phase::Starting {
        let detail = "The service is starting and waits for its database; nothing was stored.";
        return Err(Problem::unavailable(detail));
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::admin::republish::{PublishedEvent, Republish};
    use crate::config::{Config, Secret};
    use crate::event::{Retention, Topic};
    use crate::service::process::check_health;

    const TEST_TIMEOUT: Duration = Duration::from_secs(10);

    struct RunningService {
        api: SocketAddr,
        probes: SocketAddr,
        stop: oneshot::Sender<()>,
        ended: JoinHandle<anyhow::Result<()>>,
    }

    /// A service on a database that is migrated if `migrated`, and otherwise waits for that.
    async fn start(
        migrated: bool,
        api: Router,
        loops: Vec<ServiceLoop>,
    ) -> (RunningService, Config) {
        let (owner, server) = migrate::tests::fresh_database().await;
        let mut config = migrate::tests::config(owner, server);
        config.shutdown_timeout = Duration::from_secs(2);
        if migrated {
            migrate::migrate("till", &config, migrate::tests::migrations(1)).await.unwrap();
        }
        [config.http_addr, config.probe_addr, config.admin_addr] = free_addrs().await;
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let migrator = migrate::tests::migrations(1);
        let service = Service::new("till", config.clone(), migrator, metrics).unwrap();
        let (stop, stop_requested) = oneshot::channel();
        let routers = Routers { api, books: Router::new(), admin: Router::new() };
        let stop_requested = async move { stop_requested.await.unwrap_or(()) };
        let ended = tokio::spawn(service.run_until(stop_requested, routers, loops));
        let (api, probes) = (config.http_addr, config.probe_addr);
        (RunningService { api, probes, stop, ended }, config)
    }

    /// Addresses whose ports were free a moment ago.
    async fn free_addrs() -> [SocketAddr; 3] {
        let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listeners = [listen().await, listen().await, listen().await];
        listeners.map(|listener| listener.local_addr().unwrap())
    }

    impl RunningService {
        async fn wait_until_ready(&self) {
            let ready = async {
                while check_health(self.probes).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(TEST_TIMEOUT, ready).await.expect("ready soon");
        }

        async fn wait_until_ended(self) -> anyhow::Result<()> {
            timeout(TEST_TIMEOUT, self.ended).await.expect("an end in bounded time").unwrap()
        }
    }

    async fn send_request(addr: SocketAddr) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    fn loop_that_stops(name: &'static str) -> ServiceLoop {
        ServiceLoop::new(name, async |stop: CancellationToken| {
            stop.cancelled().await;
            Ok(())
        })
    }

    #[tokio::test]
    async fn a_stop_drains_the_api_while_the_loops_still_run() {
        let (work, mut waiting) = tokio::sync::mpsc::channel::<oneshot::Sender<()>>(1);
        let api = Router::new().route(
            "/",
            get(async move || {
                let (done, answer) = oneshot::channel();
                work.send(done).await.unwrap();
                answer.await.map_or("given up", |()| "carried out")
            }),
        );
        let (request_arrived, began) = oneshot::channel();
        let (probes_checked, enough) = oneshot::channel();
        let commands = ServiceLoop::new("commands", async move |stop: CancellationToken| {
            let done = waiting.recv().await.expect("one request");
            let _ = request_arrived.send(());
            enough.await.unwrap();
            assert!(!stop.is_cancelled(), "a request still waits for this loop");
            let _ = done.send(());
            stop.cancelled().await;
            Ok(())
        });
        let (service, _) = start(true, api, vec![commands]).await;
        service.wait_until_ready().await;
        let request = tokio::spawn(send_request(service.api));
        began.await.unwrap();
        let RunningService { probes, stop, ended, .. } = service;
        stop.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(
            send_request(probes).await.starts_with("HTTP/1.1 404"),
            "probes answer until the end"
        );
        assert!(check_health(probes).await.is_err(), "not ready any more");
        probes_checked.send(()).unwrap();
        assert!(request.await.unwrap().ends_with("carried out"));
        timeout(TEST_TIMEOUT, ended).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_loop_that_panics_ends_the_service_and_is_named() {
        let relay = ServiceLoop::new("relay", async |_| panic!("on purpose"));
        let (service, _) =
            start(true, Router::new(), vec![relay, loop_that_stops("consumer")]).await;
        let failure = service.wait_until_ended().await.unwrap_err();
        assert_eq!(format!("{failure:#}"), "the relay failed: panicked: on purpose");
    }

    #[tokio::test]
    async fn a_loop_that_does_not_stop_is_named_and_cut_off_at_the_bound() {
        let stuck = ServiceLoop::new("relay", async |_| std::future::pending().await);
        let (service, _) =
            start(true, Router::new(), vec![stuck, loop_that_stops("consumer")]).await;
        service.wait_until_ready().await;
        let RunningService { stop, ended, .. } = service;
        stop.send(()).unwrap();
        let began = Instant::now();
        let failure = timeout(TEST_TIMEOUT, ended).await.unwrap().unwrap().unwrap_err();
        assert_eq!(format!("{failure:#}"), "did not stop within 2s: relay");
        assert!(began.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn a_service_waits_for_its_schema_and_clients_and_probes_get_a_503() {
        let api = Router::new().route("/", get(async || "here"));
        let (service, config) = start(false, api, vec![loop_that_stops("relay")]).await;
        let answered = async {
            while TcpStream::connect(service.probes).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(TEST_TIMEOUT, answered).await.expect("probes while it waits");
        assert!(check_health(service.probes).await.is_err());
        let refused = send_request(service.api).await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains("nothing was stored"), "{refused}");
        migrate::migrate("till", &config, migrate::tests::migrations(1)).await.unwrap();
        service.wait_until_ready().await;
        assert!(send_request(service.api).await.ends_with("here"));
    }

    static OPENED: Topic = topic("till.opened");
    static CLOSED: Topic = topic("till.closed");

    const fn topic(name: &'static str) -> Topic {
        Topic::new(name, "till", &[], 1, Retention::Compact, "")
    }

    /// A row that records what `till.opened` contained.
    #[derive(sqlx::FromRow, crate::Record)]
    #[record(table = "tills", key = "till")]
    struct Till {
        till: String,
    }

    impl Republish for Till {
        fn topic_names() -> Vec<&'static str> {
            vec![OPENED.name]
        }

        fn published_events(&self) -> Vec<PublishedEvent> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn a_service_that_could_not_republish_a_topic_does_not_start() {
        let service = |published| {
            let nowhere = || Secret::from("postgres://till@nowhere/till".to_owned());
            let config = migrate::tests::config(nowhere(), nowhere());
            let metrics = PrometheusBuilder::new().build_recorder().handle();
            let service = Service::new("till", config, migrate::tests::migrations(1), metrics);
            let service = service.unwrap();
            service.published_topics.set(published).unwrap();
            service
        };
        let refusal = async |service: Service| {
            let (api, books, admin) = (Router::new(), Router::new(), Router::new());
            service.run(Routers { api, books, admin }, []).await.unwrap_err().to_string()
        };
        let refused = refusal(service(vec![&OPENED])).await;
        assert!(refused.starts_with("till.opened is published and can't be rep"), "{refused}");
        let two = service(vec![&OPENED, &CLOSED]);
        let _ = two.republish([Till::source()]);
        let refused = refusal(two).await;
        assert!(refused.starts_with("till.closed is published and can't be rep"), "{refused}");
        let one = service(vec![&OPENED]);
        let _ = one.republish([Till::source()]);
        one.ensure_republishable().unwrap();
        service(vec![]).ensure_republishable().unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_reported_with_the_variable_that_moves_it() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let failure = bind("HTTP_ADDR", taken.local_addr().unwrap()).unwrap_err();
        let failure = format!("{failure:#}");
        assert!(failure.starts_with("HTTP_ADDR is 127.0.0.1:"), "{failure}");
        assert!(failure.contains("Address already in use"), "{failure}");
    }
}
