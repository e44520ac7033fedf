//! The route of webhooks: it verifies a delivery, stores it and answers. Its handler decides later, by the path of
//! events.
//!
//! Promises: what no secret has signed has no effect and learns nothing; what was answered with 2xx is stored, and has
//! its effect once. A delivery that is parsed before its signature is verified breaks the first, and an answer before
//! the commit the second.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use messaging::db::operator_acts::OperatorActError;
use messaging::deliveries::{self, Delivery, Received};
use messaging::event::{TimerKey, WEBHOOK_PREFIX, Webhook};
use messaging::telemetry;
use metrics::counter;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use opentelemetry::Context;
use serde::Deserialize;
use sqlx::PgPool;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::Secret;
use crate::config::env::{self, BadConfiguration};
use crate::http::extractors::Path;
use crate::http::problem::Problem;

/// How far the time of a delivery may lie from that of this machine, in either direction.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// The longest id of a delivery, in bytes.
const ID_BYTES_MAX: usize = 256;

/// A delivery that is to be verified.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, byte for byte.
    pub body: &'a [u8],
    /// The time of this machine.
    pub now: DateTime<Utc>,
}

impl<'a> SignedRequest<'a> {
    /// A header, if it is there once, as a text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    }

    /// Whether this time, in seconds since 1970, is at most five minutes away.
    pub fn is_timely(&self, seconds: &str) -> bool {
        let at = seconds.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        at.is_some_and(|at| (self.now - at).abs() <= TOLERANCE)
    }
}

/// How a sender signs its deliveries.
pub trait SignatureScheme: Send + Sync + 'static {
    /// The id of a delivery that was signed with this secret, and is not too old: the same for each repeat of it, and for
    /// nothing else. `None` refuses the delivery. An id that the signature does not cover lets anybody who saw one
    /// delivery repeat it.
    fn delivery_id(&self, request: SignedRequest<'_>, secret: &str) -> Option<String>;
}

/// [Standard Webhooks](https://www.standardwebhooks.com), with symmetric signatures (`v1`). The secret begins with
/// `whsec_`.
#[derive(Clone, Copy, Debug)]
pub struct StandardWebhooks;

impl SignatureScheme for StandardWebhooks {
    fn delivery_id(&self, request: SignedRequest<'_>, secret: &str) -> Option<String> {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok()?;
        let (id, sent_at) = (request.header("webhook-id")?, request.header("webhook-timestamp")?);
        let signed =
            hmac_sha256(&key, &[id.as_bytes(), b".", sent_at.as_bytes(), b".", request.body])?;
        let mut signatures = request.header("webhook-signature")?.split(' ');
        let is_signed = signatures.any(|signature| {
            let signature = signature.strip_prefix("v1,").map(|it| STANDARD.decode(it));
            signature.is_some_and(|it| it.is_ok_and(|it| is_equal(&it, &signed)))
        });
        (is_signed && request.is_timely(sent_at)).then(|| id.to_owned())
    }
}

/// Stripe's scheme: the header `Stripe-Signature`, with the time in what is signed. The id is that of the event in the
/// body.
#[derive(Clone, Copy, Debug)]
pub struct Stripe;

impl SignatureScheme for Stripe {
    fn delivery_id(&self, request: SignedRequest<'_>, secret: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Event {
            id: String,
        }
        let header = request.header("stripe-signature")?;
        let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
        let (_, sent_at) = parts().find(|(name, _)| *name == "t")?;
        let signed = hmac_sha256(secret.as_bytes(), &[sent_at.as_bytes(), b".", request.body])?;
        let is_signed = parts().any(|(name, value)| {
            name == "v1" && hex::decode(value).is_ok_and(|it| is_equal(&it, &signed))
        });
        let is_valid = is_signed && request.is_timely(sent_at);
        is_valid.then(|| serde_json::from_slice(request.body).ok().map(|Event { id }| id)).flatten()
    }
}

/// GitHub's scheme: the header `X-Hub-Signature-256` over the body alone. The id is the signature, since the header
/// `X-GitHub-Delivery` is not signed: two equal bodies are one delivery.
#[derive(Clone, Copy, Debug)]
pub struct GitHub;

impl SignatureScheme for GitHub {
    fn delivery_id(&self, request: SignedRequest<'_>, secret: &str) -> Option<String> {
        let given = request.header("x-hub-signature-256")?.strip_prefix("sha256=")?;
        let signed = hmac_sha256(secret.as_bytes(), &[request.body])?;
        is_equal(&hex::decode(given).ok()?, &signed).then(|| hex::encode(signed))
    }
}

/// The HMAC-SHA256 of these parts, one after the other; `None` if the key is empty.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Option<Vec<u8>> {
    if key.is_empty() {
        return None;
    }
    let key = PKey::hmac(key).ok()?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key).ok()?;
    parts.iter().try_for_each(|part| signer.update(part)).ok()?;
    signer.sign_to_vec().ok()
}

