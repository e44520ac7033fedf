//! The answer to a command, as it is sent and stored.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// The answer to an accepted command.
#[derive(Debug)]
pub struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) location: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], self.body).into_response();
        if let Some(location) = self.location.and_then(|place| HeaderValue::try_from(place).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}
