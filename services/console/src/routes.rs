//! Every route, behind the checks of each request.

use std::sync::atomic::Ordering;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

use crate::app::App;
use crate::dead_letters::{detail, list, live, replay, settle};
use crate::pages::PageError;
use crate::repair::{self, consumers};
use crate::{assets, demo, orders, overview, pages, protection, sign_in, waiting};

const NOT_ALLOWED: &str = "This address does not accept this kind of request.";

pub fn router(app: App) -> Router {
    pages::HAS_DEMO.store(app.settings.demo, Ordering::Relaxed);
    pages::HAS_SIGN_IN.store(app.settings.sign_in, Ordering::Relaxed);
    let demo = if app.settings.demo { demo_routes() } else { Router::new() };
    operator_routes()
        .merge(demo)
        .layer(from_fn_with_state(app.clone(), sign_in::require))
        .route("/sign-in", get(sign_in::show).post(sign_in::accept_pasted))
        .route("/sign-out", post(sign_in::sign_out))
        .merge(assets::router())
        .route("/{*path}", get(async || pages::not_found()))
        .method_not_allowed_fallback(async || {
            PageError::new(StatusCode::METHOD_NOT_ALLOWED, NOT_ALLOWED)
        })
        .layer(from_fn(pages::show_failures))
        .layer(from_fn_with_state(app.clone(), protection::check))
        .layer(from_fn(protection::set_headers))
        .with_state(app)
}

fn operator_routes() -> Router<App> {
    Router::new()
        .route("/", get(overview::show))
        .route("/overview/events", get(overview::follow))
        .route("/orders", get(orders::find::show))
        .route("/orders/stuck/events", get(orders::stuck::follow))
        .route("/orders/{order_id}", get(orders::detail::show))
        .route("/dead-letters", get(list::show))
        .route("/dead-letters/events", get(live::follow))
        .route("/dead-letters/replay", post(replay::start))
        .route("/dead-letters/{service}/{id}", get(detail::show))
        .route("/dead-letters/{service}/{id}/replay", post(settle::replay))
        .route("/dead-letters/{service}/{id}/discard", post(settle::discard))
        .route("/dead-letters/{service}/{id}/remedy", post(settle::remedy))
        .route("/waiting", get(waiting::show))
        .route("/waiting/{service}/tasks/{id}", post(waiting::answer_task))
        .route("/waiting/{service}/calls/{id}/try", post(waiting::try_call))
        .route("/waiting/{service}/calls/{id}/settle", post(waiting::settle_call))
        .route("/repair", get(repair::show))
        .route("/repair/republish", post(repair::republish))
        .route("/repair/rebuild", post(repair::rebuild))
        .route("/repair/pause", post(consumers::pause))
        .route("/repair/{service}/resume", post(consumers::resume))
        .route("/jobs/events", get(repair::follow_job))
        .route("/jobs/stop", post(repair::stop_job))
}

fn demo_routes() -> Router<App> {
    Router::new()
        .route("/demo", get(demo::show))
        .route("/demo/orders", post(demo::place))
        .route("/demo/events", get(demo::recent::follow))
        .route("/demo/components", post(demo::components::act))
}
