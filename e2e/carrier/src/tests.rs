//! An honest carrier, each lie of an answer at rate 1, and restarts. This file has what the others share.

mod webhooks;
mod draws;

use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use chrono::{DateTime, Utc};
use futures::future::join_all;
use parking_lot::Mutex;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::*;
use crate::carrier::sign;
use crate::lies::draw;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const ORDER: Uuid = Uuid::from_u128(7);
/// Each connection serves one request: tests have runtimes of their own.
static CLIENT: LazyLock<Client> =
    LazyLock::new(|| Client::builder().pool_max_idle_per_host(0).build().unwrap());

const HOUR: Duration = Duration::from_secs(3600);

/// A webhook that arrived.
#[derive(Clone, Debug)]
struct Received {
    id: String,
    timestamp: i64,
    signature: String,
    body: String,
}

impl Received {
    fn is_signed_with(&self, secret: &str) -> bool {
        let secret = parse_secret(secret).unwrap();
        self.signature == sign(&secret, &self.id, self.timestamp, &self.body).unwrap()
    }

    fn kind(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body["type"].as_str().unwrap().to_string()
    }
}

/// The receiver of webhooks. It answers a status that tests set.
#[derive(Clone, Default)]
struct Receiver {
    status: Arc<AtomicU16>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    /// Starts one, and sets it in these settings.
    async fn start(status: u16, settings: &mut Settings) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        settings.webhook_url = Some(format!("http://{}/", listener.local_addr().unwrap()));
        settings.secret = Some(parse_secret(SECRET).unwrap());
        let receiver = Receiver::default();
        receiver.status.store(status, Ordering::Relaxed);
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(async { axum::serve(listener, router).await });
        receiver
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }

    fn kinds(&self) -> Vec<String> {
        self.received().iter().map(Received::kind).collect()
    }
}

async fn receive(
    Shared(receiver): Shared<Receiver>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let header = |name: &str| headers[name].to_str().unwrap().to_string();
    receiver.received.lock().push(Received {
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp").parse().unwrap(),
        signature: header("webhook-signature"),
        body,
    });
    StatusCode::from_u16(receiver.status.load(Ordering::Relaxed)).unwrap()
}

/// A carrier that moves no parcel within a test.
fn resting(directory: &Path) -> Settings {
    Settings { collect_after: HOUR, ..Settings::new(directory) }
}

/// A carrier whose parcels are delivered at once.
fn quick(directory: &Path) -> Settings {
    let (collect_after, deliver_after) = (Duration::from_millis(50), Duration::from_millis(100));
    let webhook_pause = Duration::from_millis(1);
    Settings { collect_after, deliver_after, webhook_pause, ..Settings::new(directory) }
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

async fn try_book(carrier: &Carrier, reference: Uuid, key: &str) -> reqwest::Result<Response> {
    let body = json!({ "reference": reference, "pieces": 2 }).to_string();
    let request = CLIENT.post(carrier.url() + "/parcels").body(body);
    request.header("idempotency-key", key).send().await
}

async fn book(carrier: &Carrier, reference: Uuid, key: &str) -> (u16, Value) {
    read(try_book(carrier, reference, key).await.unwrap()).await
}

async fn list(carrier: &Carrier, reference: Uuid) -> (u16, Value) {
    let url = format!("{}/parcels?reference={reference}", carrier.url());
    read(CLIENT.get(url).send().await.unwrap()).await
}

async fn cancel(carrier: &Carrier, reference: Uuid) -> (u16, Value) {
    let request = CLIENT.delete(format!("{}/parcels/{reference}", carrier.url()));
    read(request.header("idempotency-key", "undo").send().await.unwrap()).await
}

async fn read(response: Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.unwrap())
}

/// The parcels of the order in a ledger.
fn parcels(directory: &TempDir) -> Vec<Parcel> {
    Ledger::read(directory.path()).unwrap().parcels(ORDER).to_vec()
}

/// The states of the webhooks of the order's first parcel.
fn webhook_states(directory: &TempDir) -> Vec<(State, WebhookState)> {
    parcels(directory)[0].webhooks.iter().map(|it| (it.event, it.state)).collect()
}

async fn eventually(is_so: impl Fn() -> bool) {
    let polled = async {
        while !is_so() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(8), polled).await.unwrap();
}

/// Waits until the order's first parcel has so many webhooks, and none is to be sent.
async fn reported(directory: &TempDir, webhooks: usize) {
    let is_over = |(_, state): &(State, WebhookState)| *state != WebhookState::Pending;
    eventually(|| {
        let states = webhook_states(directory);
        states.len() == webhooks && states.iter().all(is_over)
    })
    .await;
}

