//! The life of a service: it listens, waits for its database, serves, and stops.
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

use crate::environment::BadConfiguration;
use crate::limits::Limits;
use crate::operator::by_nobodys_page;
use crate::probes::{self, Phase, Probes};
use crate::problem::Problem;
use crate::service::{Loop, Routers, Service};
use crate::supervise::Tasks;
use crate::{clock, crash, db, http, open_files, outbox, schema, sequences};

const API: &str = "API";
const PROBES: &str = "probes";
const CLOCK: &str = "clock";
const OPERATOR: &str = "operator's port";

const EDGE_DRAIN: Duration = Duration::from_secs(1);

/// Of the schemas beside the outbox.
const STORED_WITHIN: Duration = Duration::from_secs(8);
const STORED_AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Service {
    /// Serves the three ports and runs the loops, until a signal or the first of them to end.
    pub async fn run(
        self,
        routers: Routers,
        loops: impl IntoIterator<Item = Loop>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let asked = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        self.run_until(asked, routers, loops).await
    }

    async fn run_until(
        self,
        asked: impl Future<Output = ()>,
        routers: Routers,
        loops: impl IntoIterator<Item = Loop>,
    ) -> anyhow::Result<()> {
        let mut asked = pin!(asked);
        let (phase, life) = watch::channel(Phase::Starting);
        let mut tasks = Tasks::default();
        let edge = self.listen(routers, life, &mut tasks)?;

        let ended_early = tokio::select! {
            () = asked.as_mut() => Some(Ok(())),
            failure = tasks.first_to_end() => Some(Err(failure)),
            () = self.wait_until_prepared() => None,
        };
        let mut names = Vec::new();
        let ended = match ended_early {
            Some(ended) => ended,
            None => {
                for Loop { name, run } in loops {
                    names.push(name);
                    tasks.spawn(name, run(self.stop.clone()));
                }
                names.push(CLOCK);
                tasks.spawn(CLOCK, clock::run(self.db.clone(), self.stop.clone()));
                self.heartbeats.restart();
                phase.send_replace(Phase::Serving);
                tracing::info!("serving on {}", self.config.http_addr);
                tokio::select! {
                    () = asked => Ok(()),
                    failure = tasks.first_to_end() => Err(failure),
                }
            }
        };

        phase.send_replace(Phase::Stopping);
        match &ended {
            Ok(()) => tracing::info!("stopping, as asked"),
            Err(failure) => tracing::warn!("stopping: {failure}"),
        }
        crash::point!("service.stopping");
        let bound = self.config.shutdown_timeout;
        let deadline = Instant::now() + bound;
        edge.api.cancel();
        let drained = tasks.join(&[API], deadline).await;
        crash::point!("service.drained");
        self.stop.cancel();
        let stopped = tasks.join(&names, deadline).await;
        crash::point!("service.stopped");
        let late = tasks.running().into_iter().filter(|task| names.contains(task));
        let late = late.collect::<Vec<_>>().join(", ");
        edge.others.cancel();
        let closed = tasks.join(&[PROBES, OPERATOR], Instant::now() + EDGE_DRAIN).await;
        // What is cut off here was rolled back; the timeout is for a database that is away.
        let _ = timeout(EDGE_DRAIN, self.db.close()).await;

        let ended = ended.and(drained).and(stopped).and(closed);
        let late = (!late.is_empty()).then(|| format!("did not stop within {bound:?}: {late}"));
        match (ended, late) {
            (Ok(()), None) => {
                tracing::info!("stopped");
                Ok(())
            }
            (Ok(()), Some(late)) => Err(anyhow::anyhow!(late)),
            (Err(failure), None) => Err(failure),
            (Err(failure), Some(late)) => Err(failure.context(late)),
        }
    }

    /// Waits, for ever if need be, until the database is as new as this version, and holds the schema
    /// of every event that it may write: an older relay can then publish what this one commits, even
    /// if it dies right afterwards.
    async fn wait_until_prepared(&self) {
        schema::wait_until_current(&self.db, &self.migrator).await;
        // Before anything is numbered: the database may have failed over while no process ran.
        sequences::put_ahead(&self.db).await;
        let Some(published) = self.published.get() else { return };
        let stored = || db::in_time(STORED_WITHIN, outbox::store_schemas(&self.db, published));
        while let Err(error) = stored().await {
            tracing::warn!("the schemas of what is published could not be stored: {error}");
            sleep(STORED_AGAIN_AFTER).await;
        }
    }

    /// Binds all three ports, so that a taken one is told at once, and serves them from then on.
    fn listen(
        &self,
        routers: Routers,
        life: watch::Receiver<Phase>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Edge> {
        let edge = Edge { api: self.draining.clone(), others: CancellationToken::new() };
        let probes = Probes {
            db: self.db.clone(),
            phase: life.clone(),
            heartbeats: self.heartbeats.clone(),
            metrics: self.metrics.clone(),
        };
        let probes = probes::router(probes).merge(routers.books);
        let api = routers.api.layer(middleware::from_fn_with_state(life, once_started));
        let api_drain = self.config.shutdown_timeout / 2;
        let shares = open_files::shares(self.config.database_pool_size)?;
        let idle = self.config.http_idle_timeout;
        let of_api = Limits { connections: shares.api, idle, ..Limits::default() };
        let of_edge = Limits { connections: shares.edge, ..Limits::default() };

        let listener = bind("HTTP_ADDR", self.config.http_addr)?;
        tasks.spawn(API, http::serve_within(of_api, listener, api, edge.api.clone(), api_drain));
        let listener = bind("PROBE_ADDR", self.config.probe_addr)?;
        let others = edge.others.clone();
        tasks.spawn(PROBES, http::serve_within(of_edge, listener, probes, others, EDGE_DRAIN));
        let listener = bind("OPERATOR_ADDR", self.config.operator_addr)?;
        let operator = routers.operator.layer(middleware::from_fn(by_nobodys_page));
        let others = edge.others.clone();
        let operator = http::serve_within(of_edge, listener, operator, others, EDGE_DRAIN);
        tasks.spawn(OPERATOR, operator);
        Ok(edge)
    }
}

/// What ends the ports: the API first, the others last.
struct Edge {
    api: CancellationToken,
    others: CancellationToken,
}

fn bind(variable: &str, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let said = format!("{variable} is {addr}, where nothing can listen");
    http::listen(addr).map_err(|error| match error.kind() {
        // Another process may end, and its port be free.
        ErrorKind::AddrInUse => anyhow::Error::new(error).context(said),
        _ => BadConfiguration::new(format!("{said}: {error}")).into(),
    })
}

/// Until the schema is there, the loops that would carry out a request are not.
async fn once_started(
    State(life): State<watch::Receiver<Phase>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if *life.borrow() == Phase::Starting {
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
    use crate::config::Config;
    use crate::process::health;

    const SOON: Duration = Duration::from_secs(10);

    struct Running {
        api: SocketAddr,
        probes: SocketAddr,
        stop: oneshot::Sender<()>,
        ended: JoinHandle<anyhow::Result<()>>,
    }

    /// A service on a database that is migrated if `migrated`, and otherwise waits for that.
    async fn start(migrated: bool, api: Router, loops: Vec<Loop>) -> (Running, Config) {
        let (owner, server) = schema::tests::fresh_database().await;
        let mut config = schema::tests::config(owner, server);
        config.shutdown_timeout = Duration::from_secs(2);
        if migrated {
            schema::migrate("till", &config, schema::tests::migrations(1)).await.unwrap();
        }
        [config.http_addr, config.probe_addr, config.operator_addr] = free_addrs().await;
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let migrator = schema::tests::migrations(1);
        let service = Service::new("till", config.clone(), migrator, metrics).unwrap();
        let (stop, asked) = oneshot::channel();
        let routers = Routers { api, books: Router::new(), operator: Router::new() };
        let asked = async move { asked.await.unwrap_or(()) };
        let ended = tokio::spawn(service.run_until(asked, routers, loops));
        let (api, probes) = (config.http_addr, config.probe_addr);
        (Running { api, probes, stop, ended }, config)
    }

    /// Until a moment ago somebody listened on each.
    async fn free_addrs() -> [SocketAddr; 3] {
        let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listeners = [listen().await, listen().await, listen().await];
        listeners.map(|listener| listener.local_addr().unwrap())
    }

    impl Running {
        async fn ready(&self) {
            let ready = async {
                while health(self.probes).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(SOON, ready).await.expect("ready soon");
        }

        async fn end(self) -> anyhow::Result<()> {
            timeout(SOON, self.ended).await.expect("an end in bounded time").unwrap()
        }
    }

    async fn ask(addr: SocketAddr) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn obedient(name: &'static str) -> Loop {
        Loop::new(name, async |stop: CancellationToken| {
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
        let (asked, began) = oneshot::channel();
        let (looked, enough) = oneshot::channel();
        let commands = Loop::new("commands", async move |stop: CancellationToken| {
            let done = waiting.recv().await.expect("one request");
            let _ = asked.send(());
            enough.await.unwrap();
            assert!(!stop.is_cancelled(), "a request still waits for this loop");
            let _ = done.send(());
            stop.cancelled().await;
            Ok(())
        });
        let (service, _) = start(true, api, vec![commands]).await;
        service.ready().await;
        let request = tokio::spawn(ask(service.api));
        began.await.unwrap();
        let Running { probes, stop, ended, .. } = service;
        stop.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(ask(probes).await.starts_with("HTTP/1.1 404"), "probes answer until the end");
        assert!(health(probes).await.is_err(), "not ready any more");
        looked.send(()).unwrap();
        assert!(request.await.unwrap().ends_with("carried out"));
        timeout(SOON, ended).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_loop_that_panics_ends_the_service_and_is_named() {
        let relay = Loop::new("relay", async |_| panic!("on purpose"));
        let (service, _) = start(true, Router::new(), vec![relay, obedient("consumer")]).await;
        let failure = service.end().await.unwrap_err();
        assert_eq!(format!("{failure:#}"), "the relay failed: panicked: on purpose");
    }

    #[tokio::test]
    async fn a_loop_that_does_not_stop_is_named_and_cut_off_at_the_bound() {
        let deaf = Loop::new("relay", async |_| std::future::pending().await);
        let (service, _) = start(true, Router::new(), vec![deaf, obedient("consumer")]).await;
        service.ready().await;
        let Running { stop, ended, .. } = service;
        stop.send(()).unwrap();
        let began = Instant::now();
        let failure = timeout(SOON, ended).await.unwrap().unwrap().unwrap_err();
        assert_eq!(format!("{failure:#}"), "did not stop within 2s: relay");
        assert!(began.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn a_service_waits_for_its_schema_and_says_so_to_clients_and_probes() {
        let api = Router::new().route("/", get(async || "here"));
        let (service, config) = start(false, api, vec![obedient("relay")]).await;
        let answered = async {
            while TcpStream::connect(service.probes).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, answered).await.expect("probes while it waits");
        assert!(health(service.probes).await.is_err());
        let refused = ask(service.api).await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains("nothing was stored"), "{refused}");
        schema::migrate("till", &config, schema::tests::migrations(1)).await.unwrap();
        service.ready().await;
        assert!(ask(service.api).await.ends_with("here"));
    }

    #[tokio::test]
    async fn a_taken_port_is_told_with_the_variable_that_moves_it() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let failure = bind("HTTP_ADDR", taken.local_addr().unwrap()).unwrap_err();
        let failure = format!("{failure:#}");
        assert!(failure.starts_with("HTTP_ADDR is 127.0.0.1:"), "{failure}");
        assert!(failure.contains("Address already in use"), "{failure}");
    }
}
