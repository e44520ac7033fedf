//! A service's API as it is served, for a fuzzer that sends it whatever bytes it likes.
//!
//! The real server with the real routes and limits, on loopback. Behind it there is no database: what
//! is understood is answered 503. So what is fuzzed is how requests are read and refused.
//!
//! A panic anywhere, also one that the service would catch and answer with a 500, ends the fuzzer.

use chassis::{Commands, Heartbeats, UnitOfWork, commands};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use axum::Router;
use chassis::http::server;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// A server that does not close within this is stuck: a whole request has its answer at once, and
/// half of one is cut by the client.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// A service that is served in this process.
pub struct Server {
    address: SocketAddr,
    _runtime: Runtime,
}

impl Server {
    /// Serves what `router` makes of a database that is away and of commands that nobody takes.
    pub fn new<R: UnitOfWork>(router: impl FnOnce(PgPool, Commands<R>) -> Router) -> Server {
        let runtime = Runtime::new().expect("a runtime");
        let within = runtime.enter();
        let nowhere = "postgres://nobody@127.0.0.1:1/nothing";
        let options = PgPoolOptions::new().acquire_timeout(Duration::from_millis(1));
        let db = options.connect_lazy(nowhere).expect("the URL can be read");
        let heartbeat = Heartbeats::default().register("command executor", Duration::from_secs(60));
        let (commands, executor) = commands::command_channel("fuzz", db.clone(), Default::default(), heartbeat);
        drop(executor);
        let router = router(db, commands);
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let never = CancellationToken::new();
        runtime.spawn(server::serve(listener, router, never, Duration::ZERO));
        drop(within);
        Server { address, _runtime: runtime }
    }

    /// Sends these bytes as a client would, and holds the answers against what is promised: none is a
    /// server's error, but that the database is away, and the server closes.
    pub fn send(&self, bytes: &[u8]) {
        let mut stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(CLOSE_TIMEOUT)).expect("a socket");
        // It may have closed already, with an answer.
        let sent = stream.write_all(bytes).is_ok();
        if sent {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut answers = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answers) {
            let reset = error.kind() == std::io::ErrorKind::ConnectionReset;
            assert!(reset, "no end after {} bytes of answer: {error}", answers.len());
        }
        for line in answers.split(|byte| *byte == b'\n') {
            if let Some(status) = line.strip_prefix(b"HTTP/1.1 5") {
                let text = String::from_utf8_lossy(&answers);
                assert!(status.starts_with(b"03"), "a server's error: {text}");
            }
        }
    }
}
