//! The configuration of a service: variables of its environment, and nothing else. Each field is one variable; an
//! empty variable counts as unset, so that docker-compose.yml can pass on an optional one as `${NAME:-}`.
//!
//! Promise: a configuration that can never work ends the process at its start, with one sentence that names the
//! variable and shows no secret. A setting that is checked at its first use breaks that promise.

pub mod env;

pub(crate) mod address;
pub(crate) mod reload;
mod frontend;
mod http_tls;
mod kafka;
pub(crate) mod private_key;
mod schema_registry;
mod secret;
mod security;
mod tokens;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use messaging::outbox::Carrier;

use crate::config::env::{BadConfiguration, parse_seconds};
pub use crate::config::frontend::FrontendConfig;
pub use crate::config::http_tls::HttpTlsConfig;
pub use crate::config::kafka::KafkaConfig;
pub use crate::config::schema_registry::SchemaRegistryConfig;
pub use crate::config::secret::Secret;
pub use crate::config::security::SecurityConfig;
pub use crate::config::tokens::{KeyLocation, TokenConfig};

/// What every service reads from its environment. A service with variables of its own derives
/// `clap::Args` on a struct and takes it as the second argument of its `serve`: see
/// [`crate::service::process::main`].
#[derive(Debug, Clone, clap::Parser)]
pub struct Config {
    /// The service's own database, as the role that serves. TLS by its `sslmode` and `sslrootcert`
    /// parameters.
    #[arg(long, env, hide_env_values = true, value_parser = parse_database_url)]
    pub database_url: Secret,
    /// The same database as the role that owns the tables; `migrate` alone uses it. Default:
    /// DATABASE_URL.
    #[arg(long, env, hide_env_values = true, value_parser = parse_database_url)]
    pub migration_database_url: Option<Secret>,
    /// The maximum number of connections in the database pool of a replica. Its loops use five more, and its probes
    /// one.
    #[arg(long, env, default_value = "16", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub database_pool_size: u32,

    /// What carries events to Kafka: `service` is the relay, and `cdc` a connector that reads the log of the database.
    #[arg(long, env, default_value = "service", value_parser = carriers())]
    pub relay: Carrier,
    /// The role of that connector in the database, which `migrate` grants what it reads. Unset: none.
    #[arg(long, env)]
    pub connector_role: Option<String>,

    /// The address of the API. A wildcard or loopback address of one IP family also serves the other family.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    pub http_addr: SocketAddr,
    /// How long the API keeps an idle connection. Set it above the idle time of the gateway in front: the
    /// gateway has to close first, or it sends a request into a connection that is being closed.
    #[arg(long, env = "HTTP_IDLE_TIMEOUT_SECONDS", default_value = "75", value_parser = parse_seconds)]
    pub http_idle_timeout: Duration,
    /// Where /livez, /readyz and /metrics are read.
    #[arg(long, env, default_value = "0.0.0.0:9090")]
    pub probe_addr: SocketAddr,
    /// Where the admin API listens. Without TOKEN_ISSUER it authenticates no operator: keep it on loopback or behind
    /// a proxy that does.
    #[arg(long, env, default_value = "127.0.0.1:9091")]
    pub admin_addr: SocketAddr,
    /// The host names, comma-separated, by which operators' tools reach the admin API, beside `localhost` and addresses.
    /// A request with another name may be that of a web page.
    #[arg(long, env)]
    pub admin_hosts: Option<String>,

    /// HTTPS of the API and of the admin port.
    #[command(flatten)]
    pub http_tls: HttpTlsConfig,
    /// Whether insecure settings are refused.
    #[command(flatten)]
    pub security: SecurityConfig,
    /// Whose tokens name its callers.
    #[command(flatten)]
    pub tokens: TokenConfig,

    /// How it connects to Kafka.
    #[command(flatten)]
    pub kafka: KafkaConfig,
    /// How it connects to the schema registry.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryConfig,

