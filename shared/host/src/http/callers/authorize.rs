//! The layers that refuse a request whose caller may not make it: one for the routes of an API, by the scopes that its
//! description lists, and one for the admin port.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use messaging::telemetry::log_throttle::LogThrottle;
use metrics::counter;
use parking_lot::Mutex;

use crate::http::callers::caller::Caller;
use crate::http::callers::identify::{Callers, caller_unknown};
use crate::http::callers::token::TokenError;
use crate::http::problem::Problem;

pub(crate) const OPERATOR: &str = "operator";

/// A larger body is no request of the admin port; the limits of the port refuse it sooner.
const LOGGED_BODY_BYTES_MAX: usize = 64 * 1024;
const LOGGED_CHARACTERS_MAX: usize = 2_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Public,
    /// Callers whose token has all scopes of one of these lists.
    Scopes(Vec<Vec<String>>),
}

#[derive(Clone)]
pub(crate) struct RouteAccess(Arc<HashMap<String, BTreeMap<String, Access>>>);

impl RouteAccess {
    /// The routes of an API, each with its path, its method and who may use it.
    pub(crate) fn new(routes: impl IntoIterator<Item = (String, Method, Access)>) -> Self {
        let mut paths = HashMap::<String, BTreeMap<String, Access>>::new();
        for (path, method, access) in routes {
            let methods = paths.entry(path).or_default();
            // A route that answers GET answers HEAD as well.
            if method == Method::GET {
                methods.insert(Method::HEAD.to_string(), access.clone());
            }
            methods.insert(method.to_string(), access);
        }
        RouteAccess(Arc::new(paths))
    }

    /// Who may make a request.
    ///
    /// # Errors
    /// If no description lists its route. A handler that has none is never reached.
    fn of_request(&self, request: &Request) -> Result<&Access, Box<Response>> {
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let Some(methods) = path.and_then(|path| self.0.get(path)) else {
            tracing::error!("a route has no API description, so every caller is refused");
            return Err(Box::new(Problem::internal().into_response()));
        };
        methods.get(request.method().as_str()).ok_or_else(|| {
            let allowed = methods.keys().map(String::as_str).collect::<Vec<_>>().join(",");
            let refused = ([(header::ALLOW, allowed)], Problem::method_not_allowed());
            Box::new(refused.into_response())
        })
    }
}

impl Access {
    fn admits(&self, caller: &Caller) -> bool {
        let holds = |scopes: &Vec<String>| scopes.iter().all(|scope| caller.has_scope(scope));
        match self {
            Access::Public => true,
            Access::Scopes(alternatives) => alternatives.iter().any(holds),
        }
    }
}

pub(crate) async fn authorize(
    State(routes): State<RouteAccess>,
    request: Request,
    next: Next,
) -> Response {
    match routes.of_request(&request) {
        Ok(access) => run_if_authorized(access, request, next).await,
        Err(refused) => *refused,
    }
}

/// Adds to the admin port its check of the caller, who needs the scope `operator`, and a log line for each act.
pub fn operators_only(admin: Router) -> Router {
    admin.layer(from_fn(log_act)).layer(from_fn(authorize_operator))
}

/// Logs an act with its actor: what was asked, of what, and how it ended.
async fn log_act(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LOGGED_BODY_BYTES_MAX).await else {
        return Problem::malformed("The body could not be read.").into_response();
    };
    let caller = parts.extensions.get::<Caller>().cloned();
    let actor = caller.as_ref().and_then(Caller::subject).unwrap_or("unknown").to_owned();
    let act = format!("{} {}", parts.method, parts.uri.path());
    let text: String = String::from_utf8_lossy(&body).chars().take(LOGGED_CHARACTERS_MAX).collect();
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let status = response.status().as_u16();
    // With escapes, so that no text of a request begins a line of its own.
    tracing::info!(actor = ?actor, act = ?act, request = ?text, status, "an operator acted");
    response
}

async fn authorize_operator(request: Request, next: Next) -> Response {
    static ACCESS: LazyLock<Access> =
        LazyLock::new(|| Access::Scopes(vec![vec![OPERATOR.to_owned()]]));
    run_if_authorized(&ACCESS, request, next).await
}

/// Passes a request on if its caller may make it, with the [`Caller`] for its handler.
async fn run_if_authorized(access: &Access, mut request: Request, next: Next) -> Response {
    let Some(callers) = request.extensions().get::<Callers>().cloned() else {
        return caller_unknown().into_response();
    };
    match authorized_caller(&callers, access, request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) => refused,
    }
}

async fn authorized_caller(
    callers: &Callers,
    access: &Access,
    headers: &HeaderMap,
) -> Result<Caller, Response> {
    if *access == Access::Public && !callers.are_unknown() {
        return Ok(Caller::anonymous());
    }
    let caller = callers.identify(headers).await.map_err(token_refused)?;
    if !caller.is_unrestricted() && !access.admits(&caller) {
        return Err(scope_missing());
    }
    Ok(caller)
}

/// 401 with the challenge of RFC 6750: without an error code where the request has no token at all.
fn token_refused(error: TokenError) -> Response {
    note_refusal(error.as_str());
    let detail = match error {
        TokenError::KeysUnavailable => {
            let detail = "The keys of the token issuer are unavailable; nothing was stored.";
            return Problem::unavailable(detail).into_response();
        }
        TokenError::Missing => "This request needs `Authorization: Bearer` with an access token.",
        TokenError::Expired => "The access token has expired.",
        TokenError::NotYetValid => "The access token is not valid yet.",
        _ => "The access token is not accepted here.",
    };
    let challenge = match error {
        TokenError::Missing => "Bearer",
        _ => r#"Bearer error="invalid_token""#,
    };
    refusal(StatusCode::UNAUTHORIZED, "unauthorized", detail, challenge)
}

/// 403: the operation's description names its scopes.
fn scope_missing() -> Response {
    note_refusal("insufficient_scope");
    let detail = "The access token lacks a scope that this operation needs.";
    let challenge = r#"Bearer error="insufficient_scope""#;
    refusal(StatusCode::FORBIDDEN, "insufficient-scope", detail, challenge)
}

fn refusal(status: StatusCode, kind: &'static str, detail: &str, challenge: &str) -> Response {
    ([(header::WWW_AUTHENTICATE, challenge)], Problem::new(status, kind, detail)).into_response()
}

/// Counts a refusal, and logs it once a minute for each reason, without the token.
fn note_refusal(reason: &'static str) {
    static LOGGED: LazyLock<Mutex<LogThrottle>> = LazyLock::new(Mutex::default);
    counter!("http_requests_refused_total", "reason" => reason).increment(1);
    if LOGGED.lock().should_log(reason, reason) {
        tracing::warn!(reason, "a request was refused because of its token");
    }
}
