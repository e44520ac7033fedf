//! The limits of clients: connections, bytes and time. A request beyond a limit gets an answer that names the limit,
//! or its connection is closed if no answer is possible.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::http::instrument::instrument_request;
use crate::http::problem::Problem;
use crate::http::slots::ConnectionSlots;

/// How much of a refused body is read and dropped, so that its client gets the answer.
const DRAINED_BYTES_MAX: usize = 1024 * 1024;

/// What a client may take. The defaults are the promise; tests use shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the opening of a connection to the end of the first header, and from the first byte of each
    /// further one to its end.
    pub header_timeout: Duration,
    /// From the end of an answer to the first byte of the next request. It is longer than gateways keep an idle
    /// connection, usually 60 s: the gateway has to close first, or it sends a request into a connection that is
    /// being closed.
    pub idle_timeout: Duration,
    /// While a client waits for a slot, a connection keeps its own for so long in a handshake, a header or a body, or
    /// idle.
    pub slot_grace: Duration,
    /// From the end of the header to the answer, the sending of the body included.
    pub request_timeout: Duration,
    /// How long sent data may stay unread by the client.
    pub unread_timeout: Duration,
    /// The size of a request's line and headers.
    pub header_bytes_max: usize,
    /// The size of a request's body. With [`Limits::connections_max`] it bounds the memory for bodies; see
    /// [`PAGE_BYTES_MAX`](crate::http::pagination::PAGE_BYTES_MAX) for answers.
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
            slot_grace: Duration::from_secs(1),
            request_timeout: Duration::from_secs(15),
            unread_timeout: Duration::from_secs(15),
            header_bytes_max: 16 * 1024,
            body_bytes_max: 32 * 1024,
            connections_max: 1024,
            connection_age_max: Duration::from_secs(5 * 60),
        }
    }
}

/// Adds to a router the limits of each request, and the answers to an unknown address, an unknown method and a
/// panic.
pub(crate) fn apply(router: Router, limits: Limits, slots: ConnectionSlots) -> Router {
    router
        .fallback(async || Problem::not_found("There is nothing at this address."))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(from_fn_with_state(Arc::new((limits, slots)), handle_request))
}

/// All that a request meets before its route, in one layer: for every request, axum clones and boxes all that is below
/// each further layer. From the outside inwards it is: the span and the metrics, the limits, the check of the host.
async fn handle_request(
    State(port): State<Arc<(Limits, ConnectionSlots)>>,
    request: Request,
    next: Next,
) -> Response {
    let (limits, slots) = &*port;
    let handle = async |request| enforce(limits, slots, request, next).await.into_response();
    instrument_request(request, handle).await
}

/// One deadline for the body and the answer. The body is read before the handler runs, so that a slow sender gets an
/// answer, and a handler that reaches the deadline never waited for a body.
async fn enforce(
    limits: &Limits,
    slots: &ConnectionSlots,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + limits.request_timeout;
    let is_safe = request.method().is_safe();
    let request = tokio::select! {
        biased;
        read = read_request(request, limits.body_bytes_max) => match read {
            Ok(request) => request,
            Err(refused) => return Ok(with_connection_close(refused)),
        },
        () = slots.wait_until_overdue(limits.request_timeout) => {
            return Ok(with_connection_close(body_timed_out()));
        }
    };
    if !names_one_host(request.uri(), request.headers()) {
        return Err(Problem::malformed("The request names two hosts."));
    }
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    match timeout_at(deadline, answer).await {
        Ok(Ok(response)) => Ok(response),
        // The panic hook has logged what and where.
        Ok(Err(_)) => Err(Problem::internal()),
        Err(_) if is_safe => Err(Problem::unavailable("The answer took too long.")),
        Err(_) => Err(Problem::outcome_unknown()),
    }
}

async fn read_request(request: Request, bytes_max: usize) -> Result<Request, Response> {
    let (parts, mut body) = request.into_parts();
    let read = match is_identity_coded(&parts.headers) || body.is_end_stream() {
        true => read_body(&mut body, bytes_max).await.map_err(Problem::into_response),
        false => Err(unsupported_coding()),
    };
    if read.is_err() && !parts.headers.contains_key(header::EXPECT) {
        // A client that waits for `100 Continue` has sent nothing and will not. Any other client may still be
        // sending: if the connection were closed now, it would be reset and the client would lose the answer.
        let _ = timeout(Duration::from_secs(1), drain_body(&mut body)).await;
    }
    Ok(Request::from_parts(parts, Body::from(read?)))
}

/// Whether a body has no content coding; `identity` alone is none.
fn is_identity_coded(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    values.all(|value| {
        value.to_str().is_ok_and(|codings| {
            let mut codings = codings.split(',').map(str::trim);
            codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity"))
        })
    })
}

/// Names the accepted codings, as RFC 9110 requires (15.5.16).
fn unsupported_coding() -> Response {
    let detail = "Send the body without a `Content-Encoding` other than `identity`.";
    let kind = "unsupported-content-coding";
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, kind, detail);
    ([(header::ACCEPT_ENCODING, "identity")], problem).into_response()
}

/// Copies all chunks into one buffer: as separate chunks of one byte each, a body would take far more memory.
async fn read_body(body: &mut Body, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    // A chunked body does not announce its size.
    let declared_bytes = body.size_hint().lower() as usize;
    let mut whole = Vec::new();
    while whole.len().max(declared_bytes) <= bytes_max {
        match body.frame().await {
            None => return Ok(whole),
            Some(Ok(frame)) => {
                whole.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            }
            Some(Err(_)) => {
                return Err(Problem::malformed("The body ended before it was complete."));
            }
        }
    }
    let detail = format!("The body may have {bytes_max} bytes at most.");
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail))
}

async fn drain_body(body: &mut Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, |data| data.len());
        if bytes > DRAINED_BYTES_MAX {
            return;
        }
    }
}

/// Whether there is one header `Host` at most, and the target of the request names no other host. If a request names two
/// hosts, a proxy could check one and the service serve the other (RFC 9112, 3.2).
fn names_one_host(target: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    let is_same = target.authority().zip(host).is_none_or(|(target, host)| {
        host.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes())
    });
    is_same && hosts.next().is_none()
}

fn body_timed_out() -> Problem {
    let detail = "The body did not arrive in time; nothing was stored.";
    Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", detail)
}

/// Closes the connection after this answer: behind an unread body the next request cannot be found.
fn with_connection_close(refused: impl IntoResponse) -> Response {
    let mut response = refused.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
