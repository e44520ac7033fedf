//! A service from its start to its end, without Kafka.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use messaging::event::Topic;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::*;
use crate::admin::republish::{EventTypes, PublishedEvent, Republish};
use crate::config::{Config, KeyLocation, Secret};
use crate::http::openapi;
use crate::service::process::check_health;

const TEST_TIMEOUT: Duration = Duration::from_secs(10);

struct RunningService {
    api: SocketAddr,
    probes: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<()>>,
}

/// A service on a database that is migrated if `migrated`, and otherwise waits for that.
async fn start(migrated: bool, api: Router, loops: Vec<ServiceLoop>) -> (RunningService, Config) {
    let books = Router::new().route("/books", get(async || "balanced"));
    let routers = Routers { api, books, admin: OpenApiRouter::new() };
    start_with(migrated, |_| (), routers, loops).await
}

async fn start_with(
    migrated: bool,
    change: impl FnOnce(&mut Config),
    routers: Routers,
    loops: Vec<ServiceLoop>,
) -> (RunningService, Config) {
    let (owner, server) = migrate::tests::fresh_database().await;
    let mut config = migrate::tests::config(owner, server);
    config.shutdown_timeout = Duration::from_secs(2);
    change(&mut config);
    if migrated {
        migrate::migrate("till", &config, migrate::tests::migrations(1)).await.unwrap();
    }
    [config.http_addr, config.probe_addr, config.admin_addr] = free_addrs().await;
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let migrator = migrate::tests::migrations(1);
    let service = Service::new("till", config.clone(), migrator, metrics).unwrap();
    let (stop, stop_requested) = oneshot::channel();
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
    get_from(addr, "/").await
}

async fn get_from(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
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
    assert!(send_request(probes).await.starts_with("HTTP/1.1 404"), "probes answer until the end");
    assert!(check_health(probes).await.is_err(), "not ready any more");
    probes_checked.send(()).unwrap();
    assert!(request.await.unwrap().ends_with("carried out"));
    timeout(TEST_TIMEOUT, ended).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_loop_that_panics_ends_the_service_and_is_named() {
    let relay = ServiceLoop::new("relay", async |_| panic!("on purpose"));
    let (service, _) = start(true, Router::new(), vec![relay, loop_that_stops("consumer")]).await;
    let failure = service.wait_until_ended().await.unwrap_err();
    assert_eq!(format!("{failure:#}"), "the relay failed: panicked: on purpose");
}

#[tokio::test]
async fn a_loop_that_does_not_stop_is_named_and_cut_off_at_the_bound() {
    let stuck = ServiceLoop::new("relay", async |_| std::future::pending().await);
    let (service, _) = start(true, Router::new(), vec![stuck, loop_that_stops("consumer")]).await;
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

#[tokio::test]
async fn the_books_are_read_on_the_admin_port_alone() {
    let (service, config) = start(true, Router::new(), vec![loop_that_stops("relay")]).await;
    service.wait_until_ready().await;
    assert!(get_from(config.admin_addr, "/books").await.ends_with("balanced"));
    for other in [service.probes, service.api] {
        let answer = get_from(other, "/books").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
}

static OPENED: Topic = topic("till.opened");
static CLOSED: Topic = topic("till.closed");

const fn topic(name: &'static str) -> Topic {
    Topic::new(name, "till", "").compacted()
}

/// A row that records what `till.opened` contained.
#[derive(sqlx::FromRow, derive::Record)]
#[record(table = "tills", key = "till")]
struct Till {
    till: String,
}

struct Opened;

impl EventTypes for Opened {
    fn topic_names() -> Vec<&'static str> {
        vec![OPENED.name]
    }
}

impl Republish for Till {
    type Events = Opened;

    fn published_events(&self) -> Vec<PublishedEvent> {
        Vec::new()
    }
}

/// A service whose database does not exist.
fn unstarted_service() -> Service {
    let nowhere = || Secret::from("postgres://till@nowhere/till".to_owned());
    let config = migrate::tests::config(nowhere(), nowhere());
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    Service::new("till", config, migrate::tests::migrations(1), metrics).unwrap()
}

/// Why a service does not start.
async fn refusal(service: Service) -> String {
    let (api, admin) = (OpenApiRouter::new(), OpenApiRouter::new());
    service.run(api, "", admin, []).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_service_that_could_not_republish_a_topic_does_not_start() {
    let service = |published| {
        let service = unstarted_service();
        service.published_topics.set(published).unwrap();
        service
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

static NAMED: Topic = Topic::new("bank.named", "bank", "").personal(&["branch"]);

#[tokio::test]
async fn a_service_that_is_no_reader_of_personal_data_or_hides_what_it_reads_does_not_start() {
    let service = |consumed: Vec<&'static Topic>| {
        let service = unstarted_service();
        service.consumed_topics.set(consumed).unwrap();
        service
    };
    let refused = refusal(service(vec![&OPENED, &NAMED])).await;
    let expected = "bank.named has personal data, and till is not among its readers: either bank adds \"till\" to \
                    `personal(…)`";
    assert!(refused.starts_with(expected), "{refused}");
    let hiding = service(vec![&CLOSED]);
    hiding.snapshot_topics.lock().push(&OPENED);
    let refused = refusal(hiding).await;
    let expected = "till reads till.opened from its beginning, and its handlers do not name it";
    assert!(refused.starts_with(expected), "{refused}");
    let open = service(vec![&OPENED]);
    open.snapshot_topics.lock().push(&OPENED);
    open.ensure_may_consume().unwrap();
}

#[utoipa::path(get, path = "/count", security(("token" = ["count"])), responses((status = 200)))]
async fn count() {}

#[utoipa::path(get, path = "/open", security(()), responses((status = 200)))]
async fn open() {}

#[utoipa::path(get, path = "/act", responses((status = 200)))]
async fn act() {}

/// The public key of RFC 7515, A.3.
const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "kid": "first",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

#[tokio::test]
async fn a_service_with_an_issuer_knows_the_callers_of_its_api_and_of_its_admin_port() {
    let file = std::env::temp_dir().join(format!("keys-{}.json", uuid::Uuid::now_v7()));
    std::fs::write(&file, KEYS).unwrap();
    let location = KeyLocation::File(file.display().to_string());
    for (issuer, protected) in [(None, "200"), (Some("issuer".to_owned()), "401")] {
        let routes = OpenApiRouter::new().routes(routes!(count)).routes(routes!(open));
        let api = openapi::serve::<()>("till", routes);
        let admin = OpenApiRouter::new().routes(routes!(act));
        let routers = Routers { api, books: Router::new(), admin };
        let change = |config: &mut Config| {
            config.tokens.token_keys = issuer.as_ref().map(|_| location.clone());
            config.tokens.token_issuer = issuer;
        };
        let (service, config) = start_with(true, change, routers, Vec::new()).await;
        service.wait_until_ready().await;
        for (addr, path, status) in [
            (config.http_addr, "/count", protected),
            (config.http_addr, "/open", "200"),
            (config.http_addr, "/openapi.json", "200"),
            (config.admin_addr, "/act", protected),
            (config.probe_addr, "/readyz", "200"),
        ] {
            let answer = get_from(addr, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        }
        let _ = service.stop.send(());
        service.ended.await.unwrap().unwrap();
    }
    std::fs::remove_file(file).unwrap();
}
