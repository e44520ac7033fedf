//! The production overlay is secure: every connection is encrypted, every client is known, and its rights are those that
//! the topics declare. Manifests that break one rule each are refused by that rule.

use std::collections::BTreeSet;

use events::CONTRACTS;

use super::*;

/// The production overlay as kubectl renders it.
fn production() -> Option<Vec<Value>> {
    let (_, objects) = OVERLAYS.iter().find(|(tree, _)| tree == "production")?;
    Some(objects.clone())
}

/// The rules that the overlay breaks, by name.
fn broken_rules(objects: &[Value]) -> Vec<&'static str> {
    let mut broken = Vec::new();
    let mut hold = |rule, is_kept: bool| {
        if !is_kept && !broken.contains(&rule) {
            broken.push(rule);
        }
    };
    check_kafka(objects, &mut hold);
    check_programs(objects, &mut hold);
    check_network(objects, &mut hold);
    for cluster in of_kind(objects, "Cluster") {
        let rules = texts(&cluster["spec"]["postgresql"]["pg_hba"]);
        hold("TLS to Postgres", rules.first() == Some(&"hostnossl all all all reject"));
    }
    broken
}

fn check_kafka(objects: &[Value], mut hold: impl FnMut(&'static str, bool)) {
    let kafka = &find(objects, "Kafka", "kafka")["spec"];
    let listeners = list(&kafka["kafka"]["listeners"]);
    for listener in listeners {
        hold("an encrypted listener", listener["tls"] == true);
        let kind = &listener["authentication"]["type"];
        hold("a listener that knows its clients", kind == "scram-sha-512" || kind == "tls");
        hold("named peers", !list(&listener["networkPolicyPeers"]).is_empty());
    }
    let rights = json!({"type": "simple", "superUsers": ["CN=contracts"]});
    hold("no rule means no", !listeners.is_empty() && kafka["kafka"]["authorization"] == rights);
    let users = of_kind(objects, "KafkaUser").into_iter();
    let mut users = users.filter(|it| it["spec"]["authorization"].is_object());
    hold("quotas", users.all(|it| has_quotas(it, &kafka["kafka"]["quotas"])));
    hold("users are operated", kafka["entityOperator"]["userOperator"].is_object());
    hold("rights as declared", rights_of_users(objects) == declared_rights(objects));
    for scaled in of_kind(objects, "ScaledObject") {
        let trigger = &scaled["spec"]["triggers"][0];
        let is_known = trigger["authenticationRef"]["name"] == "observer";
        hold("KEDA is the observer", is_known && trigger["metadata"]["tls"] == "enable");
    }
}

/// Whether a user has the quotas of the declaration, and Kafka gives the same to a user without any.
fn has_quotas(user: &Value, default: &Value) -> bool {
    let mut own = user["spec"]["quotas"].clone();
    own["type"] = "kafka".into();
    own["producerByteRate"].is_u64() && own == *default
}

/// Every right in Kafka: the user, the kind and name of the resource, and the operation.
type Rights = BTreeSet<(String, String, String, String)>;

fn rights_of_users(objects: &[Value]) -> Rights {
    let mut rights = Rights::new();
    for user in of_kind(objects, "KafkaUser") {
        for rule in list(&user["spec"]["authorization"]["acls"]) {
            let resource = &rule["resource"];
            // A name stands for itself alone, and a rule allows.
            let is_literal = matches!(text(&resource["patternType"]), "" | "literal");
            assert!(is_literal && matches!(text(&rule["type"]), "" | "allow"), "{rule}");
            for operation in texts(&rule["operations"]) {
                let [kind, named] =
                    ["type", "name"].map(|field| text(&resource[field]).to_string());
                rights.insert((name(user).to_string(), kind, named, operation.to_string()));
            }
        }
    }
    rights
}

/// The rights that follow from the topics: of every user in the overlay, and of every service that runs there. A service
/// that was just generated is neither. `contracts apply` brings about the same rights where no operator does.
fn declared_rights(objects: &[Value]) -> Rights {
    let users = of_kind(objects, "KafkaUser").into_iter().chain(of_kind(objects, "Deployment"));
    let users: BTreeSet<&str> = users.map(name).collect();
    let grants = CONTRACTS.grants().into_iter().filter(|grant| users.contains(&*grant.user));
    let rights = grants.map(|grant| {
        let kind = format!("{:?}", grant.resource).to_lowercase();
        let (user, name) = (grant.user.into_owned(), grant.name.into_owned());
        (user, kind, name, format!("{:?}", grant.operation))
    });
    rights.collect()
}

/// The settings of our own programs.
fn check_programs(objects: &[Value], mut hold: impl FnMut(&'static str, bool)) {
    let mut programs = 0;
    for object in objects {
        let Some(pod) = pod(object) else { continue };
        for container in containers(pod).filter(|it| program(text(&it["image"])).is_some()) {
            let set = environment(container, objects);
            let value = |name: &str| set.get(name).map_or("", String::as_str);
            hold("SECURE", value("SECURE") == "1");
            let is_encrypted = matches!(value("KAFKA_SECURITY_PROTOCOL"), "sasl_ssl" | "ssl");
            hold("TLS to Kafka", is_encrypted);
            hold("TLS to the registry", value("SCHEMA_REGISTRY_URL").starts_with("https://"));
            let is_read =
                list(&container["env"]).iter().all(|it| it["valueFrom"]["secretKeyRef"].is_null());
            hold("secrets are files", is_read);
            let files =
                set.iter().filter(|it| it.0.ends_with("_FILE") || it.0.ends_with("_LOCATION"));
            let mounted = mounted_files(container, pod);
            files.for_each(|(_, file)| hold("a file that is mounted", mounted.contains(file)));
            programs += 1;
        }
    }
    hold("SECURE", programs >= 7);
    let registry = pod(find(objects, "Deployment", "registry")).unwrap();
    let set = environment(&registry["containers"][0], objects);
    let is_closed = set.get("QUARKUS_HTTP_INSECURE_REQUESTS").is_some_and(|it| it == "disabled");
    hold("the registry answers by HTTPS alone", is_closed);
}

/// The variables of a container with a value, from its own list and from its ConfigMaps.
fn environment(container: &Value, objects: &[Value]) -> BTreeMap<String, String> {
    let maps = list(&container["envFrom"]).iter();
    let maps = maps.map(|it| find(objects, "ConfigMap", text(&it["configMapRef"]["name"])));
    let pairs = maps.flat_map(|map| map["data"].as_object().unwrap().iter());
    let mut set: BTreeMap<String, String> =
        pairs.map(|(name, value)| (name.clone(), text(value).to_string())).collect();
    for own in list(&container["env"]) {
        set.insert(text(&own["name"]).to_string(), text(&own["value"]).to_string());
    }
    set
}

/// The files that the projected volumes of a pod put into a container.
fn mounted_files(container: &Value, pod: &Value) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for mount in list(&container["volumeMounts"]) {
        let volume = list(&pod["volumes"]).iter().find(|it| it["name"] == mount["name"]);
        let sources = volume.map_or(&[][..], |it| list(&it["projected"]["sources"]));
        let items = sources.iter().flat_map(|source| list(&source["secret"]["items"]));
        files
            .extend(items.map(|it| format!("{}/{}", text(&mount["mountPath"]), text(&it["path"]))));
    }
    files
}

fn check_network(objects: &[Value], mut hold: impl FnMut(&'static str, bool)) {
    for service in deployed_services() {
        let ingress = &find(objects, "NetworkPolicy", service)["spec"]["ingress"];
        let is_named = list(ingress).iter().all(|rule| !list(&rule["from"]).is_empty());
        hold("a named gateway", is_named);
    }
    let to_api = &find(objects, "NetworkPolicy", "operands-to-api-server")["spec"]["egress"][0];
    let address = text(&to_api["to"][0]["ipBlock"]["cidr"]);
    let bits = address.rsplit_once('/').and_then(|it| it.1.parse::<u8>().ok());
    hold("the API server by its address", bits.is_some_and(|bits| bits >= 24));
    let quota = &find(objects, "ResourceQuota", "holdfast")["spec"]["hard"];
    let opens = ["services.nodeports", "services.loadbalancers"];
    hold("no way around the gateway", opens.iter().all(|kind| quota[*kind] == "0"));
    hold("limits", !of_kind(objects, "LimitRange").is_empty());
}

#[test]
fn production_is_secure() {
    let Some(objects) = production() else { return println!("skipped: there is no kubectl") };
    let broken = broken_rules(&objects);
    let (found, declared) = (rights_of_users(&objects), declared_rights(&objects));
    let wrong: Vec<_> = found.symmetric_difference(&declared).collect();
    assert!(broken.is_empty(), "{broken:?}, {wrong:?}");
}

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
            "ResourceQuota",
            "holdfast",
            "/spec/hard/services.nodeports",
            None,
            "no way around the gateway",
        ),
    ]
}

#[test]
fn each_bad_overlay_is_refused_by_the_rule_that_it_breaks() {
    let Some(good) = production() else { return println!("skipped: there is no kubectl") };
    for (kind, named, place, put, rule) in kafka_faults().into_iter().chain(other_faults()) {
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
    let mut insecure = good.clone();
    let maps = insecure.iter_mut().filter(|it| it["kind"] == "ConfigMap");
    maps.for_each(|map| drop(map["data"].as_object_mut().unwrap().remove("SECURE")));
    assert_eq!(broken_rules(&insecure), ["SECURE"]);
}
