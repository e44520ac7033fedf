//! A client of the services: their APIs and their admin ports.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use reqwest::{Client, Method, RequestBuilder, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::operators::Operator;
use crate::settings::{Addresses, Settings};

/// How long a read waits for all instances of a service: a frozen process accepts connections, and must not keep what
/// the other services answer from a page. It is shorter than answers are kept, so that viewers share a failure.
pub const READ_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a request waits that no page waits for, or that changes something: longer than a service needs to settle a
/// dead letter, and shorter than [`crate::pages::PAGE_TIMEOUT`].
pub const WORK_TIMEOUT: Duration = Duration::from_secs(12);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const NO_ANSWER: &str = "it does not answer in time";

/// The stream processor. It is asked like a service, and is not one of their names.
pub const INSIGHTS: &str = "insights";

/// The services by their names, and where they are reached.
pub struct Services {
    /// The names, in the sequence of the settings.
    pub names: Vec<String>,
    api: Addresses,
    admin: Addresses,
    http: Client,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// For clients.
    Api,
    /// For operators.
    Admin,
}

/// Why a service gave no answer that can be shown.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// No instance of it can be reached.
    #[error("No instance of {service} answers: {reason}")]
    Unreachable { service: String, reason: String },
    /// It refuses the request, with the type of the problem and its text.
    #[error("{service} refuses it: {detail}")]
    Refused { service: String, status: StatusCode, kind: String, detail: String },
    /// Its answer is of another version.
    #[error("The answer of {service} cannot be read: {reason}")]
    Unreadable { service: String, reason: String },
}

/// The body of a refusal, by RFC 9457.
#[derive(Default, Deserialize)]
struct ProblemBody {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    detail: String,
}

impl Services {
    /// # Errors
    /// If the client can't be made.
    pub fn new(settings: &Settings) -> anyhow::Result<Services> {
        let http = Client::builder().timeout(WORK_TIMEOUT).connect_timeout(CONNECT_TIMEOUT);
        let http = http.redirect(reqwest::redirect::Policy::none()).no_proxy();
        // Several consoles cost a service no more than one computation of its books a minute.
        let accepted = HeaderValue::from_static("max-age=60");
        let http = http.default_headers([(header::CACHE_CONTROL, accepted)].into_iter().collect());
        let http = http.build()?;
        let mut api = settings.api_urls.clone();
        api.0.extend(
            settings.insights_url.iter().map(|url| (INSIGHTS.to_string(), vec![url.clone()])),
        );
        Ok(Services {
            names: settings.probe_urls.names().map(str::to_string).collect(),
            api,
            admin: settings.admin_urls.clone(),
            http,
        })
    }

    /// Asks a service.
    ///
    /// # Errors
    /// If it can't be reached, refuses, or answers in another form.
    pub async fn get<T: DeserializeOwned>(
        &self,
        operator: &Operator,
        (service, port): (&str, Port),
        path: &str,
    ) -> Result<T, ServiceError> {
        self.get_within(READ_TIMEOUT, operator, (service, port), path).await
    }

    /// Asks a service that may need this long.
    ///
    /// # Errors
    /// As [`Services::get`].
    pub async fn get_within<T: DeserializeOwned>(
        &self,
        limit: Duration,
        operator: &Operator,
        (service, port): (&str, Port),
        path: &str,
    ) -> Result<T, ServiceError> {
        let request = |http: &Client, url| http.request(Method::GET, url);
        self.send(operator, (service, port), request, (path, limit)).await
    }

    /// Asks a service for what is true now, and not within the last minute.
    ///
    /// # Errors
    /// As [`Services::get`].
    pub async fn get_current<T: DeserializeOwned>(
        &self,
        operator: &Operator,
        (service, port): (&str, Port),
        path: &str,
    ) -> Result<T, ServiceError> {
        let request = |http: &Client, url| {
            http.request(Method::GET, url).header(header::CACHE_CONTROL, "no-cache")
        };
        self.send(operator, (service, port), request, (path, WORK_TIMEOUT)).await
    }

