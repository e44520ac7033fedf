//! Production with Kafka Connect: its connectors are those of the files, and what they need is there and no more.
//! `REWRITE_CONNECTORS=1` rewrites the connectors.

use std::collections::BTreeSet;

use e2e::admin::connectors::{outbox, outbox_name};
use e2e::admin::reporting;
use launcher::ConnectorConfig;

use super::network_policies::{Peer, is_allowed};
use super::*;

const OVERLAY: &str = "production-flows";
const COMPONENTS: &str = "k8s/components";

fn flows() -> Option<Vec<Value>> {
    let found = render(OVERLAY);
    if found.is_none() {
        println!("skipped: there is no kubectl");
    }
    found
}

fn config(settings: Value) -> ConnectorConfig {
    serde_json::from_value(settings).unwrap()
}

/// How the connector of an outbox reaches its database in production.
fn outbox_database(service: &str) -> ConnectorConfig {
    config(json!({
        "database.hostname": format!("{service}-db-rw"),
        "database.port": "5432",
        "database.dbname": service,
        "database.user": format!("{service}_connector"),
        "database.password": format!("${{secrets:/mnt/{service}-db-connector:password}}"),
        "database.sslmode": "verify-full",
        "database.sslrootcert": format!("/mnt/{service}-db-ca/ca.crt"),
        // The slot moves to the instance that is promoted.
        "slot.failover": "true",
    }))
}

/// What stands in production for the variables of the worker.
const VALUES: [(&str, &str); 4] = [
    (
        "${env:REPORTING_DATABASE_URL}",
        "jdbc:postgresql://reporting-db-rw:5432/reporting?sslmode=verify-full&sslrootcert=/mnt/reporting-db-ca/ca.crt",
    ),
    ("${env:REPORTING_DATABASE_PASSWORD}", "${secrets:/mnt/reporting-db-server:password}"),
    ("${env:REPORTING_REGISTRY_URL}", "https://registry:8443/apis/registry/v2"),
    ("${env:REPORTING_REPLICATION}", "3"),
];

/// The setting of the converter for the authority of the registry.
const CONVERTER_CA: &str = "value.converter.apicurio.rest.request.ssl.ca-bundle.location";

fn resource(name: &str, mut config: ConnectorConfig) -> String {
    // The operator writes this key into the Secret of a user.
    let user = format!("${{secrets:/mnt/{name}:sasl.jaas.config}}");
    for client in ["producer", "consumer", "admin"] {
        config.insert(format!("{client}.override.sasl.jaas.config"), user.clone().into());
    }
    let [class, tasks] = ["connector.class", "tasks.max"].map(|key| config.remove(key).unwrap());
    let settings = config.iter().map(|(key, value)| format!("    {key}: {value}\n"));
    format!(
        "apiVersion: kafka.strimzi.io/v1\n\
         kind: KafkaConnector\n\
         metadata: {{ name: {name}, labels: {{ strimzi.io/cluster: {} }} }}\n\
         spec:\n  class: {}\n  tasksMax: {}\n  autoRestart: {{ enabled: true }}\n  config:\n{}",
        connect::PROGRAM,
        text(&class),
        text(&tasks),
        settings.collect::<String>(),
    )
}

/// Compares a file with the resources that follow from the files of the connectors, or rewrites it.
fn compare(component: &str, source: &str, resources: &[String]) {
    let file = format!("{COMPONENTS}/{component}/connectors.yaml");
    let head = format!("# Written by a test from {source}: REWRITE_CONNECTORS=1.\n");
    let expected = head + &resources.join("---\n");
    if std::env::var("REWRITE_CONNECTORS").is_ok() {
        std::fs::write(path(&file), &expected).unwrap();
    }
    assert!(read(&file) == expected, "{file} differs from {source}: REWRITE_CONNECTORS=1");
}

