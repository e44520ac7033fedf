//! The HTTP API. What a request did is in the ledger before its answer.

use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;

use anyhow::{Result, ensure};
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use chrono::Utc;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::sleep;
use uuid::Uuid;

use crate::carrier::Carrier;
use crate::ledger::{Fact, Ledger, Parcel, State};
use crate::lies::Lie;
use crate::settings::Settings;

const BODY_BYTES_MAX: usize = 4096;
const KEY_BYTES_MAX: usize = 255;

/// Beyond these the carrier answers 503. They bound the ledger and what is under way.
const FACTS_MAX: usize = 1_000_000;
const TASKS_MAX: usize = 20_000;

type Answer = (StatusCode, Json<Value>);

#[derive(Deserialize)]
struct Booking {
    reference: Uuid,
    pieces: NonZeroU32,
}

#[derive(Deserialize)]
struct ListQuery {
    reference: Uuid,
}

impl Carrier {
    /// Starts a carrier, which continues with the ledger in its directory. It runs until it is stopped, or its runtime
    /// ends.
    ///
    /// # Errors
    /// If another carrier has the directory or the port, the ledger cannot be read, or a secret is missing.
    pub async fn start(settings: Settings) -> Result<Arc<Carrier>> {
        let has_secret = settings.secret.is_some() || settings.webhook_url.is_none();
        ensure!(has_secret, "webhooks need a secret");
        let listener = TcpListener::bind(settings.address).await?;
        let carrier = Carrier::open(settings, format!("http://{}", listener.local_addr()?))?;
        let router = Router::new().route("/parcels", post(book).get(list));
        let router = router.route("/parcels/{reference}", delete(cancel));
        let router = router.route("/livez", get(async || StatusCode::OK));
        let router = router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
        let served = axum::serve(listener, router.with_state(carrier.clone()));
        carrier.tasks().spawn(async { Ok(served.await?) });
        Ok(carrier)
    }

    /// Draws the lies of a request, does what it asks, and answers.
    async fn answer(
        self: &Arc<Self>,
        method: &str,
        reference: Uuid,
        lies: &[Lie],
        act: impl FnOnce(&Ledger, &mut Option<Lie>) -> (Vec<Fact>, Answer),
    ) -> Result<Response, Answer> {
        let failed = |reason: &str| error(StatusCode::INTERNAL_SERVER_ERROR, reason);
        let (answer, late, lie) = {
            let mut ledger = self.ledger.lock();
            if ledger.facts >= FACTS_MAX || self.tasks().len() >= TASKS_MAX {
                return Err(error(StatusCode::SERVICE_UNAVAILABLE, "the carrier is full"));
            }
            let number = ledger.references.get(&reference).map_or(0, |it| it.requests);
            let draw = |lie| self.settings.lies.draw(self.settings.seed, lie, reference, number);
            let late = draw(Lie::Late);
            let mut lie = lies.iter().copied().find(|lie| draw(*lie).is_some());
            let (facts, answer) = match lie {
                Some(Lie::ErrorBefore) => (Vec::new(), failed("an error")),
                _ => act(&ledger, &mut lie),
            };
            let (place, method) = (ledger.parcels(reference).len(), method.to_string());
            let lies = late.map(|_| Lie::Late).into_iter().chain(lie).collect();
            let facts = [Fact::Requested { method, lies }].into_iter().chain(facts).collect();
            ledger.record(reference, facts).map_err(|reason| failed(&format!("{reason:#}")))?;
            if ledger.parcels(reference).len() > place {
                self.tasks().spawn(self.clone().keep_moving(reference, place));
            }
            (answer, late, lie)
        };
        sleep(self.settings.late_max.mul_f64(late.unwrap_or(0.0))).await;
        match lie {
            Some(Lie::ErrorAfter) => Err(failed("an error")),
            Some(Lie::Dropped) => {
                // The server ends the connection of a body that fails.
                let body = stream::iter([Err::<Bytes, _>(io::Error::other("a lie"))]);
                Ok((answer.0, Body::from_stream(body)).into_response())
            }
            _ => Ok(answer.into_response()),
        }
    }
}

async fn book(
    Shared(carrier): Shared<Arc<Carrier>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Answer> {
    let key = idempotency_key(&headers)?;
    let Booking { reference, pieces } = serde_json::from_slice(&body)
        .map_err(|reason| error(StatusCode::UNPROCESSABLE_ENTITY, &reason.to_string()))?;
    let lies = [Lie::ErrorBefore, Lie::ErrorAfter, Lie::Phantom, Lie::Dropped];
    carrier
        .answer("POST", reference, &lies, |ledger, lie| {
            let now = Utc::now();
            let since = now - carrier.settings.key_lifetime;
            let remembered = ledger.keys.get(&key).filter(|(at, ..)| *at > since);
            if remembered.is_some_and(|(_, other, _)| *other != reference) {
                let reason = "the key is that of another reference";
                return (Vec::new(), error(StatusCode::UNPROCESSABLE_ENTITY, reason));
            }
            // What is booked already is no phantom.
            *lie = lie.filter(|lie| *lie != Lie::Phantom || remembered.is_none());
            let parcel_id = remembered.map_or_else(Uuid::now_v7, |(.., parcel_id)| *parcel_id);
            let (pieces, state, webhooks) = (pieces.get(), State::Booked, Vec::new());
            let parcel = Parcel { parcel_id, pieces, state, since: now, webhooks };
            let is_new = remembered.is_none() && *lie != Some(Lie::Phantom);
            let booked = is_new.then_some(Fact::Booked { key, parcel });
            (
                Vec::from_iter(booked),
                (StatusCode::ACCEPTED, Json(json!({ "parcel_id": parcel_id }))),
            )
        })
        .await
}

async fn list(
    Shared(carrier): Shared<Arc<Carrier>>,
    Query(ListQuery { reference }): Query<ListQuery>,
) -> Result<Response, Answer> {
    carrier
        .answer("GET", reference, &[Lie::ErrorBefore], |ledger, _| {
            let parcels = ledger.parcels(reference).iter();
            let parcels = parcels.map(|it| json!({ "parcel_id": it.parcel_id, "state": it.state }));
            let body = json!({ "parcels": parcels.collect::<Vec<_>>() });
            (Vec::new(), (StatusCode::OK, Json(body)))
        })
        .await
}

async fn cancel(
    Shared(carrier): Shared<Arc<Carrier>>,
    Path(reference): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Answer> {
    idempotency_key(&headers)?;
    let lies = [Lie::ErrorBefore, Lie::ErrorAfter, Lie::Dropped];
    carrier
        .answer("DELETE", reference, &lies, |ledger, _| {
            let (parcels, state) = (ledger.parcels(reference), State::Cancelled);
            let booked = parcels.iter().filter(|it| it.state == State::Booked);
            let facts = booked.map(|it| Fact::Moved { parcel_id: it.parcel_id, state }).collect();
            let mut others =
                parcels.iter().filter(|it| ![State::Booked, state].contains(&it.state));
            let answer = match others.next() {
                _ if parcels.is_empty() => error(StatusCode::NOT_FOUND, "there is no parcel"),
                Some(it) => (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "state": it.state }))),
                None => (StatusCode::OK, Json(json!({ "state": state }))),
            };
            (facts, answer)
        })
        .await
}

fn idempotency_key(headers: &HeaderMap) -> Result<String, Answer> {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len())).map(str::to_string);
    key.ok_or_else(|| error(StatusCode::BAD_REQUEST, "there is no valid Idempotency-Key"))
}

fn error(status: StatusCode, reason: &str) -> Answer {
    (status, Json(json!({ "error": reason })))
}
