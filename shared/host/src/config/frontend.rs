//! The configuration of a frontend: a program with pages and without a database.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::env::{self, BadConfiguration, parse_seconds};
use crate::config::{HttpTlsConfig, LogFormat, SecurityConfig, check_ports};

/// What every frontend reads from its environment. The variables have the names and the meanings of a service's.
#[derive(Debug, Clone, clap::Parser)]
pub struct FrontendConfig {
    /// Where it serves its pages.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    pub http_addr: SocketAddr,
    /// Where /livez and /readyz are read.
    #[arg(long, env, default_value = "0.0.0.0:9090")]
    pub probe_addr: SocketAddr,
    /// HTTPS of its pages.
    #[command(flatten)]
    pub http_tls: HttpTlsConfig,
    /// Whether insecure settings are refused.
    #[command(flatten)]
    pub security: SecurityConfig,
    /// The format of log lines; RUST_LOG selects which lines are logged.
    #[arg(long, env, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// How long requests under way may take after a stop.
    #[arg(long, env = "SHUTDOWN_TIMEOUT_SECONDS", default_value = "20", value_parser = parse_seconds)]
    pub shutdown_timeout: Duration,
}

impl FrontendConfig {
    /// Reads it from the process's environment.
    ///
    /// # Errors
    /// If a variable has a value that can never work, or contradicts another one.
    pub fn from_env() -> Result<FrontendConfig, BadConfiguration> {
        let config: FrontendConfig = env::read()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), BadConfiguration> {
        self.http_tls.check()?;
        self.security.check_http(&self.http_tls)?;
        check_ports(("HTTP_ADDR", self.http_addr), ("PROBE_ADDR", self.probe_addr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<FrontendConfig, BadConfiguration> {
        let value = |name: &str| variables.iter().find(|it| it.0 == name).map(|it| it.1.to_owned());
        let config: FrontendConfig = env::read_from(value)?;
        config.check().map(|()| config)
    }

    #[test]
    fn a_frontend_starts_without_any_variable_and_refuses_what_can_never_work() {
        assert_eq!(read(&[]).unwrap().http_addr.port(), 8080);
        for (variables, named) in [
            (&[("HTTP_ADDR", "[::]:9090")][..], "PROBE_ADDR"),
            (&[("SECURE", "1")], "HTTP_TLS_CERTIFICATE_LOCATION"),
            (&[("SHUTDOWN_TIMEOUT_SECONDS", "0")], "SHUTDOWN_TIMEOUT_SECONDS"),
        ] {
            let refused = read(variables).unwrap_err().to_string();
            assert!(refused.contains(named), "{refused}");
        }
        assert!(read(&[("SECURE", "1"), ("HTTP_TLS_ENDS_AT_GATEWAY", "1")]).is_ok());
    }
}
