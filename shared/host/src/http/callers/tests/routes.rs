//! Routes: who is admitted, and how others are refused.

use std::panic::AssertUnwindSafe;

use axum::body::{Body, to_bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request, header};
use axum::routing::post;
use axum::{Extension, Router};
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::*;
use crate::http::callers::authorize::operators_only;
use crate::http::callers::caller::Caller;
use crate::http::callers::identify::Callers;
use crate::http::headers;
use crate::http::openapi;
use crate::http::problem::Problem;

#[utoipa::path(get, path = "/open", security(()), responses((status = 200)))]
async fn open(caller: Caller) -> String {
    format!("{:?} {}", caller.subject(), caller.owns(CUSTOMER.parse().unwrap()))
}

#[utoipa::path(get, path = "/read/{id}", security(("token" = ["read"]), ("token" = ["support:read"])),
    params(("id" = String, Path)), responses((status = 200)))]
async fn read(caller: Caller) -> String {
    caller.subject().unwrap_or("unrestricted").to_owned()
}

#[utoipa::path(post, path = "/write", security(("token" = ["read", "write"])), responses((status = 200)))]
async fn write(parts: Parts) -> Result<String, Problem> {
    headers::required_key(&parts)
}

fn api(callers: Option<Callers>) -> Router {
    let routes = OpenApiRouter::new();
    let routes = routes.routes(routes!(open)).routes(routes!(read)).routes(routes!(write));
    let api = openapi::serve::<()>("till", routes);
    match callers {
        Some(callers) => api.layer(Extension(callers)),
        None => api,
    }
}

async fn send(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, headers, String::from_utf8_lossy(&body).into_owned())
}

fn bearer(key: &SigningKey, scope: &str) -> String {
    let claims = with(claims(), json!({"scope": scope})).to_string();
    format!("Bearer {}", sign(key, &header().to_string(), &claims))
}

