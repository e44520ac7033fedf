//! Production overlays that are not secure: each breaks one rule, and is refused by that rule.

use super::secured::{broken_rules, production};
use super::*;

/// A place in an object, below another one. A test may leak it.
fn place(start: &str, rest: &str) -> &'static str {
    format!("{start}{rest}").leak()
}

/// A way to break the overlay: the object, the place, the new value (none: the field is removed), and the rule that must
/// refuse it.
type OverlayFault = (&'static str, &'static str, &'static str, Option<Value>, &'static str);

fn kafka_faults() -> Vec<OverlayFault> {
    let write =
        json!({"resource": {"type": "topic", "name": "orders.created"}, "operations": ["Write"]});
    let kafka = "/spec/kafka";
    vec![
        (
            "Kafka",
            "kafka",
            place(kafka, "/listeners/0/tls"),
            Some(json!(false)),
            "an encrypted listener",
        ),
        (
            "Kafka",
            "kafka",
            place(kafka, "/listeners/1/authentication"),
            None,
            "a listener that knows its clients",
        ),
        ("Kafka", "kafka", place(kafka, "/listeners/0/networkPolicyPeers"), None, "named peers"),
        ("Kafka", "kafka", place(kafka, "/authorization"), None, "no rule means no"),
        (
            "Kafka",
            "kafka",
            place(kafka, "/authorization/superUsers/1"),
            Some(json!("CN=order")),
            "no rule means no",
        ),
        ("Kafka", "kafka", place(kafka, "/quotas"), None, "quotas"),
        (
            "Kafka",
            "kafka",
            place(kafka, "/quotas/producerByteRate"),
            Some(json!(20_971_520)),
            "quotas",
        ),
        ("KafkaUser", "payment", "/spec/quotas/requestPercentage", None, "quotas"),
        ("Kafka", "kafka", "/spec/entityOperator/userOperator", None, "users are operated"),
        ("KafkaUser", "stock", "/spec/authorization/acls/0", Some(write), "rights as declared"),
        ("KafkaUser", "order", "/spec/authorization/acls", None, "rights as declared"),
        (
            "ScaledObject",
            "order",
            "/spec/triggers/0/authenticationRef",
            None,
            "KEDA is the observer",
        ),
        ("ScaledObject", "stock", "/spec/triggers/0/metadata/tls", None, "KEDA is the observer"),
    ]
}

fn other_faults() -> Vec<OverlayFault> {
    let anyone = json!([{"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "order-database"}}}]);
    let container = "/spec/template/spec/containers/0";
    vec![
        ("Cluster", "payment-db", "/spec/postgresql/pg_hba", None, "TLS to Postgres"),
        ("Deployment", "order", place(container, "/env"), Some(anyone), "secrets are files"),
        ("Deployment", "stock", place(container, "/volumeMounts"), None, "a file that is mounted"),
        (
            "Job",
            "contracts",
            place(container, "/env/1/value"),
            Some(json!("plaintext")),
            "TLS to Kafka",
        ),
        (
            "Deployment",
            "registry",
            place(container, "/env/0/value"),
            Some(json!("enabled")),
            "the registry answers by HTTPS alone",
        ),
        (
            "Deployment",
            "payment",
            place(container, "/env/another"),
            Some(json!({"name": "TOKEN_ISSUER", "value": "http://issuer.example.com"})),
            "an issuer of tokens",
        ),
        (
            "ResourceQuota",
            "holdfast",
            "/spec/hard/services.nodeports",
            None,
            "no way around the gateway",
        ),
    ]
}

fn network_faults() -> Vec<OverlayFault> {
    vec![
        ("NetworkPolicy", "order", "/spec/ingress/0/from", None, "a named gateway"),
        (
            "NetworkPolicy",
            "operands-to-api-server",
            "/spec/egress/0/to",
            None,
            "the API server by its address",
        ),
        (
            "NetworkPolicy",
            "operands-to-api-server",
            "/spec/egress/0/to/0/ipBlock/cidr",
            Some(json!("0.0.0.0/0")),
            "the API server by its address",
        ),
        (
            "NetworkPolicy",
            "services-to-issuer",
            "/spec/egress/0/to/0/ipBlock/cidr",
            Some(json!("0.0.0.0/0")),
            "the issuer by its address",
        ),
        (
            "NetworkPolicy",
            "console-to-issuer",
            "/spec/egress/0/to",
            None,
            "the issuer by its address",
        ),
    ]
}

#[test]
fn each_bad_overlay_is_refused_by_the_rule_that_it_breaks() {
    let Some(good) = production() else { return println!("skipped: there is no kubectl") };
    let faults = [kafka_faults(), network_faults(), other_faults()];
    for (kind, named, place, put, rule) in faults.into_iter().flatten() {
        let mut bad = good.clone();
        let object = bad.iter_mut().find(|it| it["kind"] == kind && name(it) == named).unwrap();
        let (inside, field) = place.rsplit_once('/').unwrap();
        match (object.pointer_mut(inside).unwrap_or_else(|| panic!("{place}")), put) {
            (Value::Array(list), Some(value)) => list.push(value),
            (Value::Object(fields), Some(value)) => drop(fields.insert(field.into(), value)),
            (inside, None) => {
                inside.as_object_mut().unwrap().remove(field).unwrap_or_else(|| panic!("{place}"));
            }
            (other, _) => panic!("{place} is in {other}"),
        }
        assert_eq!(broken_rules(&bad), [rule], "{kind} {named} {place}");
    }
    for (variable, rule) in [
        ("SECURE", "SECURE"),
        ("TOKEN_ISSUER", "an issuer of tokens"),
        ("TOKEN_AUDIENCE", "an issuer of tokens"),
        ("OAUTH2_PROXY_PREFIX", "operators sign in at a proxy"),
    ] {
        let mut unset = good.clone();
        let maps = unset.iter_mut().filter(|it| it["kind"] == "ConfigMap");
        maps.for_each(|map| drop(map["data"].as_object_mut().unwrap().remove(variable)));
        assert_eq!(broken_rules(&unset), [rule], "{variable}");
    }
}
