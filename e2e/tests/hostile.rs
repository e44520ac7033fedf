//! Hostile requests: each is refused at once with a clear 4xx, nothing is stored, and the service
//! continues as before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::http_client::Client;
use e2e::client::outcome::HttpResponse;
use launcher::retry_while;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::*;

/// A long timeout: other tests share the machine.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

async fn assert_refused(
    client: &Client,
    method: Method,
    url: &str,
    key: Option<&str>,
    body: Vec<u8>,
) -> Result<HttpResponse> {
    let shown = String::from_utf8_lossy(&body).chars().take(200).collect::<String>();
    let ask = async || {
        let began = Instant::now();
        let answer = client.send(method.clone(), url, key, Some(body.clone())).await?;
        anyhow::Ok((answer, began.elapsed()))
    };
    // The disk stalled, and nothing was stored.
    let is_unavailable = |answered: &Result<(HttpResponse, Duration)>| {
        let answer = answered.as_ref().map(|(answer, _)| answer.problem_type());
        answer.is_ok_and(|problem| problem.as_deref() == Some("unavailable"))
    };
    let answered = retry_while(TIMEOUT, ask, is_unavailable).await;
    let (answer, took) = answered.with_context(|| shown.clone())?;
    ensure!((400..500).contains(&answer.status), "{shown} got the response {answer}");
    ensure!(took < RESPONSE_TIMEOUT, "{shown} took {took:?}");
    ensure!(answer.content_type == "application/problem+json", "{shown}: {}", answer.content_type);
    let problem: Value = answer.json()?;
    let is_complete = problem["status"] == answer.status && problem["detail"].is_string();
    ensure!(is_complete, "{shown}: {problem}");
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_and_the_service_goes_on() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let customer = Uuid::now_v7();
        let url = format!("{}/orders", client.addresses.apis["order"]);
        let whole = json!({ "customer_id": customer, "lines": basket() }).to_string();
        let refused = async |method: Method, url: &str, key: Option<&str>, body: Vec<u8>| {
            assert_refused(client, method, url, key, body).await
        };
        for end in [0, 1, whole.len() / 2, whole.len() - 1] {
            refused(Method::POST, &url, None, whole[..end].into()).await?;
        }
        for body in ["[[[[[", "{}{}", "null", "\u{1}", "{\"customer_id\": \"\\ud800\"}"] {
            refused(Method::POST, &url, None, body.into()).await?;
        }
        refused(Method::POST, &url, None, vec![0xff; 100]).await?;
        refused(Method::POST, &url, None, "[".repeat(30_000).into()).await?;
        let large = refused(Method::POST, &url, None, vec![b' '; 33 * 1024]).await?;
        assert_eq!(large.status, 413);
        for key in ["k".repeat(256).as_str(), "two words"] {
            refused(Method::POST, &url, Some(key), whole.clone().into()).await?;
        }
        refused(Method::PUT, &url, None, whole.clone().into()).await?;
        for order in ["none".to_string(), customer.to_string()] {
            refused(Method::POST, &format!("{url}/{order}/cancel"), None, vec![]).await?;
        }
        let none: Option<Value> = client.find("order", &format!("/orders/{customer}")).await?;
        assert_eq!(none, None);
        let stored: Value = client.get("order", &format!("/orders?customer_id={customer}")).await?;
        assert_eq!(stored["orders"].as_array().map(Vec::len), Some(0), "{stored}");
        place_until(client, rich_customer(), "confirmed").await.map(drop)
    })
    .await
}
