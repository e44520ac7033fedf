//! HTTPS of the API and of the admin port.

use clap::ArgAction;

use crate::config::address;
use crate::config::env::{BadConfiguration, parse_switch};

/// How clients of the API and of the admin port are served over TLS.
#[derive(Debug, Clone, clap::Args)]
pub struct HttpTlsConfig {
    /// The certificate with which the API and the admin port serve HTTPS, and the chain behind it, as PEM. Unset:
    /// they serve HTTP.
    #[arg(long, env, value_parser = address::readable_file)]
    pub http_tls_certificate_location: Option<String>,
    /// The key of that certificate, as PEM.
    #[arg(long, env, value_parser = address::readable_file)]
    pub http_tls_key_location: Option<String>,
    /// With 1, a gateway or a mesh in front of the process ends TLS, and SECURE accepts ports that serve HTTP.
    #[arg(long, env, default_value = "0", action = ArgAction::Set, value_parser = parse_switch)]
    pub http_tls_ends_at_gateway: bool,
}

impl HttpTlsConfig {
    /// The files of the certificate and of its key, if the process serves HTTPS.
    pub fn certificate(&self) -> Option<(&str, &str)> {
        let certificate = self.http_tls_certificate_location.as_deref();
        certificate.zip(self.http_tls_key_location.as_deref())
    }

    pub(super) fn check(&self) -> Result<(), BadConfiguration> {
        let has_certificate = self.http_tls_certificate_location.is_some();
        BadConfiguration::require(
            has_certificate == self.http_tls_key_location.is_some(),
            "HTTP_TLS_CERTIFICATE_LOCATION and HTTP_TLS_KEY_LOCATION must be set together.",
        )?;
        BadConfiguration::require(
            !has_certificate || !self.http_tls_ends_at_gateway,
            "HTTP_TLS_ENDS_AT_GATEWAY is 1, but HTTP_TLS_CERTIFICATE_LOCATION is set: unset one of them.",
        )
    }
}
