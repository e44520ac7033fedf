//! The production overlay is secure: every connection is encrypted, every client is known, and its rights are those that
//! the topics declare.

use std::collections::BTreeSet;

use events::CONTRACTS;

use super::*;

/// The production overlay as kubectl renders it.
pub fn production() -> Option<Vec<Value>> {
    let (_, objects) = OVERLAYS.iter().find(|(tree, _)| tree == "production")?;
    Some(objects.clone())
}

/// The rules that the overlay breaks, by name.
pub fn broken_rules(objects: &[Value]) -> Vec<&'static str> {
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

/// Every right in Kafka: the user, the kind and name of the resource, and the operation. A name with `*` at its end
/// stands for all that begin so.
type Rights = BTreeSet<(String, String, String, String)>;

fn rights_of_users(objects: &[Value]) -> Rights {
    let mut rights = Rights::new();
    for user in of_kind(objects, "KafkaUser") {
        for rule in list(&user["spec"]["authorization"]["acls"]) {
            let resource = &rule["resource"];
            assert!(matches!(text(&rule["type"]), "" | "allow"), "{rule}");
            let any = if resource["patternType"] == "prefix" { "*" } else { "" };
            for operation in texts(&rule["operations"]) {
                let kind = text(&resource["type"]).to_lowercase();
                let named = format!("{}{any}", text(&resource["name"]));
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
    let features = CONTRACTS.grants_of_features(&["connect", "cdc", "reporting"]).unwrap();
    let grants = CONTRACTS.grants().into_iter().chain(features);
    let grants = grants.filter(|grant| users.contains(&*grant.user));
    let rights = grants.map(|grant| {
        let kind = format!("{:?}", grant.resource).to_lowercase();
        let any = if grant.is_prefix { "*" } else { "" };
        let (user, name) = (grant.user.into_owned(), format!("{}{any}", grant.name));
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
            let named = program(text(&container["image"])).unwrap();
            // The control room asks the services alone, and each of its pages needs their token.
            if named == "console" {
                let urls = ["API_URLS", "ADMIN_URLS"].map(&value);
                hold("TLS to the services", urls.iter().all(|it| !it.contains("=http://")));
                hold("operators sign in", value("SIGN_IN") == "1");
                hold("operators sign in at a proxy", value("OAUTH2_PROXY_PREFIX") == "/oauth2");
            } else {
                hold("TLS to Kafka", is_encrypted);
                hold("TLS to the registry", value("SCHEMA_REGISTRY_URL").starts_with("https://"));
            }
            let is_service = deployed_services().contains(&named);
            let is_known = value("TOKEN_ISSUER").starts_with("https://")
                && !value("TOKEN_AUDIENCE").is_empty();
            hold("an issuer of tokens", !is_service || is_known);
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
    hold("the API server by its address", is_by_address(to_api));
    for policy in ["services-to-issuer", "console-to-issuer"] {
        let to_issuer = &find(objects, "NetworkPolicy", policy)["spec"]["egress"][0];
        hold("the issuer by its address", is_by_address(to_issuer));
    }
    let quota = &find(objects, "ResourceQuota", "holdfast")["spec"]["hard"];
    let opens = ["services.nodeports", "services.loadbalancers"];
    hold("no way around the gateway", opens.iter().all(|kind| quota[*kind] == "0"));
    hold("limits", !of_kind(objects, "LimitRange").is_empty());
}

/// Whether a rule names a few addresses, or the pods that it opens.
fn is_by_address(rule: &Value) -> bool {
    let peers = list(&rule["to"]);
    let is_narrow = |peer: &Value| {
        let bits = text(&peer["ipBlock"]["cidr"]).rsplit_once('/');
        let bits = bits.and_then(|it| it.1.parse::<u8>().ok());
        peer["podSelector"].is_object() || bits.is_some_and(|bits| bits >= 24)
    };
    !peers.is_empty() && peers.iter().all(is_narrow)
}

#[test]
fn production_is_secure() {
    let Some(objects) = production() else { return println!("skipped: there is no kubectl") };
    let broken = broken_rules(&objects);
    let (found, declared) = (rights_of_users(&objects), declared_rights(&objects));
    let wrong: Vec<_> = found.symmetric_difference(&declared).collect();
    assert!(broken.is_empty(), "{broken:?}, {wrong:?}");
}
