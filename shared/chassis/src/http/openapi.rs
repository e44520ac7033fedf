//! The description of a service's API, made from its code: OpenAPI 3.1 at `/openapi.json`, and at
//! `/docs` Swagger UI, which shows it and tries it out, without any asset from elsewhere.
//!
//! A route and its description are one declaration, so there is none without the other. Handlers describe
//! what is specific to them: what they do, their successful response, and why they refuse. This module adds what
//! all operations have in common.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{Redirect, Response};
use axum::routing::get;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::http::callers::authorize::authorize;
use crate::http::limits::Limits;
use crate::http::openapi_responses::{common_responses, fill_responses, problem_schema};
use crate::http::openapi_security::{ensure_secured, is_public, route_access};

/// The page runs scripts and styles that this service serves as files, and sends requests to this service only.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of a service, with their description and its page. Each route admits the callers whose scopes its
/// description lists under `security`; the page and the description are public.
///
/// # Panics
/// If a route has no `security`, so that a service with such a route does not start.
pub fn serve<S>(service: &str, routes: OpenApiRouter<S>) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let document = document(service, &routes);
    let access = route_access(&document);
    let document = Bytes::from(document);
    let json = async move || ([(header::CONTENT_TYPE, "application/json")], document.clone());
    // The page uses no validator on the internet.
    let config = Config::from("/openapi.json").use_base_layout().validator_url("none");
    let page = Router::from(SwaggerUi::new("/docs").config(config.try_it_out_enabled(true)));
    let mut router = Router::from(routes);
    if router.has_routes() {
        router = router.route_layer(from_fn_with_state(access, authorize));
    }
    router
        .route("/openapi.json", get(json))
        .route("/", get(async || Redirect::temporary("/docs/")))
        .merge(page.route_layer(map_response(restrict_page)))
}

async fn restrict_page(mut response: Response) -> Response {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The description of a service's routes, as it is served and committed.
///
/// # Panics
/// If a route has no `security`, or does not describe a parameter of its path.
pub fn document<S>(service: &str, routes: &OpenApiRouter<S>) -> String
where
    S: Clone + Send + Sync + 'static,
{
    let mut document =
        serde_json::to_value(routes.get_openapi()).expect("a description is plain JSON");
    document["info"] =
        json!({ "title": service, "version": "1", "description": service_description() });
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            ensure_secured(path, method, operation);
            let is_protected = !is_public(operation);
            fill_responses(path, method, operation, is_protected);
        }
    }
    for schema in document["components"]["schemas"].as_object_mut().into_iter().flatten() {
        mark_enumerations_open(schema.1);
    }
    let components = &mut document["components"];
    components["schemas"]["Problem"] = problem_schema();
    components["responses"] =
        common_responses().into_iter().map(|it| (it.0.to_owned(), it.2)).collect();
    components["securitySchemes"]["token"] = json!({
        "type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": TOKEN_DESCRIPTION,
    });
    let mut text = serde_json::to_string_pretty(&document).expect("a description is plain JSON");
    text.push('\n');
    text
}

const TOKEN_DESCRIPTION: &str = "An access token (RFC 9068) with the listed scopes. A service without a token issuer needs none.";

fn service_description() -> String {
    let Limits { body_bytes_max, header_bytes_max, .. } = Limits::default();
    format!(
        "A request has one of three outcomes.\n\n\
         - 2xx: done, and durable.\n\
         - 4xx, or 503 of type `/problems/unavailable`: refused. This request stored nothing.\n\
         - No answer, 500, or 503 of type `/problems/outcome-unknown`: unknown. Repeat the request with the \
         same `Idempotency-Key` until the answer is 2xx, or 4xx other than 408.\n\n\
         A 503 or a 408 is the outcome of that one request. An earlier one with the same key may have been \
         stored.\n\n\
         A refusal is `application/problem+json` (RFC 9457), and its `field` names the offending value. The \
         exceptions are a 431, and the 400 to a request that is not HTTP. A field that is not listed here is \
         refused. A body has {body_bytes_max} bytes at most, a request's line and headers {header_bytes_max}, \
         and there are 100 headers at most."
    )
}

/// Notes at each enumeration that it may grow: a client made from this description would otherwise fail at
/// the first new value.
fn mark_enumerations_open(schema: &mut Value) {
    if schema.get("enum").is_some() {
        let description = schema["description"].as_str().unwrap_or_default();
        schema["description"] =
            format!("{description}\n\n{OPEN_ENUMERATION_NOTE}").trim_start().into();
    }
    let parts = match schema {
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Array(parts) => parts.iter_mut().collect(),
        _ => Vec::new(),
    };
    parts.into_iter().for_each(mark_enumerations_open);
}

const OPEN_ENUMERATION_NOTE: &str =
    "A later version may add values: a client has to accept values that it does not know.";

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn the_page_loads_nothing_from_other_hosts() {
        let router: axum::Router = serve("till", OpenApiRouter::new());
        let get = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap()
        };
        let read = async |path: &str| {
            let response = get(path).await;
            assert_eq!(response.headers()[header::CONTENT_SECURITY_POLICY], PAGE_POLICY, "{path}");
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            String::from_utf8_lossy(&body).into_owned()
        };
        let start = read("/docs/swagger-initializer.js").await;
        assert!(start.contains(r#""url": "/openapi.json""#), "{start}");
        assert!(start.contains(r#""validatorUrl": "none""#), "{start}");
        read("/docs/").await;
        for elsewhere in ["http://", "https://", "unsafe"] {
            assert!(!PAGE_POLICY.contains(elsewhere) && !start.contains(elsewhere), "{elsewhere}");
        }
        let root = get("/").await;
        assert_eq!(
            (root.status().as_u16(), &root.headers()[header::LOCATION] == "/docs/"),
            (307, true)
        );
    }
}