    /// Has a service do something. Operators can repeat each such request.
    ///
    /// # Errors
    /// As [`Services::get`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        operator: &Operator,
        (service, port): (&str, Port),
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<T, ServiceError> {
        let request = |http: &Client, url| match body {
            Some(body) => http.request(Method::POST, url).json(body),
            None => http.request(Method::POST, url),
        };
        self.send(operator, (service, port), request, (path, WORK_TIMEOUT)).await
    }

    /// Sends a request to the first instance that accepts a connection; a read, to the first that answers.
    async fn send<T: DeserializeOwned>(
        &self,
        operator: &Operator,
        (service, port): (&str, Port),
        request: impl Fn(&Client, Url) -> RequestBuilder,
        (path, limit): (&str, Duration),
    ) -> Result<T, ServiceError> {
        let addresses = match port {
            Port::Api => self.api.get(service),
            Port::Admin => self.admin.get(service),
        };
        let named = || service.to_string();
        let mut reason = "it has no address here".to_string();
        let deadline = Instant::now() + limit;
        for (nth, address) in addresses.iter().enumerate() {
            let unreadable = |reason| ServiceError::Unreadable { service: named(), reason };
            let url = address.join(path).map_err(|error| unreadable(error.to_string()))?;
            let mut request = request(&self.http, url);
            if let Some(token) = operator.token() {
                request = request.bearer_auth(token);
            }
            let request = request.build().map_err(|error| unreadable(error.to_string()))?;
            let is_read = request.method() == Method::GET;
            let left = deadline.saturating_duration_since(Instant::now());
            // A read leaves the further instances their share of the time.
            let share = if is_read { left / (addresses.len() - nth) as u32 } else { left };
            let answer = async {
                let response = self.http.execute(request).await?;
                Ok((response.status(), response.bytes().await?))
            };
            let is_refused = match timeout(share, answer).await {
                Ok(Ok((status, body))) => return read(named(), status, &body),
                Ok(Err(error)) => {
                    reason = describe(&error);
                    error.is_connect()
                }
                Err(_) => {
                    reason = NO_ANSWER.to_string();
                    false
                }
            };
            // The next instance must not do what this one may be doing.
            if !is_read && !is_refused {
                break;
            }
        }
        Err(ServiceError::Unreachable { service: named(), reason })
    }
}

fn read<T: DeserializeOwned>(
    service: String,
    status: StatusCode,
    body: &[u8],
) -> Result<T, ServiceError> {
    if !status.is_success() {
        let problem: ProblemBody = serde_json::from_slice(body).unwrap_or_default();
        let kind = problem.kind.rsplit('/').next().unwrap_or_default().to_string();
        let detail = match problem.detail.is_empty() {
            true => format!("it answers {status}"),
            false => problem.detail,
        };
        return Err(ServiceError::Refused { service, status, kind, detail });
    }
    serde_json::from_slice(body)
        .map_err(|error| ServiceError::Unreadable { service, reason: error.to_string() })
}

/// The innermost reason: the outer ones repeat the address.
pub fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return NO_ANSWER.to_string();
    }
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    reason.to_string()
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
        let services = Services {
            names: vec!["order".to_string()],
            api: Addresses(vec![]),
            admin: Addresses(vec![
                ("stock".to_string(), vec![urls[0].clone(); 3]),
                ("order".to_string(), urls),
            ]),
            http: Client::builder().timeout(READ_TIMEOUT * 2).no_proxy().build().unwrap(),
        };
        let (operator, admin) = (Operator::default(), ("order", Port::Admin));
        assert_eq!(services.get::<u32>(&operator, admin, "/books").await.unwrap(), 1);
        let begun = Instant::now();
        let read = services.get::<u32>(&operator, ("stock", Port::Admin), "/books").await;
        assert!(matches!(read, Err(ServiceError::Unreachable { .. })), "{read:?}");
        assert!(begun.elapsed() < READ_TIMEOUT + READ_TIMEOUT / 4, "{:?}", begun.elapsed());
        let written = services.post::<u32>(&operator, admin, "/books", None::<&u32>).await;
        assert!(matches!(written, Err(ServiceError::Unreachable { .. })), "{written:?}");
    }
}