#[tokio::test]
async fn an_honest_carrier_books_once_for_each_key() {
    let directory = directory();
    let carrier = Carrier::start(resting(directory.path())).await.unwrap();
    assert_eq!(list(&carrier, ORDER).await, (200, json!({ "parcels": [] })));
    assert_eq!(cancel(&carrier, ORDER).await.0, 404);
    let (status, first) = book(&carrier, ORDER, "one").await;
    assert_eq!((status, book(&carrier, ORDER, "one").await.1), (202, first.clone()));
    assert_eq!(parcels(&directory)[0].pieces, 2);
    let (_, second) = book(&carrier, ORDER, "two").await;
    assert_eq!(book(&carrier, Uuid::max(), "two").await.0, 422, "a key of another reference");
    let listed =
        [first, second].map(|it| json!({ "parcel_id": it["parcel_id"], "state": "booked" }));
    assert_eq!(list(&carrier, ORDER).await, (200, json!({ "parcels": listed })));
    for _ in 0..2 {
        assert_eq!(cancel(&carrier, ORDER).await, (200, json!({ "state": "cancelled" })));
    }
    assert!(parcels(&directory).iter().all(|it| it.state == State::Cancelled));
    assert_eq!(Ledger::read(directory.path()).unwrap().references[&ORDER].lies, []);
}

#[tokio::test]
async fn a_malformed_request_is_refused_and_books_nothing() {
    let directory = directory();
    let carrier = Carrier::start(resting(directory.path())).await.unwrap();
    let valid = json!({ "reference": ORDER, "pieces": 1 }).to_string();
    let post = |key: &str, body: &str| {
        let request = CLIENT.post(carrier.url() + "/parcels").body(body.to_string());
        let request = request.header("idempotency-key", key).send();
        async { request.await.unwrap().status().as_u16() }
    };
    assert_eq!(post("", &valid).await, 400);
    assert_eq!(post(&"k".repeat(256), &valid).await, 400);
    for body in ["", "{}", &valid.replace('1', "0"), &valid.replace("0000", "x")] {
        assert_eq!(post("key", body).await, 422, "{body}");
    }
    assert_eq!(post("key", &" ".repeat(5000)).await, 413);
    let unkeyed = CLIENT.delete(format!("{}/parcels/{ORDER}", carrier.url()));
    assert_eq!(unkeyed.send().await.unwrap().status(), 400);
    assert!(Ledger::read(directory.path()).unwrap().references.is_empty());
}

#[tokio::test]
async fn a_forgotten_key_books_one_more_parcel() {
    let directory = directory();
    let key_lifetime = Duration::from_millis(300);
    let settings = Settings { key_lifetime, ..resting(directory.path()) };
    let carrier = Carrier::start(settings).await.unwrap();
    let (_, first) = book(&carrier, ORDER, "key").await;
    sleep(key_lifetime).await;
    assert_ne!(book(&carrier, ORDER, "key").await.1, first);
    assert_eq!(parcels(&directory).len(), 2);
}

#[tokio::test]
async fn an_honest_parcel_is_delivered_or_lost_and_its_webhooks_are_signed() {
    for (lost_rate, end) in [(0.0, "delivered"), (1.0, "lost")] {
        let directory = directory();
        let mut settings = Settings { lost_rate, ..quick(directory.path()) };
        let receiver = Receiver::start(204, &mut settings).await;
        let carrier = Carrier::start(settings).await.unwrap();
        let (_, booked) = book(&carrier, ORDER, "key").await;
        reported(&directory, 2).await;
        assert_eq!(receiver.kinds(), ["parcel.collected".to_string(), format!("parcel.{end}")]);
        let parcel = &parcels(&directory)[0];
        for (received, webhook) in receiver.received().iter().zip(&parcel.webhooks) {
            assert!(received.is_signed_with(SECRET) && !received.is_signed_with(OLD_SECRET));
            assert!((Utc::now().timestamp() - received.timestamp).abs() < 10);
            assert_eq!((webhook.state, &*webhook.lies), (WebhookState::Acknowledged, &[][..]));
            assert_eq!(received.id, webhook.webhook_id.to_string());
            let body: Value = serde_json::from_str(&received.body).unwrap();
            let at = DateTime::parse_from_rfc3339(body["timestamp"].as_str().unwrap()).unwrap();
            assert_eq!(at, webhook.occurred_at);
            let data = json!({ "reference": ORDER, "parcel_id": booked["parcel_id"] });
            assert_eq!(body["data"], data);
        }
        assert_eq!(cancel(&carrier, ORDER).await, (422, json!({ "state": end })));
    }
}

#[test]
fn a_signature_is_that_of_standard_webhooks() {
    let secret = parse_secret(SECRET).unwrap();
    let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", r#"{"test": 2432232314}"#);
    let signature = sign(&secret, id, 1_614_265_330, body).unwrap();
    assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    assert!(parse_secret("MfKQ").is_err() && parse_secret("whsec_?").is_err());
}

#[tokio::test]
async fn a_late_answer_comes_after_its_booking() {
    let lies = Lies { late: 1.0, ..Lies::all(0.0) };
    let orders = (0..).map(Uuid::from_u128);
    let mut late = orders.filter_map(|id| Some((id, lies.draw(0, Lie::Late, id, 0)?)));
    let (order, fraction) = late.find(|(_, fraction)| *fraction > 0.5).unwrap();
    let directory = directory();
    let settings = Settings { lies, late_max: Duration::from_secs(2), ..resting(directory.path()) };
    let carrier = Carrier::start(settings).await.unwrap();
    let began = Instant::now();
    let (answer, booked) = tokio::join!(book(&carrier, order, "key"), async {
        sleep(Duration::from_millis(700)).await;
        Ledger::read(directory.path()).unwrap().parcels(order).len()
    });
    assert_eq!((answer.0, booked), (202, 1));
    assert!(began.elapsed() >= Duration::from_secs(2).mul_f64(fraction));
}

