//! Hostile requests: each is refused at once with a clear 4xx, nothing is stored, and the service
//! continues as before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::http_client::Client;
use e2e::client::outcome::HttpResponse;
use launcher::retry_while;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::fixture::{Fixture, TIMEOUT, basket, rich_customer, with_shared_fixture};

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
        Ok((answer, began.elapsed()))
    };
    // The disk stalled, and nothing was stored.
    let is_unavailable = |answered: &Result<(HttpResponse, Duration)>| {
        answered
            .as_ref()
            .is_ok_and(|(answer, _)| answer.problem_type().as_deref() == Some("unavailable"))
    };
    let (answer, took) =
        retry_while(TIMEOUT, ask, is_unavailable).await.with_context(|| shown.clone())?;
    ensure!((400..500).contains(&answer.status), "{shown} got the response {answer}");
    ensure!(took < RESPONSE_TIMEOUT, "{shown} took {took:?}");
    ensure!(answer.content_type == "application/problem+json", "{shown}: {}", answer.content_type);
    let problem: Value = answer.json()?;
    ensure!(
        problem["status"] == answer.status && problem["detail"].is_string(),
        "{shown}: {problem}"
    );
    Ok(answer)
}

/// The field that a problem names.
fn problem_field(answer: &HttpResponse) -> Result<String> {
    Ok(answer.json::<Value>()?["field"].as_str().unwrap_or_default().to_string())
}

