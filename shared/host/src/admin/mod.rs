//! The admin port, for operators: dead letters are listed, replayed and discarded, the consumer is paused and resumed,
//! and published events are republished. Promise: nothing is settled twice, and
//! what a discard gives up is written off in the same transaction. Where the service knows its callers, only a
//! caller with the scope `operator` is admitted, and each act names its actor. Otherwise the port has no
//! authentication: it listens on loopback and rejects the requests of browsers, and an address that others can reach
//! breaks that protection.

mod calls;
pub(crate) mod dead_letters;
pub mod discard;
mod handled_events;
mod published_events;
mod reason;
pub(crate) mod replay;
pub mod republish;
mod tasks;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use chrono::{DateTime, Utc};
use messaging::consumer::pause::{self, PauseState};
use messaging::consumer::rewind::{self, Rewind, RewindRequest, RewindTo};
use messaging::unit_of_work::UnitOfWork;
use serde::Deserialize;
use sqlx::PgPool;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin::reason::check_reason;
use crate::admin::replay::DeadLetters;
use crate::http::callers::caller::Caller;
use crate::http::extractors::Json;
use crate::http::problem::Problem;

/// The routes for a consumer: its dead letters, its pause, the events that it handled, and what waits for
/// the world outside: also what an earlier version asked, so without a handler here.
pub(crate) fn router<R: UnitOfWork>(dead_letters: DeadLetters<R>) -> OpenApiRouter {
    let consumer = OpenApiRouter::new()
        .routes(routes!(show_pause))
        .routes(routes!(pause_consumer))
        .routes(routes!(resume))
        .routes(routes!(rewind_consumer))
        .with_state(dead_letters.db.clone());
    let topics = dead_letters.router.topics().map(|topic| topic.name).collect();
    let handled_events = handled_events::router(dead_letters.db.clone(), topics);
    let calls = calls::router(dead_letters.db.clone());
    let tasks = tasks::router(dead_letters.db.clone());
    let consumer = consumer.merge(handled_events).merge(calls).merge(tasks);
    dead_letters::router(dead_letters).merge(consumer)
}

/// Shows since when the consumer is paused, by whom and why.
#[utoipa::path(get, path = "/consumer",
    responses((status = 200, description = "The pause, if there is one.", body = PauseState)))]
async fn show_pause(State(db): State<PgPool>) -> Result<Json<PauseState>, Problem> {
    Ok(Json(pause::pause_state(&db).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PauseRequest {
    /// The operator's reason, of 1 to 1,000 characters.
    #[schema(min_length = 1, max_length = 1_000)]
    reason: String,
}

/// Pauses the consumer of every instance. A pause of a paused consumer changes nothing.
#[utoipa::path(post, path = "/consumer/pause", request_body = PauseRequest,
    responses((status = 200, description = "The pause that holds.", body = PauseState)))]
async fn pause_consumer(
    State(db): State<PgPool>,
    actor: Caller,
    Json(request): Json<PauseRequest>,
) -> Result<Json<PauseState>, Problem> {
    let reason = check_reason(&request.reason)?;
    Ok(Json(pause::pause_by_operator(&db, reason, actor.subject()).await?))
}

/// Ends the pause of the consumer of every instance.
#[utoipa::path(post, path = "/consumer/resume",
    responses((status = 200, description = "It is not paused.", body = PauseState)))]
async fn resume(State(db): State<PgPool>, actor: Caller) -> Result<Json<PauseState>, Problem> {
    Ok(Json(pause::resume(&db, actor.subject()).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RewindBody {
    /// The first record of this time or later. Either this or `to_offset`.
    to_time: Option<DateTime<Utc>>,
    /// This offset, in each of the partitions. Either this or `to_time`.
    #[schema(minimum = 0)]
    to_offset: Option<i64>,
    /// Only this topic.
    topic: Option<String>,
    /// Only this partition.
    #[schema(minimum = 0)]
    partition: Option<i32>,
    /// The operator's reason, of 1 to 1,000 characters.
    #[schema(min_length = 1, max_length = 1_000)]
    reason: String,
}

/// Moves the consumer to an earlier offset, or to a later one: then it never handles the records between.
///
/// Every instance applies it within seconds to the partitions that it has. Events that are in the inbox have no effect
/// if they are read again; the answer counts them.
#[utoipa::path(post, path = "/consumer/rewind", request_body = RewindBody,
    responses((status = 200, description = "It is applied within seconds.", body = Rewind)))]
async fn rewind_consumer(
    State(db): State<PgPool>,
    actor: Caller,
    Json(body): Json<RewindBody>,
) -> Result<Json<Rewind>, Problem> {
    let reason = check_reason(&body.reason)?;
    let to = match (body.to_time, body.to_offset) {
        (Some(time), None) => RewindTo::Time(time),
        (None, Some(offset)) if offset >= 0 => RewindTo::Offset(offset),
        _ => return Err(Problem::invalid("to_time", "Either to_time or to_offset must be given.")),
    };
    let (topic, partition) = (body.topic.as_deref(), body.partition);
    let asked = RewindRequest { topic, partition, to, reason, actor: actor.subject() };
    Ok(Json(rewind::request(&db, asked).await?))
}

/// The host names by which tools reach the admin port, beside `localhost` and addresses.
#[derive(Clone, Default)]
pub(crate) struct AdminHosts(Arc<[String]>);

impl AdminHosts {
    pub fn new(names: Option<&str>) -> AdminHosts {
        let names = names.unwrap_or_default().split(',').map(str::trim);
        AdminHosts(names.filter(|name| !name.is_empty()).map(str::to_ascii_lowercase).collect())
    }

    /// Whether a `Host` header holds one of the names, `localhost` or an IP address, which cannot be the result of DNS
    /// rebinding.
    fn contains(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let host = authority.host().to_ascii_lowercase();
        host == "localhost"
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || self.0.contains(&host)
    }
}

/// Rejects requests of browsers: the admin port listens on loopback, which any page in a local browser can
/// reach. A cross-site request has the header `Origin`; a page that reaches this port by DNS rebinding has its
/// own name in the header `Host`.
pub(crate) async fn reject_browser_requests(
    State(names): State<AdminHosts>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let headers = request.headers();
    let host = headers.get(header::HOST);
    let is_known = host.is_none_or(|host| host.to_str().is_ok_and(|host| names.contains(host)));
    if headers.contains_key(header::ORIGIN) || !is_known {
        let detail = "requests from web pages are rejected, and so is every host name but localhost and those in \
                      ADMIN_HOSTS";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn browser_requests_are_rejected() {
        let port = Router::new().route("/", get(async || "here").post(async || "done"));
        let names = AdminHosts::new(Some("till, Till.example.com"));
        let port = port.layer(from_fn_with_state(names, reject_browser_requests));
        for (name, value, status) in [
            ("host", "localhost:9011", 200),
            ("host", "127.0.0.1:9011", 200),
            ("host", "[::1]:9011", 200),
            ("x-none", "", 200),
            ("host", "till:9011", 200),
            ("host", "till.example.com", 200),
            ("host", "rebound.example.com:9011", 403),
            ("host", "localhost.example.com", 403),
            ("host", "", 403),
            ("origin", "https://example.com", 403),
            ("origin", "null", 403),
        ] {
            for method in ["GET", "POST"] {
                let request = Request::builder().method(method).uri("/").header(name, value);
                let request = request.body(Body::empty()).unwrap();
                let answer = port.clone().oneshot(request).await.unwrap();
                assert_eq!(answer.status(), status, "{method} with {name}: {value}");
            }
        }
    }
}
