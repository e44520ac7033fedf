//! A read that failed because the database refused its login is handled again while the password is read again.
//!
//! A connection of the pool is opened when a handler needs one, and the pool returns a refusal at once. Only GET and
//! HEAD are repeated: they change nothing, and commands use connections that repeat their own login.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use messaging::flow::reload;
use tokio::time::{Instant, sleep};

/// For how long a read is repeated: as long as the pool waits for a connection.
const RETRY_MAX: Duration = Duration::from_secs(3);

/// Marks the response to a request whose login the database refused.
#[derive(Clone)]
pub(crate) struct LoginRefused;

pub(crate) async fn retry_refused_login(request: Request, next: Next) -> Response {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return next.run(request).await;
    }
    let deadline = Instant::now() + RETRY_MAX;
    let (head, mut body) = request.into_parts();
    loop {
        let request =
            Request::from_parts(head.clone(), std::mem::replace(&mut body, Body::empty()));
        let response = next.clone().run(request).await;
        let is_refused = response.extensions().get::<LoginRefused>().is_some();
        if !is_refused || Instant::now() + reload::LOGIN_RETRY_INTERVAL > deadline {
            return response;
        }
        reload::request();
        sleep(reload::LOGIN_RETRY_INTERVAL).await;
    }
}
