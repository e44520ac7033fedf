//! A receiver of spans by OTLP, in the process of the test.

use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use parking_lot::Mutex;
use tokio::net::TcpListener;

/// Its address, for `OTEL_EXPORTER_OTLP_ENDPOINT`, and the bodies of all requests so far.
pub struct Collector {
    pub address: String,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Collector {
    pub async fn start() -> Result<Collector> {
        let bodies = Arc::<Mutex<Vec<Bytes>>>::default();
        let received = bodies.clone();
        let routes = Router::new().route(
            "/v1/traces",
            post(async move |body: Bytes| {
                received.lock().push(body);
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async { axum::serve(listener, routes).await });
        Ok(Collector { address, bodies })
    }

    pub fn bodies(&self) -> Vec<Bytes> {
        self.bodies.lock().clone()
    }
}