#[tokio::test]
async fn an_error_hides_a_booking_or_the_lack_of_one() {
    for (lie, is_done) in [(Lie::ErrorBefore, false), (Lie::ErrorAfter, true)] {
        let rate = |other| if lie == other { 1.0 } else { 0.0 };
        let (error_before, error_after) = (rate(Lie::ErrorBefore), rate(Lie::ErrorAfter));
        let directory = directory();
        let lies = Lies { error_before, error_after, ..Lies::all(0.0) };
        let carrier = Carrier::start(Settings { lies, ..resting(directory.path()) }).await.unwrap();
        assert_eq!(book(&carrier, ORDER, "key").await.0, 500);
        assert_eq!(parcels(&directory).len(), usize::from(is_done));
        assert_eq!(book(&carrier, ORDER, "key").await.0, 500, "a remembered key");
        assert_eq!(list(&carrier, ORDER).await.0, if is_done { 200 } else { 500 });
        assert_eq!(cancel(&carrier, ORDER).await.0, 500);
        let states: Vec<_> = parcels(&directory).iter().map(|it| it.state).collect();
        assert_eq!(states, vec![State::Cancelled; usize::from(is_done)]);
        let told = &Ledger::read(directory.path()).unwrap().references[&ORDER].lies;
        assert!(told.starts_with(&[(0, lie), (1, lie)]), "{told:?}");
    }
}

#[tokio::test]
async fn a_phantom_has_an_id_and_is_in_no_list() {
    let directory = directory();
    let settings = resting(directory.path());
    let carrier = Carrier::start(settings.clone()).await.unwrap();
    let (_, booked) = book(&carrier, ORDER, "booked").await;
    carrier.stop().await;
    let lies = Lies { phantom: 1.0, ..Lies::all(0.0) };
    let carrier = Carrier::start(Settings { lies, ..settings }).await.unwrap();
    let (status, phantom) = book(&carrier, ORDER, "key").await;
    assert_eq!((status, phantom["parcel_id"].is_string()), (202, true));
    assert_ne!(book(&carrier, ORDER, "key").await.1, phantom, "it forgot the key");
    assert_eq!(book(&carrier, ORDER, "booked").await.1, booked, "a key that it remembers");
    assert_eq!(list(&carrier, ORDER).await.1["parcels"].as_array().unwrap().len(), 1);
    let told = &Ledger::read(directory.path()).unwrap().references[&ORDER].lies;
    assert_eq!(*told, [(1, Lie::Phantom), (2, Lie::Phantom)]);
}

#[tokio::test]
async fn a_dropped_connection_ends_before_the_answer() {
    let directory = directory();
    let lies = Lies { dropped: 1.0, ..Lies::all(0.0) };
    let carrier = Carrier::start(Settings { lies, ..resting(directory.path()) }).await.unwrap();
    let answered = async { try_book(&carrier, ORDER, "key").await?.bytes().await };
    assert!(answered.await.is_err());
    assert_eq!(parcels(&directory).len(), 1);
    assert_eq!(list(&carrier, ORDER).await.0, 200);
}

#[tokio::test]
async fn a_carrier_goes_on_where_it_was_stopped() {
    let directory = directory();
    let mut settings = Settings { deliver_after: HOUR, ..quick(directory.path()) };
    let receiver = Receiver::start(503, &mut settings).await;
    settings.webhook_pause = HOUR;
    let carrier = Carrier::start(settings.clone()).await.unwrap();
    let (_, booked) = book(&carrier, ORDER, "key").await;
    eventually(|| receiver.received().len() == 1).await;
    assert!(Carrier::start(settings.clone()).await.is_err(), "the directory has one carrier");
    carrier.stop().await;

    // A kill cuts off a line.
    let file = directory.path().join("ledger.jsonl");
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str("{\"at\":\"20");
    std::fs::write(&file, text).unwrap();
    assert_eq!(webhook_states(&directory), [(State::Collected, WebhookState::Pending)]);

    receiver.status.store(204, Ordering::Relaxed);
    settings.deliver_after = Duration::from_millis(100);
    settings.address = carrier.url().strip_prefix("http://").unwrap().parse().unwrap();
    let carrier = Carrier::start(settings).await.unwrap();
    reported(&directory, 2).await;
    let received = receiver.received();
    assert_eq!((received.len(), &received[0].id), (3, &received[1].id));
    assert_eq!(receiver.kinds()[1..], ["parcel.collected", "parcel.delivered"]);
    assert_eq!(book(&carrier, ORDER, "key").await, (202, booked), "it remembers the key");
    assert_eq!(Ledger::read(directory.path()).unwrap().references[&ORDER].requests, 2);
    assert_eq!(parcels(&directory)[0].state, State::Delivered);
}
