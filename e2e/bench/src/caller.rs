//! A caller: one keep-alive connection to the order service, over which it posts one order at a
//! time. It uses hyper's connection directly, because the load shares the cores with the stack:
//! processor time of the load is missing in the measurement.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::access::Access;
use crate::workload::RandomOrder;

/// The problem type of an unknown outcome, and the delay before the request is repeated.
const OUTCOME_UNKNOWN: &str = "/problems/outcome-unknown";
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The response to an order.
#[derive(Debug)]
pub enum PlaceOutcome {
    Accepted(Uuid),
    /// 503 with `Retry-After`: nothing was stored.
    Refused,
}

pub struct Caller {
    address: SocketAddr,
    access: Option<Arc<Access>>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Caller {
    pub fn new(address: SocketAddr, access: Option<Arc<Access>>) -> Caller {
        Caller { address, access, connection: None }
    }

    /// Posts an order with its own Idempotency-Key, and repeats the request while its outcome is
    /// unknown, as docs/api.md requires of clients.
    pub async fn place(&mut self, order: RandomOrder) -> Result<PlaceOutcome> {
        let key = Uuid::now_v7().to_string();
        let mut in_doubt = false;
        loop {
            match self.post(&key, order.clone()).await? {
                // That applies to this attempt only.
                Some(PlaceOutcome::Refused) if in_doubt => {}
                Some(answer) => return Ok(answer),
                None => in_doubt = true,
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// The response; `None` if the outcome is unknown.
    async fn post(&mut self, key: &str, order: RandomOrder) -> Result<Option<PlaceOutcome>> {
        let mut connection = match self.idle_connection().await {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let mut request = Request::post("/orders")
            .header(header::HOST, "bench")
            .header(header::CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", key);
        if let Some(access) = &self.access {
            request = request.header(header::AUTHORIZATION, access.authorization(order.customer));
        }
        let request = request.body(Full::new(order.body))?;
        let answer = connection.send_request(request).await?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        self.connection = Some(connection);
        match head.status {
            StatusCode::CREATED => {
                let location =
                    head.headers.get(header::LOCATION).context("201 without a Location")?;
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

    /// The connection of the previous order, unless the service has closed it, as it does with old
    /// connections.
    async fn idle_connection(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut kept = self.connection.take()?;
        kept.ready().await.ok()?;
        Some(kept)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        match &self.access {
            None => handshake(stream).await,
            Some(access) => handshake(access.encrypt(stream).await?).await,
        }
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>> {
    let (mut connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    connection.ready().await?;
    Ok(connection)
}
