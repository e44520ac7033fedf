//! A caller: one kept connection to the order service, over which it posts one order at a time.
//!
//! Written on hyper's connection itself: on two cores, whatever the load costs is missing from what
//! it measures.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use uuid::Uuid;

/// What a service calls it when it can't tell whether it has stored something, and how long after that it
/// is asked again.
const OUTCOME_UNKNOWN: &str = "/problems/outcome-unknown";
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What an order was answered with.
#[derive(Debug)]
pub enum PlaceOutcome {
    Accepted(Uuid),
    /// 503 with `Retry-After`: nothing was stored.
    Refused,
}

pub struct Caller {
    address: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Caller {
    pub fn new(address: SocketAddr) -> Caller {
        Caller { address, connection: None }
    }

    /// Posts an order with an Idempotency-Key of its own, and again with the same as long as it is unknown
    /// whether it was stored, as docs/api.md asks of clients.
    pub async fn place(&mut self, body: Bytes) -> Result<PlaceOutcome> {
        let key = Uuid::now_v7().to_string();
        let mut in_doubt = false;
        loop {
            match self.post(&key, body.clone()).await? {
                // That speaks of this attempt alone.
                Some(PlaceOutcome::Refused) if in_doubt => {}
                Some(answer) => return Ok(answer),
                None => in_doubt = true,
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// What was answered; `None` where that is unknown.
    async fn post(&mut self, key: &str, order: Bytes) -> Result<Option<PlaceOutcome>> {
        let mut connection = match self.idle_connection().await {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let request = Request::post("/orders")
            .header(header::HOST, "bench")
            .header(header::CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", key)
            .body(Full::new(order))?;
        let answer = connection.send_request(request).await?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        self.connection = Some(connection);
        match head.status {
            StatusCode::CREATED => {
                let location = head.headers.get(header::LOCATION).context("201 without a place")?;
                let order_id = location.to_str()?.rsplit('/').next().unwrap_or_default();
                Ok(Some(PlaceOutcome::Accepted(order_id.parse()?)))
            }
            StatusCode::SERVICE_UNAVAILABLE if head.headers.contains_key(header::RETRY_AFTER) => {
                let problem: Value = serde_json::from_slice(&body)?;
                Ok((problem["type"] != OUTCOME_UNKNOWN).then_some(PlaceOutcome::Refused))
            }
            status => bail!("{status}: {}", String::from_utf8_lossy(&body)),
        }
    }

    /// The connection of the order before, unless the service has closed it, as it does with those of
    /// age.
    async fn idle_connection(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut kept = self.connection.take()?;
        kept.ready().await.ok()?;
        Some(kept)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        connection.ready().await?;
        Ok(connection)
    }
}
