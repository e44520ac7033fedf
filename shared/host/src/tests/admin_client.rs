//! A client of the admin port, for tests of dead letters and of discards.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::Value;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;

use super::*;
use crate::admin::{self, replay::DeadLetters};

/// Who acts in these tests.
pub const OPERATOR: &str = "ann";

/// The admin port as an operator reaches it.
pub fn as_operator(admin: OpenApiRouter) -> Router {
    with_scope(admin, "operator")
}

/// The admin port as a caller with this scope reaches it.
pub fn with_scope(admin: OpenApiRouter, scope: &str) -> Router {
    crate::testing::router_for(admin_port(admin), OPERATOR, &[scope])
}

/// The admin port of a service without books.
pub fn admin_of<R: UnitOfWork>(consumer: &Consumer<R>) -> OpenApiRouter {
    admin::router(DeadLetters::of(consumer))
}

pub fn admin_port(admin: OpenApiRouter) -> Router {
    crate::service::admin_port("till", admin, Router::new())
}

/// Sends a request to the admin router: status and body of the response.
pub async fn send_request(admin: &Router, method: &str, path: &str, body: Value) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path);
    let (request, body) = match body {
        Value::Null => (request, Body::empty()),
        body => (request.header("content-type", "application/json"), body.to_string().into()),
    };
    let answer = admin.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let read = to_bytes(answer.into_body(), 1024 * 1024).await.unwrap();
    (status, serde_json::from_slice(&read).unwrap_or(Value::Null))
}

pub async fn get(admin: &Router, path: &str) -> Value {
    let (status, answer) = send_request(admin, "GET", path, Value::Null).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

pub async fn post(admin: &Router, path: &str, body: Value) -> (u16, Value) {
    send_request(admin, "POST", path, body).await
}

/// The outcome of a request that has to succeed.
pub async fn outcome(admin: &Router, path: &str, body: Value) -> String {
    let (status, answer) = post(admin, path, body).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer["outcome"].as_str().unwrap().to_string()
}

/// Sends a request that has to be refused with this status and this kind of problem. Returns its detail.
pub async fn refused(admin: &Router, path: &str, body: Value, by: (u16, &str)) -> String {
    let (status, answer) = post(admin, path, body).await;
    assert_eq!(
        (status, &answer["type"]),
        (by.0, &format!("/problems/{}", by.1).into()),
        "{answer}"
    );
    answer["detail"].as_str().unwrap().to_string()
}

pub fn state_counts<const N: usize>(states: [(&str, i64); N]) -> BTreeMap<String, i64> {
    states.map(|(state, count)| (state.to_string(), count)).into()
}

impl<const TEST: u32> Fixture<TEST> {
    pub fn admin_router(&self) -> Router {
        as_operator(admin_of(&self.consumer()))
    }

    /// Adds a constraint by which the database rejects every count into this till, as a bad migration does.
    pub async fn reject_till(&self, till: &str) {
        let refusing =
            format!("alter table tallies add constraint spoilt check (till <> '{till}')");
        self.execute_as_superuser(&refusing).await;
    }

    pub async fn accept_tills(&self) {
        self.execute_as_superuser("alter table tallies drop constraint spoilt").await;
    }

    /// The number of dead letters in each state.
    pub async fn dead_letter_counts(&self) -> BTreeMap<String, i64> {
        let states: Vec<(String, i64)> =
            sqlx::query_as("select state, count(*) from chassis.dead_letters group by state")
                .fetch_all(&self.db)
                .await
                .unwrap();
        states.into_iter().collect()
    }
}
