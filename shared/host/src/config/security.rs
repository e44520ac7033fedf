//! `SECURE=1`: a process refuses to start with a connection that is not encrypted or does not check its server, and a
//! service without knowing its callers.

use clap::ArgAction;
use sqlx::postgres::PgSslMode;

use crate::config::env::{BadConfiguration, parse_switch};
use crate::config::http_tls::HttpTlsConfig;
use crate::config::{KafkaConfig, KeyLocation, SchemaRegistryConfig, Secret, TokenConfig, address};

/// Whether insecure settings are refused.
#[derive(Debug, Clone, clap::Args)]
pub struct SecurityConfig {
    /// With 1, the process refuses to start with a connection that is not encrypted or does not check its server, and
    /// a service without a TOKEN_ISSUER.
    #[arg(long, env, default_value = "0", action = ArgAction::Set, value_parser = parse_switch)]
    pub secure: bool,
}

impl SecurityConfig {
    /// Checks how a process reaches Kafka and the schema registry.
    ///
    /// # Errors
    /// If the switch is on and a setting is insecure.
    pub fn check_clients(
        &self,
        kafka: &KafkaConfig,
        registry: &SchemaRegistryConfig,
    ) -> Result<(), BadConfiguration> {
        let protocol = kafka.kafka_security_protocol.as_deref().unwrap_or("plaintext");
        let violation = format!("KAFKA_SECURITY_PROTOCOL is {protocol} instead of ssl or sasl_ssl");
        self.require(protocol.ends_with("ssl"), &violation)?;
        self.check_url("SCHEMA_REGISTRY_URL", &registry.schema_registry_url)
    }

    pub(super) fn check_database(&self, name: &str, url: &Secret) -> Result<(), BadConfiguration> {
        let checks_server = address::postgres_options(url.expose())
            .is_ok_and(|options| matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
        self.require(checks_server, &format!("the sslmode of {name} is not verify-full"))
    }

    pub(super) fn check_url(&self, name: &str, url: &str) -> Result<(), BadConfiguration> {
        let violation = format!("{name} does not begin with https://");
        self.require(url.starts_with("https://"), &violation)
    }

    pub(super) fn check_http(&self, tls: &HttpTlsConfig) -> Result<(), BadConfiguration> {
        let is_encrypted = tls.certificate().is_some() || tls.http_tls_ends_at_gateway;
        let violation = "neither HTTP_TLS_CERTIFICATE_LOCATION nor HTTP_TLS_ENDS_AT_GATEWAY is set";
        self.require(is_encrypted, violation)
    }

    pub(super) fn check_tokens(&self, tokens: &TokenConfig) -> Result<(), BadConfiguration> {
        match tokens.issuer()? {
            None => self.require(false, "TOKEN_ISSUER is not set"),
            Some((_, KeyLocation::File(_))) => Ok(()),
            Some((_, KeyLocation::Url(url))) => self.check_url("TOKEN_KEYS", &url),
            Some((_, KeyLocation::Discovery(url))) => self.check_url("TOKEN_ISSUER", &url),
        }
    }

    fn require(&self, holds: bool, violation: &str) -> Result<(), BadConfiguration> {
        BadConfiguration::require(holds || !self.secure, format!("SECURE is 1, but {violation}."))
    }
}
