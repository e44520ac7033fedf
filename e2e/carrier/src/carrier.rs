//! A running carrier: how parcels move by themselves, and how their webhooks are sent.

use std::sync::Arc;
use std::time::Duration;
use std::{fs, mem};

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use futures::future::join_all;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use parking_lot::{Mutex, MutexGuard};
use reqwest::{Certificate, Client, ClientBuilder, redirect::Policy};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use crate::ledger::{Fact, Ledger, Parcel, State, Webhook, WebhookState};
use crate::lies::{Lie, draw};
use crate::settings::Settings;

const ATTEMPTS: u32 = 15;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: usize = 16;
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The lies of a webhook about itself. The first is one of `parcel.collected` alone.
const WEBHOOK_LIES: [Lie; 5] = [
    Lie::WebhookReordered,
    Lie::WebhookLost,
    Lie::WebhookDoubled,
    Lie::WebhookDelayed,
    Lie::WebhookOldSecret,
];

/// A running carrier. Each parcel that moves has a task, and so has each webhook that is to be sent.
pub struct Carrier {
    pub(crate) settings: Settings,
    pub(crate) ledger: Mutex<Ledger>,
    tasks: Mutex<JoinSet<Result<()>>>,
    url: String,
    client: Client,
    connections: Semaphore,
}

impl Carrier {
    /// Goes on where the ledger ends.
    pub(crate) fn open(settings: Settings, url: String) -> Result<Arc<Carrier>> {
        let client = Client::builder().no_proxy().redirect(Policy::none()).timeout(ATTEMPT_TIMEOUT);
        let trusted = settings.ca_file.as_ref().map(fs::read).transpose()?.unwrap_or_default();
        let trusted = Certificate::from_pem_bundle(&trusted)?.into_iter();
        let client = trusted.fold(client, ClientBuilder::add_root_certificate);
        let carrier = Arc::new(Carrier {
            ledger: Mutex::new(Ledger::open(&settings.directory)?),
            settings,
            tasks: Mutex::default(),
            url,
            client: client.build()?,
            connections: Semaphore::new(CONNECTIONS_MAX),
        });
        for (reference, entry) in &carrier.ledger.lock().references {
            for (place, parcel) in entry.parcels.iter().enumerate() {
                carrier.tasks().spawn(carrier.clone().keep_moving(*reference, place));
                for webhook in parcel.webhooks.iter().cloned() {
                    carrier.tasks().spawn(carrier.clone().send(*reference, place, webhook));
                }
            }
        }
        Ok(carrier)
    }

    /// Its base URL, such as `http://127.0.0.1:1234`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Ends it as a kill does, but a connection that stays open is answered 500. Afterwards another carrier may have its
    /// directory and its port.
    pub async fn stop(&self) {
        self.ledger.lock().file = None;
        let mut tasks = mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    /// The tasks that have not ended.
    pub(crate) fn tasks(&self) -> MutexGuard<'_, JoinSet<Result<()>>> {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks
    }

    fn parcel(&self, reference: Uuid, place: usize) -> Parcel {
        self.ledger.lock().parcels(reference)[place].clone()
    }

    /// Waits for each move of a parcel, and then records it with its webhooks, if it was not cancelled.
    pub(crate) async fn keep_moving(self: Arc<Self>, reference: Uuid, place: usize) -> Result<()> {
        let Settings { seed, collect_after, deliver_after, lost_rate, .. } = self.settings;
        let [drawn, _] = draw(seed, "parcel lost", reference, place as u64);
        let end = if drawn < lost_rate { State::Lost } else { State::Delivered };
        loop {
            let Parcel { parcel_id, state, since, .. } = self.parcel(reference, place);
            let (pause, next) = match state {
                State::Booked => (collect_after, State::Collected),
                State::Collected => (deliver_after, end),
                _ => return Ok(()),
            };
            sleep_until(since + pause).await;
            let mut ledger = self.ledger.lock();
            if ledger.parcels(reference)[place].state == state {
                let webhooks = self.plan_webhooks(reference, place, next);
                let planned = webhooks.iter().cloned();
                let planned = planned.map(|webhook| Fact::Webhook { parcel_id, webhook });
                let moved = Fact::Moved { parcel_id, state: next };
                ledger.record(reference, [moved].into_iter().chain(planned).collect())?;
                for webhook in webhooks {
                    self.tasks().spawn(self.clone().send(reference, place, webhook));
                }
            }
        }
    }

