//! The configuration of a service: the environment, and nothing else. One field a variable; an
//! empty variable counts as unset, so that docker-compose.yml can pass on what it may find,
//! `${NAME:-}`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// What every service reads from its environment. A service with variables of its own derives
/// `clap::Args` on a struct and takes it as the second argument of its `serve`: see
/// [`crate::process::main`].
#[derive(Debug, Clone, clap::Parser)]
pub struct Config {
    /// The service's own database, as the role that serves. TLS by its `sslmode` and `sslrootcert`
    /// parameters.
    #[arg(long, env, hide_env_values = true, value_parser = database_url)]
    pub database_url: Secret,
    /// The same database as the role that owns the tables; `migrate` alone uses it. Default:
    /// DATABASE_URL.
    #[arg(long, env, hide_env_values = true, value_parser = database_url)]
    pub migration_database_url: Option<Secret>,
    /// How many connections the pool of a replica holds to its database at most, for whoever asks; its
    /// loops have five more of their own.
    #[arg(long, env, default_value = "16", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub database_pool_size: u32,

    /// Where the API listens.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    pub http_addr: SocketAddr,
    /// Where /livez, /readyz, /metrics and /books are read.
    #[arg(long, env, default_value = "0.0.0.0:9090")]
    pub probe_addr: SocketAddr,
    /// Where operators work, without authentication: keep it on loopback or behind a proxy that
    /// knows them.
    #[arg(long, env, default_value = "127.0.0.1:9091")]
    pub operator_addr: SocketAddr,

    /// Its way to Kafka.
    #[command(flatten)]
    pub kafka: Kafka,
    /// Its way to the schema registry.
    #[command(flatten)]
    pub schema_registry: SchemaRegistry,

    /// Where traces go by OTLP (http/protobuf), without `/v1/traces`. Unset: nowhere.
    #[arg(long, env)]
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// How log lines look; RUST_LOG chooses which there are.
    #[arg(long, env, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// How long work under way may take after a stop: at most half of it for the API, the rest for
    /// the loops. The process ends up to 5 s later.
    #[arg(
        long,
        env = "SHUTDOWN_TIMEOUT_SECONDS",
        value_name = "SHUTDOWN_TIMEOUT_SECONDS",
        default_value = "20",
        value_parser = seconds
    )]
    pub shutdown_timeout: Duration,
}

/// The way to Kafka.
#[derive(Debug, Clone, clap::Args)]
pub struct Kafka {
    /// Kafka's brokers, comma-separated.
    #[arg(long, env)]
    pub kafka_bootstrap_servers: String,
    /// librdkafka's `security.protocol`: plaintext, ssl, sasl_plaintext or sasl_ssl.
    #[arg(long, env)]
    pub kafka_security_protocol: Option<String>,
    /// librdkafka's `sasl.mechanism`: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512.
    #[arg(long, env)]
    pub kafka_sasl_mechanism: Option<String>,
    /// The user of SASL.
    #[arg(long, env)]
    pub kafka_sasl_username: Option<String>,
    /// The password of SASL.
    #[arg(long, env, hide_env_values = true)]
    pub kafka_sasl_password: Option<Secret>,
    /// The certificates that brokers are checked against. Default: the system's.
    #[arg(long, env)]
    pub kafka_ssl_ca_location: Option<String>,
    /// The certificate that this client shows to brokers.
    #[arg(long, env)]
    pub kafka_ssl_certificate_location: Option<String>,
    /// The key of that certificate.
    #[arg(long, env)]
    pub kafka_ssl_key_location: Option<String>,
}

