//! Webhooks: a delivery that is not signed by its sender has no effect, and any other one has it once.
//!
//! News of a till adds its amount to the till, and publishes the total.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{TimeDelta, Utc};
use messaging::deliveries::DELIVERIES_MAX;
use messaging::event::{Timer, TimerKey, Webhook, response_id};
use messaging::scheduled;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::admin_client::{admin_of, as_operator, outcome};
use super::*;
use crate::http::webhooks::{self, StandardWebhooks, WebhookSource, hmac_sha256};

#[derive(Clone, Debug, Deserialize)]
struct News<const TEST: u32> {
    till: String,
    amount: i64,
}

impl<const TEST: u32> Webhook for News<TEST> {
    const NAME: &'static str = "webhook/bank";

    fn awaited_by(&self) -> Option<TimerKey> {
        Some(NoNews::<TEST>::named(&self.till))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct NoNews<const TEST: u32> {
    till: String,
}

impl<const TEST: u32> Timer for NoNews<TEST> {
    const NAME: &'static str = "timer/no-news";

    fn key(&self) -> String {
        self.till.clone()
    }
}

impl<const TEST: u32> Loads<News<TEST>> for Tills {
    fn keys(news: &News<TEST>, keys: &mut BTreeSet<String>) {
        keys.insert(news.till.clone());
    }
}

/// `webhook/bank` → `till.tallied`. A till that nothing was counted into is unknown.
fn count_news<const TEST: u32>(
    News { till, amount }: &News<TEST>,
    tills: &mut Tills,
    context: HandlerContext,
) -> HandlerResult<Tallied<TEST>> {
    if tills.tallies.get(till).is_none() {
        unprocessable!("{till} is unknown");
    }
    tally(&counted::<TEST>(till, *amount), tills, context)
}

const SECRET: &str = "whsec_c2VjcmV0IG9mIHRoZSBiYW5r";
const OLD_SECRET: &str = "whsec_b2xkIHNlY3JldCBvZiB0aGUgYmFuaw==";

/// A delivery, as its sender makes it.
#[derive(Clone)]
struct Sent {
    secret: &'static str,
    id: String,
    seconds_ago: i64,
    body: Vec<u8>,
}

impl Sent {
    fn new(id: &str, till: &str, amount: i64) -> Sent {
        let body = json!({ "till": till, "amount": amount }).to_string().into_bytes();
        Sent { secret: SECRET, id: id.to_string(), seconds_ago: 0, body }
    }

    fn sent_at(&self) -> String {
        (Utc::now().timestamp() - self.seconds_ago).to_string()
    }

    fn signature(&self, sent_at: &str) -> String {
        let key = STANDARD.decode(&self.secret["whsec_".len()..]).unwrap();
        let parts = [self.id.as_bytes(), b".", sent_at.as_bytes(), b".", &*self.body];
        format!("v1,{}", STANDARD.encode(hmac_sha256(&key, &parts).unwrap()))
    }

    fn headers(&self) -> Headers {
        let sent_at = self.sent_at();
        let signature = self.signature(&sent_at);
        vec![
            ("webhook-id", self.id.clone()),
            ("webhook-timestamp", sent_at),
            ("webhook-signature", signature),
        ]
    }

    fn request(&self) -> Request<Body> {
        request("/webhooks/bank", &self.headers(), self.body.clone())
    }
}

fn request(path: &str, headers: &Headers, body: Vec<u8>) -> Request<Body> {
    let request = Request::post(path);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    request.body(body.into()).unwrap()
}

impl<const TEST: u32> Fixture<TEST> {
    /// The API that takes deliveries of the bank.
    fn webhooks(&self) -> Router {
        let secrets = || Ok(format!("{SECRET} {OLD_SECRET}").into());
        let source = WebhookSource::with_secrets::<News<TEST>>(Box::new(secrets), StandardWebhooks);
        let api = webhooks::router(self.db.clone(), [source]).unwrap();
        crate::testing::router_for(crate::http::openapi::serve("till", api), "sender", &[])
    }

    async fn create_till(&self, till: &str) {
        self.execute_as_superuser(&format!("insert into tallies values ('{till}', 0, 0)")).await;
    }
}

async fn deliver(api: &Router, request: Request<Body>) -> u16 {
    api.clone().oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_delivery_has_its_effect_once_in_the_trace_of_the_timer_that_waits_for_it() {
    let fixture = Fixture::<841>::create().await;
    fixture.create_till("a").await;
    let api = fixture.webhooks();
    let timer = NoNews::<841> { till: "a".into() }.at(Utc::now() + TimeDelta::days(1));
    scheduled::set_since(&fixture.db, [(timer, Utc::now())]).await.unwrap();
    let cause = Uuid::now_v7();
    let caused = format!("update chassis.scheduled set causation_id = '{cause}'");
    fixture.execute_as_superuser(&caused).await;
    let waiting = "select traceparent from chassis.scheduled";
    let trace: String = sqlx::query_scalar(waiting).fetch_one(&fixture.db).await.unwrap();

    let old = Sent { secret: OLD_SECRET, ..Sent::new("1", "a", 5) };
    for sent in [&old, &old, &Sent { seconds_ago: 290, ..Sent::new("2", "a", 7) }] {
        assert_eq!(deliver(&api, sent.request()).await, 204);
    }
    let stored = "select body #>> '{}' from chassis.scheduled where key = '1'";
    let stored: String = sqlx::query_scalar(stored).fetch_one(&fixture.db).await.unwrap();
    assert_eq!(stored.as_bytes(), old.body, "byte for byte");
    let consumer = fixture.consumer_of(Handlers::new().on_delivery(count_news::<841>));
    let running = RunningLoop::start(|stop| consumer.run(stop));
    let only_the_timer = async || {
        eventually("it to be handled", async || fixture.count("chassis.scheduled").await == 1)
            .await;
    };
    only_the_timer().await;
    // Repeats of what was handled, of which one is no longer pending and another has another body.
    for sent in [old, Sent::new("2", "a", 8)] {
        assert_eq!(deliver(&api, sent.request()).await, 204);
    }
    only_the_timer().await;
    assert_eq!(fixture.tallies().await["a"], (2, 12));
    let events = "select traceparent, causation_id from chassis.outbox";
    let events: Vec<(String, Option<Uuid>)> =
        sqlx::query_as(events).fetch_all(&fixture.db).await.unwrap();
    assert_eq!(events.len(), 2);
    for (traceparent, causation_id) in events {
        assert_eq!((&traceparent[..35], causation_id), (&trace[..35], Some(cause)));
    }
    running.stop().await;
}

/// The sender of a delivery chooses its id, and might choose that of an event or of what the service publishes.
#[tokio::test]
async fn a_delivery_with_the_id_of_an_event_hides_no_event() {
    let fixture = Fixture::<842>::create_with_contracts().await;
    fixture.create_till("a").await;
    let ids = fixture.publish(&[counted("a", 1)]).await;
    let api = fixture.webhooks();
    let chosen = [ids[0].to_string(), response_id(fixture.service, ids[0]).to_string()];
    for id in &chosen {
        assert_eq!(deliver(&api, Sent::new(id, "a", 10).request()).await, 204);
    }
    let handlers = fixture.handlers().on_delivery(count_news::<842>);
    let consumer = fixture.consumer_of(handlers);
    let running = RunningLoop::start(|stop| consumer.run(stop));
    eventually("both deliveries to be handled", async || fixture.tallies().await["a"] == (2, 20))
        .await;
    fixture.relay_all().await;
    eventually("the event to be handled", async || fixture.tallies().await["a"] == (3, 21)).await;
    assert_eq!(fixture.count("chassis.inbox").await, 3);
    running.stop().await;
}

type Headers = Vec<(&'static str, String)>;

/// The headers of a delivery with another value of one of them: of its id, its time or its signature.
fn changed_headers(good: &Sent) -> Vec<Headers> {
    let headers = good.headers();
    let (id, sent_at, signature) = (&headers[0].1, &headers[1].1, &headers[2].1);
    let base64 = &signature[3..];
    let bytes = STANDARD.decode(base64).unwrap();
    let flipped = if base64.starts_with('A') { 'B' } else { 'A' };
    let later = sent_at.parse::<i64>().unwrap() + 1;
    let mut values = [
        (0, "2".to_string()),
        (0, format!("{id}.")),
        (0, format!("{id} ")),
        (0, format!("{id}.{sent_at}")),
        (1, "0".into()),
        (1, "-1".into()),
        (1, "soon".into()),
        (1, format!("{sent_at}.0")),
        (1, format!("0{sent_at}")),
        (1, format!("+{sent_at}")),
        (1, later.to_string()),
        (1, "99999999999999999999".into()),
        (2, "v1,".into()),
        (2, "v1".into()),
        (2, base64.into()),
        (2, format!("v1,{flipped}{}", &base64[1..])),
        (2, format!("v2,{base64}")),
        (2, format!("V1,{base64}")),
        (2, format!("v1a,{base64}")),
        (2, format!("v1:{base64}")),
        (2, format!("v1,{}", &base64[..20])),
        (2, format!("v1,{base64}{base64}")),
        (2, format!("v1,{}", hex::encode(bytes))),
        (2, format!("v1,{}", base64.trim_end_matches('='))),
    ]
    .to_vec();
    // Signed for the secret as a text, and for the body alone.
    for key in [SECRET.as_bytes().to_vec(), STANDARD.decode(&SECRET[6..]).unwrap()] {
        let signed = hmac_sha256(&key, &[&good.body]).unwrap();
        values.push((2, format!("v1,{}", STANDARD.encode(signed))));
    }
    values.extend([0, 1, 2].map(|nth| (nth, String::new())));
    let changed = values.into_iter().map(|(nth, value)| {
        let mut headers = headers.clone();
        headers[nth].1 = value;
        headers
    });
    let missing = (0..3).map(|nth| {
        let mut headers = headers.clone();
        headers.remove(nth);
        headers
    });
    let repeated =
        headers.iter().map(|header| [&headers[..], std::slice::from_ref(header)].concat());
    changed.chain(missing).chain(repeated).chain([Vec::new()]).collect()
}

/// Deliveries without a valid signature.
fn forged(good: &Sent) -> Vec<(Headers, Vec<u8>)> {
    let text = String::from_utf8(good.body.clone()).unwrap();
    let bodies = [
        String::new(),
        "{}".into(),
        text.replace('5', "6"),
        text.replace(',', ", "),
        format!("{text}\n"),
        format!("\u{feff}{text}"),
        format!("{text}\0"),
    ];
    let signed = [
        Sent { secret: "whsec_YW5vdGhlciBzZWNyZXQ=", ..good.clone() },
        Sent { seconds_ago: 310, ..good.clone() },
        Sent { seconds_ago: -310, ..good.clone() },
        Sent { id: "x".repeat(257), ..good.clone() },
        Sent { id: "a b".into(), ..good.clone() },
        Sent { id: String::new(), ..good.clone() },
    ];
    let headers = changed_headers(good).into_iter().map(|headers| (headers, good.body.clone()));
    let bodies = bodies.into_iter().map(|body| (good.headers(), body.into_bytes()));
    let signed = signed.into_iter().map(|sent| (sent.headers(), sent.body));
    headers.chain(bodies).chain(signed).collect()
}

#[tokio::test]
async fn what_its_sender_did_not_sign_is_refused_and_stores_nothing() {
    let fixture = Fixture::<843>::create().await;
    let api = fixture.webhooks();
    let good = Sent::new("1", "a", 5);
    let forged = forged(&good);
    assert!(forged.len() > 40, "{}", forged.len());
    for (headers, body) in forged {
        let what = format!("{headers:?} {}", String::from_utf8_lossy(&body));
        assert_eq!(deliver(&api, request("/webhooks/bank", &headers, body)).await, 401, "{what}");
    }
    for path in ["/webhooks/nobody", "/webhooks/webhook%2Fbank", "/webhooks/"] {
        let status = deliver(&api, request(path, &good.headers(), good.body.clone())).await;
        assert_eq!(status, 404, "{path}");
    }
    // Signed, and no text.
    for body in [b"\xff{}".to_vec(), [&good.body[..], &[0]].concat()] {
        assert_eq!(deliver(&api, Sent { body, ..good.clone() }.request()).await, 400);
    }
    assert_eq!(fixture.count("chassis.scheduled").await, 0);
    assert_eq!(deliver(&api, good.request()).await, 204);
}

#[tokio::test]
async fn news_of_an_unknown_row_waits_for_it_and_becomes_a_dead_letter_in_the_end() {
    let fixture = Fixture::<844>::create().await;
    let api = fixture.webhooks();
    let strange = Sent { body: b"{\"till\": 7}".to_vec(), ..Sent::new("strange", "", 0) };
    for sent in [Sent::new("early", "early", 5), Sent::new("never", "never", 7), strange] {
        assert_eq!(deliver(&api, sent.request()).await, 204);
    }
    let consumer = fixture.consumer_of(Handlers::new().on_delivery(count_news::<844>));
    let admin = as_operator(admin_of(&consumer));
    let running = RunningLoop::start(|stop| consumer.run(stop));
    eventually("two to be deferred, and the third to be given up", async || {
        let deferred = "select count(*) from chassis.scheduled where attempts > 0";
        let undecodable = "select count(*) from chassis.dead_letters where kind = 'undecodable'";
        let (deferred, undecodable) =
            (fixture.query_number(deferred).await, fixture.query_number(undecodable).await);
        (deferred, undecodable) == (2, 1)
    })
    .await;
    assert_eq!(fixture.count("chassis.dead_letters").await, 1, "no other one is given up so soon");
    fixture.create_till("early").await;
    eventually("it to be handled", async || fixture.tallies().await["early"] == (1, 5)).await;
    let later =
        "update chassis.scheduled set set_at = set_at - interval '10 minutes', due_at = now()";
    fixture.execute_as_superuser(later).await;
    eventually("the other to be given up", async || {
        fixture.count("chassis.dead_letters").await == 2
    })
    .await;
    assert_eq!(fixture.count("chassis.scheduled").await, 0);
    fixture.create_till("never").await;
    let id = "select dead_letter_id from chassis.dead_letters where kind = 'unprocessable'";
    let id = fixture.query_number(id).await;
    for expected in ["replayed", "done_before"] {
        let settled = outcome(&admin, &format!("/dead-letters/{id}/replay"), Value::Null).await;
        assert_eq!(settled, expected);
    }
    // A repeat that comes later still.
    assert_eq!(deliver(&api, Sent::new("never", "never", 7).request()).await, 204);
    eventually("it to be dropped", async || fixture.count("chassis.scheduled").await == 0).await;
    let both = BTreeMap::from([("early".into(), (1, 5)), ("never".into(), (1, 7))]);
    assert_eq!(fixture.tallies().await, both);
    running.stop().await;
}

#[tokio::test]
async fn pending_deliveries_are_bounded_and_a_repeat_of_one_is_still_taken() {
    let fixture = Fixture::<845>::create().await;
    let api = fixture.webhooks();
    let fill = format!(
        "insert into chassis.scheduled (source, key, event_id, body, due_at, traceparent, tick)
         select 'webhook/bank', nth::text, gen_random_uuid(), '\"{{}}\"', now(), '', 0
         from generate_series(1, {DELIVERIES_MAX} - 1) as nth"
    );
    fixture.execute_as_superuser(&fill).await;
    let [last, further] = ["last", "further"].map(|id| Sent::new(id, "a", 1));
    assert_eq!(deliver(&api, last.request()).await, 204);
    assert_eq!(deliver(&api, further.request()).await, 503);
    assert_eq!(deliver(&api, last.request()).await, 204);
    fixture.execute_as_superuser("delete from chassis.scheduled where key = '1'").await;
    assert_eq!(deliver(&api, further.request()).await, 204);
    assert_eq!(fixture.count("chassis.scheduled").await, DELIVERIES_MAX);
}
