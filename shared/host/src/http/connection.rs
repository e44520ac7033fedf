//! The state of a connection that hyper does not report: whether the next request has begun, and whether the client
//! has reset the connection; and the timeouts of its phases.

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

use crate::http::limits::Limits;
use crate::http::slots::ConnectionSlots;

/// The socket of a connection, which records that the client has sent something.
#[derive(Clone)]
pub(crate) struct TrackedStream {
    socket: Arc<TcpStream>,
    received: Arc<AtomicBool>,
}

impl TrackedStream {
    pub(crate) fn new(socket: TcpStream) -> TrackedStream {
        TrackedStream { socket: Arc::new(socket), received: Arc::default() }
    }

    /// Waits until the client resets the connection. A client that closed its sending half may still read; one that
    /// resets the connection does not.
    pub(crate) async fn wait_for_reset(&self) {
        let _ = self.socket.ready(Interest::ERROR).await;
    }
}

impl AsyncRead for TrackedStream {
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

impl TrackedStream {
    fn poll_write_with(
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

impl AsyncWrite for TrackedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |socket| socket.try_write_vectored(parts))
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

/// The timer that hyper starts whenever it begins to wait for a header, and at no other time. hyper has one timeout
/// for that wait. This timer has two: a client may be idle for long, but a header that has begun has to end soon.
pub(crate) struct HeaderTimer {
    received: Arc<AtomicBool>,
    is_keep_alive: AtomicBool,
    limits: Limits,
    slots: ConnectionSlots,
}

impl HeaderTimer {
    pub(crate) fn new(
        stream: &TrackedStream,
        limits: Limits,
        slots: ConnectionSlots,
    ) -> HeaderTimer {
        HeaderTimer {
            received: stream.received.clone(),
            is_keep_alive: AtomicBool::new(false),
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
        // The bytes received until now belong to the previous request. hyper does not report where that ended: if
        // the next request began in the same segment, its client counts as idle.
        self.received.store(false, Ordering::Relaxed);
        let is_keep_alive = self.is_keep_alive.swap(true, Ordering::Relaxed);
        let (received, limits, slots) = (self.received.clone(), self.limits, self.slots.clone());
        let waited = async move {
            // hyper polls this after each attempt to read.
            let begins = poll_fn(|_| match received.load(Ordering::Relaxed) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            });
            if is_keep_alive {
                tokio::select! {
                    biased;
                    () = begins => {}
                    () = slots.wait_until_idle_too_long(limits.idle_timeout) => return,
                }
            }
            slots.wait_until_overdue(limits.header_timeout).await;
        };
        Box::pin(BoxedSleep(Box::pin(waited)))
    }
}

struct BoxedSleep<F>(Pin<Box<F>>);

impl<F: Future<Output = ()>> Future for BoxedSleep<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl<F: Future<Output = ()> + Send + Sync> Sleep for BoxedSleep<F> {}