    /// The webhook of an event, and perhaps a forged one.
    fn plan_webhooks(&self, reference: Uuid, place: usize, event: State) -> Vec<Webhook> {
        let Settings { seed, lies, webhook_delay_max, .. } = &self.settings;
        let (occurred_at, is_end) = (Utc::now(), usize::from(event != State::Collected));
        let draw = |lie: Lie| lies.draw(*seed, lie, reference, (2 * place + is_end) as u64);
        let plan = |event, lies: Vec<Lie>| {
            let delay = draw(Lie::WebhookDelayed).filter(|_| lies.contains(&Lie::WebhookDelayed));
            let send_at = occurred_at + webhook_delay_max.mul_f64(delay.unwrap_or(0.0));
            let is_lost = lies.contains(&Lie::WebhookLost);
            let state = if is_lost { WebhookState::Lost } else { WebhookState::Pending };
            Webhook { webhook_id: Uuid::now_v7(), event, occurred_at, send_at, lies, state }
        };
        let told = WEBHOOK_LIES[is_end..].iter().copied().filter(|lie| draw(*lie).is_some());
        let mut planned = vec![plan(event, told.collect())];
        let forged = draw(Lie::WebhookForged).map(|_| vec![Lie::WebhookForged]);
        planned.extend(forged.map(|lies| plan(State::Lost, lies)));
        planned.retain(|_| self.settings.webhook_url.is_some());
        planned
    }

    async fn send(self: Arc<Self>, reference: Uuid, place: usize, webhook: Webhook) -> Result<()> {
        if webhook.state != WebhookState::Pending {
            return Ok(());
        }
        sleep_until(webhook.send_at).await;
        let tells = |lie| webhook.lies.contains(&lie);
        while tells(Lie::WebhookReordered) && !self.is_end_reported(reference, place) {
            sleep(POLL_INTERVAL).await;
        }
        let secret = match () {
            () if tells(Lie::WebhookForged) => None,
            () if tells(Lie::WebhookOldSecret) => self.settings.old_secret.clone(),
            () => self.settings.secret.clone(),
        };
        let secret = secret.map_or_else(|| PKey::hmac(&rand::random::<[u8; 32]>()), Ok)?;
        let parcel_id = self.parcel(reference, place).parcel_id;
        let kind = format!("parcel.{:?}", webhook.event).to_lowercase();
        let data = json!({ "reference": reference, "parcel_id": parcel_id });
        let body = json!({ "type": kind, "timestamp": webhook.occurred_at, "data": data });
        let copies = if tells(Lie::WebhookDoubled) { 2 } else { 1 };
        let mut state = WebhookState::GivenUp;
        for attempt in 0..ATTEMPTS {
            let sent = (0..copies).map(|_| self.post(&secret, webhook.webhook_id, &body));
            match join_all(sent).await.into_iter().flatten().min() {
                Some(200..300) => state = WebhookState::Acknowledged,
                Some(_) if tells(Lie::WebhookForged) => {}
                _ => {
                    sleep(self.settings.webhook_pause * 2u32.pow(attempt.min(6))).await;
                    continue;
                }
            }
            break;
        }
        let ended = Fact::Webhook { parcel_id, webhook: Webhook { state, ..webhook } };
        self.ledger.lock().record(reference, vec![ended])
    }

    /// Whether the webhook of a parcel's end is acknowledged, given up or lost.
    fn is_end_reported(&self, reference: Uuid, place: usize) -> bool {
        self.parcel(reference, place).webhooks.iter().any(|it| {
            let is_forged = it.lies.contains(&Lie::WebhookForged);
            it.event != State::Collected && it.state != WebhookState::Pending && !is_forged
        })
    }

    /// Posts a webhook. Returns the status of the answer, if there is one.
    async fn post(&self, secret: &PKey<Private>, id: Uuid, body: &Value) -> Option<u16> {
        let _permit = self.connections.acquire().await.ok()?;
        let (id, timestamp, body) = (id.to_string(), Utc::now().timestamp(), body.to_string());
        let signature = sign(secret, &id, timestamp, &body).ok()?;
        let request = self.client.post(self.settings.webhook_url.as_ref()?).body(body);
        let request = request.header("webhook-id", id).header("webhook-timestamp", timestamp);
        let request = request.header("webhook-signature", signature);
        let request = request.header("content-type", "application/json");
        Some(request.send().await.ok()?.status().as_u16())
    }
}

/// The header `webhook-signature` of a message.
pub(crate) fn sign(secret: &PKey<Private>, id: &str, timestamp: i64, body: &str) -> Result<String> {
    let message = format!("{id}.{timestamp}.{body}");
    let mut signer = Signer::new(MessageDigest::sha256(), secret)?;
    Ok(format!("v1,{}", BASE64_STANDARD.encode(signer.sign_oneshot_to_vec(message.as_bytes())?)))
}

async fn sleep_until(time: DateTime<Utc>) {
    sleep((time - Utc::now()).to_std().unwrap_or_default()).await;
}