#[test]
fn connectors_of_production_are_those_of_the_files() {
    let of_service = |service: &str| {
        resource(&outbox_name(service), outbox(service, outbox_database(service)).unwrap())
    };
    let outboxes: Vec<_> = deployed_services().into_iter().map(of_service).collect();
    compare("cdc", "shared/chassis/connectors/outbox.json", &outboxes);
    let sinks = reporting::CONNECTORS.map(|(name, file)| {
        let put = |file: String, (variable, value): &(&str, &str)| file.replace(variable, value);
        let file = VALUES.iter().fold(file.to_string(), put);
        assert!(!file.contains("${env:"), "{name}: {file}");
        let mut sink: ConnectorConfig = serde_json::from_str(&file).unwrap();
        sink.extend(config(json!({CONVERTER_CA: "/mnt/registry-tls/ca.crt"})));
        resource(name, sink)
    });
    compare("reporting", "services/reporting/connectors", &sinks);
    assert_eq!(
        read(&format!("{COMPONENTS}/reporting/database.sql")),
        read("services/reporting/database.sql")
    );
}

#[test]
fn production_with_connectors_is_as_secure_as_without() {
    let Some(objects) = flows() else { return };
    let broken = secured::broken_rules(&objects);
    assert!(broken.is_empty(), "{broken:?}");
    for object in &objects {
        let broken = workload_rules::broken_rules(object);
        assert!(broken.is_empty(), "{} {}: {broken:?}", object["kind"], name(object));
    }
    let worker = &find(&objects, "KafkaConnect", connect::PROGRAM)["spec"];
    assert!(text(&worker["bootstrapServers"]).ends_with(":9093"), "the listener of the services");
    let secret = json!({"secretName": connect::PROGRAM, "password": "password"});
    let user =
        json!({"type": "scram-sha-512", "username": connect::PROGRAM, "passwordSecret": secret});
    assert_eq!(worker["authentication"], user);
    assert_eq!(worker["tls"]["trustedCertificates"][0]["secretName"], "kafka-cluster-ca-cert");
    find(&objects, "KafkaUser", connect::PROGRAM);
    let container = &worker["template"]["connectContainer"]["securityContext"];
    let kafka = &find(&objects, "Kafka", "kafka")["spec"]["kafka"];
    assert_eq!(*container, kafka["template"]["kafkaContainer"]["securityContext"]);
    assert_eq!(worker["version"], kafka["version"]);
    assert!(text(&worker["image"]).starts_with("registry.example.com/"), "{}", worker["image"]);
}

#[test]
fn the_worker_of_production_has_the_settings_of_the_image() {
    let Some(objects) = flows() else { return };
    let worker = &find(&objects, "KafkaConnect", connect::PROGRAM)["spec"];
    for (key, value) in connect::SHARED {
        let found = if key == "group.id" { &worker["groupId"] } else { &worker["config"][key] };
        assert_eq!(found, value, "{key}");
    }
    let rules = &find(&objects, "KafkaUser", connect::PROGRAM)["spec"]["authorization"]["acls"];
    for topic in ["configStorageTopic", "offsetStorageTopic", "statusStorageTopic"] {
        let topic = text(&worker[topic]);
        let is_named = |rule: &&Value| {
            let named = text(&rule["resource"]["name"]);
            let is_prefix = rule["resource"]["patternType"] == "prefix";
            rule["resource"]["type"] == "topic"
                && (named == topic || is_prefix && topic.starts_with(named))
        };
        let rule = list(rules).iter().find(is_named).unwrap_or_else(|| panic!("{topic}"));
        let operations = texts(&rule["operations"]);
        assert!(["Read", "Write"].iter().all(|it| operations.contains(it)), "{topic}: {rule}");
    }
}

/// The place of a file in the worker, with the key of its Secret.
fn mounted_files(worker: &Value) -> BTreeSet<String> {
    let template = &worker["spec"]["template"];
    let mut files = BTreeSet::new();
    for mount in list(&template["connectContainer"]["volumeMounts"]) {
        let volume =
            list(&template["pod"]["volumes"]).iter().find(|it| it["name"] == mount["name"]);
        for item in volume.map_or(&[][..], |it| list(&it["secret"]["items"])) {
            files.insert(format!("{}/{}", text(&mount["mountPath"]), text(&item["path"])));
        }
    }
    files
}

#[test]
fn each_file_that_a_connector_names_is_mounted_and_no_other() {
    let Some(objects) = flows() else { return };
    let worker = find(&objects, "KafkaConnect", connect::PROGRAM);
    let mut named = BTreeSet::new();
    for connector in of_kind(&objects, "KafkaConnector") {
        for value in connector["spec"]["config"].as_object().unwrap().values().map(text) {
            let Some((_, rest)) = value.split_once("/mnt/") else { continue };
            named.insert(format!("/mnt/{}", rest.trim_end_matches('}').replace(':', "/")));
        }
    }
    assert_eq!(mounted_files(worker), named);
    let allowed = &worker["spec"]["config"]["config.providers.secrets.param.allowed.paths"];
    assert_eq!(allowed, "/mnt");
}