/// The way to the schema registry.
#[derive(Debug, Clone, clap::Args)]
pub struct SchemaRegistry {
    /// The base of a Confluent-compatible schema registry's API.
    #[arg(long, env)]
    pub schema_registry_url: String,
    /// The user of the registry.
    #[arg(long, env)]
    pub schema_registry_username: Option<String>,
    /// The password of the registry.
    #[arg(long, env, hide_env_values = true)]
    pub schema_registry_password: Option<Secret>,
    /// How far the registry may be behind. A record whose schema id the registry does not know waits for so
    /// long after it was written, and becomes a dead letter then. Other records go on meanwhile.
    #[arg(
        long,
        env = "SCHEMA_REGISTRY_LAG_SECONDS",
        value_name = "SCHEMA_REGISTRY_LAG_SECONDS",
        default_value = "120",
        value_parser = seconds
    )]
    pub schema_registry_lag: Duration,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// A value that `Debug` does not show. There is no `Display`: whoever needs the text says so.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the client that must present it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

fn database_url(text: &str) -> Result<Secret, String> {
    // The parser's own message can quote the URL, password and all.
    PgConnectOptions::from_str(text)
        .map(|_| Secret(text.to_owned()))
        .map_err(|_| "it is not a URL like postgres://user@host:5432/database".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (1..=3600).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "it is not a number of seconds from 1 to 3600".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::{BadConfiguration, read_from, variables};

    fn config(changes: &[(&str, &str)]) -> Result<Config, BadConfiguration> {
        let required = [
            ("DATABASE_URL", "postgres://till:hunter2@127.0.0.1:5432/till"),
            ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092"),
            ("SCHEMA_REGISTRY_URL", "http://127.0.0.1:8081"),
        ];
        read_from(|name| {
            let chosen = changes.iter().chain(&required).find(|(key, _)| *key == name)?;
            Some(chosen.1.to_owned())
        })
    }

    fn refusal(name: &str, value: &str) -> String {
        config(&[(name, value)]).expect_err(name).to_string()
    }

    #[test]
    fn three_variables_are_enough_and_the_rest_have_defaults() {
        let config = config(&[("KAFKA_SASL_USERNAME", "")]).unwrap();
        assert_eq!(config.shutdown_timeout, Duration::from_secs(20));
        assert_eq!(config.database_pool_size, 16);
        assert_eq!(config.kafka.kafka_sasl_username, None, "empty is unset");
    }

    #[test]
    fn a_bad_configuration_is_one_sentence_that_names_the_variable() {
        assert_eq!(refusal("DATABASE_URL", ""), "DATABASE_URL must be set.");
        assert_eq!(
            refusal("HTTP_ADDR", "8080"),
            "HTTP_ADDR is `8080`, which cannot be used: invalid socket address syntax."
        );
        assert_eq!(
            refusal("LOG_FORMAT", "xml"),
            "LOG_FORMAT is `xml`, which is not one of: text, json."
        );
        assert_eq!(
            refusal("SHUTDOWN_TIMEOUT_SECONDS", "soon"),
            "SHUTDOWN_TIMEOUT_SECONDS is `soon`, which cannot be used: \
             it is not a number of seconds from 1 to 3600."
        );
        assert!(refusal("DATABASE_POOL_SIZE", "0").starts_with("DATABASE_POOL_SIZE is `0`"));
    }

    #[test]
    fn no_secret_is_shown_by_debug_or_by_a_refusal() {
        let config = config(&[
            ("KAFKA_SASL_PASSWORD", "hunter2"),
            ("SCHEMA_REGISTRY_PASSWORD", "hunter2"),
            ("MIGRATION_DATABASE_URL", "postgres://owner:hunter2@127.0.0.1/till"),
        ])
        .unwrap();
        assert!(!format!("{config:#?}").contains("hunter2"));
        assert_eq!(
            refusal("DATABASE_URL", "hunter2"),
            "DATABASE_URL cannot be used: it is not a URL like postgres://user@host:5432/database."
        );
    }

    #[test]
    fn help_explains_every_variable() {
        let help = variables::<Config>();
        assert!(help.contains("  DATABASE_URL (required)\n"), "{help}");
        assert!(help.contains("  DATABASE_POOL_SIZE (default 16)\n"), "{help}");
        assert!(help.lines().all(|line| !line.trim().is_empty()), "{help}");
    }
}
