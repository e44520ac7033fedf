//! The limits of clients: connections, bytes and time. A request beyond a limit gets an answer that names the limit,
//! or its connection is closed if no answer is possible.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tower_http::catch_panic::CatchPanicLayer;

use crate::http::instrument;
use crate::http::problem::Problem;

/// Bytes from which on a body or an answer counts as large: a request's header may have as many, so every
/// connection has memory for that anyway.
const LARGE_BYTES_MIN: usize = 16 * 1024;

/// What a client may take. The defaults are the promise; tests use shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the opening of a connection to the end of the first header, and from the first byte of each
    /// further one to its end.
    pub header_timeout: Duration,
    /// From the end of an answer to the first byte of the next request. Longer than gateways keep an idle
    /// connection, which is 60 s as a rule: the side that closes first is not the one that still sends.
    /// Where a client waits for a slot, a connection that was idle for as long as a header may take gives
    /// up its own.
    pub idle_timeout: Duration,
    /// From the end of the header to the answer, the sending of the body included.
    pub request_timeout: Duration,
    /// How long what we sent may stay unread by the client.
    pub unread_timeout: Duration,
    /// Bytes of all large bodies that are read or worked on and of all large answers that lie unread, at
    /// most. Requests above the limit get 503; the response to a committed command is always sent.
    pub large_bytes_max: usize,
    /// The size of a request's line and headers.
    pub header_bytes_max: usize,
    /// The size of a request's body.
    pub body_bytes_max: usize,
    /// Connections served at a time; further ones wait in the listener's backlog, and while they do, each answer
    /// closes its connection.
    pub connections_max: usize,
    /// The age of a connection from which its next answer closes it. The client must read that answer within the same
    /// time again.
    pub connection_age_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            // `HTTP_IDLE_TIMEOUT_SECONDS` has the same default.
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(15),
            unread_timeout: Duration::from_secs(15),
            large_bytes_max: 16 * 1024 * 1024,
            header_bytes_max: 16 * 1024,
            body_bytes_max: 64 * 1024,
            connections_max: 1024,
            connection_age_max: Duration::from_secs(5 * 60),
        }
    }
}

/// Puts a router behind the limits that are not the connection's, with an answer for whatever it
/// does not answer itself: an unknown address or method, a panic.
pub(crate) fn apply(router: Router, limits: Limits) -> Router {
    let budget = LargeBodyBudget::new(limits.large_bytes_max);
    router
        .fallback(async || Problem::not_found("There is nothing at this address."))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "The header `Allow` names the methods that this address knows.",
            )
        })
        .layer(CatchPanicLayer::custom(panic_response))
        .layer(middleware::from_fn_with_state((limits, budget), enforce))
        .layer(middleware::from_fn(instrument::instrument_request))
}

/// One deadline for the body and the answer. The body is read before the handler runs, so that a slow sender gets an
/// answer, and a handler that reaches the deadline never waited for a body.
async fn enforce(
    State((limits, budget)): State<(Limits, LargeBodyBudget)>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + limits.request_timeout;
    let is_safe = request.method().is_safe();
    let reading = read_request(request, limits.body_bytes_max, &budget);
    let (request, _permit) = match timeout_at(deadline, reading).await {
        Ok(Ok(read)) => read,
        Ok(Err(refused)) => return Ok(with_connection_close(refused)),
        Err(_) => return Ok(with_connection_close(body_timed_out())),
    };
    let response = timeout_at(deadline, next.run(request)).await.map_err(|_| match is_safe {
        true => Problem::unavailable("The answer took too long."),
        false => Problem::outcome_unknown(),
    })?;
    if is_safe { reserve_response(response, &budget).await } else { Ok(response) }
}

/// Memory for what is large, of all connections together: a thousand of them at once are not to have as
/// much as each of them may.
#[derive(Clone)]
struct LargeBodyBudget {
    free: Arc<Semaphore>,
    bytes_max: usize,
}

