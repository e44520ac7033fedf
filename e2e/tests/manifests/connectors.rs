//! Kafka Connect: its worker has the same settings wherever it runs, and production has what its connectors need and no
//! more. `REWRITE_CONNECTORS=1` rewrites the connectors of production from their files.

use e2e::admin::connectors::{outbox, outbox_name};
use e2e::admin::reporting;
use launcher::ConnectorConfig;

use super::configuration::variables;
use super::*;

/// The name of its image, of its container and of its user.
pub const PROGRAM: &str = "connect";

pub const SETTINGS: &str = "services/connect/worker.properties";
const NATIVE: &str = "e2e/launcher/src/components/connect.rs";

/// What makes a record of a connector the same wherever the worker runs, and its effect exact.
const SHARED: [(&str, &str); 6] = [
    ("group.id", PROGRAM),
    ("plugin.discovery", "service_load"),
    ("exactly.once.source.support", "enabled"),
    ("key.converter", "org.apache.kafka.connect.storage.StringConverter"),
    ("value.converter", "org.apache.kafka.connect.converters.ByteArrayConverter"),
    ("header.converter", "org.apache.kafka.connect.storage.StringConverter"),
];

/// How the connector of an outbox reaches its database in production. The slot moves to the instance that is promoted.
fn outbox_settings(service: &str) -> Value {
    json!({
        "database.hostname": format!("{service}-db-rw"), "database.port": "5432",
        "database.dbname": service, "database.user": format!("{service}_connector"),
        "database.password": format!("${{secrets:/mnt/{service}-db-connector:password}}"),
        "database.sslmode": "verify-full", "database.sslrootcert": format!("/mnt/{service}-db-ca/ca.crt"),
        "slot.failover": "true",
    })
}

/// What a connector of the reports has in production in place of the variables of the worker.
fn sink_settings() -> Value {
    let database = "jdbc:postgresql://reporting-db-rw:5432/reporting";
    json!({
        "connection.url": format!("{database}?sslmode=verify-full&sslrootcert=/mnt/reporting-db-ca/ca.crt"),
        "connection.password": "${secrets:/mnt/reporting-db-server:password}",
        "errors.deadletterqueue.topic.replication.factor": "3",
        "value.converter.apicurio.registry.url": "https://registry:8443/apis/registry/v2",
        "value.converter.apicurio.rest.request.ssl.ca-bundle.location": "/mnt/registry-tls/ca.crt",
    })
}

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
         metadata: {{ name: {name}, labels: {{ strimzi.io/cluster: {PROGRAM} }} }}\n\
         spec:\n  class: {}\n  tasksMax: {}\n  autoRestart: {{ enabled: true }}\n  config:\n{}",
        text(&class),
        text(&tasks),
        settings.collect::<String>(),
    )
}

#[test]
fn connectors_of_production_are_those_of_the_files() {
    let compare = |component: &str, source: &str, resources: Vec<String>| {
        let file = format!("k8s/components/{component}/connectors.yaml");
        let head = format!("# Written by a test from {source}: REWRITE_CONNECTORS=1.\n");
        compare_or_rewrite(&file, &(head + &resources.join("---\n")), "REWRITE_CONNECTORS");
    };
    let outboxes = publishing_services().into_iter().map(|service| {
        let settings = serde_json::from_value(outbox_settings(service)).unwrap();
        resource(&outbox_name(service), outbox(service, settings).unwrap())
    });
    compare("cdc", "shared/messaging/connectors/outbox.json", outboxes.collect());
    let sinks = reporting::CONNECTORS.map(|(name, file)| {
        let settings = merged(&serde_json::from_str(file).unwrap(), &sink_settings());
        assert!(!settings.to_string().contains("${env:"), "{name}: {settings}");
        resource(name, serde_json::from_value(settings).unwrap())
    });
    compare("reporting", "services/reporting/connectors", sinks.into());
}

/// The production overlay with Kafka Connect, and its worker.
fn flows() -> Option<(&'static [Value], &'static Value)> {
    let (_, objects) = OVERLAYS.iter().find(|(tree, _)| *tree == "production-flows")?;
    Some((objects, &find(objects, "KafkaConnect", PROGRAM)["spec"]))
}

#[test]
fn the_worker_has_the_same_settings_wherever_it_runs() {
    let (image, native) = (read(SETTINGS), read(NATIVE));
    let lines = image.lines().filter(|line| !line.starts_with('#'));
    let settings: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once('=')).collect();
    let mut found = Violations::default();
    for (key, value) in SHARED {
        found.equal(SETTINGS, settings.get(key), Some(&value));
        let written = [format!("{key}={value}"), format!("{key}={{CONNECT}}")];
        found.check(NATIVE, key, written.iter().any(|line| native.contains(line)));
        if let Some((_, worker)) = flows() {
            let setting =
                if key == "group.id" { &worker["groupId"] } else { &worker["config"][key] };
            found.equal("production", text(setting), value);
        }
    }
    for key in ["session.timeout.ms", "heartbeat.interval.ms", "scheduled.rebalance.max.delay.ms"] {
        found.check(NATIVE, key, native.contains(&format!("\"{key}={}\"", settings[key])));
    }
    let copy = format!("COPY --from=build /plugins {}\n", settings["plugin.path"]);
    found.check("its image", &copy, read("services/connect/Dockerfile").contains(&copy));
    // A connector may name each variable that it needs, and no other.
    let allowed = settings["config.providers.env.param.allowlist.pattern"].split('|');
    let needed = variables(PROGRAM).into_keys().map(|name| match name.split_once('_') {
        Some(("REPORTING", _)) => "REPORTING_.*".to_string(),
        _ => name,
    });
    let (allowed, needed): (BTreeSet<_>, BTreeSet<_>) =
        (allowed.map(String::from).collect(), needed.collect());
    found.equal("variables", allowed, needed);
}

