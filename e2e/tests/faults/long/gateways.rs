//! The behaviour of a gateway in front of a service, with a real nginx.

use chrono::Utc;
use e2e::stack_description::checkout;
use faults::nginx::Nginx;
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// Connections that nginx keeps open to a service; each is tried once at each idle time.
const CONNECTIONS: u64 = 240;

/// The shortest time that a service keeps an idle connection: nginx itself closes after 60 s.
const IDLE_TIME: Duration = Duration::from_secs(65);

fn skip_without_nginx() -> Result<bool> {
    match Nginx::program() {
        Some(_) => Ok(false),
        None => skip_or_fail("there is no nginx (Debian: nginx-light)").map(|()| true),
    }
}

fn http_client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().no_proxy().build()?)
}

/// R9. nginx repeats no POST: if the service closes first, the client gets 502.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn a_gateway_that_keeps_connections_idle_loses_no_request() -> Result<()> {
    if skip_without_nginx()? {
        return Ok(());
    }
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let payment = client.addresses.apis["payment"].trim_start_matches("http://");
        let upstreams: String = (0..CONNECTIONS)
            .map(|nth| format!("upstream u{nth} {{ server {payment}; keepalive 1; }}\n"))
            .collect();
        let locations: String = (0..CONNECTIONS)
            .map(|nth| {
                format!(
                    "location /{nth}/ {{ proxy_pass http://u{nth}/; proxy_http_version 1.1; \
                     proxy_set_header Connection \"\"; }}\n"
                )
            })
            .collect();
        let nginx = Nginx::start(stack, &upstreams, &locations).await?;
        let http = http_client()?;
        let (direct, through) = tokio::join!(
            assert_served_after_idle(payment, IDLE_TIME),
            join_all((0..CONNECTIONS).map(|nth| deposit_after_idle_times(&http, &nginx, nth)))
        );
        let answers = through.into_iter().collect::<Result<Vec<_>>>()?.concat();
        let lost = answers.iter().filter(|status| **status == 502).count();
        ensure!(lost == 0, "{lost} of {} are 502", answers.len());
        ensure!(answers.iter().all(|status| *status == 201), "{answers:?}");
        direct
    })
    .await
}

/// Deposits, repeated after idle times from half a millisecond before to 2.7 ms after the full
/// second.
async fn deposit_after_idle_times(
    http: &reqwest::Client,
    nginx: &Nginx,
    nth: u64,
) -> Result<Vec<u16>> {
    let url = format!("{}/{nth}/accounts/{}/deposits", nginx.url, Uuid::now_v7());
    let mut answers = Vec::new();
    for idle in [0, 10, 60] {
        let off = Duration::from_micros(3_200 * nth / CONNECTIONS);
        let idle = Duration::from_secs(idle) + off;
        sleep(idle.saturating_sub(Duration::from_micros(500))).await;
        let key = Uuid::now_v7().to_string();
        let body = serde_json::json!({ "amount_cents": 100 });
        let answer = http.post(&url).header("Idempotency-Key", key).json(&body).send().await?;
        answers.push(answer.status().as_u16());
    }
    Ok(answers)
}

/// Sends two requests on one connection.
async fn assert_served_after_idle(address: &str, idle: Duration) -> Result<()> {
    let mut connection = TcpStream::connect(address).await?;
    let request = format!("GET /accounts/{} HTTP/1.1\r\nhost: a\r\n\r\n", Uuid::now_v7());
    let mut answer = [0; 1024];
    for nth in 0..2 {
        let asked = Instant::now();
        connection.write_all(request.as_bytes()).await?;
        let read = connection.read(&mut answer).await?;
        ensure!(
            answer[..read].starts_with(b"HTTP/1.1 404 "),
            "{nth}: {read} bytes after {:?}",
            asked.elapsed()
        );
        if nth == 0 {
            sleep(idle).await;
        }
    }
    Ok(())
}

/// R26. By default nginx holds an answer back until it has much of it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx: make faults"]
async fn each_event_passes_a_gateway_that_buffers_within_a_second() -> Result<()> {
    if skip_without_nginx()? {
        return Ok(());
    }
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let order = client.addresses.apis["order"].clone();
        let nginx =
            Nginx::start(stack, "", &format!("location / {{ proxy_pass {order}; }}")).await?;
        stack.stop("stock").await?;
        let placed = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        eventually("payment to answer", TIMEOUT, async || {
            let history: serde_json::Value =
                client.get("order", &format!("/orders/{placed}/history")).await?;
            ensure!(history["history"].as_array().is_some_and(|it| it.len() == 2), "{history}");
            Ok(())
        })
        .await?;
        let mut stream =
            http_client()?.get(format!("{}/orders/{placed}/events", nginx.url)).send().await?;
        let mut received = String::new();
        let mut passed = async |number: usize, within: Duration| {
            let events = async {
                while received.matches("\ndata: ").count() < number {
                    let chunk = stream.chunk().await?.context("the stream ended")?;
                    received.push_str(&String::from_utf8_lossy(&chunk));
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(within, events).await.with_context(|| format!("event {number}"))?
        };
        passed(2, Duration::from_secs(1)).await.context("of a pending order")?;
        let (started, ended) = tokio::join!(stack.start("stock"), async {
            passed(4, TIMEOUT).await?;
            let order = client.get_order(placed).await?;
            let ended_at = order.ended_at.context("it has ended")?;
            anyhow::Ok((Utc::now() - ended_at).to_std()?)
        });
        started?;
        let late = ended?;
        ensure!(late < Duration::from_secs(1), "the last event took {late:?}");
        Ok(())
    })
    .await
}

/// R32. The example for a gateway that answers preflights, as docs/how-to/gateway.md has it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx: make faults"]
async fn the_example_of_a_gateway_answers_preflights_and_lets_pages_read_answers() -> Result<()> {
    if skip_without_nginx()? {
        return Ok(());
    }
    with_shared_fixture(async |Fixture { stack, client }| {
        let page = std::fs::read_to_string(checkout().join("docs/how-to/gateway.md"))?;
        let example = page.split("```nginx\n").nth(1).and_then(|rest| rest.split("```").next());
        let order = client.addresses.apis["order"].trim_start_matches("http://");
        let upstream = format!("upstream order {{ server {order}; keepalive 1; }}");
        let nginx = Nginx::start(stack, &upstream, example.context("an example")?).await?;
        let url = format!("{}/orders", nginx.url);
        let origin = "https://shop.example";
        let preflight = http_client()?
            .request(reqwest::Method::OPTIONS, &url)
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "content-type, idempotency-key")
            .send()
            .await?;
        let header = |answer: &reqwest::Response, name: &str| {
            let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_lowercase()
        };
        ensure!(preflight.status() == 204, "{preflight:?}");
        ensure!(header(&preflight, "access-control-allow-origin") == origin, "{preflight:?}");
        ensure!(header(&preflight, "access-control-allow-methods").contains("post"));
        let allowed = header(&preflight, "access-control-allow-headers");
        ensure!(
            allowed.contains("content-type") && allowed.contains("idempotency-key"),
            "{allowed}"
        );
        let refused = http_client()?.post(&url).header("Origin", origin).body("{").send().await?;
        ensure!(refused.status() == 415, "{refused:?}");
        ensure!(header(&refused, "access-control-allow-origin") == origin, "{refused:?}");
        Ok(())
    })
    .await
}