impl LargeBodyBudget {
    fn new(bytes_max: usize) -> LargeBodyBudget {
        LargeBodyBudget { free: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let bytes = bytes.min(self.bytes_max) as u32;
        self.free.clone().try_acquire_many_owned(bytes).map_err(|_| {
            Problem::unavailable("Too much that is large is on its way to or from others.")
        })
    }
}

/// A large answer takes up its room until the system has taken it over. One whose size is not known is a
/// stream, of which no more is there than what is being sent.
async fn reserve_response(
    response: Response,
    budget: &LargeBodyBudget,
) -> Result<Response, Problem> {
    if response.body().size_hint().exact().is_none_or(|size| size <= LARGE_BYTES_MIN as u64) {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|_| Problem::internal())?.to_bytes();
    // What all clients share, such as the API's description, is there only once.
    if !bytes.is_unique() {
        return Ok(Response::from_parts(parts, Body::from(bytes)));
    }
    let _permit = budget.reserve(bytes.len())?;
    let body = Body::from(Bytes::from_owner(ReservedBytes { bytes, _permit }));
    Ok(Response::from_parts(parts, body))
}

/// The bytes of a large answer. Not the body: hyper is done with that when it begins to send.
struct ReservedBytes {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The request with its whole body, and the room that this takes up if it is large.
async fn read_request(
    request: Request,
    bytes_max: usize,
    budget: &LargeBodyBudget,
) -> Result<(Request, Option<OwnedSemaphorePermit>), Response> {
    let (parts, mut body) = request.into_parts();
    let read = match is_identity_coded(&parts.headers) || body.is_end_stream() {
        true => read_body(&mut body, bytes_max, budget).await.map_err(Problem::into_response),
        false => Err(unsupported_coding()),
    };
    match read {
        Ok((whole, permit)) => Ok((Request::from_parts(parts, Body::from(whole)), permit)),
        Err(refused) => {
            // A client that waits for `100 Continue` has sent nothing and will not; any other would lose
            // our answer to a reset connection if we closed it while it is still sending.
            if !parts.headers.contains_key(header::EXPECT) {
                let _ =
                    timeout(Duration::from_secs(1), drain_body(&mut body, 16 * bytes_max)).await;
            }
            Err(refused)
        }
    }
}

/// Whether a body is sent as it is: without a content coding, or with `identity` alone, which is none.
fn is_identity_coded(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    values.all(|value| {
        value.to_str().is_ok_and(|codings| {
            let mut codings = codings.split(',').map(str::trim);
            codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity"))
        })
    })
}

/// Names what is accepted, as RFC 9110 wants it (15.5.16).
fn unsupported_coding() -> Response {
    let detail =
        "The body must be sent as it is, without a `Content-Encoding` other than `identity`.";
    let kind = "unsupported-content-coding";
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, kind, detail);
    ([(header::ACCEPT_ENCODING, "identity")], problem).into_response()
}

/// Copied together: kept as they came, chunks of one byte each would take forty times as much.
async fn read_body(
    body: &mut Body,
    bytes_max: usize,
    budget: &LargeBodyBudget,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Problem> {
    // A chunked body does not announce its size.
    let declared_bytes = body.size_hint().exact().map_or(bytes_max, |bytes| bytes as usize);
    let (mut whole, mut permit) = (Vec::new(), None);
    while whole.len().max(declared_bytes) <= bytes_max {
        match body.frame().await {
            None => return Ok((whole, permit)),
            Some(Ok(frame)) => {
                whole.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                if whole.len() > LARGE_BYTES_MIN && permit.is_none() {
                    permit = Some(budget.reserve(declared_bytes)?);
                }
            }
            Some(Err(_)) => {
                return Err(Problem::malformed("The body ended before it was complete."));
            }
        }
    }
    let detail = format!("The body may have {bytes_max} bytes at most.");
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail))
}

async fn drain_body(body: &mut Body, bytes_max: usize) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, |data| data.len());
        if bytes > bytes_max {
            return;
        }
    }
}

fn body_timed_out() -> Problem {
    let detail = "The body did not arrive in time; nothing was stored.";
    Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", detail)
}

/// Where a body is left unread the next request cannot be found.
fn with_connection_close(refused: impl IntoResponse) -> Response {
    let mut response = refused.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn panic_response(_: Box<dyn Any + Send>) -> Response {
    // The panic hook has logged what and where.
    Problem::internal().into_response()
}
