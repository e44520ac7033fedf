//! The result of a command: the answer to its client, and the event that it publishes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::event::{Outcome, Outgoing};

/// The answer to a command, and the event that it publishes.
#[derive(Debug)]
pub struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) location: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) event: Option<Outgoing>,
}

impl Reply {
    pub(crate) fn from_stored(
        status: StatusCode,
        location: Option<String>,
        answer: Vec<u8>,
    ) -> Reply {
        Reply { status, location, body: answer, event: None }
    }

    /// 200 with a JSON body.
    pub fn ok(answer: &impl Serialize) -> Reply {
        let answer = serde_json::to_vec(answer).expect("answers are plain JSON");
        Reply { status: StatusCode::OK, location: None, body: answer, event: None }
    }

    /// 201 with the location of what was created.
    pub fn created(location: String, answer: &impl Serialize) -> Reply {
        let location = Some(location);
        Reply { status: StatusCode::CREATED, location, ..Reply::ok(answer) }
    }

    /// Publishes an event, if there is one, with the command's effect.
    ///
    /// # Panics
    /// If it already publishes one: a command publishes one event at most.
    pub fn with_event(self, event: Option<impl Outcome>) -> Reply {
        assert!(self.event.is_none(), "a command publishes one event at most");
        Reply { event: event.and_then(Outcome::into_outgoing), ..self }
    }

    pub(crate) fn assert_published_by(&self, service: &str) {
        self.event.iter().for_each(|event| event.assert_published_by(service));
    }
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