fn line(sku: &str, quantity: Value) -> Value {
    json!({ "sku": sku, "quantity": quantity })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_breaks_a_rule_is_refused_by_the_name_of_the_field_and_not_stored()
-> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        // A customer of this test alone, so that the orders can be counted.
        let customer = Uuid::now_v7();
        let url = format!("{}/orders", client.addresses.apis["order"]);
        let cap = || line("wool-cap", json!(1));
        let numbered =
            |count: usize| (0..count).map(|nth| line(&format!("no-{nth}"), json!(1))).collect();
        let cases: Vec<(Value, &str)> = vec![
            (json!([]), "lines"),
            (Value::Array(numbered(51)), "lines"),
            (json!([line("wool-cap", json!(0))]), "lines[0].quantity"),
            (json!([line("wool-cap", json!(1_001))]), "lines[0].quantity"),
            (json!([cap(), line("dock-line", json!(-1))]), "lines[1].quantity"),
            (json!([line("wool-cap", json!("1"))]), "lines[0].quantity"),
            (json!([line("wool-cap", json!(1.5))]), "lines[0].quantity"),
            (json!([line("wool-cap", json!(10_000_000_000_i64))]), "lines[0].quantity"),
            (json!([line("wool-cap", Value::Null)]), "lines[0].quantity"),
            (json!([line("no-such-thing", json!(1))]), "lines[0].sku"),
            (json!([cap(), line("dock-line", json!(1)), cap()]), "lines[2].sku"),
            (json!([line(&"x".repeat(65), json!(1))]), "lines[0].sku"),
            (json!([line("", json!(1))]), "lines[0].sku"),
            (json!([line("a\0b", json!(1))]), "lines[0].sku"),
            (
                json!([{ "sku": "wool-cap", "quantity": 1, "unit_price_cents": 1 }]),
                "lines[0].unit_price_cents",
            ),
            (json!([{ "sku": "wool-cap" }]), "lines[0].quantity"),
            (json!("wool-cap"), "lines"),
        ];
        for (lines, named) in cases {
            let order = json!({ "customer_id": customer, "lines": lines });
            let key = Uuid::now_v7().to_string();
            let answer =
                assert_refused(client, Method::POST, &url, Some(&key), order.to_string().into())
                    .await?;
            assert_eq!(problem_field(&answer)?, named, "{order} got the response {answer}");
        }
        for (order, named) in [
            (json!({ "customer_id": "me", "lines": [cap()] }), "customer_id"),
            (json!({ "lines": [cap()] }), "customer_id"),
            (json!({ "customer_id": customer }), "lines"),
            (json!({ "customer_id": customer, "lines": [cap()], "discount": 100 }), "discount"),
        ] {
            let answer =
                assert_refused(client, Method::POST, &url, None, order.to_string().into()).await?;
            assert_eq!(problem_field(&answer)?, named, "{order} got the response {answer}");
        }
        let stored: Value = client.get("order", &format!("/orders?customer_id={customer}")).await?;
        assert_eq!(stored["orders"].as_array().map(Vec::len), Some(0), "{stored}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_and_the_service_goes_on() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let customer = Uuid::now_v7();
        let url = format!("{}/orders", client.addresses.apis["order"]);
        let whole = json!({ "customer_id": customer, "lines": basket() }).to_string();
        for end in [0, 1, whole.len() / 2, whole.len() - 1] {
            assert_refused(client, Method::POST, &url, None, whole[..end].into()).await?;
        }
        for body in ["[[[[[", "{}{}", "null", "\u{1}", "{\"customer_id\": \"\\ud800\"}"] {
            assert_refused(client, Method::POST, &url, None, body.into()).await?;
        }
        assert_refused(client, Method::POST, &url, None, vec![0xff; 100]).await?;
        assert_refused(client, Method::POST, &url, None, "[".repeat(30_000).into()).await?;
        let large = assert_refused(client, Method::POST, &url, None, vec![b' '; 33 * 1024]).await?;
        assert_eq!(large.status, 413);
        let long_key = "k".repeat(256);
        assert_refused(client, Method::POST, &url, Some(&long_key), whole.clone().into()).await?;
        assert_refused(client, Method::POST, &url, Some("two words"), whole.clone().into()).await?;
        assert_refused(client, Method::PUT, &url, None, whole.clone().into()).await?;
        assert_refused(client, Method::POST, &format!("{url}/none/cancel"), None, vec![]).await?;
        assert_refused(client, Method::POST, &format!("{url}/{customer}/cancel"), None, vec![])
            .await?;
        let none: Option<Value> = client.find("order", &format!("/orders/{customer}")).await?;
        assert_eq!(none, None);
        let stored: Value = client.get("order", &format!("/orders?customer_id={customer}")).await?;
        assert_eq!(stored["orders"].as_array().map(Vec::len), Some(0), "{stored}");
        let order = client.place_until_accepted(rich_customer(), &basket()).await?;
        client.wait_until_ended(order.order_id, TIMEOUT).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_and_stock_enforce_their_limits_too() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let customer = Uuid::now_v7();
        let (payment, stock) = (&client.addresses.apis["payment"], &client.addresses.apis["stock"]);
        let deposits = format!("{payment}/accounts/{customer}/deposits");
        let key = || Uuid::now_v7().to_string();
        for amount in [
            json!(0),
            json!(-1),
            json!(1_000_000_000_000_001_i64),
            json!("1"),
            json!(0.5),
            json!(1e30),
        ] {
            let body = json!({ "amount_cents": amount }).to_string();
            let answer =
                assert_refused(client, Method::POST, &deposits, Some(&key()), body.into()).await?;
            assert_eq!(problem_field(&answer)?, "amount_cents", "{answer}");
        }
        let good = json!({ "amount_cents": 1 }).to_string();
        assert_refused(client, Method::POST, &deposits, None, good.into()).await?;
        let account: Option<Value> =
            client.find("payment", &format!("/accounts/{customer}")).await?;
        assert_eq!(account, None);

        let sku = format!("never-{}", &customer.to_string()[24..]);
        let item = format!("{stock}/items/{sku}");
        for (name, price, named) in [
            ("", json!(1), "name"),
            (&*"x".repeat(201), json!(1), "name"),
            ("Never", json!(-1), "price_cents"),
            ("Never", json!(1_000_000_001), "price_cents"),
            ("Never", json!("1"), "price_cents"),
        ] {
            let body = json!({ "name": name, "price_cents": price }).to_string();
            let answer = assert_refused(client, Method::PUT, &item, None, body.into()).await?;
            assert_eq!(problem_field(&answer)?, named, "{answer}");
        }
        let long = format!("{stock}/items/{}", "x".repeat(65));
        let body = json!({ "name": "Never", "price_cents": 1 }).to_string();
        assert_refused(client, Method::PUT, &long, None, body.into()).await?;
        let deliveries = format!("{stock}/items/wool-cap/deliveries");
        for quantity in [json!(0), json!(-1), json!("1"), json!(1e30)] {
            let body = json!({ "quantity": quantity }).to_string();
            let answer =
                assert_refused(client, Method::POST, &deliveries, Some(&key()), body.into())
                    .await?;
            assert_eq!(problem_field(&answer)?, "quantity", "{answer}");
        }
        let nowhere = format!("{item}/deliveries");
        let body = json!({ "quantity": 1 }).to_string();
        assert_refused(client, Method::POST, &nowhere, Some(&key()), body.into()).await?;
        let none: Option<Value> = client.find("stock", &format!("/items/{sku}")).await?;
        assert_eq!(none, None);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_header_never_ends_is_closed_within_its_timeout() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        for url in client.addresses.apis.values() {
            let address = url.trim_start_matches("http://");
            let mut connection = TcpStream::connect(address).await?;
            connection.write_all(b"POST /orders HTTP/1.1\r\nHost: half").await?;
            let began = Instant::now();
            let mut answer = Vec::new();
            let closed = connection.read_to_end(&mut answer);
            let closed = tokio::time::timeout(Duration::from_secs(15), closed).await;
            ensure!(closed.is_ok(), "{url} was still open after {:?}", began.elapsed());
        }
        Ok(())
    })
    .await
}
