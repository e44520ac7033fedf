//! The settings of the connection to Kafka.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::config::address;
use crate::config::env::BadConfiguration;
use crate::config::private_key::PemSetting;
use crate::config::secret::Secret;

/// How to connect to Kafka.
#[derive(Debug, Clone, clap::Args)]
pub struct KafkaConfig {
    /// Kafka's brokers as `host:port`, comma-separated; an IPv6 address in brackets.
    #[arg(long, env, value_parser = address::parse_brokers)]
    pub kafka_bootstrap_servers: String,
    /// librdkafka's `security.protocol`: plaintext, ssl, sasl_plaintext or sasl_ssl.
    #[arg(long, env, ignore_case = true, value_parser = security_protocols())]
    pub kafka_security_protocol: Option<String>,
    /// librdkafka's `sasl.mechanism`: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512.
    #[arg(long, env, ignore_case = true, value_parser = sasl_mechanisms())]
    pub kafka_sasl_mechanism: Option<String>,
    /// The user of SASL.
    #[arg(long, env)]
    pub kafka_sasl_username: Option<String>,
    /// The password of SASL.
    #[arg(long, env, hide_env_values = true)]
    pub kafka_sasl_password: Option<Secret>,
    /// The certificates that brokers are checked against. Default: the system's.
    #[arg(long, env, value_parser = address::readable_file_or_directory)]
    pub kafka_ssl_ca_location: Option<String>,
    /// The certificate that this client presents to brokers.
    #[arg(long, env, value_parser = address::readable_file)]
    pub kafka_ssl_certificate_location: Option<String>,
    /// The key of that certificate.
    #[arg(long, env, value_parser = address::readable_file)]
    pub kafka_ssl_key_location: Option<String>,
}

impl KafkaConfig {
    /// Checks the variables against one another.
    ///
    /// # Errors
    /// If two of them contradict each other.
    pub fn check(&self) -> Result<(), BadConfiguration> {
        let protocol = self.kafka_security_protocol.as_deref().unwrap_or("plaintext");
        let (has_sasl, has_tls) = (protocol.starts_with("sasl_"), protocol.ends_with("ssl"));
        let of_sasl = [
            ("KAFKA_SASL_MECHANISM", self.kafka_sasl_mechanism.is_some()),
            ("KAFKA_SASL_USERNAME", self.kafka_sasl_username.is_some()),
            ("KAFKA_SASL_PASSWORD", self.kafka_sasl_password.is_some()),
        ];
        let of_tls = [
            ("KAFKA_SSL_CA_LOCATION", self.kafka_ssl_ca_location.is_some()),
            ("KAFKA_SSL_CERTIFICATE_LOCATION", self.kafka_ssl_certificate_location.is_some()),
            ("KAFKA_SSL_KEY_LOCATION", self.kafka_ssl_key_location.is_some()),
        ];
        let chosen = format!("KAFKA_SECURITY_PROTOCOL is {protocol}");
        for (name, is_set) in of_sasl {
            let state = if is_set { "is set" } else { "must be set" };
            BadConfiguration::require(is_set == has_sasl, format!("{name} {state}: {chosen}."))?;
        }
        for (name, is_set) in of_tls {
            let refusal = format!("{name} is set, but {chosen}, which has no TLS.");
            BadConfiguration::require(has_tls || !is_set, refusal)?;
        }
        let is_plain = self.kafka_sasl_mechanism.as_deref() == Some("PLAIN");
        BadConfiguration::require(
            protocol != "sasl_plaintext" || !is_plain,
            format!(
                "KAFKA_SASL_MECHANISM is PLAIN, which sends the password in the clear: {chosen}."
            ),
        )?;
        let [_, (certificate, has_certificate), (key, has_key)] = of_tls;
        let together = format!("{certificate} and {key} must be set together.");
        BadConfiguration::require(has_certificate == has_key, together)
    }

    /// Checks the key of the client's certificate.
    ///
    /// # Errors
    /// If it is encrypted, is no key, or belongs to another certificate.
    pub(crate) fn check_key(&self) -> Result<(), BadConfiguration> {
        let files =
            self.kafka_ssl_certificate_location.as_ref().zip(self.kafka_ssl_key_location.as_ref());
        let Some((certificate, key)) = files else { return Ok(()) };
        let certificate = PemSetting::read("KAFKA_SSL_CERTIFICATE_LOCATION", certificate)?;
        PemSetting::read("KAFKA_SSL_KEY_LOCATION", key)?.key_of(&certificate).map(drop)
    }
}

fn security_protocols() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"])
        .map(|protocol| protocol.to_lowercase())
}

fn sasl_mechanisms() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
        .map(|mechanism| mechanism.to_uppercase())
}
