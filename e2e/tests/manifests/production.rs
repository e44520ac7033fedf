//! The overlays for production are secure and durable: every connection is encrypted, every client is known, its rights
//! are those that the topics declare, and an acknowledged commit is on two machines.

use chassis::event::Retention;
use chassis::kafka::RECORD_BYTES_MAX;
use declaration::SUBSCRIPTIONS;
use events::topics;

use super::configuration::default_value;
use super::*;

pub fn check_production(tree: &str, objects: &[Value], found: &mut Violations) {
    check_kafka(tree, objects, found);
    check_topics(tree, objects, found);
    for (object, pod) in pods(objects) {
        for container in containers(pod) {
            let Some(program) = program(&container["image"]) else { continue };
            let subject = format!("{tree}, {}", name(object));
            let set = environment(container, objects);
            check_program(&subject, program, &set, found);
            let mut own = list(&container["env"]).iter();
            let has_secret = own.any(|it| !it["valueFrom"]["secretKeyRef"].is_null());
            found.check(&subject, "secrets are files", !has_secret);
            let mounted = mounted_files(&container["volumeMounts"], &pod["volumes"]);
            let is_file = |name: &str| name.ends_with("_FILE") || name.ends_with("_LOCATION");
            for (_, file) in set.iter().filter(|(name, _)| is_file(name)) {
                found.check(&subject, format!("{file} is mounted"), mounted.contains(file));
            }
        }
    }
    let registry = &find(objects, "Deployment", "registry")["spec"]["template"]["spec"];
    let set = environment(&registry["containers"][0], objects);
    found.equal("HTTPS alone", &*set["QUARKUS_HTTP_INSECURE_REQUESTS"], "disabled");
    for cluster in of_kind(objects, "Cluster") {
        check_database(&format!("{tree}, {}", name(cluster)), cluster, found);
    }
    for service in deployed_services() {
        check_scaling(&format!("{tree}, {service}"), service, objects, found);
    }
    // No way around the gateway.
    let closed = json!({"hard": {"services.nodeports": "0", "services.loadbalancers": "0"}});
    found.fields(tree, &find(objects, "ResourceQuota", "holdfast")["spec"], &closed);
    find(objects, "LimitRange", "holdfast");
}

fn check_kafka(tree: &str, objects: &[Value], found: &mut Violations) {
    // What no rule allows is denied, and the operator writes the rules of the users. Another test compares their files
    // with what the topics declare.
    let rights = json!({"type": "simple", "superUsers": ["CN=contracts"]});
    let secured = json!({
        "kafka": {"listeners": "*", "authorization": rights, "quotas": {"type": "kafka"}},
        "entityOperator": {"userOperator": "*"},
    });
    let spec = &find(objects, "Kafka", "kafka")["spec"];
    found.fields(tree, spec, &secured);
    for listener in list(&spec["kafka"]["listeners"]) {
        let subject = format!("{tree}, listener {}", text(&listener["name"]));
        found.fields(&subject, listener, &json!({"tls": true, "networkPolicyPeers": "*"}));
        let kind = text(&listener["authentication"]["type"]);
        found.check(&subject, "known clients", ["scram-sha-512", "tls"].contains(&kind));
    }
    let own = file("k8s/overlays/production/users.yaml");
    assert!(own.iter().all(|user| find(objects, "KafkaUser", name(user)).is_object()));
    let further = ["connect", "cdc", "reporting"].into_iter();
    let further = further.flat_map(|it| file(&format!("k8s/components/{it}/users.yaml")));
    let declared: Vec<Value> = own.into_iter().chain(further).collect();
    for user in of_kind(objects, "KafkaUser") {
        let subject = format!("{tree}, user {}", name(user));
        let declared = &find(&declared, "KafkaUser", name(user))["spec"];
        found.equal(&subject, &user["spec"], declared);
        if declared["authorization"].is_object() {
            found.fields(&subject, &spec["kafka"]["quotas"], &declared["quotas"]);
        }
    }
}

fn check_topics(tree: &str, objects: &[Value], found: &mut Violations) {
    found.equal(tree, of_kind(objects, "KafkaTopic").len(), topics().len());
    for topic in topics() {
        let mut config = json!({
            "message.timestamp.type": "LogAppendTime", "max.message.bytes": RECORD_BYTES_MAX,
            "compression.type": "uncompressed", "min.insync.replicas": 2, "cleanup.policy": "compact",
        });
        if let Retention::Days(days) = topic.retention {
            config["cleanup.policy"] = "delete".into();
            config["retention.ms"] = (i64::from(days) * 86_400_000).into();
        }
        let declared = json!({"partitions": topic.partitions, "replicas": 3, "config": config});
        let topic = find(objects, "KafkaTopic", topic.name);
        found.equal(format!("{tree}, {}", name(topic)), &topic["spec"], &declared);
    }
}