#[tokio::test]
async fn a_route_admits_callers_with_its_scopes_and_refuses_all_others() {
    let key = SigningKey::p256();
    let file = KeyFile::new(&[key.jwk("first")]);
    let api = api(Some(file.callers()));
    let authorized = |scope| [("authorization", bearer(&key, scope))];
    for (scope, method, path, status) in [
        ("", "GET", "/read/1", 403),
        ("write", "GET", "/read/1", 403),
        ("read ", "GET", "/read/1", 200),
        ("read", "HEAD", "/read/1", 200),
        ("", "HEAD", "/read/1", 403),
        ("support:read", "GET", "/read/1", 200),
        ("READ", "GET", "/read/1", 403),
        ("read:more", "GET", "/read/1", 403),
        ("read", "POST", "/write", 403),
        ("write", "POST", "/write", 403),
        ("write read", "POST", "/write", 400),
        ("", "PUT", "/write", 405),
        ("", "GET", "/nothing", 404),
    ] {
        let headers = authorized(scope);
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let (found, headers, body) = send(&api, method, path, &headers).await;
        assert_eq!(found, status, "{scope} {method} {path}: {body}");
        if status == 405 {
            assert_eq!(headers[header::ALLOW], "POST");
        }
        if status == 403 {
            assert_eq!(headers[header::WWW_AUTHENTICATE], r#"Bearer error="insufficient_scope""#);
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        }
    }
    let good = bearer(&key, "read");
    let lower = good.replacen("Bearer", "bEARER", 1);
    assert_eq!(send(&api, "GET", "/read/1", &[("authorization", &lower)]).await.0, 200);
    let (missing, invalid) = ("Bearer", r#"Bearer error="invalid_token""#);
    let (no_bearer, blank) = (good.replacen("Bearer ", "", 1), good.replacen(' ', "  ", 1));
    let comma = format!("{good},{good}");
    for (headers, challenge) in [
        (&[][..], missing),
        (&[("authorization", "")], missing),
        (&[("authorization", "Bearer")], missing),
        (&[("authorization", "Bearer ")], missing),
        (&[("authorization", "Basic dGlsbDp4")], missing),
        (&[("authorization", &*no_bearer)], missing),
        (&[("cookie", &*good)], missing),
        (&[("authorization", &*blank)], invalid),
        (&[("authorization", &*comma)], invalid),
        (&[("authorization", &*good), ("authorization", &*good)], invalid),
        (&[("authorization", "Bearer x")], invalid),
    ] {
        for path in ["/read/1", "/read/1?access_token=x"] {
            let (status, answer, body) = send(&api, "GET", path, headers).await;
            assert_eq!(
                (status, &answer[header::WWW_AUTHENTICATE]),
                (401, &challenge.parse().unwrap())
            );
            assert_eq!(answer[header::CONTENT_TYPE], "application/problem+json");
            assert!(!body.contains("eyJ"), "{body}");
        }
    }
    for path in ["/open", "/openapi.json", "/docs/", "/"] {
        assert!(send(&api, "GET", path, &[]).await.0 < 400, "{path}");
    }
    let shown = send(&api, "GET", "/open", &[("authorization", &good)]).await.2;
    assert_eq!(shown, "None false", "a public route knows no caller, who owns nothing");
}

#[tokio::test]
async fn without_an_issuer_every_client_is_admitted_and_without_a_layer_none() {
    let unknown = api(Some(Callers::unknown()));
    assert_eq!(send(&unknown, "GET", "/read/1", &[]).await.2, "unrestricted");
    assert_eq!(send(&unknown, "GET", "/open", &[]).await.2, "None true");
    let key = [("idempotency-key", "mine")];
    assert_eq!(send(&unknown, "POST", "/write", &key).await.2, "mine", "as it was stored before");
    for path in ["/read/1", "/open"] {
        assert_eq!(send(&api(None), "GET", path, &[]).await.0, 500, "{path}");
    }
    let admin = operators_only(Router::new().route("/act", post(async || "done")));
    assert_eq!(send(&admin, "POST", "/act", &[]).await.0, 500);
    let bare = Router::new().route("/", post(write));
    assert_eq!(send(&bare, "POST", "/", &key).await.0, 500);
}

#[tokio::test]
async fn the_idempotency_key_of_a_caller_is_a_hash_of_the_caller_and_the_key() {
    let key = SigningKey::p256();
    let file = KeyFile::new(&[key.jwk("first")]);
    let api = api(Some(file.callers()));
    let stored = async |subject: &str, drawn: &str| {
        let claims = with(claims(), json!({"sub": subject, "scope": "read write"})).to_string();
        let token = format!("Bearer {}", sign(&key, &header().to_string(), &claims));
        let headers = [("authorization", &*token), ("idempotency-key", drawn)];
        send(&api, "POST", "/write", &headers).await.2
    };
    let mine = stored("ann", "key").await;
    assert_eq!(mine, stored("ann", "key").await);
    assert!(mine.len() == 64 && !mine.contains("ann") && !mine.contains("key"), "{mine}");
    assert_ne!(mine, stored("bob", "key").await);
    assert_ne!(stored("an", "nkey").await, mine, "the boundary counts");
}

#[tokio::test]
async fn the_admin_port_admits_operators_and_no_other_caller() {
    let key = SigningKey::p256();
    let file = KeyFile::new(&[key.jwk("first")]);
    let route = post(async |caller: Caller, body: String| format!("{:?} {body}", caller.subject()));
    let admin = operators_only(Router::new().route("/act", route));
    let known = admin.clone().layer(Extension(file.callers()));
    for (scope, status) in [("operator", 200), ("orders:write support:read", 403)] {
        let token = bearer(&key, scope);
        let answer = send(&known, "POST", "/act", &[("authorization", &token)]).await;
        assert_eq!(answer.0, status, "{answer:?}");
    }
    assert_eq!(send(&known, "POST", "/act", &[]).await.0, 401);
    assert_eq!(send(&known, "GET", "/nothing", &[]).await.0, 401);
    let unknown = admin.layer(Extension(Callers::unknown()));
    assert_eq!(send(&unknown, "POST", "/act", &[]).await.2, "None ");
}

#[utoipa::path(get, path = "/forgotten", responses((status = 200)))]
async fn forgotten() {}

#[utoipa::path(get, path = "/other", security(("basic" = [])), responses((status = 200)))]
async fn other_scheme() {}

#[utoipa::path(get, path = "/any", security(("token" = [])), responses((status = 200)))]
async fn any_token() {}

#[test]
fn a_route_without_security_does_not_start() {
    let message = |routes: OpenApiRouter| {
        let served = std::panic::catch_unwind(AssertUnwindSafe(|| openapi::serve("till", routes)));
        *served.expect_err("it does not start").downcast::<String>().unwrap()
    };
    let missing = message(OpenApiRouter::new().routes(routes!(forgotten)));
    assert!(missing.starts_with("get /forgotten does not say who may call it"), "{missing}");
    assert!(missing.contains("security((\"token\" = "), "{missing}");
    for routes in [routes!(other_scheme), routes!(any_token)] {
        let refused = message(OpenApiRouter::new().routes(routes));
        assert!(refused.contains("must list scopes of the scheme `token`"), "{refused}");
    }
}
