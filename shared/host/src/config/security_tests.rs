//! The switch `SECURE`, and secrets in files.

use super::tests::config;

/// A readable file.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

const SECURE: [(&str, &str); 10] = [
    ("SECURE", "1"),
    ("DATABASE_URL", "postgres://till:hunter2@127.0.0.1/till?sslmode=verify-full"),
    ("MIGRATION_DATABASE_URL", "postgres://owner:hunter2@127.0.0.1/till?sslmode=verify-full"),
    ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
    ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
    ("KAFKA_SASL_USERNAME", "till"),
    ("KAFKA_SASL_PASSWORD", "hunter2"),
    ("SCHEMA_REGISTRY_URL", "https://registry"),
    ("HTTP_TLS_ENDS_AT_GATEWAY", "1"),
    ("TOKEN_ISSUER", "https://issuer"),
];

/// The secure settings with some of them changed; an empty value unsets a variable.
fn with<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = SECURE.iter().filter(|(name, _)| changes.iter().all(|(other, _)| other != name));
    kept.chain(changes).copied().collect()
}

#[test]
fn with_the_switch_on_every_insecure_setting_is_refused_by_name() {
    config(&SECURE).unwrap();
    config(&with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318")])).unwrap();
    let https = [("HTTP_TLS_CERTIFICATE_LOCATION", FILE), ("HTTP_TLS_KEY_LOCATION", FILE)];
    config(&with(&[&https[..], &[("HTTP_TLS_ENDS_AT_GATEWAY", "")]].concat())).unwrap();
    config(&with(&[("TOKEN_ISSUER", "holdfast"), ("TOKEN_KEYS", FILE)])).unwrap();
    config(&with(&[("TOKEN_KEYS", "https://issuer/keys")])).unwrap();
    let refused = [
        &[("TOKEN_ISSUER", "")][..],
        &[("TOKEN_ISSUER", "http://issuer")],
        &[("TOKEN_KEYS", "http://issuer/keys")],
        &[("DATABASE_URL", "postgres://till@127.0.0.1/till")],
        &[("DATABASE_URL", "postgres://till@127.0.0.1/till?sslmode=require")],
        &[("MIGRATION_DATABASE_URL", "postgres://till@127.0.0.1/till?sslmode=verify-ca")],
        &[
            ("KAFKA_SECURITY_PROTOCOL", "plaintext"),
            ("KAFKA_SASL_MECHANISM", ""),
            ("KAFKA_SASL_USERNAME", ""),
            ("KAFKA_SASL_PASSWORD", ""),
        ],
        &[("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext")],
        &[("SCHEMA_REGISTRY_URL", "http://registry")],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")],
        &[("HTTP_TLS_ENDS_AT_GATEWAY", "0")],
    ];
    for changes in refused {
        let message = config(&with(changes)).unwrap_err().to_string();
        let name = changes[0].0.replace("ENDS_AT_GATEWAY", "CERTIFICATE_LOCATION");
        assert!(message.starts_with("SECURE is 1, but "), "{message}");
        assert!(message.contains(&name), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
        let without: Vec<_> = with(changes).into_iter().filter(|it| it.0 != "SECURE").collect();
        config(&without).unwrap();
    }
}

#[test]
fn a_secret_may_stand_in_a_file_and_nowhere_else_at_the_same_time() {
    let directory = std::env::temp_dir().join(format!("secret-files-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let url = "postgres://till:hunter2@127.0.0.1/till";
    let (url_file, password_file) =
        (file("url", &format!("{url}\n")), file("password", "\u{feff} x y \r\n"));
    let changes = [
        ("DATABASE_URL", ""),
        ("DATABASE_URL_FILE", &*url_file),
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
        ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
        ("KAFKA_SASL_USERNAME", "till"),
        ("KAFKA_SASL_PASSWORD_FILE", &password_file),
        ("SCHEMA_REGISTRY_PASSWORD_FILE", ""),
    ];
    let read = config(&changes).unwrap();
    assert_eq!(read.database_url.expose(), url);
    let password = read.kafka.kafka_sasl_password.unwrap();
    assert_eq!(
        password.expose(),
        " x y ",
        "neither the mark nor the end of the line is a part of it"
    );
    assert!(read.schema_registry.schema_registry_password.is_none());

    let empty = file("empty", "\n");
    let refused = [
        (("DATABASE_URL", url), ("DATABASE_URL_FILE", &*url_file), "DATABASE_URL and "),
        (("DATABASE_URL", ""), ("DATABASE_URL_FILE", "/nowhere"), "DATABASE_URL_FILE is "),
        (("DATABASE_URL", ""), ("DATABASE_URL_FILE", &empty), "DATABASE_URL must be set"),
        (("DATABASE_URL", ""), ("DATABASE_URL_FILE", FILE), "DATABASE_URL_FILE cannot be used"),
    ];
    for (value, file, start) in refused {
        let message = config(&[value, file]).unwrap_err().to_string();
        assert!(message.starts_with(start), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    for (content, why) in [
        ("hunter2\n\n", "it has more than one line"),
        ("hunter2\r\r\n", "it has more than one line"),
        ("hunter2\thunter2\n", "it holds the control character U+0009"),
        ("hunter2\0", "it holds the control character U+0000"),
    ] {
        let token = file("token", content);
        let (in_file, in_variable) =
            (("SCHEMA_REGISTRY_TOKEN_FILE", &*token), ("SCHEMA_REGISTRY_TOKEN", content));
        for (name, value) in [in_file, in_variable] {
            let message = config(&[(name, value)]).unwrap_err().to_string();
            assert_eq!(message, format!("{name} cannot be used: {why}."), "{content:?}");
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}