/// Compares in a time that tells nothing of the content.
pub fn is_equal(given: &[u8], signed: &[u8]) -> bool {
    given.len() == signed.len() && memcmp::eq(given, signed)
}

type ReadSecrets = Box<dyn Fn() -> anyhow::Result<Secret> + Send + Sync>;

/// Who sends webhooks, and how its deliveries are verified.
pub struct WebhookSource {
    name: &'static str,
    scheme: Box<dyn SignatureScheme>,
    secrets: ReadSecrets,
    awaited_by: fn(&str) -> Option<TimerKey>,
}

impl WebhookSource {
    /// The sender of the webhook `W`. The variable `secrets` holds its secret, or during a change two of them with a
    /// blank between: it is read for each delivery, as is the file that `…_FILE` names.
    ///
    /// # Panics
    /// If the name of `W` is none of a webhook.
    pub fn new<W: Webhook>(secrets: &'static str, scheme: impl SignatureScheme) -> WebhookSource {
        let read = move || {
            let secret = env::read_secret(secrets)?;
            let secret = secret.with_context(|| format!("{secrets} is not set"))?;
            let count = secret.expose().split_whitespace().count();
            ensure!((1..=2).contains(&count), "{secrets} holds {count} secrets");
            Ok(secret)
        };
        WebhookSource::with_secrets::<W>(Box::new(read), scheme)
    }

    pub(crate) fn with_secrets<W: Webhook>(
        secrets: ReadSecrets,
        scheme: impl SignatureScheme,
    ) -> WebhookSource {
        let prefix = WEBHOOK_PREFIX;
        assert!(W::NAME.starts_with(prefix), "{} does not begin with {prefix}", W::NAME);
        let awaited_by = |body: &str| serde_json::from_str::<W>(body).ok()?.awaited_by();
        WebhookSource { name: W::NAME, scheme: Box::new(scheme), secrets, awaited_by }
    }

    /// The id of a delivery that one of the secrets has signed.
    fn verify(&self, request: SignedRequest<'_>, secret: &Secret) -> Option<String> {
        let mut secrets = secret.expose().split_whitespace();
        let id = secrets.find_map(|secret| self.scheme.delivery_id(request, secret))?;
        let is_plain = id.bytes().all(|byte| byte.is_ascii_graphic());
        (is_plain && (1..=ID_BYTES_MAX).contains(&id.len())).then_some(id)
    }
}

#[derive(Clone)]
struct Sources {
    db: PgPool,
    by_name: Arc<BTreeMap<&'static str, WebhookSource>>,
}

/// The route `POST /webhooks/{source}`. `{source}` is the name of a webhook without `webhook/`.
///
/// # Errors
/// If the secret of a source is not set, or cannot be read.
pub(crate) fn router(
    db: PgPool,
    sources: impl IntoIterator<Item = WebhookSource>,
) -> anyhow::Result<OpenApiRouter> {
    let by_name = sources.into_iter().map(|source| (&source.name[WEBHOOK_PREFIX.len()..], source));
    let by_name = BTreeMap::from_iter(by_name);
    for source in by_name.values() {
        (source.secrets)().map_err(|error| BadConfiguration::new(format!("{error:#}.")))?;
    }
    let sources = Sources { db, by_name: Arc::new(by_name) };
    Ok(OpenApiRouter::new().routes(routes!(receive)).with_state(sources))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct SourcePath {
    source: String,
}

/// Takes a delivery of a webhook.
///
/// Its sender signs it, in headers of its own. Anybody may send one, and one without a valid signature has no effect.
/// A repeat of a delivery has no effect either, and is answered like the first one.
#[utoipa::path(post, path = "/webhooks/{source}", params(SourcePath), security(()),
    request_body(content = String, description = "What the sender tells, as it signed it: JSON in UTF-8.", content_type = "application/json"),
    responses(
        (status = 204, description = "It is stored."),
        (status = 400, description = "It is signed, and no UTF-8."),
        (status = 401, description = "It is not signed by the sender, or it is too old."),
        (status = 404, description = "There is no such sender."),
        (status = 503, description = "It is not stored: send it again later."),
    ))]
