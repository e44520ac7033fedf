//! The variables of a service: their defaults, and what is refused.

use super::*;
use crate::config::env::{describe_variables, read_from, read_os};

pub(crate) fn config(changes: &[(&str, &str)]) -> Result<Config, BadConfiguration> {
    let config = parse_config(changes)?;
    config.check(|name| changes.iter().any(|(key, _)| *key == name))?;
    config.check_serving()?;
    Ok(config)
}

/// The configuration with these variables, and with those that are required.
pub(crate) fn parse_config(changes: &[(&str, &str)]) -> Result<Config, BadConfiguration> {
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

fn error_message(name: &str, value: &str) -> String {
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
    assert_eq!(error_message("DATABASE_URL", ""), "DATABASE_URL must be set.");
    assert_eq!(
        error_message("HTTP_ADDR", "8080"),
        "HTTP_ADDR is `8080`, which cannot be used: invalid socket address syntax."
    );
    assert_eq!(
        error_message("LOG_FORMAT", "xml"),
        "LOG_FORMAT is `xml`, which is not one of: text, json."
    );
    assert_eq!(
        error_message("SHUTDOWN_TIMEOUT_SECONDS", "soon"),
        "SHUTDOWN_TIMEOUT_SECONDS is `soon`, which cannot be used: \
         it is not a number of seconds from 1 to 3600."
    );
    assert!(error_message("DATABASE_POOL_SIZE", "0").starts_with("DATABASE_POOL_SIZE is `0`"));
}

/// A readable file that is no certificate.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

/// Each of these values ends the process at its start, before a loop waits for a connection that cannot
/// succeed.
#[test]
#[allow(clippy::too_many_lines)]
fn a_value_that_can_never_work_is_refused_by_the_name_of_its_variable() {
    const DATABASE: &str = "postgres://till@127.0.0.1/till";
    let with = |parameter: &str| format!("{DATABASE}?{parameter}");
    let refused: [(&str, &[&str]); 10] = [
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
        ("TOKEN_KEYS", &["/nowhere/keys.json", "ftp://issuer/keys", "https://"]),
    ];
    for (name, values) in refused {
        for value in values {
            let message = error_message(name, value);
            assert!(message.starts_with(&format!("{name} ")), "{value}: {message}");
            assert!(!message.contains("hunter2"), "{value}: {message}");
            assert!(!message.contains(['\n']) && message.ends_with('.'), "{value}: {message}");
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
    let https = ("SCHEMA_REGISTRY_URL", "https://registry");
    let registry_user = ("SCHEMA_REGISTRY_USERNAME", "till");
    for (changes, name) in [
        (&[protocol("sasl_ssl")][..], "KAFKA_SASL_MECHANISM"),
        (&[protocol("sasl_ssl"), plain], "KAFKA_SASL_USERNAME"),
        (&[protocol("sasl_plaintext"), plain, user], "KAFKA_SASL_PASSWORD"),
        (&[user], "KAFKA_SASL_USERNAME"),
        (&[protocol("ssl"), password], "KAFKA_SASL_PASSWORD"),
        (&[("KAFKA_SSL_CA_LOCATION", FILE)], "KAFKA_SSL_CA_LOCATION"),
        (&[protocol("ssl"), ("KAFKA_SSL_KEY_LOCATION", FILE)], "KAFKA_SSL_CERTIFICATE"),
        (&[protocol("sasl_plaintext"), plain, user, password], "KAFKA_SASL_MECHANISM"),
        (&[("SCHEMA_REGISTRY_PASSWORD", "x"), https], "SCHEMA_REGISTRY_USERNAME"),
        (&[("SCHEMA_REGISTRY_PASSWORD", "x"), registry_user], "SCHEMA_REGISTRY_PASSWORD"),
        (&[("SCHEMA_REGISTRY_TOKEN", "x")], "SCHEMA_REGISTRY_TOKEN"),
        (&[("SCHEMA_REGISTRY_TOKEN", "x"), https, registry_user], "SCHEMA_REGISTRY_TOKEN"),
        (&[("HTTP_TLS_KEY_LOCATION", FILE)], "HTTP_TLS_CERTIFICATE_LOCATION"),
        (&[("TOKEN_KEYS", FILE)], "TOKEN_ISSUER"),
        (&[("TOKEN_ISSUER", "holdfast")], "TOKEN_ISSUER is `holdfast`"),
        (&[("PROBE_ADDR", "127.0.0.1:8080")], "PROBE_ADDR is 127.0.0.1:8080, which HTTP_ADDR"),
        (&[("ADMIN_ADDR", "[::]:9090")], "ADMIN_ADDR is [::]:9090, which PROBE_ADDR"),
        (
            &[("PROBE_ADDR", "127.0.0.1:9090"), ("ADMIN_ADDR", "[::1]:9090")],
            "ADMIN_ADDR is [::1]:9090, which PROBE_ADDR",
        ),
        (&[("PGOPTIONS", "-c search_path=mine")], "PGOPTIONS"),
        (&[("PGSSLROOTCERT", "/nowhere")], "PGSSLROOTCERT"),
    ] {
        let message = refused(changes);
        assert!(message.starts_with(name), "{changes:?}: {message}");
    }
    let registry = config(&[]).unwrap().schema_registry;
    let message = registry.check_with(Some("/nowhere/ca.pem".into())).unwrap_err().to_string();
    assert!(message.starts_with("SSL_CERT_FILE is `/nowhere/ca.pem`"), "{message}");
    registry.check_with(Some("".into())).unwrap();
    registry.check_with(Some(FILE.into())).unwrap();
    config(&[("HTTP_ADDR", "127.0.0.1:80"), ("PROBE_ADDR", "127.0.0.2:80")]).unwrap();
    config(&[("HTTP_ADDR", "127.0.0.1:0"), ("PROBE_ADDR", "127.0.0.1:0")]).unwrap();
}

/// A lossy conversion would replace a byte of the password, and the server would refuse the password.
#[test]
fn a_value_that_is_no_text_is_refused_and_not_changed() {
    use std::os::unix::ffi::OsStringExt;
    let refused = read_os::<Config>(|name| {
        let bytes = if name == "KAFKA_SASL_PASSWORD" { b"hunter\xff".to_vec() } else { vec![] };
        Some(std::ffi::OsString::from_vec(bytes))
    });
    let message = refused.unwrap_err().to_string();
    assert_eq!(message, "KAFKA_SASL_PASSWORD cannot be used: it is not valid UTF-8.");
}

#[test]
fn no_secret_is_shown_by_debug_or_by_an_error() {
    let config = parse_config(&[
        ("KAFKA_SASL_PASSWORD", "hunter2"),
        ("SCHEMA_REGISTRY_PASSWORD", "hunter2"),
        ("MIGRATION_DATABASE_URL", "postgres://owner:hunter2@127.0.0.1/till"),
    ])
    .unwrap();
    assert!(!format!("{config:#?}").contains("hunter2"));
    assert_eq!(
        error_message("DATABASE_URL", "hunter2"),
        "DATABASE_URL cannot be used: it is not a URL like postgres://user@host:5432/database."
    );
}

#[test]
fn help_explains_every_variable() {
    let help = describe_variables::<Config>();
    assert!(help.contains("  DATABASE_URL (required)\n"), "{help}");
    assert!(help.contains("  DATABASE_POOL_SIZE (default 16)\n"), "{help}");
    assert!(help.lines().all(|line| !line.trim().is_empty()), "{help}");
}
