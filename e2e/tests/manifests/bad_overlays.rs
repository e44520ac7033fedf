//! Three bad overlays show that the checks can fail: each breaks some rules, and is refused by those and no others.

use super::network::check_network;
use super::production::check_production;
use super::workloads::check_workloads;
use super::*;

type Check = fn(&str, &[Value], &mut Violations);

/// What else is found in production if something else stands in some places of its objects.
fn violations(check: Check, good: &[Value], faults: &[(&str, &str, &str, Value)]) -> Vec<String> {
    let mut bad = good.to_vec();
    for (kind, named, place, value) in faults {
        let object = bad.iter_mut().find(|it| it["kind"] == *kind && name(it) == *named).unwrap();
        *object.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value.clone();
    }
    let [before, after] = [good, &bad].map(|objects| {
        let mut found = Violations::default();
        check("production", objects, &mut found);
        std::mem::take(&mut found.0)
    });
    (&after - &before).into_iter().collect()
}

#[test]
fn three_bad_overlays_are_refused_by_the_rules_that_they_break() {
    let Some((_, good)) = production().next() else { return };
    let powerful = [
        ("Deployment", "order", "/spec/template/spec/securityContext/runAsUser", json!(0)),
        ("Deployment", "stock", "/spec/template/spec/containers/0/readinessProbe", Value::Null),
        ("Job", "contracts", "/spec/template/spec/containers/0/image", json!("postgres:17")),
    ];
    let expected = [
        "production, Deployment order: not root",
        "production, Deployment stock/readinessProbe: is there",
        "production, Job contracts: an image with a version",
    ];
    assert_eq!(violations(check_workloads, good, &powerful), expected);
    let readable = [
        ("Kafka", "kafka", "/spec/kafka/listeners/0/tls", json!(false)),
        ("Cluster", "payment-db", "/spec/postgresql/pg_hba", json!([])),
        ("ResourceQuota", "holdfast", "/spec/hard/services.nodeports", json!("1")),
    ];
    let expected = [
        "production, listener services/tls: Bool(false) is not Bool(true)",
        "production, payment-db: None is not Some(\"hostnossl all all all reject\")",
        "production/hard/services.nodeports: String(\"1\") is not String(\"0\")",
    ];
    assert_eq!(violations(check_production, good, &readable), expected);
    let open = [
        ("NetworkPolicy", "order-db-cluster", "/spec/egress/0/ports/0/port", json!(5433)),
        (
            "NetworkPolicy",
            "console-to-issuer",
            "/spec/egress/0/to/0/ipBlock/cidr",
            json!("203.0.113.9/32"),
        ),
    ];
    let expected = [
        "production, console to 192.0.2.2, port 443: is closed",
        "production, console to 203.0.113.9, port 443: is open",
        "production, order-db to order-db, port 5432: is closed",
    ];
    assert_eq!(violations(check_network, good, &open), expected);
}
