//! The settings of the connection to the schema registry.

use std::ffi::OsString;
use std::time::Duration;

use messaging::kafka::schema_registry::{REQUEST_TIMEOUT, SchemaRegistryClient};
use schema_registry_converter::async_impl::schema_registry::SrSettings;

use crate::config::address;
use crate::config::env::{self, BadConfiguration, parse_seconds};
use crate::config::secret::Secret;

/// The certificates that the clients of the registry and of the trace collector trust; OpenSSL reads it.
const SSL_CERT_FILE: &str = "SSL_CERT_FILE";

/// How to connect to the schema registry.
#[derive(Debug, Clone, clap::Args)]
pub struct SchemaRegistryConfig {
    /// The base of a Confluent-compatible schema registry's API; no proxy variable applies to it.
    #[arg(long, env, value_parser = address::parse_base_url)]
    pub schema_registry_url: String,
    /// The user of the registry.
    #[arg(long, env)]
    pub schema_registry_username: Option<String>,
    /// The password of the registry.
    #[arg(long, env, hide_env_values = true)]
    pub schema_registry_password: Option<Secret>,
    /// The bearer token of the registry, in place of a user and a password.
    #[arg(long, env, hide_env_values = true)]
    pub schema_registry_token: Option<Secret>,
    /// How far the registry may be behind. A record whose schema id the registry does not know waits for this time
    /// after it was written, then it becomes a dead letter. Other records are handled meanwhile.
    #[arg(long, env = "SCHEMA_REGISTRY_LAG_SECONDS", default_value = "120", value_parser = parse_seconds)]
    pub schema_registry_lag: Duration,
}

impl SchemaRegistryConfig {
    /// Checks the variables against one another.
    ///
    /// # Errors
    /// If there is a password without a user, or if the file `SSL_CERT_FILE` cannot be read.
    pub fn check(&self) -> Result<(), BadConfiguration> {
        self.check_with(std::env::var_os(SSL_CERT_FILE))
    }

    /// The file of the certificates that the registry is checked against, if there is one of its own.
    pub(crate) fn trusted_certificates(&self) -> Option<String> {
        std::env::var(SSL_CERT_FILE).ok().filter(|file| !file.is_empty())
    }

    /// A client with these credentials.
    pub(crate) fn client(&self) -> anyhow::Result<SchemaRegistryClient> {
        Ok(SchemaRegistryClient::new(self.client_settings()?, self.schema_registry_lag))
    }

    /// The settings of a client with these credentials.
    pub(crate) fn client_settings(&self) -> anyhow::Result<SrSettings> {
        let mut settings = SrSettings::new_builder(self.schema_registry_url.clone());
        if let Some(username) = &self.schema_registry_username {
            let password = self.schema_registry_password.as_ref().map(Secret::expose);
            settings.set_basic_authorization(username, password);
        }
        if let Some(token) = &self.schema_registry_token {
            settings.set_token_authorization(token.expose());
        }
        // A proxy that the environment names leads to the public network, where this registry is not.
        Ok(settings.no_proxy().set_timeout(REQUEST_TIMEOUT).build()?)
    }

    pub(super) fn check_with(
        &self,
        certificates: Option<OsString>,
    ) -> Result<(), BadConfiguration> {
        // OpenSSL ignores a file that does not exist, and then trusts no certificate.
        if let Some(file) = certificates
            && let Some(file) = env::variable_text(SSL_CERT_FILE, file, false)?
        {
            address::readable_file(&file).map_err(|why| {
                BadConfiguration::new(format!("{SSL_CERT_FILE} is `{file}`: {why}."))
            })?;
        }
        let has_user = self.schema_registry_username.is_some();
        let has_password = self.schema_registry_password.is_some();
        let has_token = self.schema_registry_token.is_some();
        let is_clear = self.schema_registry_url.starts_with("http://");
        for (name, is_set) in
            [("SCHEMA_REGISTRY_PASSWORD", has_password), ("SCHEMA_REGISTRY_TOKEN", has_token)]
        {
            let refusal =
                "is set, but SCHEMA_REGISTRY_URL begins with http://, which sends it in the clear.";
            BadConfiguration::require(!is_clear || !is_set, format!("{name} {refusal}"))?;
        }
        BadConfiguration::require(
            !has_token || !has_user,
            "SCHEMA_REGISTRY_TOKEN and SCHEMA_REGISTRY_USERNAME are both set: unset one of them.",
        )?;
        BadConfiguration::require(
            has_user || !has_password,
            "SCHEMA_REGISTRY_USERNAME must be set, because SCHEMA_REGISTRY_PASSWORD is set.",
        )
    }
}
