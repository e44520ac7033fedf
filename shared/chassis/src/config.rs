//! The configuration of a service: the environment, and nothing else. One field a variable; an
//! empty variable counts as unset, so that docker-compose.yml can pass on what it may find,
//! `${NAME:-}`.

pub(crate) mod address; // which addresses can be used at all

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::environment::{self, BadConfiguration};

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
    /// How many connections the pool of a replica holds to its database at most, for whoever asks. Its
    /// loops have five more of their own, and its probes one.
    #[arg(long, env, default_value = "16", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub database_pool_size: u32,

    /// Where the API listens.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    pub http_addr: SocketAddr,
    /// How long the API keeps an idle connection. Set it above the idle time of the gateway in front: the
    /// gateway has to close first, or it sends a request into a connection that is being closed.
    #[arg(
        long,
        env = "HTTP_IDLE_TIMEOUT_SECONDS",
        value_name = "HTTP_IDLE_TIMEOUT_SECONDS",
        default_value = "75",
        value_parser = seconds
    )]
    pub http_idle_timeout: Duration,
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
    #[arg(long, env, value_parser = address::base_url)]
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
    /// Kafka's brokers as `host:port`, comma-separated; an IPv6 address in brackets.
    #[arg(long, env, value_parser = address::brokers)]
    pub kafka_bootstrap_servers: String,
    /// librdkafka's `security.protocol`: plaintext, ssl, sasl_plaintext or sasl_ssl.
    #[arg(long, env, value_parser = security_protocol)]
    pub kafka_security_protocol: Option<String>,
    /// librdkafka's `sasl.mechanism`: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512.
    #[arg(long, env, value_parser = sasl_mechanism)]
    pub kafka_sasl_mechanism: Option<String>,
    /// The user of SASL.
    #[arg(long, env)]
    pub kafka_sasl_username: Option<String>,
    /// The password of SASL.
    #[arg(long, env, hide_env_values = true)]
    pub kafka_sasl_password: Option<Secret>,
    /// The certificates that brokers are checked against. Default: the system's.
    #[arg(long, env, value_parser = address::file_or_directory)]
    pub kafka_ssl_ca_location: Option<String>,
    /// The certificate that this client shows to brokers.
    #[arg(long, env, value_parser = address::file)]
    pub kafka_ssl_certificate_location: Option<String>,
    /// The key of that certificate.
    #[arg(long, env, value_parser = address::file)]
    pub kafka_ssl_key_location: Option<String>,
}

/// Read by OpenSSL: whom the registry's client, and that of traces, trusts.
const SSL_CERT_FILE: &str = "SSL_CERT_FILE";

/// The way to the schema registry.
#[derive(Debug, Clone, clap::Args)]
pub struct SchemaRegistry {
    /// The base of a Confluent-compatible schema registry's API; no proxy variable applies to it.
    #[arg(long, env, value_parser = address::base_url)]
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

impl Config {
    /// Reads it from the process's environment.
    ///
    /// # Errors
    /// If a variable is missing, has a value that can't ever work, or contradicts another one.
    pub fn read() -> Result<Config, BadConfiguration> {
        let config: Config = environment::read()?;
        config.check(|name| std::env::var_os(name).is_some())?;
        Ok(config)
    }

