//! Serves a router over HTTP/1.1, with or without TLS: every connection ends in bounded time, and a stop lets the
//! requests under way finish, within a bound of its own.
//!
//! axum's own server has no timeout for a half-sent header, and none for a stalled request at a stop.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::http::connection::{HeaderTimer, TrackedStream};
use crate::http::limits::{self, Limits};
use crate::http::listeners::Listeners;
use crate::http::slots::ConnectionSlots;
use crate::http::tls::TlsAcceptor;

/// How long an idle kept connection stays open after a stop. Its client may send one more request, and the
/// answer announces that the connection ends. If it were closed at once, a request on its way would be lost. A drain
/// that is shorter than twice this time halves it.
pub(crate) const KEEPALIVE_GRACE: Duration = Duration::from_secs(1);

/// Serves until `stop`. After that it accepts no new connection, and for at most `drain` it still answers the
/// requests under way, the connections that wait already, and one last request that arrives within a second on
/// each kept connection.
pub(crate) async fn serve(
    listeners: impl Into<Listeners>,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
    drain: Duration,
) -> anyhow::Result<()> {
    let mut listeners = listeners.into();
    let slots = ConnectionSlots::new(limits.connections_max, limits.slot_grace);
    let router = limits::apply(router, limits, slots.clone());
    // Shorter than the drain: otherwise an idle connection would count as one amid a request.
    let keepalive_grace = KEEPALIVE_GRACE.min(drain / 2);
    let server = HttpServer {
        tls,
        slots: slots.clone(),
        router,
        limits,
        stop: stop.clone(),
        keepalive_grace,
    };
    let mut connections = JoinSet::new();
    let mut next_stream = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            slot = slots.acquire(), if next_stream.is_some() => {
                let stream = next_stream.take().expect("it waits for this");
                connections.spawn(server.clone().serve_connection(stream, slot));
            }
            stream = listeners.accept(), if next_stream.is_none() => {
                next_stream = Some(stream);
            }
        }
    }
    for stream in next_stream.into_iter().chain(listeners.accept_backlog()) {
        let server = server.clone();
        connections.spawn(async move {
            let slot = server.slots.acquire().await;
            server.serve_connection(stream, slot).await;
        });
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(drain, drained).await.is_err() {
        let open = connections.len();
        tracing::warn!(open, "connections with unfinished requests were closed after {drain:?}");
    }
    connections.shutdown().await;
    Ok(())
}

/// Completes the headers of an answer. It announces the end of a connection that is to end, and of each while others
/// wait for a slot, so that busy kept connections cannot starve new ones. Caches and browsers keep no answer and guess
/// no type, unless the answer has its own rule.
fn complete_headers(headers: &mut HeaderMap, ends_connection: bool) {
    if ends_connection {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    for (name, value) in
        [(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")]
    {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// How connections are served.
#[derive(Clone)]
struct HttpServer {
    tls: Option<TlsAcceptor>,
    slots: ConnectionSlots,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
    keepalive_grace: Duration,
}

impl HttpServer {
    async fn serve_connection(self, stream: TcpStream, _slot: OwnedSemaphorePermit) {
        // If these fail, a slow reader only holds its slot for longer.
        let _ = stream.set_nodelay(true);
        let unread_timeout = Some(self.limits.unread_timeout);
        let _ = SockRef::from(&stream).set_tcp_user_timeout(unread_timeout);
        let socket = TrackedStream::new(stream);
        let Some(tls) = self.tls.clone() else {
            return self.serve_stream(socket.clone(), socket).await;
        };
        // A handshake has the time of a header, and after a stop that of an idle connection.
        let stopped = async {
            self.stop.cancelled().await;
            sleep(self.keepalive_grace).await;
        };
        let stream = tokio::select! {
            () = socket.wait_for_reset() => return,
            () = stopped => return,
            () = self.slots.wait_until_overdue(self.limits.header_timeout) => {
                return tracing::debug!("a TLS handshake was not completed in time");
            }
            accepted = tls.accept(socket.clone()) => accepted,
        };
        match stream {
            Ok(stream) => self.serve_stream(stream, socket).await,
            Err(error) => tracing::debug!("a TLS handshake failed: {error:#}"),
        }
    }

    /// Serves HTTP on a stream whose bytes travel over this socket.
    async fn serve_stream<S>(self, stream: S, socket: TrackedStream)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let HttpServer { slots, router, limits, stop, keepalive_grace, .. } = self;
        let timer = HeaderTimer::new(&socket, limits, slots.clone());
        let close = stop.child_token();
        let closes = close.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let (router, slots, close) = (router.clone(), slots.clone(), closes.clone());
            async move {
                let mut response = router.oneshot(request).await?;
                let ends_connection = close.is_cancelled() || slots.has_waiters();
                complete_headers(response.headers_mut(), ends_connection);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(timer)
            .header_read_timeout(limits.idle_timeout)
            .max_buf_size(limits.header_bytes_max)
            // A client may close its sending half after its request and still read.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), answer);
        // One for each connection: the grace of a connection from the backlog begins when it gets its slot.
        let graceful = GracefulShutdown::new();
        let connection = graceful.watch(connection);
        let ends_after_stop = async {
            stop.cancelled().await;
            sleep(keepalive_grace).await;
            graceful.shutdown().await;
        };
        // At its maximum age a connection is closed by its next answer. If it were closed while it is idle, a request
        // on its way would be lost; without a further request it ends at the idle timeout.
        let aged = async {
            sleep(limits.connection_age_max).await;
            close.cancel();
            sleep(limits.idle_timeout + limits.connection_age_max).await;
        };
        tokio::select! {
            _ = connection => {}
            () = socket.wait_for_reset() => {}
            () = aged => {}
            () = ends_after_stop => {}
        }
    }
}
