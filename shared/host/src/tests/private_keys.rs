//! A key that no client can use ends the process at its start, and OpenSSL asks no terminal about it.

use super::certificate::Certificate;
use crate::config::tests::parse_config;

#[test]
fn the_key_of_a_client_of_kafka_is_refused_with_its_reason_unless_it_can_be_used() {
    let (own, other) = (Certificate::new("client"), Certificate::new("stranger"));
    let [modern, older, plain] = own.in_other_forms();
    let validate = |key: &Certificate| {
        let config = parse_config(&[
            ("KAFKA_SECURITY_PROTOCOL", "ssl"),
            ("KAFKA_SSL_CERTIFICATE_LOCATION", own.path()),
            ("KAFKA_SSL_KEY_LOCATION", key.path()),
        ]);
        let config = config.unwrap();
        config.kafka.validate().map_err(|error| error.to_string())
    };
    for usable in [&own, &plain] {
        validate(usable).unwrap();
    }
    for (key, why) in
        [(modern, "an encrypted key"), (older, "an encrypted key"), (other, "the key of another")]
    {
        let message = validate(&key).unwrap_err();
        assert!(message.starts_with(&format!("KAFKA_SSL_KEY_LOCATION holds {why}")), "{message}");
    }
}

#[test]
fn the_key_of_a_client_of_postgres_is_refused_with_its_reason_unless_it_can_be_used() {
    let (own, other) = (Certificate::new("role"), Certificate::new("other-role"));
    let [modern, older, plain] = own.in_other_forms();
    let check = |variable: &str, certificate: &str, key: &str| {
        let url = "postgres://till:hunter2@127.0.0.1/till?sslmode=require";
        let mut url = url::Url::parse(url).unwrap();
        url.query_pairs_mut().append_pair("sslcert", certificate).append_pair("sslkey", key);
        let config = parse_config(&[(variable, url.as_str())]).unwrap();
        let checked = config.check_database_keys();
        checked.map_err(|error| error.to_string())
    };
    check("DATABASE_URL", own.path(), own.path()).unwrap();
    let text = std::fs::read_to_string(own.path()).unwrap();
    check("DATABASE_URL", own.path(), &text).unwrap();
    for (key, why) in [
        (modern, "holds an encrypted key"),
        (older, "holds an encrypted key"),
        (other, "holds the key of another"),
        (plain, "does not begin with a key in PKCS#8 format"),
    ] {
        for variable in ["DATABASE_URL", "MIGRATION_DATABASE_URL"] {
            let message = check(variable, own.path(), key.path()).unwrap_err();
            assert!(message.starts_with(&format!("{variable}'s sslkey {why}")), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
