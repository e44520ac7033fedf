//! The served API of a service, for a fuzzer that sends any bytes.
//!
//! The real server with the real routes and limits, on loopback, without a database behind it: a
//! valid request gets 503. So the fuzzer tests how requests are parsed and refused.
//!
//! A panic anywhere, even one that the service would catch and turn into a 500, ends the fuzzer.

mod token_gate;

pub use token_gate::TokenGate;

use chassis::http::commands::command_channel;
use chassis::{Commands, Heartbeats, UnitOfWork, openapi};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::runtime::Runtime;
use utoipa_axum::router::OpenApiRouter;

/// A server that does not close the connection within this time is stuck: a complete request gets
/// its response at once, and the client ends an incomplete one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// A service that is served in this process.
pub struct Server {
    address: SocketAddr,
    _runtime: Runtime,
}

impl Server {
    /// Serves the router with an unreachable database and without an executor of commands.
    pub fn new<R: UnitOfWork>(router: impl FnOnce(PgPool, Commands<R>) -> OpenApiRouter) -> Server {
        let runtime = Runtime::new().expect("a runtime");
        let within = runtime.enter();
        let nowhere = "postgres://none@127.0.0.1:1/none";
        let options = PgPoolOptions::new().acquire_timeout(Duration::from_millis(1));
        let db = options.connect_lazy(nowhere).expect("the URL can be read");
        let heartbeat = Heartbeats::default().register("command executor", Duration::from_secs(60));
        let (commands, executor) = command_channel("fuzz", db.clone(), Default::default(), heartbeat);
        drop(executor);
        let router = openapi::serve("fuzz", router(db, commands));
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        runtime.spawn(chassis::testing::serve(listener, router));
        drop(within);
        Server { address, _runtime: runtime }
    }

    /// Sends these bytes like a client, and checks the responses: none is a server error except an
    /// unreachable database, and the server closes the connection.
    pub fn send(&self, bytes: &[u8]) {
        let mut stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(CLOSE_TIMEOUT)).expect("a socket");
        // The server may already have responded and closed.
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
