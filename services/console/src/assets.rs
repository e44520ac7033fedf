//! The files that pages load: all from here.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::routing::get;

/// A file of the pages.
pub struct Asset {
    pub path: &'static str,
    kind: &'static str,
    content: &'static str,
}

pub const STYLE: Asset = Asset {
    path: concat!("/assets/", env!("CARGO_PKG_VERSION"), "/console.css"),
    kind: "text/css; charset=utf-8",
    content: include_str!("../assets/console.css"),
};

pub const SCRIPT: Asset = Asset {
    path: concat!("/assets/", env!("CARGO_PKG_VERSION"), "/live.js"),
    kind: "text/javascript; charset=utf-8",
    content: include_str!("../assets/live.js"),
};

pub const ICON: Asset = Asset {
    path: concat!("/assets/", env!("CARGO_PKG_VERSION"), "/icon.svg"),
    kind: "image/svg+xml",
    content: include_str!("../assets/icon.svg"),
};

/// A browser asks again after this time, so that a page and its files are of one version soon after an update.
const CACHED_FOR: &str = "max-age=60";

pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let serve = |asset: Asset| {
        get(async move || {
            ([(CONTENT_TYPE, asset.kind), (CACHE_CONTROL, CACHED_FOR)], asset.content)
        })
    };
    [STYLE, SCRIPT, ICON]
        .into_iter()
        .fold(Router::new(), |router, asset| router.route(asset.path, serve(asset)))
}