#[test]
fn each_database_of_production_has_the_role_of_its_connector_and_keeps_a_bounded_log() {
    let Some(objects) = flows() else { return };
    for service in deployed_services() {
        let role = format!("{service}_connector");
        let database = &find(&objects, "Cluster", &format!("{service}-db"))["spec"];
        let roles = list(&database["managed"]["roles"]);
        assert_eq!(roles.len(), 3, "{service}");
        let own = roles.iter().find(|it| it["name"] == *role).unwrap();
        assert_eq!((&own["replication"], &own["login"]), (&json!(true), &json!(true)));
        assert!(own["superuser"].is_null(), "{own}");
        let parameters = &database["postgresql"]["parameters"];
        assert_eq!(parameters["max_slot_wal_keep_size"], "10GB", "{service}");
        // The operator writes `synchronized_standby_slots` if both are on: a connector sends what every standby has.
        for setting in ["sync_replication_slots", "hot_standby_feedback"] {
            assert_eq!(parameters[setting], "on", "{service}: {setting}");
        }
        assert_eq!(parameters["log_error_verbosity"], "terse", "{service}: they are merged");
        assert_eq!(
            database["replicationSlots"]["highAvailability"]["synchronizeLogicalDecoding"],
            true
        );
        let job = find(&objects, "Job", &format!("{service}-migrations"));
        let granted = list(&pod(job).unwrap()["containers"][0]["env"]);
        assert!(granted.contains(&json!({"name": "CONNECTOR_ROLE", "value": role})), "{granted:?}");
    }
    let services = of_kind(&objects, "ConfigMap");
    let services = services.into_iter().find(|it| name(it).starts_with("services-")).unwrap();
    assert_eq!(services["data"]["RELAY"], "cdc");
}

#[test]
fn the_worker_of_production_reaches_what_it_needs_and_no_other() {
    let Some(objects) = flows() else { return };
    let worker = || {
        Peer::app(&objects, connect::PROGRAM)
            .with_label("messaging", "events")
            .with_label("app.kubernetes.io/managed-by", "strimzi-cluster-operator")
    };
    let databases: Vec<_> =
        deployed_services().into_iter().map(|service| format!("{service}-db")).collect();
    let databases = databases.iter().map(String::as_str).chain(["reporting-db"]);
    let reached: Vec<(&str, u64)> =
        databases.map(|it| (it, 5432)).chain([("kafka", 9093), ("registry", 8443)]).collect();
    let apps = [
        "order",
        "payment",
        "stock",
        "console",
        "insights",
        "contracts",
        "registry-db",
        "reporting-tables",
    ];
    for app in apps.into_iter().chain(reached.iter().map(|it| it.0)) {
        let peer = Peer::app(&objects, app);
        for port in [5432, 8080, 8083, 8443, 9090, 9091, 9092, 9093, 9094] {
            let is_open = is_allowed(&objects, &worker(), &peer, port);
            assert_eq!(is_open, reached.contains(&(app, port)), "to {app}, port {port}");
            assert!(!is_allowed(&objects, &peer, &worker(), port), "from {app}, port {port}");
        }
    }
    for app in ["order", "insights", "registry"] {
        let reports = Peer::app(&objects, "reporting-db");
        assert!(!is_allowed(&objects, &Peer::app(&objects, app), &reports, 5432), "{app}");
    }
    let tables = Peer::app(&objects, "reporting-tables");
    assert!(is_allowed(&objects, &tables, &Peer::app(&objects, "reporting-db"), 5432));
    // The addresses of the issuer and of the cluster's API.
    for address in ["192.0.2.1", "192.0.2.2"] {
        assert!(
            !is_allowed(&objects, &worker(), &Peer::outside_cluster(address), 443),
            "{address}"
        );
    }
    let monitoring = Peer::in_namespace("monitoring");
    assert!(is_allowed(&objects, &monitoring, &worker(), 9404));
}
