//! What the pages share, and all their routes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use chassis::Frontend;
use tokio::sync::watch;

use crate::dead_letters::AttentionCache;
use crate::demo::{Launcher, RecentOrders};
use crate::jobs::Jobs;
use crate::metrics::snapshot::Snapshot;
use crate::operators::{self, VerifiedTokens};
use crate::orders::pending::PendingCache;
use crate::overview::books::BooksCache;
use crate::overview::insights::InsightsCache;
use crate::overview::regions::Rendered;
use crate::pages::PageError;
use crate::services::Services;
use crate::settings::Settings;
use crate::{assets, dead_letters, demo, jobs, orders, overview, pages, protection, repair};

/// The state of the control room. All of it can be asked for again: a restart loses the charts, and nothing
/// else.
#[derive(Clone)]
pub struct App(Arc<AppState>);

/// See [`App`].
pub struct AppState {
    pub settings: Settings,
    pub services: Services,
    /// What the poller saw last.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// The same as the regions of the overview. Its receivers are the open pages.
    pub rendered: watch::Sender<Arc<Rendered>>,
    pub books: BooksCache,
    pub pending: PendingCache,
    pub insights: InsightsCache,
    pub attention: AttentionCache,
    pub jobs: Jobs,
    pub recent: RecentOrders,
    pub launcher: Option<Launcher>,
    pub verified: VerifiedTokens,
    /// Whether cookies are for HTTPS alone.
    pub is_encrypted: bool,
    /// Resolves when the process stops.
    pub stopping: Stopping,
}

/// Tells the streams that the process stops.
#[derive(Clone)]
pub struct Stopping(watch::Receiver<bool>);

impl Stopping {
    fn new(frontend: &Frontend) -> Stopping {
        let (sender, receiver) = watch::channel(false);
        let stopping = frontend.stopping.clone();
        tokio::spawn(async move {
            stopping.cancelled().await;
            sender.send_replace(true);
        });
        Stopping(receiver)
    }

    /// Returns when the process stops.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|stops| *stops).await;
    }
}

impl std::ops::Deref for App {
    type Target = AppState;

    fn deref(&self) -> &AppState {
        &self.0
    }
}

impl App {
    /// # Errors
    /// If the settings contradict each other, or a client can't be made.
    pub fn new(settings: Settings, frontend: &Frontend) -> anyhow::Result<App> {
        let services = Services::new(&settings)?;
        pages::HAS_DEMO.store(settings.demo, Ordering::Relaxed);
        pages::HAS_SIGN_IN.store(settings.sign_in, Ordering::Relaxed);
        Ok(App(Arc::new(AppState {
            services,
            snapshot: watch::Sender::default(),
            rendered: watch::Sender::default(),
            books: BooksCache::default(),
            pending: PendingCache::default(),
            insights: InsightsCache::default(),
            attention: AttentionCache::default(),
            jobs: Jobs::default(),
            recent: RecentOrders::default(),
            launcher: Launcher::from_settings(&settings)?,
            verified: VerifiedTokens::default(),
            is_encrypted: frontend.is_encrypted(),
            stopping: Stopping::new(frontend),
            settings,
        })))
    }
}

const NOT_ALLOWED: &str = "This address does not accept this kind of request.";

/// Every route, behind the checks of each request.
pub fn router(app: App) -> Router {
    let demo = if app.settings.demo { demo::router() } else { Router::new() };
    Router::new()
        .merge(demo)
        .merge(overview::router())
        .merge(orders::router())
        .merge(dead_letters::router())
        .merge(repair::router())
        .merge(jobs::router())
        .layer(from_fn_with_state(app.clone(), operators::require))
        .merge(operators::router())
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
