//! What the pages share.

use std::sync::Arc;

use chassis::Frontend;
use ops_client::Services;
use tokio::sync::watch;

use crate::feeds::attention::AttentionFeed;
use crate::feeds::books::BooksFeed;
use crate::feeds::insights::InsightsFeed;
use crate::feeds::pending::PendingFeed;
use crate::feeds::recent_orders::RecentOrders;
use crate::feeds::rendered::Rendered;
use crate::jobs::Jobs;
use crate::launcher::Launcher;
use crate::metrics::snapshot::Snapshot;
use crate::operators::VerifiedTokens;
use crate::services;
use crate::settings::Settings;
use crate::streams::Stopping;

/// The state of the control room. All of it can be asked for again: a restart loses the charts, and nothing
/// else.
#[derive(Clone)]
pub struct App(Arc<AppState>);

/// See [`App`].
pub struct AppState {
    pub settings: Settings,
    pub services: Arc<Services>,
    /// What the poller saw last.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// The same as the regions of the overview. Its receivers are the open pages.
    pub rendered: watch::Sender<Arc<Rendered>>,
    pub books: BooksFeed,
    pub pending: PendingFeed,
    pub insights: InsightsFeed,
    pub attention: AttentionFeed,
    pub jobs: Jobs,
    pub recent: RecentOrders,
    pub launcher: Option<Launcher>,
    pub verified: VerifiedTokens,
    /// Whether cookies are for HTTPS alone.
    pub is_encrypted: bool,
    /// Resolves when the process stops.
    pub stopping: Stopping,
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
        Ok(App(Arc::new(AppState {
            services: Arc::new(services::connect(&settings)?),
            snapshot: watch::Sender::default(),
            rendered: watch::Sender::default(),
            books: BooksFeed::default(),
            pending: PendingFeed::default(),
            insights: InsightsFeed::default(),
            attention: AttentionFeed::default(),
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
