//! Takes over secrets and certificates that change while a service runs.
//!
//! Promise: what is in use works. The files are read again at an interval, and at once when a login is refused. New
//! content is taken over once a login with it succeeds, so a file may change before its server does. Until then the
//! old content stays in use.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::reload;
use crate::config::{Config, Secret};
use crate::db::pool::RenewablePool;
use crate::service::ReadConfig;
use crate::telemetry::log_throttle::LogThrottle;

/// How often the files are read. Kubernetes replaces a link to change a file, so their content is compared.
const READ_INTERVAL: Duration = Duration::from_secs(10);

/// The same while a server refuses new content.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The pause between two reads, however often logins are refused.
const READ_PAUSE: Duration = reload::LOGIN_RETRY_INTERVAL;

/// The one task that reads the files again.
pub(super) struct Reloader {
    pub read_config: ReadConfig,
    pub pool: RenewablePool,
    pub database_url: Secret,
    pub log_throttle: LogThrottle,
}

impl Reloader {
    /// Runs until it is stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut interval = READ_INTERVAL;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(interval) => {}
                () = reload::requested() => {}
            }
            interval = if self.reload().await { READ_INTERVAL } else { RETRY_INTERVAL };
            stop.run_until_cancelled(sleep(READ_PAUSE)).await;
        }
    }

    /// Reads the files and takes over what has changed. Returns whether nothing is left to be taken over.
    async fn reload(&mut self) -> bool {
        let read_config = self.read_config.clone();
        let read = match tokio::task::spawn_blocking(move || read_config()).await {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => return self.keep_old("The environment", &error.into()),
            Err(panic) => return self.keep_old("The environment", &panic.into()),
        };
        self.renew_database(read).await
    }

    async fn renew_database(&mut self, config: Config) -> bool {
        if config.database_url == self.database_url {
            return true;
        }
        if let Err(error) = self.pool.renew(&config.database_url).await {
            return self.keep_old("DATABASE_URL", &error);
        }
        info!("DATABASE_URL has changed, and new connections use it");
        self.database_url = config.database_url;
        true
    }

    fn keep_old(&mut self, name: &str, error: &anyhow::Error) -> bool {
        let reason = format!("{error:#}");
        if self.log_throttle.should_log(name, &reason) {
            warn!("{name} has changed, and the old content stays in use for now: {reason}");
        }
        false
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
