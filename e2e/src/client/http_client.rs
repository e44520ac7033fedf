//! The services as a client uses them: over HTTP, with an Idempotency-Key, and with three outcomes.
//! This file shares no code with the services, so it parses their responses like any other client.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::{Stack, eventually};
use rand::seq::SliceRandom;
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::addresses::Addresses;
use crate::client::identity::Identity;
use crate::client::order::{LineRequest, Order};
use crate::client::outcome::{HttpResponse, Outcome, require_accepted};
use crate::client::tokens::Tokens;

/// Longer than a service takes to respond with 503.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A client of all services. It sends a request to a random instance, and like a load balancer
/// tries another one after a refused connection or a response that the instance is unavailable.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub addresses: Addresses,
    /// The APIs of every instance.
    instances: Arc<RwLock<BTreeMap<String, Vec<String>>>>,
    /// What the client proves its name with, if the stack is secured.
    tokens: Option<Arc<Tokens>>,
}

/// A request, and who makes it.
#[derive(Clone)]
struct Request<'a> {
    identity: Identity,
    method: Method,
    key: Option<&'a str>,
    body: Option<Vec<u8>>,
}

impl Client {
    pub fn for_stack(stack: &Stack) -> Result<Client> {
        let tokens = stack.token_issuer()?.map(|issuer| Arc::new(Tokens::new(issuer)));
        let client = Client { tokens, ..Client::new(Addresses::from_stack(stack)?)? };
        client.refresh_instances(stack)?;
        Ok(client)
    }

    /// Updates the list of instances.
    pub fn refresh_instances(&self, stack: &Stack) -> Result<()> {
        let mut instances = BTreeMap::new();
        for service in &stack.description().services {
            let names = stack.instances_of(service)?;
            let urls: Result<Vec<String>> = names.iter().map(|name| stack.url(name)).collect();
            instances.insert(service.to_string(), urls?);
        }
        *self.instances.write().unwrap_or_else(PoisonError::into_inner) = instances;
        Ok(())
    }

    pub fn new(addresses: Addresses) -> Result<Client> {
        let http = checker::http::client_builder(addresses.ca.as_deref())?
            .timeout(REQUEST_TIMEOUT)
            // It stands for many clients, and each of them would keep a connection of its own.
            .pool_max_idle_per_host(1024)
            // A service closes idle connections one second after a stop, or when all its
            // connections are taken; a request on a reused connection would be lost at that moment.
            .pool_idle_timeout(Duration::from_millis(500))
            .build()?;
        let each = addresses.apis.iter().map(|(name, url)| (name.clone(), vec![url.clone()]));
        let instances = Arc::new(RwLock::new(each.collect()));
        Ok(Client { http, addresses, instances, tokens: None })
    }