#[test]
fn the_connectors_of_production_have_the_files_rights_and_roles_that_they_need() {
    let Some((objects, worker)) = flows() else { return };
    let kafka = &find(objects, "Kafka", "kafka")["spec"]["kafka"]["template"]["kafkaContainer"];
    let secret = json!({"secretName": PROGRAM, "password": "password"});
    let template = &worker["template"];
    let mut found = Violations::default();
    let secured = json!({
        "bootstrapServers": "kafka-kafka-bootstrap:9093",
        "authentication": {"type": "scram-sha-512", "username": PROGRAM, "passwordSecret": secret},
        "tls": {"trustedCertificates": [{"secretName": "kafka-cluster-ca-cert"}]},
        "config": {"config.providers.secrets.param.allowed.paths": "/mnt"},
        "template": {"connectContainer": {"securityContext": kafka["securityContext"]}},
    });
    found.fields("worker", worker, &secured);
    let is_pulled = text(&worker["image"]).starts_with("registry.example.com/");
    found.check("worker", "an image of the registry", is_pulled);
    let rules = list(&find(objects, "KafkaUser", PROGRAM)["spec"]["authorization"]["acls"]);
    for topic in ["configStorageTopic", "offsetStorageTopic", "statusStorageTopic"] {
        let topic = text(&worker[topic]);
        let is_named = |rule: &&Value| {
            let (kind, named) = (&rule["resource"]["type"], text(&rule["resource"]["name"]));
            let is_prefix = rule["resource"]["patternType"] == "prefix";
            kind == "topic" && (named == topic || is_prefix && topic.starts_with(named))
        };
        let allowed = rules.iter().filter(is_named).flat_map(|it| texts(&it["operations"]));
        let allowed: BTreeSet<&str> = allowed.collect();
        let is_used = allowed.is_superset(&["Read", "Write"].into());
        found.check(topic, "is read and written", is_used);
    }
    // Each file that a connector names is mounted, and no other.
    let connectors = of_kind(objects, "KafkaConnector").into_iter();
    let settings = connectors.flat_map(|it| fields(&it["spec"]["config"]));
    let files = settings.filter_map(|(_, value)| text(value).split_once("/mnt/"));
    let files = files.map(|(_, it)| format!("/mnt/{}", it.trim_end_matches('}').replace(':', "/")));
    let mounts = &template["connectContainer"]["volumeMounts"];
    found.equal("files", mounted_files(mounts, &template["pod"]["volumes"]), files.collect());
    // A bounded log, of which a connector sends what every standby has: the operator adds `synchronized_standby_slots`.
    let captured = json!({
        "postgresql": {"parameters": {
            "max_slot_wal_keep_size": "10GB", "sync_replication_slots": "on", "hot_standby_feedback": "on",
        }},
        "replicationSlots": {"highAvailability": {"synchronizeLogicalDecoding": true}},
    });
    let publishing = publishing_services();
    for service in deployed_services() {
        let pod = &find(objects, "Deployment", service)["spec"]["template"]["spec"];
        let relay = environment(&pod["containers"][0], objects).remove("RELAY");
        let is_captured = publishing.contains(&service);
        found.equal(service, relay.as_deref(), is_captured.then_some("cdc"));
        if !is_captured {
            continue;
        }
        let role = format!("{service}_connector");
        let database = &find(objects, "Cluster", &format!("{service}-db"))["spec"];
        found.fields(service, database, &captured);
        let rights = json!({"replication": true, "login": true, "superuser": null});
        found.fields(service, named(&database["managed"]["roles"], &role), &rights);
        let job = find(objects, "Job", &format!("{service}-migrations"));
        let set = environment(&job["spec"]["template"]["spec"]["containers"][0], objects);
        found.equal(service, (&set["CONNECTOR_ROLE"], &*set["RELAY"]), (&role, "cdc"));
    }
}

/// The program takes the words that docker compose gives it: `--help` behind them is only reached then.
#[test]
fn the_container_of_the_connectors_has_arguments_that_its_program_takes() {
    let connectors = &compose()["services"]["connectors"];
    let check = texts(&connectors["healthcheck"]["test"]);
    for words in [&texts(&connectors["command"])[..], &check[2..]] {
        let words = words.iter().map(|word| word.replace("${RELAY:-service}", "cdc"));
        let output = command("e2e").args(words).arg("--help").output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{error}");
    }
}
