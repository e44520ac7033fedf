//! What hyper can't tell of a connection: whether the next request has begun, whether the client has
//! reset it, and how long to wait for what.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use hyper::rt::{Sleep, Timer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::http::Slots;
use crate::limits::Limits;

/// The socket of a connection, which notes that the client has sent something.
#[derive(Clone)]
pub(crate) struct Wire {
    socket: Arc<TcpStream>,
    received: Arc<AtomicBool>,
}

impl Wire {
    pub(crate) fn new(socket: TcpStream) -> Wire {
        Wire { socket: Arc::new(socket), received: Arc::default() }
    }

    /// Waits until the client resets the connection. That the client closed its sending half does not tell
    /// whether it still reads; only a reset does.
    pub(crate) async fn reset(&self) {
        let _ = self.socket.ready(Interest::ERROR).await;
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            match self.socket.try_read_buf(buffer) {
                Ok(bytes) => {
                    self.received.fetch_or(bytes > 0, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Wire {
    fn poll_with(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            match write(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, |socket| socket.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.socket).shutdown(Shutdown::Write))
    }
}

/// The timer that hyper asks for whenever it begins to wait for a header, and at no other time. hyper knows
/// one bound for that wait; we have two: a client may be idle for long, but a header that has begun has to
/// end soon.
pub(crate) struct HeaderTimer {
    received: Arc<AtomicBool>,
    is_kept: AtomicBool,
    limits: Limits,
    slots: Slots,
}

impl HeaderTimer {
    pub(crate) fn new(wire: &Wire, limits: Limits, slots: Slots) -> HeaderTimer {
        HeaderTimer {
            received: wire.received.clone(),
            is_kept: AtomicBool::new(false),
            limits,
            slots,
        }
    }
}

impl Timer for HeaderTimer {
    fn sleep(&self, _: std::time::Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(std::time::Instant::now())
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        // What was received until now belongs to the request before. hyper does not tell where that ended:
        // a part of the next one that came in the same piece is waited for like an idle client.
        self.received.store(false, Ordering::Relaxed);
        let is_kept = self.is_kept.swap(true, Ordering::Relaxed);
        let (received, limits, slots) = (self.received.clone(), self.limits, self.slots.clone());
        let waited = async move {
            // hyper polls this after each attempt to read.
            let begins = poll_fn(|_| match received.load(Ordering::Relaxed) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            });
            if is_kept {
                tokio::select! {
                    biased;
                    () = begins => {}
                    () = idled(limits, &slots) => return,
                }
            }
            sleep(limits.header).await;
        };
        Box::pin(Waited(Box::pin(waited)))
    }
}

/// Returns when an idle connection is to be closed.
async fn idled(limits: Limits, slots: &Slots) {
    sleep(limits.header.min(limits.idle)).await;
    tokio::select! {
        () = sleep(limits.idle.saturating_sub(limits.header)) => {}
        () = slots.wanted_of_one() => {}
    }
}

struct Waited<F>(Pin<Box<F>>);

impl<F: Future<Output = ()>> Future for Waited<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl<F: Future<Output = ()> + Send + Sync> Sleep for Waited<F> {}
