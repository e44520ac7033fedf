//! The committed description of an API.

use chassis::openapi;
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
    let (path, generated) = (format!("{folder}/openapi.json"), openapi::document(service, routes));
    if std::env::var_os("REWRITE_OPENAPI").is_some() {
        std::fs::write(&path, generated).expect("the file can be written");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let mut lines = committed.lines().zip(generated.lines()).enumerate();
    let differing = lines.find(|(_, (committed, generated))| committed != generated);
    let differing = differing.map_or(String::new(), |(nth, (committed, generated))| {
        format!("; line {}: {committed:?} is now {generated:?}", nth + 1)
    });
    assert!(
        committed == generated,
        "{path} differs from the code{differing}. `make openapi` rewrites it."
    );
}
