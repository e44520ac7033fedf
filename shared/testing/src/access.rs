//! Who may use which route: every route of an API is tried with every scope and with other customers.

use std::collections::BTreeSet;

use axum::http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::TestClient;

/// The scope that reads what belongs to any customer.
const SUPPORT: &str = "support:read";

/// A request that succeeds for its owner, by which a route is tried.
pub struct RouteRequest {
    /// The route as it is described, such as `GET /orders/{order_id}`.
    pub route: &'static str,
    /// The path and the query.
    pub uri: String,
    /// The body, or null for none.
    pub body: Value,
    /// The answer to a caller with the same scopes who is another customer.
    pub for_others: ForOthers,
}

/// What a caller gets who is not the owner.
#[derive(Clone, Copy)]
pub enum ForOthers {
    /// The same as the owner: it belongs to no customer.
    Same,
    /// This status.
    Status(u16),
    /// A list without entries, under this name.
    EmptyList(&'static str),
}

/// Tries every route of an API: without a token, with each scope alone, with all scopes but the right ones, and for
/// each right scope as the owner, as another customer and as a program that is no customer.
///
/// # Panics
/// If an answer is another than the description of the API promises, or if a route is described and not tried.
pub async fn assert_access(
    document: &str,
    client: &TestClient,
    owner: Uuid,
    requests: &[RouteRequest],
) {
    let document: Value = serde_json::from_str(document).expect("a description is JSON");
    let routes = described_routes(&document);
    let described: BTreeSet<&str> = routes.iter().map(|(route, _)| &**route).collect();
    let tried: BTreeSet<&str> = requests.iter().map(|request| request.route).collect();
    assert_eq!(tried, described, "every route has to be tried");
    let mut scopes: BTreeSet<&str> =
        routes.iter().flat_map(|(_, scopes)| scopes).copied().collect();
    scopes.extend([SUPPORT, "operator", "unknown"]);
    for request in requests {
        let right = &routes.iter().find(|(route, _)| route == request.route).expect("described").1;
        let matrix = Matrix { client, owner: owner.to_string(), request };
        matrix.without_right_scope(&scopes, right).await;
        for scope in right {
            matrix.with_right_scope(scope).await;
        }
    }
}

/// Every described route with the scopes each of which opens it; none opens a public one.
fn described_routes(document: &Value) -> Vec<(String, Vec<&str>)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let alternatives = operation["security"].as_array().expect("security");
            let scopes = alternatives.iter().filter_map(|alternative| {
                let scopes = alternative["token"].as_array()?;
                assert_eq!(scopes.len(), 1, "{method} {path}: the matrix tries single scopes");
                scopes[0].as_str()
            });
            found.push((format!("{} {path}", method.to_uppercase()), scopes.collect()));
        }
    }
    found
}

struct Matrix<'a> {
    client: &'a TestClient,
    owner: String,
    request: &'a RouteRequest,
}

impl Matrix<'_> {
    async fn without_right_scope(&self, scopes: &BTreeSet<&str>, right: &[&str]) {
        let wrong: Vec<&str> = scopes.iter().filter(|it| !right.contains(it)).copied().collect();
        let public = right.is_empty();
        let (no_token, no_scope) = if public { (200, 200) } else { (401, 403) };
        self.expect(&self.client.without_token(), "without a token", no_token).await;
        self.expect(&self.caller(&self.owner, &[]), "without a scope", no_scope).await;
        self.expect(&self.caller(&self.owner, &wrong), "with all other scopes", no_scope).await;
        for scope in wrong {
            self.expect(&self.caller(&self.owner, &[scope]), scope, no_scope).await;
        }
        self.expect(self.client, "where the service knows no callers", 200).await;
    }

    async fn with_right_scope(&self, scope: &str) {
        self.expect(&self.caller(&self.owner, &[scope]), "as its owner", 200).await;
        for other in [Uuid::from_u128(99).to_string(), "a program".to_owned()] {
            let (client, who) = (self.caller(&other, &[scope]), format!("{scope}, as {other}"));
            match self.request.for_others {
                _ if scope == SUPPORT => drop(self.expect(&client, &who, 200).await),
                ForOthers::Same => drop(self.expect(&client, &who, 200).await),
                ForOthers::Status(status) => drop(self.expect(&client, &who, status).await),
                ForOthers::EmptyList(name) => {
                    let body = self.expect(&client, &who, 200).await;
                    assert_eq!(body[name], json!([]), "{} {who}", self.request.route);
                }
            }
        }
    }

    fn caller(&self, subject: &str, scopes: &[&str]) -> TestClient {
        self.client.with_caller(subject, scopes)
    }

    /// Sends the request and returns the body of its answer. 200 stands for every success.
    async fn expect(&self, client: &TestClient, who: &str, status: u16) -> Value {
        let RouteRequest { route, uri, body, .. } = self.request;
        let method = route.split(' ').next().unwrap_or_default();
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        // Each request is one of its own.
        let key = Uuid::now_v7().to_string();
        let body = Some(body.clone()).filter(|body| !body.is_null());
        let answer = client.send(method, uri, Some(&key), body).await;
        let found = if (200..300).contains(&answer.status) { 200 } else { answer.status };
        assert_eq!(found, status, "{route} {who}: {answer:?}");
        answer.body
    }
}