    /// Sends one request, by the client that makes such requests, and returns any response.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        key: Option<&str>,
        body: Option<Vec<u8>>,
    ) -> Result<HttpResponse> {
        let identity = Identity::of_request(&method, url, body.as_deref());
        self.send_to(url, Request { identity, method, key, body }).await
    }

    async fn send_to(&self, url: &str, of: Request<'_>) -> Result<HttpResponse> {
        let mut request = self.http.request(of.method, url);
        if let Some(tokens) = &self.tokens
            && self.is_of_service(url)
        {
            request = request.bearer_auth(tokens.token(of.identity)?);
        }
        if let Some(key) = of.key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(body) = of.body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        let response = request.send().await?;
        let header = |name| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_string)
        };
        let location = header("location");
        let content_type = header("content-type").unwrap_or_default();
        let status = response.status().as_u16();
        Ok(HttpResponse { status, location, content_type, body: response.bytes().await?.to_vec() })
    }

    /// Whether a port asks who calls. The probe ports are not encrypted and serve everybody, and the
    /// registry knows no such token.
    fn is_of_service(&self, url: &str) -> bool {
        url.starts_with("https:") && !url.starts_with(&self.addresses.registry)
    }

    /// Sends one request to any instance of a service, by the client that makes such requests.
    pub async fn request(
        &self,
        method: Method,
        service: &str,
        path: &str,
        key: Option<&str>,
        body: Option<Vec<u8>>,
    ) -> Result<HttpResponse> {
        let url = format!("https://{service}{path}");
        let identity = Identity::of_request(&method, &url, body.as_deref());
        self.send_to_any(service, path, Request { identity, method, key, body }).await
    }

    async fn send_to_any(
        &self,
        service: &str,
        path: &str,
        request: Request<'_>,
    ) -> Result<HttpResponse> {
        let mut urls = {
            let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
            instances.get(service).cloned().unwrap_or_default()
        };
        // A random order: in a fixed order every second request would reach the same instance.
        urls.shuffle(&mut rand::rng());
        let last = urls.pop().with_context(|| format!("there is no service {service}"))?;
        for url in urls {
            let url = format!("{url}{path}");
            match self.send_to(&url, request.clone()).await {
                // Nothing was sent, or the response states that nothing was stored.
                Err(error) if is_refused_connection(&error) => {}
                Ok(answer) if answer.status == 503 && !answer.is_outcome_unknown() => {}
                answer => return answer,
            }
        }
        self.send_to(&format!("{last}{path}"), request).await
    }

    /// Sends a command, and returns its outcome, never an error.
    pub async fn command(
        &self,
        method: Method,
        service: &str,
        path: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Outcome {
        let body = Some(body.to_string().into_bytes());
        Outcome::from_response(self.request(method, service, path, key, body).await)
    }

    pub async fn place_order(
        &self,
        customer_id: Uuid,
        lines: &[LineRequest],
        key: &str,
    ) -> Outcome {
        let order = json!({ "customer_id": customer_id, "lines": lines });
        self.command(Method::POST, "order", "/orders", Some(key), &order).await
    }

    /// Places an order that must be accepted.
    pub async fn place_until_accepted(
        &self,
        customer_id: Uuid,
        lines: &[LineRequest],
    ) -> Result<Order> {
        let key = Uuid::now_v7().to_string();
        require_accepted(async || self.place_order(customer_id, lines, &key).await).await?.json()
    }

    /// Cancels an order, as its customer.
    pub async fn cancel_order(&self, order: &Order) -> Outcome {
        let path = format!("/orders/{}/cancel", order.order_id);
        let identity = Identity::Customer(order.customer_id);
        let request = Request { identity, method: Method::POST, key: None, body: None };
        Outcome::from_response(self.send_to_any("order", &path, request).await)
    }

    /// Cancels an order that can be cancelled.
    pub async fn cancel_until_accepted(&self, order: &Order) -> Result<Order> {
        require_accepted(async || self.cancel_order(order).await).await?.json()
    }

    pub async fn get_order(&self, order_id: Uuid) -> Result<Order> {
        self.get("order", &format!("/orders/{order_id}")).await
    }

    /// Waits until an order has ended in all services.
    pub async fn wait_until_ended(&self, order_id: Uuid, within: Duration) -> Result<Order> {
        let what = format!("order {order_id} to end");
        eventually(&what, within, async || {
            let order = self.get_order(order_id).await?;
            ensure!(order.has_ended(), "it is {}: {}", order.status, order.legs);
            Ok(order)
        })
        .await
    }

    /// A deposit or a delivery; it can be repeated with its key.
    pub async fn send_until_accepted(
        &self,
        service: &str,
        path: &str,
        key: &str,
        body: &Value,
    ) -> Result<Value> {
        let send = async || self.command(Method::POST, service, path, Some(key), body).await;
        require_accepted(send).await.with_context(|| format!("{service}, {path}"))?.json()
    }

    pub async fn deposit(&self, customer_id: Uuid, amount_cents: i64, key: &str) -> Result<Value> {
        let path = format!("/accounts/{customer_id}/deposits");
        self.send_until_accepted("payment", &path, key, &json!({ "amount_cents": amount_cents }))
            .await
    }

    pub async fn deliver(&self, sku: &str, quantity: i64, key: &str) -> Result<Value> {
        let path = format!("/items/{sku}/deliveries");
        self.send_until_accepted("stock", &path, key, &json!({ "quantity": quantity })).await
    }

    pub async fn put_item(&self, sku: &str, name: &str, price_cents: i64) -> Result<Value> {
        let item = json!({ "name": name, "price_cents": price_cents });
        let path = format!("/items/{sku}");
        let send = async || self.command(Method::PUT, "stock", &path, None, &item).await;
        require_accepted(send).await.with_context(|| path.clone())?.json()
    }

    /// Reads from a service's API.
    pub async fn get<T: DeserializeOwned>(&self, service: &str, path: &str) -> Result<T> {
        let answer = self.request(Method::GET, service, path, None, None).await?;
        answer.accepted_json().with_context(|| format!("GET {path} of {service}"))
    }

    /// Every item of a service, page by page.
    pub async fn items(&self, service: &str) -> Result<Vec<Value>> {
        let (mut items, mut after) = (Vec::new(), String::new());
        loop {
            let mut page: Value = self.get(service, &format!("/items?limit=1000{after}")).await?;
            if let Some(rows) = page["items"].as_array_mut() {
                items.append(rows);
            }
            let Some(next) = page["next"].as_str() else { return Ok(items) };
            let mut query = Url::parse("http://items/")?;
            query.query_pairs_mut().append_pair("after", next);
            after = format!("&{}", query.query().unwrap_or_default());
        }
    }

    /// Like [`Client::get`]; `None` after a 404.
    pub async fn find<T: DeserializeOwned>(&self, service: &str, path: &str) -> Result<Option<T>> {
        let answer = self.request(Method::GET, service, path, None, None).await?;
        if answer.status == 404 { Ok(None) } else { answer.accepted_json().map(Some) }
    }

    /// The books of a service, whose sums must balance.
    pub async fn books(&self, service: &str) -> Result<Value> {
        self.get_url(&format!("{}/books", self.addresses.admins[service])).await
    }

    pub async fn get_url<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        let answer =
            self.send(Method::GET, url, None, None).await.with_context(|| url.to_string())?;
        answer.accepted_json().with_context(|| format!("GET {url}"))
    }
}

fn is_refused_connection(error: &anyhow::Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect)
}
