//! Sends requests to the services, to one instance after the other.

use std::time::{Duration, Instant};

use reqwest::{Client, Method, RequestBuilder, Url, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::addresses::Addresses;
use crate::error::{ServiceError, describe};

/// How long a read waits for all instances of a service. A frozen process accepts connections, and must not delay a
/// client that asks all services.
pub const READ_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long a request waits that changes something, or of a [patient](OpsClient::patient) caller: longer than a service
/// needs to settle a dead letter.
pub const WORK_TIMEOUT: Duration = Duration::from_secs(12);

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// For clients.
    Api,
    /// For operators.
    Admin,
}

/// The services by their names, and where they are reached.
pub struct Services {
    /// The names, in the sequence of the addresses of the admin ports.
    pub names: Vec<String>,
    admin: Addresses,
    api: Addresses,
    http: Client,
}

/// The services, as one caller asks them.
#[derive(Clone)]
pub struct OpsClient<'a> {
    pub(crate) services: &'a Services,
    token: Option<String>,
    read_timeout: Duration,
    work_timeout: Duration,
}

impl Services {
    /// The services with these ports. The API is asked for a remedy, and by [`OpsClient::get`] and [`OpsClient::post`].
    pub fn new(http: Client, admin: Addresses, api: Addresses) -> Services {
        Services { names: admin.names().map(str::to_string).collect(), admin, api, http }
    }

    /// Asks with this token, which services need that know their callers.
    pub fn as_caller(&self, token: Option<String>) -> OpsClient<'_> {
        let (read_timeout, work_timeout) = (READ_TIMEOUT, WORK_TIMEOUT);
        OpsClient { services: self, token, read_timeout, work_timeout }
    }
}

impl OpsClient<'_> {
    /// The same caller, who waits longer for a read.
    pub fn patient(self) -> Self {
        let limit = self.work_timeout;
        self.waiting(limit)
    }

    /// The same caller, who waits this long for each request.
    pub fn waiting(self, limit: Duration) -> Self {
        Self { read_timeout: limit, work_timeout: limit, ..self }
    }

    /// Asks a service.
    ///
    /// # Errors
    /// As of all requests: if no instance of it can be reached, it refuses, or it answers in another form.
    pub async fn get<T: DeserializeOwned>(
        &self,
        place: (&str, Port),
        path: &str,
    ) -> Result<T, ServiceError> {
        self.send(place, path, |http, url| http.get(url)).await
    }

    /// Asks a service for what is true now, and not for an answer that it has kept.
    pub async fn get_current<T: DeserializeOwned>(
        &self,
        place: (&str, Port),
        path: &str,
    ) -> Result<T, ServiceError> {
        self.send(place, path, |http, url| http.get(url).header(header::CACHE_CONTROL, "no-cache"))
            .await
    }

    /// Has a service do something. An operator can repeat each such request.
    pub async fn post<T: DeserializeOwned>(
        &self,
        place: (&str, Port),
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<T, ServiceError> {
        self.send(place, path, |http, url| match body {
            Some(body) => http.post(url).json(body),
            None => http.post(url),
        })
        .await
    }

    /// Sends a request to the first instance that accepts a connection; a read, to the first that answers.
    async fn send<T: DeserializeOwned>(
        &self,
        (service, port): (&str, Port),
        path: &str,
        request: impl Fn(&Client, Url) -> RequestBuilder,
    ) -> Result<T, ServiceError> {
        let Services { admin, api, http, .. } = self.services;
        let (known, at) = if port == Port::Api { (api, "API") } else { (admin, "admin port") };
        let addresses = known.get(service);
        let named = || service.to_string();
        let unreadable = |reason| ServiceError::Unreadable { service: named(), reason };
        let mut reason = String::new();
        if addresses.is_empty() {
            let names = Vec::from_iter(known.names()).join(", ");
            let names = if names.is_empty() { "no service" } else { &names };
            reason = format!("its {at} has no address here; known are those of {names}");
        }
        let began = Instant::now();
        for (nth, address) in addresses.iter().enumerate() {
            let url = address.join(path).map_err(|error| unreadable(error.to_string()))?;
            let mut request = request(http, url);
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            let mut request = request.build().map_err(|error| unreadable(error.to_string()))?;
            let is_read = request.method() == Method::GET;
            let limit = if is_read { self.read_timeout } else { self.work_timeout };
            let left = limit.saturating_sub(began.elapsed());
            // A read leaves the further instances their share of the time.
            let share = if is_read { left / (addresses.len() - nth) as u32 } else { left };
            *request.timeout_mut() = Some(share);
            let answer = async {
                let response = http.execute(request).await?;
                Ok((response.status(), response.bytes().await?))
            };
            match answer.await {
                Ok((status, body)) if status.is_success() => {
                    return serde_json::from_slice(&body)
                        .map_err(|error| unreadable(error.to_string()));
                }
                Ok((status, body)) => return Err(ServiceError::refused(named(), status, &body)),
                Err(error) => {
                    let error: reqwest::Error = error;
                    reason = describe(&error);
                    // The next instance must not do what this one may be doing.
                    if !is_read && !error.is_connect() {
                        break;
                    }
                }
            }
        }
        Err(ServiceError::Unreachable { service: named(), reason })
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::any;
    use axum::{Json, Router};
    use tokio::net::TcpListener;

    use super::*;

    async fn url(listener: &TcpListener) -> Url {
        format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()
    }

    #[tokio::test]
    async fn a_read_of_frozen_instances_ends_in_time_and_a_write_does_not_go_on_to_the_next() {
        // The kernel accepts connections for a frozen process, which reads none of them.
        let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let running = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let urls = vec![url(&frozen).await, url(&running).await];
        let router = Router::new().route("/books", any(|| async { Json(1) }));
        tokio::spawn(async move { axum::serve(running, router).await });
        let admin = Addresses(vec![
            ("stock".to_string(), vec![urls[0].clone(); 3]),
            ("order".to_string(), urls),
        ]);
        let http = Client::builder().no_proxy().build().unwrap();
        let services = Services::new(http, admin, Addresses::default());
        let ops = OpsClient { work_timeout: READ_TIMEOUT, ..services.as_caller(None) };
        let order = ("order", Port::Admin);
        assert_eq!(ops.get::<u32>(order, "/books").await.unwrap(), 1);
        let begun = Instant::now();
        let read = ops.get::<u32>(("stock", Port::Admin), "/books").await;
        assert!(matches!(read, Err(ServiceError::Unreachable { .. })), "{read:?}");
        assert!(begun.elapsed() < READ_TIMEOUT + READ_TIMEOUT / 4, "{:?}", begun.elapsed());
        let written = ops.post::<u32>(order, "/books", None::<&u32>).await;
        assert!(matches!(written, Err(ServiceError::Unreachable { .. })), "{written:?}");
        let unknown = ops.get::<u32>(("till", Port::Admin), "/books").await.unwrap_err();
        let reason = "its admin port has no address here; known are those of stock, order";
        assert!(unknown.to_string().ends_with(reason), "{unknown}");
        let unknown = ops.get::<u32>(("order", Port::Api), "/").await.unwrap_err();
        let reason = "its API has no address here; known are those of no service";
        assert!(unknown.to_string().ends_with(reason), "{unknown}");
    }
}
