//! What a client may take: how many connections, how many bytes, how long. Beyond each there is an
//! answer that says so, or a closed connection where there is nobody to answer.

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

use crate::observe;
use crate::problem::Problem;

/// Bytes from which on a body or an answer counts as large: a request's header may have as many, so every
/// connection has memory for that anyway.
const LARGE: usize = 16 * 1024;

/// What a client may take. The defaults are the promise; tests use shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the opening of a connection to the end of the first header, and from the first byte of each
    /// further one to its end.
    pub header: Duration,
    /// From the end of an answer to the first byte of the next request. Longer than gateways keep an idle
    /// connection, which is 60 s as a rule: the side that closes first is not the one that still sends.
    /// Where a client waits for a slot, a connection that was idle for as long as a header may take gives
    /// up its own.
    pub idle: Duration,
    /// From the end of the header to the answer, the sending of the body included.
    pub request: Duration,
    /// How long what we sent may stay unread by the client.
    pub unread: Duration,
    /// Bytes of all large bodies that are read or worked on and of all large answers that lie unread, at
    /// most. What comes beyond is refused; but whether something was written is never kept from whoever
    /// asked for it.
    pub large_bytes: usize,
    /// The size of a request's line and headers.
    pub header_bytes: usize,
    /// The size of a request's body.
    pub body_bytes: usize,
    /// Connections served at a time; further ones wait in the listener's backlog, and while they do,
    /// whoever is answered is told to leave.
    pub connections: usize,
    /// How old a connection gets before its next answer tells it to end. That answer is to be read within
    /// as long again.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            // `HTTP_IDLE_TIMEOUT_SECONDS` has the same default.
            idle: Duration::from_secs(75),
            request: Duration::from_secs(15),
            unread: Duration::from_secs(15),
            large_bytes: 16 * 1024 * 1024,
            header_bytes: 16 * 1024,
            body_bytes: 64 * 1024,
            connections: 1024,
            age: Duration::from_secs(5 * 60),
        }
    }
}

/// Puts a router behind the limits that are not the connection's, with an answer for whatever it
/// does not answer itself: an unknown address or method, a panic.
pub(crate) fn hold(router: Router, limits: Limits) -> Router {
    let large = Large::new(limits.large_bytes);
    router
        .fallback(async || Problem::not_found("There is nothing at this address."))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "The header `Allow` names the methods that this address knows.",
            )
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state((limits, large), bounded))
        .layer(middleware::from_fn(observe::request))
}

/// One deadline for the body and the answer. The body is read before the handler runs, so that a slow
/// sender is told so, and a handler that is cut off never waited for one.
async fn bounded(
    State((limits, large)): State<(Limits, Large)>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + limits.request;
    let is_safe = request.method().is_safe();
    let reading = read_whole(request, limits.body_bytes, &large);
    let (request, _room) = match timeout_at(deadline, reading).await {
        Ok(Ok(read)) => read,
        Ok(Err(refused)) => return Ok(closing(refused)),
        Err(_) => return Ok(closing(too_slow())),
    };
    let answer = timeout_at(deadline, next.run(request)).await.map_err(|_| match is_safe {
        true => Problem::unavailable("The answer took too long."),
        false => Problem::outcome_unknown(),
    })?;
    if is_safe { counted(answer, &large).await } else { Ok(answer) }
}

/// Memory for what is large, of all connections together: a thousand of them at once are not to have as
/// much as each of them may.
#[derive(Clone)]
struct Large {
    free: Arc<Semaphore>,
    bytes_max: usize,
}

impl Large {
    fn new(bytes_max: usize) -> Large {
        Large { free: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let bytes = bytes.min(self.bytes_max) as u32;
        self.free.clone().try_acquire_many_owned(bytes).map_err(|_| {
            Problem::unavailable("Too much that is large is on its way to or from others.")
        })
    }
}

/// A large answer takes up its room until the system has taken it over. One whose size is not known is a
/// stream, of which no more is there than what is being sent.
async fn counted(answer: Response, large: &Large) -> Result<Response, Problem> {
    if answer.body().size_hint().exact().is_none_or(|size| size <= LARGE as u64) {
        return Ok(answer);
    }
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.map_err(|_| Problem::internal())?.to_bytes();
    // What all clients share, such as the API's description, is there only once.
    if !bytes.is_unique() {
        return Ok(Response::from_parts(parts, Body::from(bytes)));
    }
    let _room = large.take(bytes.len())?;
    let body = Body::from(Bytes::from_owner(Unread { bytes, _room }));
    Ok(Response::from_parts(parts, body))
}

/// The bytes of a large answer. Not the body: hyper is done with that when it begins to send.
struct Unread {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The request with its whole body, and the room that this takes up if it is large.
async fn read_whole(
    request: Request,
    bytes_max: usize,
    large: &Large,
) -> Result<(Request, Option<OwnedSemaphorePermit>), Response> {
    let (parts, mut body) = request.into_parts();
    let read = match is_plain(&parts.headers) || body.is_end_stream() {
        true => read_body(&mut body, bytes_max, large).await.map_err(Problem::into_response),
        false => Err(coded()),
    };
    match read {
        Ok((whole, room)) => Ok((Request::from_parts(parts, Body::from(whole)), room)),
        Err(refused) => {
            // A client that waits for `100 Continue` has sent nothing and will not; any other would lose
            // our answer to a reset connection if we closed it while it is still sending.
            if !parts.headers.contains_key(header::EXPECT) {
                let _ = timeout(Duration::from_secs(1), discard(&mut body, 16 * bytes_max)).await;
            }
            Err(refused)
        }
    }
}

/// Whether a body is sent as it is: without a content coding, or with `identity` alone, which is none.
fn is_plain(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    values.all(|value| {
        value.to_str().is_ok_and(|codings| {
            let mut codings = codings.split(',').map(str::trim);
            codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity"))
        })
    })
}

/// Names what is accepted, as RFC 9110 wants it (15.5.16).
fn coded() -> Response {
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
    large: &Large,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Problem> {
    // What comes in chunks does not say how much it will be.
    let announced = body.size_hint().exact().map_or(bytes_max, |bytes| bytes as usize);
    let (mut whole, mut room) = (Vec::new(), None);
    while whole.len().max(announced) <= bytes_max {
        match body.frame().await {
            None => return Ok((whole, room)),
            Some(Ok(frame)) => {
                whole.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                if whole.len() > LARGE && room.is_none() {
                    room = Some(large.take(announced)?);
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

async fn discard(body: &mut Body, bytes_max: usize) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, |data| data.len());
        if bytes > bytes_max {
            return;
        }
    }
}

fn too_slow() -> Problem {
    let detail = "The body did not arrive in time; nothing was stored.";
    Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", detail)
}

/// Where a body is left unread the next request cannot be found.
fn closing(refused: impl IntoResponse) -> Response {
    let mut response = refused.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    // The panic hook has logged what and where.
    Problem::internal().into_response()
}
