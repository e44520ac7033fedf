//! The description of a service's API, made from its code: OpenAPI 3.1 at `/openapi.json`, and at
//! `/docs` Swagger UI, which shows it and tries it out, without any asset from elsewhere.
//!
//! A route and its description are one declaration, so there is none without the other. Handlers describe
//! what is specific to them: what they do, their successful response, and why they refuse. This module adds what
//! all operations have in common.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::middleware::map_response;
use axum::response::{Redirect, Response};
use axum::routing::get;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::http::limits::Limits;

/// The page runs scripts and styles that this service serves as files, and sends requests to this service only.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of a service, with their description and its page.
pub fn serve<S>(service: &str, routes: OpenApiRouter<S>) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let document = Bytes::from(document(service, &routes));
    let json = async move || ([(header::CONTENT_TYPE, "application/json")], document.clone());
    // The page uses no validator on the internet.
    let config = Config::from("/openapi.json").use_base_layout().validator_url("none");
    let page = Router::from(SwaggerUi::new("/docs").config(config.try_it_out_enabled(true)));
    Router::from(routes)
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
            fill_responses(path, method, operation);
        }
    }
    for schema in document["components"]["schemas"].as_object_mut().into_iter().flatten() {
        mark_enumerations_open(schema.1);
    }
    let components = &mut document["components"];
    components["schemas"]["Problem"] = problem_schema();
    components["responses"] =
        common_responses().into_iter().map(|(name, _, answer)| (name.to_owned(), answer)).collect();
    let mut text = serde_json::to_string_pretty(&document).expect("a description is plain JSON");
    text.push('\n');
    text
}

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

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "Why the request was not carried out (RFC 9457).",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {
                "type": "string",
                "format": "uri-reference",
                "description": "The kind of problem. It never changes its meaning.",
                "examples": ["/problems/invalid-value"],
            },
            "title": { "type": "string", "description": "The kind of problem, for people." },
            "status": {
                "type": "integer", "minimum": 400, "maximum": 599,
                "description": "The HTTP status.",
            },
            "detail": { "type": "string", "description": "The reason in this case, for people." },
            "field": {
                "type": "string",
                "description": "Where the offending value stands in the request, such as `lines[2].size`.",
            },
        },
    })
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

/// The operations that have a common response.
enum ProblemScope {
    All,
    /// Operations with an id in their path.
    WithPathId,
    /// Operations that take a value which may break a rule.
    WithInput,
    /// Operations that change nothing, and operations that change something.
    Read,
    Write,
}

/// The common responses: for each its name among the components, its operations, and its description. The name ends
/// with the status.
fn common_responses() -> Vec<(&'static str, ProblemScope, Value)> {
    let problem =
        |description: &str| json!({ "description": description, "content": problem_content() });
    let with_header = |description: &str, name: &str, meaning: &str, schema: Value| {
        let mut answer = problem(description);
        answer["headers"][name] = json!({ "description": meaning, "schema": schema });
        answer
    };
    let with_text = |description, name, meaning| {
        with_header(description, name, meaning, json!({ "type": "string" }))
    };
    let retry = |description| {
        let meaning = "After how many seconds to repeat the request, at the earliest.";
        let schema = json!({ "type": "integer", "minimum": 1 });
        with_header(description, "Retry-After", meaning, schema)
    };
    let allow = "The methods that this address has.";
    let method = with_text("This address does not have the method.", "Allow", allow);
    let coding = "The content codings that are accepted, where the body has another one.";
    let unsupported = "The body is not sent as `application/json`, or it is compressed. Of type \
         `/problems/unsupported-content-coding`: it must be sent without a `Content-Encoding`.";
    let unsupported = with_text(unsupported, "Accept-Encoding", coding);
    let unknown = "Not now. Of type `/problems/unavailable`: nothing was stored. Of type \
         `/problems/outcome-unknown`: it may be stored or not: ask for the same again, with the \
         same `Idempotency-Key` where one is taken.";
    let malformed = problem("Malformed JSON, or a malformed header.");
    let slow = problem("The body did not arrive in time; nothing was stored.");
    // Sent before there is a request that could be answered with a body.
    let header_too_large = json!({ "description": "The headers are too large." });
    let internal = problem("A fault of the service. Its log has the reason.");
    vec![
        ("Malformed400", ProblemScope::All, malformed),
        ("NotFound404", ProblemScope::WithPathId, problem("There is no such thing.")),
        ("MethodNotAllowed405", ProblemScope::All, method),
        ("TooSlow408", ProblemScope::All, slow),
        ("TooLarge413", ProblemScope::All, problem("The body is too large.")),
        ("Unsupported415", ProblemScope::All, unsupported),
        ("Invalid422", ProblemScope::WithInput, problem("`field` breaks a rule.")),
        ("HeaderTooLarge431", ProblemScope::All, header_too_large),
        ("Internal500", ProblemScope::All, internal),
        ("Unavailable503", ProblemScope::Read, retry("Not now.")),
        ("Unknown503", ProblemScope::Write, retry(unknown)),
    ]
}

fn problem_content() -> Value {
    json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } })
}

/// Adds the common responses to one operation.
fn fill_responses(path: &str, method: &str, operation: &mut Value) {
    let is_read = method == "get";
    let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    for name in path.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0)) {
        let described = parameters.iter().any(|it| it["name"] == name);
        assert!(described, "{method} {path} does not describe its parameter {name}");
    }
    let is_valued = operation.get("requestBody").is_some()
        || parameters.iter().any(|it| it["in"] == "query" || it["name"] == "Idempotency-Key");
    let responses = operation["responses"].as_object_mut().expect("utoipa writes an object");
    for (status, answer) in responses.iter_mut() {
        if status.starts_with(['4', '5']) {
            answer["content"] = problem_content();
        }
        if status == "201" {
            answer["headers"]["Location"] = json!({
                "description": "Where it can be read from now on.",
                "schema": { "type": "string", "format": "uri-reference" },
            });
        }
    }
    for (name, scope, _) in common_responses() {
        let applies = match scope {
            ProblemScope::All => true,
            ProblemScope::WithPathId => path.contains('{'),
            ProblemScope::WithInput => is_valued,
            ProblemScope::Read => is_read,
            ProblemScope::Write => !is_read,
        };
        let status = &name[name.len() - 3..];
        if applies && !responses.contains_key(status) {
            let reference = format!("#/components/responses/{name}");
            responses.insert(status.to_owned(), json!({ "$ref": reference }));
        }
    }
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
