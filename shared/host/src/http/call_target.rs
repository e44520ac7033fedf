//! The client that performs outside calls over HTTP: it sends the request of a call to its target, within bounds.
//!
//! Promises: a call reaches no other host than its target's, and its secret goes nowhere else. A redirect that is
//! followed breaks both.

use std::time::Duration;

use anyhow::{Context, ensure};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use futures::future::BoxFuture;
use messaging::call_loop::{Performer, Tried};
use messaging::calls::PendingCall;
use messaging::event;
use reqwest::{Client, RequestBuilder, Response, Url, redirect};

use crate::config::env;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of an answer that are read, at most.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// A target with an HTTP API.
pub(crate) struct HttpTarget {
    base: Url,
    client: Client,
    /// The variable of its bearer token, which is read again for each request.
    token: String,
}

impl HttpTarget {
    /// A target at this address. `token` is the variable of its bearer token, which may be unset.
    ///
    /// # Errors
    /// If the address has no host, or the client cannot be created.
    pub fn new(base: &str, token: String, timeout: Duration) -> anyhow::Result<HttpTarget> {
        let base: Url = base.parse().context("it is no URL")?;
        ensure!(base.has_host() && !base.cannot_be_a_base(), "it names no host");
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .redirect(redirect::Policy::none())
            .build()?;
        Ok(HttpTarget { base, client, token })
    }

    fn request(&self, call: &PendingCall) -> anyhow::Result<RequestBuilder> {
        let event::Request { method, path, query, body } = &*call.request;
        let mut url = self.base.clone();
        for segment in path {
            // Such a segment would be dropped, and the request would be another one.
            ensure!(!matches!(&**segment, "" | "." | ".."), "{segment:?} is no segment of a path");
        }
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let method = match method {
            event::Method::Get => reqwest::Method::GET,
            event::Method::Post => reqwest::Method::POST,
            event::Method::Put => reqwest::Method::PUT,
            event::Method::Delete => reqwest::Method::DELETE,
        };
        let mut request = self.client.request(method, url);
        request = request.header("idempotency-key", call.asked.call_id.to_string());
        request = request.header("traceparent", &call.asked.traceparent);
        if let Some(state) = &call.asked.tracestate {
            request = request.header("tracestate", state);
        }
        if let Some(token) = env::read_secret(&self.token)? {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        Ok(match body {
            Some(body) => request.json(body),
            None => request,
        })
    }

    async fn send(&self, call: &PendingCall) -> Tried {
        let request = match self.request(call) {
            Ok(request) => request,
            Err(error) => return Tried::NotSent(format!("{error:#}")),
        };
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() || error.is_builder() => {
                return Tried::NotSent(describe(&error));
            }
            Err(error) => return Tried::NoAnswer(describe(&error)),
        };
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok());
        let retry_after = retry_after.and_then(|it| it.parse().ok()).map(Duration::from_secs);
        match read_body(answer).await {
            Ok(body) => Tried::Answered { status, body, retry_after },
            Err(error) => Tried::NoAnswer(format!("its answer {status} has no end: {error}")),
        }
    }
}

async fn read_body(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| describe(&error))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(format!("it has more than {ANSWER_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// An error with its cause, without the URL, whose path may name a person.
fn describe(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(cause) = source.source() {
        source = cause;
    }
    source.to_string()
}

impl Performer for HttpTarget {
    fn perform<'a>(&'a self, call: &'a PendingCall) -> BoxFuture<'a, Tried> {
        Box::pin(self.send(call))
    }
}