async fn receive(
    State(Sources { db, by_name }): State<Sources>,
    Path(SourcePath { source: name }): Path<SourcePath>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let source = by_name.get(&*name);
    let source = source.ok_or_else(|| Problem::not_found("There is nothing at this address."))?;
    let secret = (source.secrets)().map_err(|error| {
        tracing::error!("deliveries of {} cannot be verified: {error:#}", source.name);
        Problem::unavailable("The delivery cannot be verified now; nothing was stored.")
    })?;
    let count = |outcome: &'static str| {
        counter!("webhook_deliveries_total", "webhook" => source.name, "outcome" => outcome)
            .increment(1);
    };
    let request = SignedRequest { headers: &headers, body: &body, now: Utc::now() };
    let Some(id) = source.verify(request, &secret) else {
        count("refused");
        let detail = "The delivery is not accepted.";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail));
    };
    let body = std::str::from_utf8(&body).ok().filter(|body| !body.contains('\0'));
    let Some(body) = body else {
        count("malformed");
        return Err(Problem::malformed("The body is not JSON in UTF-8."));
    };
    let trace = telemetry::with_trace(&Context::current());
    let awaited_by = (source.awaited_by)(body);
    let delivery = Delivery { name: source.name, id: &id, body, awaited_by, trace: &trace };
    let received = deliveries::receive(&db, delivery).await.map_err(|error| match error {
        OperatorActError::NotStored(error) => Problem::from(error),
        OperatorActError::OutcomeUnknown(_) => {
            Problem::unavailable("It is unknown whether the delivery is stored: send it again.")
        }
    });
    match received? {
        Received::Stored => {
            count("stored");
            Ok(StatusCode::NO_CONTENT)
        }
        Received::TooMany => {
            count("too_many");
            Err(Problem::unavailable("Too many deliveries are pending; nothing was stored."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The id that a scheme finds in a request with these headers.
    fn id(
        scheme: impl SignatureScheme,
        headers: &[(&'static str, &str)],
        body: &str,
        at: i64,
        secret: &str,
    ) -> Option<String> {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let (headers, body) = (&headers.collect(), body.as_bytes());
        let now = DateTime::from_timestamp(at, 0).unwrap();
        scheme.delivery_id(SignedRequest { headers, body, now }, secret)
    }

    /// The vector of the specification.
    #[test]
    fn standard_webhooks_accepts_what_its_secret_has_signed_within_five_minutes() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let body = r#"{"test": 2432232314}"#;
        let sent = |signature: &str, at| {
            let headers = [
                ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
                ("webhook-timestamp", "1614265330"),
                ("webhook-signature", signature),
            ];
            id(StandardWebhooks, &headers, body, at, secret)
        };
        let expected = Some("msg_p5jXN8AQM9LWM0D4loKWxJek".to_string());
        for at in [1_614_265_030, 1_614_265_330, 1_614_265_630] {
            assert_eq!(sent(signature, at), expected);
        }
        assert_eq!([1_614_265_029, 1_614_265_631].map(|at| sent(signature, at)), [None, None]);
        let other = format!("v1a,{} v1,AAAA {signature}", &signature[3..]);
        assert_eq!(sent(&other, 1_614_265_330), expected, "one of several");
        let wrong = signature.replace("g0h", "g1h");
        for wrong in [&wrong, "", &signature[3..], &signature.replace("v1", "v2"), "v1,"] {
            assert_eq!(sent(wrong, 1_614_265_330), None, "{wrong}");
        }
    }

    /// The vector of GitHub's documentation.
    #[test]
    fn github_signs_the_body_alone_so_the_body_is_the_delivery() {
        let signature = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let header = format!("sha256={signature}");
        let sent = |body, secret| {
            let headers = [("x-hub-signature-256", &*header), ("x-github-delivery", "chosen")];
            id(GitHub, &headers, body, 0, secret)
        };
        let secret = "It's a Secret to Everybody";
        assert_eq!(sent("Hello, World!", secret), Some(signature.to_string()));
        assert_eq!(sent("Hello, World?", secret), None);
        assert_eq!(sent("Hello, World!", "It's a secret to everybody"), None);
        assert_eq!(sent("Hello, World!", ""), None, "an empty secret signs nothing");
    }

    #[test]
    fn stripe_signs_the_time_with_the_body_and_names_the_event_in_it() {
        let body = r#"{"id": "evt_1", "type": "charge.refunded"}"#;
        let signed = |at: &str, body: &str| {
            let signed = hmac_sha256(b"whsec_x", &[at.as_bytes(), b".", body.as_bytes()]).unwrap();
            hex::encode(signed)
        };
        let sent = |header: &str, body: &str, at| {
            id(Stripe, &[("stripe-signature", header)], body, at, "whsec_x")
        };
        let header = format!("t=1000,v1={},v1={}", "00".repeat(32), signed("1000", body));
        assert_eq!(sent(&header, body, 1_100), Some("evt_1".to_string()));
        assert_eq!(sent(&header, body, 1_301), None);
        assert_eq!(sent(&header.replace("t=1000", "t=1100"), body, 1_100), None);
        assert_eq!(sent(&header, &body.replace("evt_1", "evt_2"), 1_100), None);
        assert_eq!(sent(&header.replace("v1=", "v0="), body, 1_100), None);
        let without_id = format!("t=1000,v1={}", signed("1000", "{}"));
        assert_eq!(sent(&without_id, "{}", 1_000), None);
    }
}
