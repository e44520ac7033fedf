//! The settings of the connection to Kafka.

use std::sync::Arc;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use messaging::kafka::{self, close_in_background};
use rdkafka::ClientConfig;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::types::RDKafkaType;

use crate::config::address;
use crate::config::env::BadConfiguration;
use crate::config::private_key::PemSetting;
use crate::config::secret::Secret;

/// How long a login waits for an answer.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);

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

    /// The brokers, and librdkafka's settings of TLS and SASL, from which every client is made.
    pub(crate) fn connection(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.kafka_bootstrap_servers);
        for (setting, value) in self.passthrough_settings() {
            if let Some(value) = value {
                client.set(setting, value);
            }
        }
        client
    }

    /// The settings that every client of a program has.
    pub fn client_config(&self, program: &str) -> ClientConfig {
        kafka::client_config(program, &self.connection())
    }

    /// The settings that are passed on as they are, under librdkafka's names: KAFKA_SECURITY_PROTOCOL is
    /// `security.protocol`.
    fn passthrough_settings(&self) -> [(&'static str, Option<&str>); 7] {
        [
            ("security.protocol", self.kafka_security_protocol.as_deref()),
            ("sasl.mechanism", self.kafka_sasl_mechanism.as_deref()),
            ("sasl.username", self.kafka_sasl_username.as_deref()),
            ("sasl.password", self.kafka_sasl_password.as_ref().map(Secret::expose)),
            ("ssl.ca.location", self.kafka_ssl_ca_location.as_deref()),
            ("ssl.certificate.location", self.kafka_ssl_certificate_location.as_deref()),
            ("ssl.key.location", self.kafka_ssl_key_location.as_deref()),
        ]
    }

    /// Creates a client with these settings and closes it, without waiting for any broker.
    ///
    /// # Errors
    /// If no client can ever be created with them, for example because a file is no certificate, or a key belongs to
    /// another one.
    pub fn validate(&self) -> Result<(), BadConfiguration> {
        self.check_key()?;
        let settings = self.client_config("check");
        let made = settings.create_native_config().and_then(|native| {
            Client::new(&settings, native, RDKafkaType::RD_KAFKA_PRODUCER, DefaultClientContext)
        });
        let client = made.map_err(|error| {
            let why = error.to_string();
            let names = self.passthrough_settings().map(|(name, _)| name);
            let cause = names.into_iter().find(|name| why.contains(name));
            let cause = cause.unwrap_or("security.protocol").replace('.', "_").to_uppercase();
            BadConfiguration::new(format!("KAFKA_{cause} cannot be used: {why}."))
        })?;
        drop(close_in_background(Arc::new(client)));
        Ok(())
    }

    /// Fails if Kafka refuses a client with these settings, or does not answer in time.
    pub(crate) async fn try_login(&self) -> anyhow::Result<()> {
        self.check_key()?;
        let mut settings = self.client_config("check");
        settings.set_log_level(RDKafkaLogLevel::Emerg);
        let client: Arc<BaseProducer> = Arc::new(settings.create()?);
        let asked = client.clone();
        let ask = move || asked.client().fetch_metadata(None, LOGIN_TIMEOUT);
        let answer = tokio::task::spawn_blocking(ask).await;
        drop(close_in_background(client));
        answer??;
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::env::read_from;

    /// A readable file that is no certificate.
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

    /// librdkafka itself reports such files only when a client is made.
    #[test]
    fn files_of_which_no_client_can_be_made_are_refused_by_name() {
        let config = |changes: &[(&str, &str)]| -> KafkaConfig {
            let required = [
                ("DATABASE_URL", "postgres://till@127.0.0.1/till"),
                ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092"),
                ("SCHEMA_REGISTRY_URL", "http://127.0.0.1:8081"),
            ];
            let config: Config = read_from(|name| {
                let chosen = changes.iter().chain(&required).find(|(key, _)| *key == name)?;
                Some(chosen.1.to_owned())
            })
            .unwrap();
            config.kafka.check().unwrap();
            config.kafka
        };
        let tls = [("KAFKA_SECURITY_PROTOCOL", "ssl"), ("KAFKA_SSL_CA_LOCATION", FILE)];
        let message = config(&tls).validate().unwrap_err().to_string();
        assert!(message.starts_with("KAFKA_SSL_CA_LOCATION "), "{message}");
        config(&[]).validate().unwrap();
        let scram = [
            ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("KAFKA_SASL_MECHANISM", "scram-sha-256"),
            ("KAFKA_SASL_USERNAME", "till"),
            ("KAFKA_SASL_PASSWORD", "hunter2"),
        ];
        config(&scram).validate().unwrap();
    }
}
