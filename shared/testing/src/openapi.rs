//! The committed descriptions of an API and of an admin port.

use chassis::openapi;
use chassis::testing::compare_document;
use utoipa_axum::router::OpenApiRouter;

/// Compares the description of a service's API in `openapi.json` of `folder` with its code. Rewrites the file if the
/// variable `REWRITE_OPENAPI` is set, as `make openapi` does.
///
/// # Panics
/// If they differ.
pub fn compare_openapi<S>(service: &str, folder: &str, routes: &OpenApiRouter<S>)
where
    S: Clone + Send + Sync + 'static,
{
    let document = openapi::document(service, routes);
    compare_document(&format!("{folder}/openapi.json"), &document);
}

/// Compares the description of the routes that a service adds to its admin port, in `admin-openapi.json` of `folder`, with
/// its code, in the same way.
///
/// # Panics
/// If they differ.
pub fn compare_admin_openapi<S>(service: &str, folder: &str, routes: &OpenApiRouter<S>)
where
    S: Clone + Send + Sync + 'static,
{
    let document = openapi::admin_document(service, routes);
    compare_document(&format!("{folder}/admin-openapi.json"), &document);
}
