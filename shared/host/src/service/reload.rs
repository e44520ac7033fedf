//! Takes over secrets and certificates that change while a service runs.
//!
//! Promise: what is in use works. The files are read again at an interval, and at once when a login is refused. New
//! content is taken over once a login with it succeeds, so a file may change before its server does. Until then the
//! old content stays in use.

use std::sync::Arc;
use std::time::Duration;

use messaging::flow::reload;
use messaging::kafka::schema_registry::SchemaRegistryClient;
use messaging::telemetry::log_throttle::LogThrottle;
use rdkafka::ClientConfig;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::config::env::BadConfiguration;
use crate::config::reload::fingerprint;
use crate::db::pool::RenewablePool;
use crate::http::tls::TlsAcceptor;
use crate::service::certificates;

/// How often the files are read. Kubernetes replaces a link to change a file, so their content is compared.
const READ_INTERVAL: Duration = Duration::from_secs(10);

/// The same while a server refuses new content.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The pause between two reads, however often logins are refused.
const READ_PAUSE: Duration = reload::LOGIN_RETRY_INTERVAL;

pub(crate) type ReadConfig = Arc<dyn Fn() -> Result<Config, BadConfiguration> + Send + Sync>;

/// The parts of the configuration that are taken over, each as a whole.
#[derive(Clone, Copy, Debug)]
enum ReloadedPart {
    Database,
    Kafka,
    Registry,
    Https,
}

const PARTS: [ReloadedPart; 4] =
    [ReloadedPart::Database, ReloadedPart::Kafka, ReloadedPart::Registry, ReloadedPart::Https];

impl ReloadedPart {
    fn name(self) -> &'static str {
        match self {
            ReloadedPart::Database => "the URL of the database",
            ReloadedPart::Kafka => "the credentials for Kafka",
            ReloadedPart::Registry => "the credentials for the schema registry",
            ReloadedPart::Https => "the certificate of HTTPS",
        }
    }

    fn fingerprint(self, config: &Config) -> Vec<u8> {
        let (kafka, registry) = (&config.kafka, &config.schema_registry);
        match self {
            ReloadedPart::Database => fingerprint(&[Some(&config.database_url)], &[]),
            ReloadedPart::Kafka => fingerprint(
                &[kafka.kafka_sasl_password.as_ref()],
                &[
                    kafka.kafka_ssl_ca_location.as_deref(),
                    kafka.kafka_ssl_certificate_location.as_deref(),
                    kafka.kafka_ssl_key_location.as_deref(),
                ],
            ),
            ReloadedPart::Registry => {
                let (password, token) =
                    (&registry.schema_registry_password, &registry.schema_registry_token);
                let trusted = registry.trusted_certificates();
                fingerprint(&[password.as_ref(), token.as_ref()], &[trusted.as_deref()])
            }
            ReloadedPart::Https => {
                let (certificate, key) = config.http_tls.certificate().unzip();
                fingerprint(&[], &[certificate, key])
            }
        }
    }
}

pub(super) struct Users {
    pub pool: RenewablePool,
    pub kafka: watch::Sender<ClientConfig>,
    pub registry: Arc<SchemaRegistryClient>,
    pub tls: Option<TlsAcceptor>,
}

pub(super) struct Reloader {
    read_config: ReadConfig,
    users: Users,
    /// The fingerprint of each part that is in use.
    in_use: [Vec<u8>; PARTS.len()],
    log_throttle: LogThrottle,
}

impl Reloader {
    /// `config` is in use.
    pub(super) fn new(read_config: ReadConfig, config: &Config, users: Users) -> Reloader {
        let in_use = PARTS.map(|part| part.fingerprint(config));
        certificates::report_expiry(config);
        Reloader { read_config, users, in_use, log_throttle: LogThrottle::default() }
    }

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
        let read = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let config = read_config()?;
            certificates::report_expiry(&config);
            let fingerprints = PARTS.map(|part| part.fingerprint(&config));
            Ok((config, fingerprints))
        });
        let (config, fingerprints) = match read.await.map_err(anyhow::Error::new).flatten() {
            Ok(read) => read,
            Err(error) => {
                self.log_kept("the environment", &error);
                return false;
            }
        };
        let mut is_complete = true;
        for ((nth, part), fingerprint) in PARTS.into_iter().enumerate().zip(fingerprints) {
            if self.in_use[nth] == fingerprint {
                continue;
            }
            match self.users.take_over(part, &config).await {
                Ok(()) => {
                    info!("reloaded {}: new connections use the new value", part.name());
                    self.in_use[nth] = fingerprint;
                }
                Err(error) => {
                    self.log_kept(part.name(), &error);
                    is_complete = false;
                }
            }
        }
        is_complete
    }

    fn log_kept(&mut self, name: &str, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        if self.log_throttle.should_log(name, &reason) {
            warn!("{name} changed but was not reloaded, the old value stays in use: {reason}");
        }
    }
}

impl Users {
    /// Has new connections use the new content, if they can.
    async fn take_over(&self, part: ReloadedPart, config: &Config) -> anyhow::Result<()> {
        match part {
            ReloadedPart::Database => {
                config.check_database_keys()?;
                self.pool.renew(&config.database_url).await
            }
            ReloadedPart::Kafka => {
                config.kafka.try_login().await?;
                self.kafka.send_replace(config.kafka.connection());
                Ok(())
            }
            ReloadedPart::Registry => {
                self.registry.renew(config.schema_registry.client_settings()?).await
            }
            ReloadedPart::Https => {
                if let (Some(tls), Some((certificate, key))) =
                    (&self.tls, config.http_tls.certificate())
                {
                    tls.replace(certificate, key)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