/// The variables of a program of ours.
fn check_program(subject: &str, program: &str, set: &Variables, found: &mut Violations) {
    let value = |name: &str| set.get(name).map_or("", String::as_str);
    found.equal(subject, value("SECURE"), "1");
    // The control room asks the services alone, and each of its pages needs their token.
    if program == "console" {
        let urls = [value("API_URLS"), value("ADMIN_URLS")].concat();
        found.check(subject, "TLS to the services", !urls.contains("=http:"));
        found.equal(subject, value("SIGN_IN"), "1");
        found.equal(subject, value("OAUTH2_PROXY_PREFIX"), "/oauth2");
    } else {
        let is_encrypted = matches!(value("KAFKA_SECURITY_PROTOCOL"), "sasl_ssl" | "ssl");
        found.check(subject, "TLS to Kafka", is_encrypted);
        let registry = value("SCHEMA_REGISTRY_URL");
        found.check(subject, "TLS to the registry", registry.starts_with("https://"));
    }
    if deployed_services().contains(&program) {
        let is_encrypted = value("TOKEN_ISSUER").starts_with("https://");
        let is_known = is_encrypted && !value("TOKEN_AUDIENCE").is_empty();
        found.check(subject, "an issuer of tokens", is_known);
    }
}

fn check_database(subject: &str, cluster: &Value, found: &mut Violations) {
    let spec = &cluster["spec"];
    // The detail of an error contains values of the row, such as the customer whose key exists already.
    let durable = json!({
        "instances": 3,
        "postgresql": {"synchronous": {"dataDurability": "required"}, "parameters": {"log_error_verbosity": "terse"}},
    });
    found.fields(subject, spec, &durable);
    let first = texts(&spec["postgresql"]["pg_hba"]).first().copied();
    found.equal(subject, first, Some("hostnossl all all all reject"));
    // What only a superuser can take from the role that serves; on the native stack `make denials` tries it.
    let database = name(cluster).trim_end_matches("-db");
    if database != "registry" {
        let serving = named(&spec["managed"]["roles"], database);
        found.fields(subject, serving, &json!({"connectionLimit": 190}));
        let statements = texts(&spec["bootstrap"]["initdb"]["postInitApplicationSQL"]).join(";");
        for part in [
            format!("alter database \"{database}\" set temp_file_limit"),
            format!("alter role {database}_migrator set temp_file_limit = -1"),
            "revoke execute on function".to_string(),
        ] {
            found.check(subject, &part, statements.contains(&part));
        }
    }
}

/// A service is never scaled beyond its partitions, nor beyond its database. KEDA sees its lag as the observer.
fn check_scaling(subject: &str, service: &str, objects: &[Value], found: &mut Violations) {
    let scaled = &find(objects, "ScaledObject", service)["spec"];
    let by_lag = json!({"minReplicaCount": 2, "scaleTargetRef": {"name": service}, "triggers": [{
        "metadata": {"consumerGroup": service, "tls": "enable"}, "authenticationRef": {"name": "observer"},
    }]});
    found.fields(subject, scaled, &by_lag);
    let replicas_max = scaled["maxReplicaCount"].as_u64().unwrap();
    let subscribed = SUBSCRIPTIONS.topics(service).iter();
    let partitions = subscribed.map(|topic| topic.partitions as u64).min().unwrap();
    found.check(subject, format!("{replicas_max} of {partitions}"), replicas_max <= partitions);
    let database = &find(objects, "Cluster", &format!("{service}-db"))["spec"];
    let connections = text(&database["postgresql"]["parameters"]["max_connections"]);
    let pool: u64 = default_value(service, "DATABASE_POOL_SIZE").parse().unwrap();
    // One more replica exists during a rollout; each has its pool and the sessions of its loops
    // and probes.
    let needed = (replicas_max + 1) * (pool + 6);
    let is_enough = connections.parse::<u64>().unwrap() > needed;
    found.check(subject, format!("may take {needed} connections"), is_enough);
}

#[test]
fn production_is_secure_and_durable() {
    let mut found = Violations::default();
    production().for_each(|(tree, objects)| check_production(tree, objects, &mut found));
}