    /// The address of the trace collector (OTLP, http/protobuf), without `/v1/traces`. Unset: no traces are exported.
    #[arg(long, env, value_parser = address::parse_base_url)]
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// The name of this instance in traces, such as that of its pod. Default: a UUID that each process draws.
    #[arg(long, env)]
    pub service_instance_id: Option<String>,
    /// The format of log lines; RUST_LOG selects which lines are logged.
    #[arg(long, env, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// How long running work may take after a stop: at most half of it for the API, the rest for the loops. The process
    /// ends up to 5 s later.
    #[arg(long, env = "SHUTDOWN_TIMEOUT_SECONDS", default_value = "20", value_parser = parse_seconds)]
    pub shutdown_timeout: Duration,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

impl Config {
    /// Reads it from the process's environment.
    ///
    /// # Errors
    /// If a variable is missing, has a value that can never work, or contradicts another one.
    pub fn from_env() -> Result<Config, BadConfiguration> {
        let config: Config = env::read()?;
        config.check(|name| std::env::var_os(name).is_some())?;
        Ok(config)
    }

    /// Checks the variables against one another. `is_set` reports whether a variable outside of this struct is set.
    fn check(&self, is_set: impl Fn(&str) -> bool) -> Result<(), BadConfiguration> {
        self.kafka.check()?;
        self.schema_registry.check()?;
        self.http_tls.check()?;
        self.tokens.check()?;
        self.check_security()?;
        // sqlx reads these from the environment, and a URL cannot override them.
        for name in ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"] {
            let refusal = "is set and would change the meaning of DATABASE_URL: unset it, and put the \
                           value into the URL.";
            BadConfiguration::require(!is_set(name), format!("{name} {refusal}"))?;
        }
        let api = ("HTTP_ADDR", self.http_addr);
        let probes = ("PROBE_ADDR", self.probe_addr);
        let admin = ("ADMIN_ADDR", self.admin_addr);
        check_ports(api, probes)?;
        check_ports(api, admin)?;
        check_ports(probes, admin)
    }

    fn check_security(&self) -> Result<(), BadConfiguration> {
        let security = &self.security;
        security.check_database("DATABASE_URL", &self.database_url)?;
        if let Some(url) = &self.migration_database_url {
            security.check_database("MIGRATION_DATABASE_URL", url)?;
        }
        security.check_clients(&self.kafka, &self.schema_registry)?;
        if let Some(url) = &self.otel_exporter_otlp_endpoint {
            security.check_url("OTEL_EXPORTER_OTLP_ENDPOINT", url)?;
        }
        security.check_http(&self.http_tls)
    }

    /// Checks the keys that the URLs of databases name. A service that runs keeps its connections while a key is
    /// replaced, so this is no part of reading the configuration.
    pub(crate) fn check_database_keys(&self) -> Result<(), BadConfiguration> {
        address::check_database_key("DATABASE_URL", &self.database_url)?;
        match &self.migration_database_url {
            Some(url) => address::check_database_key("MIGRATION_DATABASE_URL", url),
            None => Ok(()),
        }
    }

    /// Checks what `serve` alone needs, and neither `migrate` nor `health`.
    pub(crate) fn check_serving(&self) -> Result<(), BadConfiguration> {
        self.security.check_tokens(&self.tokens)
    }
}

/// Refuses two variables whose sockets cannot listen at the same time. Port 0 is any free port.
fn check_ports(
    (first, taken): (&str, SocketAddr),
    (second, wanted): (&str, SocketAddr),
) -> Result<(), BadConfiguration> {
    // A socket for each family listens for either address of loopback.
    let canonical = |ip: IpAddr| match ip.to_canonical() {
        ip if ip == IpAddr::from(Ipv6Addr::LOCALHOST) => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    let (a, b) = (canonical(taken.ip()), canonical(wanted.ip()));
    let is_same_port = taken.port() == wanted.port() && taken.port() != 0;
    let is_shared = is_same_port && (a == b || a.is_unspecified() || b.is_unspecified());
    let in_use = format!("{first} ({taken}) already uses: each needs its own port.");
    BadConfiguration::require(!is_shared, format!("{second} is {wanted}, which {in_use}"))
}

fn carriers() -> impl TypedValueParser<Value = Carrier> {
    PossibleValuesParser::new(["service", "cdc"]).map(|carrier| match &*carrier {
        "cdc" => Carrier::Cdc,
        _ => Carrier::Service,
    })
}

fn parse_database_url(text: &str) -> Result<Secret, String> {
    let text = text.trim();
    address::postgres_options(text).map(|_| Secret::from(text.to_owned()))
}

#[cfg(test)]
mod security_tests;
#[cfg(test)]
pub(crate) mod tests;
