//! Serves a router over HTTP/1.1: every connection ends in bounded time, and a stop lets the
//! requests under way finish, within a bound of its own.
//!
//! axum's own server would keep a half-sent header open for ever, and at a stop wait for a stalled
//! request for ever.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::connection::{HeaderTimer, Wire};
use crate::limits::{self, Limits};

/// After a stop, whoever keeps a connection may ask once more on it, and is told with the answer that
/// it ends. Closed at once, a request that is on its way would be lost with it. At most: half of a drain
/// that is shorter than two of these.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often an idle connection is asked to give up its slot while a client waits for one.
const WANTED_EVERY: Duration = Duration::from_millis(100);

/// Connections that wait to be served, at most: as many as are served at a time. The system drops
/// whoever comes beyond, and when it is busy it leaves some of them believing that they came.
const BACKLOG: u32 = 1024;

/// Listens with room for as many who wait; tokio's own way has room for 128.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if addr.is_ipv6() {
        // `[::]` is for clients of both kinds, whatever the system's default.
        SockRef::from(&socket).set_only_v6(false)?;
    }
    // A port whose last connections are still dying is free for the next process.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop`. After that it accepts nobody new, and for at most `drain` still answers the
/// requests under way, the connections that wait already, and one last request that comes within a
/// second on each kept connection.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    drain: Duration,
) -> anyhow::Result<()> {
    serve_within(Limits::default(), listener, router, stop, drain).await
}

/// [`serve`] with limits other than the default.
pub async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    drain: Duration,
) -> anyhow::Result<()> {
    let slots = Slots::new(limits.connections);
    let router = limits::hold(router, limits).layer(from_fn_with_state(slots.clone(), take_leave));
    // Sooner than the drain ends, or an idle connection would count as one amid a request.
    let last_words = LAST_WORDS.min(drain / 2);
    let serving = Serving { slots: slots.clone(), router, limits, stop: stop.clone(), last_words };
    let mut connections = JoinSet::new();
    let mut first = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            slot = slots.take(), if first.is_some() => {
                let stream = first.take().expect("it waits for this");
                connections.spawn(serving.clone().converse(stream, slot));
            }
            stream = accept(&listener), if first.is_none() => first = Some(stream),
        }
    }
    for stream in first.into_iter().chain(waiting(listener)) {
        let serving = serving.clone();
        connections.spawn(async move {
            let slot = serving.slots.take().await;
            serving.converse(stream, slot).await;
        });
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(drain, drained).await.is_err() {
        let open = connections.len();
        tracing::warn!(open, "connections were closed amid a request: {drain:?} had passed");
    }
    connections.shutdown().await;
    Ok(())
}

/// Room for as many connections as are served at a time.
#[derive(Clone)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    /// Whether somebody has come for whom there is no room.
    wanted: Arc<AtomicBool>,
    /// Tells the connection that has been idle for longest.
    idle: Arc<Notify>,
}

impl Slots {
    fn new(number: usize) -> Slots {
        let free = Arc::new(Semaphore::new(number));
        Slots { free, wanted: Arc::default(), idle: Arc::default() }
    }

    async fn take(&self) -> OwnedSemaphorePermit {
        let mut slot = pin!(self.free.clone().acquire_owned());
        // An attempt that waits can find nothing although there is a slot: when tokio has it yield.
        let mut taken = self.free.clone().try_acquire_owned().ok();
        loop {
            if let Some(slot) = taken {
                self.wanted.store(false, Ordering::Relaxed);
                return slot;
            }
            self.wanted.store(true, Ordering::Relaxed);
            self.idle.notify_one();
            let waited = timeout(WANTED_EVERY, slot.as_mut()).await;
            taken = waited.ok().map(|slot| slot.expect("nobody closes this semaphore"));
        }
    }

    /// Waits until a client waits for a slot and this connection is the one to give up its own.
    pub(crate) async fn wanted_of_one(&self) {
        loop {
            self.idle.notified().await;
            if self.wanted.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// When a connection is to end: with the process, or of age.
#[derive(Clone)]
struct Leave(CancellationToken);

/// Tells whoever is to leave, with the answer. Where somebody waits for a slot, that is everybody who is
/// answered: who goes on asking would keep theirs from all others.
async fn take_leave(State(slots): State<Slots>, request: Request, next: Next) -> Response {
    let leave = request.extensions().get::<Leave>().cloned();
    let mut answer = next.run(request).await;
    let leaves = leave.is_some_and(|Leave(when)| when.is_cancelled());
    if leaves || slots.wanted.load(Ordering::Relaxed) {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Mostly too many open files: no descriptor comes free by asking at once.
                tracing::error!(%error, "no connection can be accepted");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Who has connected already. With the listener they would be cut off, and what they have sent be lost.
fn waiting(listener: TcpListener) -> impl Iterator<Item = TcpStream> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        let (stream, _) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        TcpStream::from_std(stream).ok()
    })
}

/// How connections are served.
#[derive(Clone)]
struct Serving {
    slots: Slots,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
    last_words: Duration,
}

impl Serving {
    async fn converse(self, stream: TcpStream, _slot: OwnedSemaphorePermit) {
        let Serving { slots, router, limits, stop, last_words } = self;
        // Best effort: without them a slow reader holds one of the slots for longer, and no more.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits.unread));
        let wire = Wire::new(stream);
        let leave = stop.child_token();
        let told = Leave(leave.clone());
        let router = router.map_request(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(told.clone());
            request
        });
        let connection = http1::Builder::new()
            .timer(HeaderTimer::new(&wire, limits, slots))
            .header_read_timeout(limits.idle)
            .max_buf_size(limits.header_bytes)
            // A client may close its sending half behind its request, and read on.
            .half_close(true)
            .serve_connection(TokioIo::new(wire.clone()), TowerToHyperService::new(router));
        let mut connection = pin!(connection);
        let mut reset = pin!(wire.reset());
        // Of age, it is told with its next answer. If it were closed while it is idle, a request on its way
        // would be lost; where none comes, it ends as an idle one.
        let aged = async {
            sleep(limits.age).await;
            leave.cancel();
            sleep(limits.idle + limits.age).await;
        };
        tokio::select! {
            _ = connection.as_mut() => return,
            () = reset.as_mut() => return,
            () = aged => return,
            () = stop.cancelled() => {}
        }
        tokio::select! {
            _ = connection.as_mut() => return,
            () = reset.as_mut() => return,
            () = sleep(last_words) => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            _ = connection => {}
            () = reset => {}
        }
    }
}