    /// What no variable shows alone. `is_set` knows those that are not ours.
    fn check(&self, is_set: impl Fn(&str) -> bool) -> Result<(), BadConfiguration> {
        self.kafka.check()?;
        self.schema_registry.check()?;
        // sqlx takes these from the environment, and nothing in a URL takes them back.
        for name in ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"] {
            if is_set(name) {
                return Err(BadConfiguration::new(format!(
                    "{name} is set and would change what DATABASE_URL means: unset it, and write what \
                     is meant into the URL."
                )));
            }
        }
        let ports = [
            ("HTTP_ADDR", self.http_addr),
            ("PROBE_ADDR", self.probe_addr),
            ("OPERATOR_ADDR", self.operator_addr),
        ];
        for (nth, (first, taken)) in ports.iter().enumerate() {
            for (second, wanted) in &ports[nth + 1..] {
                if collide(*taken, *wanted) {
                    return Err(BadConfiguration::new(format!(
                        "{second} is {wanted}, which {first} ({taken}) takes: each needs a port of \
                         its own."
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Whether two sockets can't listen at once. Port 0 is any that is free.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port()
        && one.port() != 0
        && (a == b || a.is_unspecified() || b.is_unspecified())
}

impl Kafka {
    /// What no variable shows alone.
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
        for (name, is_set) in of_sasl {
            if is_set != has_sasl {
                let state = if is_set { "is set" } else { "must be set" };
                return Err(BadConfiguration::new(format!(
                    "{name} {state}: KAFKA_SECURITY_PROTOCOL is {protocol}."
                )));
            }
        }
        if let Some((name, _)) = of_tls.iter().find(|(_, is_set)| *is_set && !has_tls) {
            return Err(BadConfiguration::new(format!(
                "{name} is set, but KAFKA_SECURITY_PROTOCOL is {protocol}, which has no TLS."
            )));
        }
        let [_, (certificate, has_certificate), (key, has_key)] = of_tls;
        if has_certificate != has_key {
            return Err(BadConfiguration::new(format!(
                "{certificate} and {key} must be set together."
            )));
        }
        Ok(())
    }
}

impl SchemaRegistry {
    /// What no variable shows alone.
    ///
    /// # Errors
    /// If there is a password and no user, or if the certificates of `SSL_CERT_FILE` can't be read.
    pub fn check(&self) -> Result<(), BadConfiguration> {
        self.check_with(std::env::var_os(SSL_CERT_FILE))
    }

    fn check_with(&self, certificates: Option<OsString>) -> Result<(), BadConfiguration> {
        // OpenSSL passes over a file that is not there, and then trusts nobody.
        let certificates =
            certificates.map(|file| environment::text_of(SSL_CERT_FILE, file, false));
        if let Some(file) = certificates.transpose()?.flatten() {
            address::file(&file).map_err(|why| {
                BadConfiguration::new(format!("{SSL_CERT_FILE} is `{file}`: {why}."))
            })?;
        }
        let has_user = self.schema_registry_username.is_some();
        if self.schema_registry_password.is_some() && !has_user {
            return Err(BadConfiguration::new(
                "SCHEMA_REGISTRY_USERNAME must be set, since SCHEMA_REGISTRY_PASSWORD is.",
            ));
        }
        Ok(())
    }
}

fn database_url(text: &str) -> Result<Secret, String> {
    let text = text.trim();
    address::database(text).map(|_| Secret(text.to_owned()))
}

fn security_protocol(text: &str) -> Result<String, String> {
    one_of(&["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"], text)
}

fn sasl_mechanism(text: &str) -> Result<String, String> {
    one_of(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], text)
}

/// The known value that this is, whatever its case.
fn one_of(known: &[&str], text: &str) -> Result<String, String> {
    let found = known.iter().find(|value| value.eq_ignore_ascii_case(text));
    found
        .map(|value| (*value).to_owned())
        .ok_or_else(|| format!("it is not one of {}", known.join(", ")))
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
    use crate::environment::{read_from, read_os, variables};

    fn config(changes: &[(&str, &str)]) -> Result<Config, BadConfiguration> {
        let config = config_of(changes)?;
        config.check(|name| changes.iter().any(|(key, _)| *key == name))?;
        Ok(config)
    }

    fn config_of(changes: &[(&str, &str)]) -> Result<Config, BadConfiguration> {
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

    /// A file that can be read, and is no certificate.
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

    /// Every one ends the process at its start, before anything waits for what can't come.
    #[test]
    fn a_value_that_can_never_work_is_refused_by_the_name_of_its_variable() {
        const DATABASE: &str = "postgres://till@127.0.0.1/till";
        let with = |parameter: &str| format!("{DATABASE}?{parameter}");
        let refused: [(&str, &[&str]); 9] = [
            (
                "SCHEMA_REGISTRY_URL",
                &[
                    "registry:8081",
                    "127.0.0.1:8081",
                    "ftp://registry",
                    "http://",
                    "http:///apis",
                    "http:registry",
                    "http://http://registry:8081",
                    "http://registry:0",
                    "http://registry:99999",
                    "http://registry:8081?x=1",
                    "http://registry:8081/#x",
                    "http://user:hunter2@registry:8081",
                    "http://one:8081,http://two:8081",
                    "http://reg istry:8081",
                    "http://[::1:8081",
                    "http:\\\\registry",
                    "nonsense",
                    "   ",
                ],
            ),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &["collector:4318", "grpc://collector:4317", "http://a:1,http://b:1", "no"],
            ),
            (
                "KAFKA_BOOTSTRAP_SERVERS",
                &[
                    "kafka://kafka:9092",
                    "PLAINTEXT://kafka:9092",
                    "kafka:",
                    "kafka:0",
                    "kafka:65536",
                    "kafka:+92",
                    "kafka:port",
                    ":9092",
                    "::1:9092",
                    "[::1]9092",
                    "[kafka]:9092",
                    "kafka:9092/path",
                    "kafka:9092;kafka-2:9092",
                    "kafka 2:9092",
                    "256.0.0.1:9092",
                    ",",
                    "user:hunter2@kafka:9092",
                ],
            ),
            ("KAFKA_SECURITY_PROTOCOL", &["tls", "SASL", "sasl-ssl"]),
            ("KAFKA_SASL_MECHANISM", &["GSSAPI", "OAUTHBEARER", "SCRAM"]),
            ("KAFKA_SSL_CA_LOCATION", &["/nowhere/ca.pem"]),
            ("KAFKA_SSL_KEY_LOCATION", &["/nowhere/key.pem", "/tmp"]),
            (
                "DATABASE_URL",
                &[
                    "mysql://till@127.0.0.1/till",
                    "127.0.0.1:5432/till",
                    "postgres://127.0.0.1/till",
                    "postgres://till@127.0.0.1",
                    "postgres://till@/till",
                    "postgres://till@127.0.0.1:0/till",
                    "postgres://till@127.0.0.1:5432x/till",
                    "postgres://till@one,two/till",
                    "postgres://till:hunter2#2@127.0.0.1/till",
                    &with("sslmode=always"),
                    &with("sslmode=require&sslrootcert=/nowhere/ca.pem"),
                    &with("sslcert=/nowhere/client.pem"),
                    &with(&format!("sslcert={FILE}")),
                    &with("channel_binding=require"),
                    &with("hunter2@127.0.0.1/till"),
                ],
            ),
            ("MIGRATION_DATABASE_URL", &["till", "postgres://owner@127.0.0.1"]),
        ];
        for (name, values) in refused {
            for value in values {
                let told = refusal(name, value);
                assert!(told.starts_with(&format!("{name} ")), "{value}: {told}");
                assert!(!told.contains("hunter2"), "{value}: {told}");
                assert!(!told.contains(['\n']) && told.ends_with('.'), "{value}: {told}");
            }
        }
    }

    #[test]
    fn a_value_that_can_be_read_in_several_ways_is_kept_in_its_one_form() {
        let registry = |url| config(&[("SCHEMA_REGISTRY_URL", url)]).unwrap().schema_registry;
        for (given, kept) in [
            ("http://registry:8080/apis/ccompat/v7/", "http://registry:8080/apis/ccompat/v7"),
            ("http://registry:8081//", "http://registry:8081"),
            (" HTTP://Registry:8081\n", "http://registry:8081"),
            ("https://registry", "https://registry"),
            ("http://[::1]:8081/", "http://[::1]:8081"),
        ] {
            assert_eq!(registry(given).schema_registry_url, kept);
        }
        for (given, kept) in [
            ("kafka:9092", "kafka:9092"),
            (" kafka:9092 , kafka_2.internal.:9093,", "kafka:9092,kafka_2.internal.:9093"),
            ("kafka", "kafka:9092"),
            ("[::1]:9094,[fe80::1]", "[::1]:9094,[fe80::1]:9092"),
        ] {
            let config = config(&[("KAFKA_BOOTSTRAP_SERVERS", given)]).unwrap();
            assert_eq!(config.kafka.kafka_bootstrap_servers, kept);
        }
        let kafka = config(&[
            ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
            ("KAFKA_SASL_MECHANISM", "scram-sha-512"),
            ("KAFKA_SASL_USERNAME", "till\n"),
            ("KAFKA_SASL_PASSWORD", " hunter2 "),
        ]);
        let kafka = kafka.unwrap().kafka;
        assert_eq!(kafka.kafka_security_protocol.as_deref(), Some("sasl_ssl"));
        assert_eq!(kafka.kafka_sasl_mechanism.as_deref(), Some("SCRAM-SHA-512"));
        assert_eq!(kafka.kafka_sasl_username.as_deref(), Some("till"));
        assert_eq!(kafka.kafka_sasl_password.unwrap().expose(), " hunter2 ", "all of it counts");
        let url = "postgresql://till@[::1]/till\n";
        assert_eq!(config(&[("DATABASE_URL", url)]).unwrap().database_url.expose(), url.trim());
    }

    #[test]
    fn variables_that_contradict_each_other_are_refused_by_name() {
        let refused = |changes: &[(&str, &str)]| config(changes).unwrap_err().to_string();
        let protocol = |protocol| ("KAFKA_SECURITY_PROTOCOL", protocol);
        let (user, password) = (("KAFKA_SASL_USERNAME", "till"), ("KAFKA_SASL_PASSWORD", "x"));
        let plain = ("KAFKA_SASL_MECHANISM", "PLAIN");
        for (changes, name) in [
            (&[protocol("sasl_ssl")][..], "KAFKA_SASL_MECHANISM"),
            (&[protocol("sasl_ssl"), plain], "KAFKA_SASL_USERNAME"),
            (&[protocol("sasl_plaintext"), plain, user], "KAFKA_SASL_PASSWORD"),
            (&[user], "KAFKA_SASL_USERNAME"),
            (&[protocol("ssl"), password], "KAFKA_SASL_PASSWORD"),
            (&[("KAFKA_SSL_CA_LOCATION", FILE)], "KAFKA_SSL_CA_LOCATION"),
            (&[protocol("ssl"), ("KAFKA_SSL_KEY_LOCATION", FILE)], "KAFKA_SSL_CERTIFICATE"),
            (&[("SCHEMA_REGISTRY_PASSWORD", "x")], "SCHEMA_REGISTRY_USERNAME"),
            (&[("PROBE_ADDR", "127.0.0.1:8080")], "PROBE_ADDR is 127.0.0.1:8080, which HTTP_ADDR"),
            (&[("OPERATOR_ADDR", "[::]:9090")], "OPERATOR_ADDR is [::]:9090, which PROBE_ADDR"),
            (&[("PGOPTIONS", "-c search_path=mine")], "PGOPTIONS"),
            (&[("PGSSLROOTCERT", "/nowhere")], "PGSSLROOTCERT"),
        ] {
            let told = refused(changes);
            assert!(told.starts_with(name), "{changes:?}: {told}");
        }
        let registry = config(&[]).unwrap().schema_registry;
        let told = registry.check_with(Some("/nowhere/ca.pem".into())).unwrap_err().to_string();
        assert!(told.starts_with("SSL_CERT_FILE is `/nowhere/ca.pem`"), "{told}");
        registry.check_with(Some("".into())).unwrap();
        registry.check_with(Some(FILE.into())).unwrap();
        config(&[("HTTP_ADDR", "127.0.0.1:80"), ("PROBE_ADDR", "127.0.0.2:80")]).unwrap();
        config(&[("HTTP_ADDR", "127.0.0.1:0"), ("PROBE_ADDR", "127.0.0.1:0")]).unwrap();
    }

    /// A password in which one byte was replaced would be refused by whom it is for.
    #[test]
    fn a_value_that_is_no_text_is_refused_and_not_changed() {
        use std::os::unix::ffi::OsStringExt;
        let refused = read_os::<Config>(|name| {
            let bytes = if name == "KAFKA_SASL_PASSWORD" { b"hunter\xff".to_vec() } else { vec![] };
            Some(std::ffi::OsString::from_vec(bytes))
        });
        let told = refused.unwrap_err().to_string();
        assert_eq!(told, "KAFKA_SASL_PASSWORD cannot be used: it is not valid UTF-8.");
    }

    /// Nor does librdkafka tell before it makes a client of them.
    #[test]
    fn files_of_which_no_client_can_be_made_are_refused_by_name() {
        let tls = [("KAFKA_SECURITY_PROTOCOL", "ssl"), ("KAFKA_SSL_CA_LOCATION", FILE)];
        let told = crate::kafka::check(&config(&tls).unwrap().kafka).unwrap_err().to_string();
        assert!(told.starts_with("KAFKA_SSL_CA_LOCATION "), "{told}");
        crate::kafka::check(&config(&[]).unwrap().kafka).unwrap();
        let scram = [
            ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("KAFKA_SASL_MECHANISM", "scram-sha-256"),
            ("KAFKA_SASL_USERNAME", "till"),
            ("KAFKA_SASL_PASSWORD", "hunter2"),
        ];
        crate::kafka::check(&config(&scram).unwrap().kafka).unwrap();
    }

    #[test]
    fn no_secret_is_shown_by_debug_or_by_a_refusal() {
        let config = config_of(&[
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
