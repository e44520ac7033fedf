//! The layers that refuse a request whose caller may not make it: one for the routes of an API, by the scopes that its
//! description lists, and one for the admin port.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use metrics::counter;
use parking_lot::Mutex;

use crate::http::callers::caller::Caller;
use crate::http::callers::extractor::caller_unknown;
use crate::http::callers::identify::Callers;
use crate::http::callers::operator_log;
use crate::http::callers::token::TokenError;
use crate::http::problem::Problem;
use crate::telemetry::log_throttle::LogThrottle;

/// The scope of operators.
pub(crate) const OPERATOR: &str = "operator";

/// Who may use a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Every client.
    Public,
    /// Callers whose token has all scopes of one of these lists.
    Scopes(Vec<Vec<String>>),
}

/// Who may use which route, by path and method.
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

/// The layer of an API's routes.
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
pub(crate) fn operators_only(admin: Router) -> Router {
    admin.layer(from_fn(operator_log::record)).layer(from_fn(authorize_operator))
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

/// The caller of a request, if the caller may make it.
async fn authorized_caller(
    callers: &Callers,
    access: &Access,
    headers: &HeaderMap,
) -> Result<Caller, Response> {
    if *access == Access::Public && !callers.are_unknown() {
        return Ok(Caller::anonymous());
    }
    let caller = callers.identify(headers).await.map_err(token_refused)?;
    match caller.is_unrestricted() || access.admits(&caller) {
        true => Ok(caller),
        false => Err(scope_missing()),
    }
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

fn refusal(
    status: StatusCode,
    kind: &'static str,
    detail: &str,
    challenge: &'static str,
) -> Response {
    let mut response = Problem::new(status, kind, detail).into_response();
    let challenge = HeaderValue::from_static(challenge);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// Counts a refusal, and logs it once a minute for each reason, without the token.
fn note_refusal(reason: &'static str) {
    static LOGGED: LazyLock<Mutex<LogThrottle>> = LazyLock::new(Mutex::default);
    counter!("http_requests_refused_total", "reason" => reason).increment(1);
    if LOGGED.lock().should_log(reason, reason) {
        tracing::warn!(reason, "a request was refused because of its token");
    }
}
