//! The description of a service's API, made from its code: OpenAPI 3.0 at `/openapi.json`, and at
//! `/docs` Swagger UI, which shows it and tries it out, without any asset from elsewhere.
//!
//! A route and its description are one declaration, so there is none without the other. Handlers describe
//! what is specific to them: what they do, their successful response, and why they refuse. This module adds what
//! all operations have in common.
//!
//! The admin port has such a description too, without the page: the page would need to send requests as a browser, which
//! that port rejects.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderValue, Method, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{Redirect, Response};
use axum::routing::get;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::http::callers::authorize::{Access, OPERATOR, RouteAccess, authorize};
use crate::http::limits::Limits;
use crate::http::openapi_compatibility;
use crate::http::openapi_responses::{common_responses, fill_responses, problem_schema};

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
    // The page uses no validator on the internet.
    let config = Config::from("/openapi.json").use_base_layout().validator_url("none");
    let page = Router::from(SwaggerUi::new("/docs").config(config.try_it_out_enabled(true)));
    let document = document(service, &routes);
    serve_described(routes, document)
        .route("/", get(async || Redirect::temporary("/docs/")))
        .merge(page.route_layer(map_response(restrict_page)))
}

/// The routes of a service's admin port, with their description. The port's own layer asks every caller for the scope of
/// operators, and the description lists it under `security`.
pub(crate) fn serve_admin(service: &str, routes: OpenApiRouter) -> Router {
    let document = admin_document(service, &routes);
    serve_described(routes, document)
}

/// A route that the description lacks answers 500.
fn serve_described<S>(routes: OpenApiRouter<S>, document: String) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let access = route_access(&document);
    let document = Bytes::from(document);
    let json = async move || ([(header::CONTENT_TYPE, "application/json")], document.clone());
    let mut router = Router::from(routes);
    if router.has_routes() {
        router = router.route_layer(from_fn_with_state(access, authorize));
    }
    router.route("/openapi.json", get(json))
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
    complete(to_json(routes), service.to_owned(), service_description())
}

/// The description of the routes of an admin port, as it is served and committed.
///
/// # Panics
/// If a route does not describe a parameter of its path.
pub fn admin_document<S>(service: &str, routes: &OpenApiRouter<S>) -> String
where
    S: Clone + Send + Sync + 'static,
{
    let mut document = to_json(routes);
    for (_, _, operation) in operations(&mut document) {
        operation["security"] = json!([{ "token": [OPERATOR] }]);
    }
    complete(document, format!("{service}: admin port"), admin_description())
}

fn to_json<S: Clone + Send + Sync + 'static>(routes: &OpenApiRouter<S>) -> Value {
    serde_json::to_value(routes.get_openapi()).expect("a description is plain JSON")
}

/// The operations of a description, each with its path and its method.
fn operations(document: &mut Value) -> impl Iterator<Item = (&str, &str, &mut Value)> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let methods = item.as_object_mut().into_iter().flatten();
        methods.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

/// Adds to the description of routes what all operations have in common.
fn complete(mut document: Value, title: String, description: String) -> String {
    document["info"] = json!({ "title": title, "version": "1", "description": description });
    for (path, method, operation) in operations(&mut document) {
        ensure_secured(path, method, operation);
        fill_responses(path, method, operation, !is_public(operation));
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
    openapi_compatibility::rewrite(&mut document);
    document["openapi"] = openapi_compatibility::VERSION.into();
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

fn admin_description() -> String {
    format!(
        "For operators. Every instance of a service answers, and every request can be repeated safely.\n\n\
         A service that knows its callers asks each of them for a token with the scope `{OPERATOR}`. The port \
         rejects the requests of web pages: a request has no header `Origin`, and its `Host` is `localhost`, an \
         address, or a name that the service was given.\n\n\
         A refusal is `application/problem+json` (RFC 9457). A 409 changes nothing, and its type names the reason. A \
         503 of type `/problems/outcome-unknown` leaves open what was done. A field that is not listed here is refused."
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

/// Who may use each route, by the description of a service: the scopes are written once, and enforced from where they
/// are published.
fn route_access(document: &str) -> RouteAccess {
    let mut document: Value = serde_json::from_str(document).expect("it was just written");
    RouteAccess::new(operations(&mut document).map(|(path, method, operation)| {
        let name = method.to_uppercase();
        let method = Method::from_bytes(name.as_bytes()).expect("utoipa names methods");
        (path.to_owned(), method, access_of(operation))
    }))
}

/// Who may use an operation: every client if one of its alternatives is empty.
fn access_of(operation: &Value) -> Access {
    let alternatives = operation["security"].as_array().into_iter().flatten();
    let scopes = alternatives.map(|alternative| {
        let scopes = alternative["token"].as_array().into_iter().flatten();
        scopes.filter_map(|scope| Some(scope.as_str()?.to_owned())).collect::<Vec<_>>()
    });
    let scopes = Vec::from_iter(scopes);
    match scopes.iter().any(Vec::is_empty) {
        true => Access::Public,
        false => Access::Scopes(scopes),
    }
}

/// A route that lists no `security` would be open to every client because its author forgot it.
fn ensure_secured(path: &str, method: &str, operation: &Value) {
    let listed = operation["security"].as_array().into_iter().flatten();
    let mut listed = listed.filter_map(Value::as_object).peekable();
    assert!(
        listed.peek().is_some(),
        "{method} {path} does not say who may call it: add `security((\"token\" = [\"a:scope\"]))` to its \
         `#[utoipa::path(…)]`, or `security(())` if every client may"
    );
    for alternative in listed {
        let mut schemes = alternative.iter();
        let is_known = schemes.all(|(scheme, scopes)| {
            scheme == "token" && scopes.as_array().is_some_and(|scopes| !scopes.is_empty())
        });
        assert!(is_known, "{method} {path} must list scopes of the scheme `token`, and no other");
    }
}

/// Whether every client may use an operation.
fn is_public(operation: &Value) -> bool {
    access_of(operation) == Access::Public
}

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
