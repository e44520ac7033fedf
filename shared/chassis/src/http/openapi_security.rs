//! Who may use an operation, by its description: the scopes are written once, and enforced from where they are
//! published.

use axum::http::Method;
use serde_json::Value;

use crate::http::callers::authorize::{Access, RouteAccess};

/// Who may use each route, by the description of a service.
pub(super) fn route_access(document: &str) -> RouteAccess {
    let document: Value = serde_json::from_str(document).expect("it was just written");
    let paths = document["paths"].as_object().into_iter().flatten();
    let operations = paths.flat_map(|(path, item)| {
        item.as_object().into_iter().flatten().map(move |it| (path.clone(), it))
    });
    RouteAccess::new(operations.map(|(path, (method, operation))| {
        let name = method.to_uppercase();
        let method = Method::from_bytes(name.as_bytes()).expect("utoipa names methods");
        (path, method, access_of(operation))
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
pub(super) fn ensure_secured(path: &str, method: &str, operation: &Value) {
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
pub(super) fn is_public(operation: &Value) -> bool {
    access_of(operation) == Access::Public
}
