//! The responses that operations of all services have in common, and the schema of a problem.

use serde_json::{Value, json};

pub(super) fn problem_schema() -> Value {
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

pub(super) enum ProblemScope {
    All,
    /// Operations with an id in their path.
    WithPathId,
    /// Operations that take a value which may break a rule.
    WithInput,
    /// Operations that change nothing, and operations that change something.
    Read,
    Write,
    /// Operations that need a token.
    Protected,
}

/// The common responses: for each its name among the components, its operations, and its description. The name ends
/// with the status.
pub(super) fn common_responses() -> Vec<(&'static str, ProblemScope, Value)> {
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
        let meaning = "The minimum number of seconds to wait before the request is repeated.";
        let schema = json!({ "type": "integer", "minimum": 1 });
        with_header(description, "Retry-After", meaning, schema)
    };
    let allow = "The methods that this address has.";
    let method = with_text("This address does not have the method.", "Allow", allow);
    let coding = "The accepted content codings, if the body has another one.";
    let unsupported = "The body is not sent as `application/json`, or it is compressed. Of type \
         `/problems/unsupported-content-coding`: it must be sent without a `Content-Encoding`.";
    let unsupported = with_text(unsupported, "Accept-Encoding", coding);
    let unknown = "Temporarily unavailable. Of type `/problems/unavailable`: nothing was stored. Of type \
         `/problems/outcome-unknown`: it may or may not be stored: repeat the request, with the \
         same `Idempotency-Key` if the operation takes one.";
    let challenge = "Why, as in RFC 6750.";
    let unauthorized = "The access token is missing, or it is not accepted.";
    let unauthorized = with_text(unauthorized, "WWW-Authenticate", challenge);
    let forbidden = problem("The access token lacks a scope, or the caller may not do this.");
    let malformed = problem("Malformed JSON, or a malformed header.");
    let slow = problem("The body did not arrive in time; nothing was stored.");
    // Sent before there is a request that could be answered with a body.
    let header_too_large = json!({ "description": "The headers are too large." });
    let internal = problem("A fault of the service. Its log has the reason.");
    vec![
        ("Malformed400", ProblemScope::All, malformed),
        ("Unauthorized401", ProblemScope::Protected, unauthorized),
        ("Forbidden403", ProblemScope::Protected, forbidden),
        ("NotFound404", ProblemScope::WithPathId, problem("There is no such thing.")),
        ("MethodNotAllowed405", ProblemScope::All, method),
        ("TooSlow408", ProblemScope::All, slow),
        ("TooLarge413", ProblemScope::All, problem("The body is too large.")),
        ("Unsupported415", ProblemScope::All, unsupported),
        ("Invalid422", ProblemScope::WithInput, problem("`field` breaks a rule.")),
        ("HeaderTooLarge431", ProblemScope::All, header_too_large),
        ("Internal500", ProblemScope::All, internal),
        ("Unavailable503", ProblemScope::Read, retry("Temporarily unavailable.")),
        ("Unknown503", ProblemScope::Write, retry(unknown)),
    ]
}

fn problem_content() -> Value {
    json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } })
}

/// Adds the common responses to one operation.
pub(super) fn fill_responses(path: &str, method: &str, operation: &mut Value, is_protected: bool) {
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
                "description": "The address of the new resource.",
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
            ProblemScope::Protected => is_protected,
        };
        let status = &name[name.len() - 3..];
        if applies && !responses.contains_key(status) {
            let reference = format!("#/components/responses/{name}");
            responses.insert(status.to_owned(), json!({ "$ref": reference }));
        }
    }
}
