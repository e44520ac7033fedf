//! The network policies, evaluated: every connection in use is allowed, and no other.

use std::collections::BTreeSet;

use super::*;

type Labels = BTreeMap<String, String>;

/// A sender or receiver: its labels, its namespace, its named ports, and its address if it is no pod.
pub struct Peer {
    namespace: &'static str,
    address: &'static str,
    labels: Labels,
    ports: BTreeMap<String, u64>,
}

impl Peer {
    /// A pod by its label `app`: of a workload, or of an operator's custom resource.
    pub fn app(objects: &[Value], app: &str) -> Peer {
        let templates =
            objects.iter().filter(|it| pod(it).is_some()).map(|it| &it["spec"]["template"]);
        let template = templates.into_iter().find(|it| it["metadata"]["labels"]["app"] == app);
        let labels = template.map(|it| labels(&it["metadata"]["labels"]));
        let labels = labels.unwrap_or(BTreeMap::from([("app".into(), app.into())]));
        let containers = template.map_or(&[][..], |it| list(&it["spec"]["containers"]));
        let ports = containers.iter().flat_map(|it| list(&it["ports"]));
        let ports = ports
            .map(|it| (text(&it["name"]).into(), it["containerPort"].as_u64().unwrap()))
            .collect();
        Peer { namespace: "holdfast", address: "", labels, ports }
    }

    pub fn in_namespace(namespace: &'static str) -> Peer {
        Peer { namespace, address: "", labels: Labels::new(), ports: BTreeMap::new() }
    }

    pub fn with_label(mut self, key: &str, value: &str) -> Peer {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// An address without a pod, such as that of a node or of a host beside the cluster.
    pub fn outside_cluster(address: &'static str) -> Peer {
        Peer { address, ..Peer::in_namespace("") }
    }
}

fn labels(value: &Value) -> Labels {
    let pairs = value.as_object().unwrap().iter();
    pairs.map(|(key, value)| (key.clone(), text(value).to_string())).collect()
}

fn selects(selector: &Value, peer_labels: &Labels) -> bool {
    let by_label = selector["matchLabels"].as_object().into_iter().flatten();
    let by_expression = list(&selector["matchExpressions"]);
    by_label
        .into_iter()
        .all(|(key, value)| peer_labels.get(key).is_some_and(|it| it == text(value)))
        && by_expression.iter().all(|expression| {
            let value = peer_labels.get(text(&expression["key"]));
            match text(&expression["operator"]) {
                "In" => value.is_some_and(|it| texts(&expression["values"]).contains(&&**it)),
                "NotIn" => !value.is_some_and(|it| texts(&expression["values"]).contains(&&**it)),
                "Exists" => value.is_some(),
                other => panic!("this test does not know {other}"),
            }
        })
}

/// Whether one side allows a connection: `direction` is ingress or egress, seen from `own`.
fn allows_direction(
    objects: &[Value],
    direction: &str,
    own: &Peer,
    other: &Peer,
    to_port: u64,
) -> bool {
    let receiver = if direction == "ingress" { own } else { other };
    let is_port = |port: &Value| match &port["port"] {
        Value::String(name) => receiver.ports.get(name) == Some(&to_port),
        number => number.as_u64() == Some(to_port),
    };
    let is_peer = |peer: &Value| {
        let block = &peer["ipBlock"];
        assert!(
            block.is_null() || text(&block["cidr"]).ends_with("/32"),
            "a single address: {block}"
        );
        // Selectors only match pods.
        if other.namespace.is_empty() || !block.is_null() {
            return !other.address.is_empty() && block["cidr"] == format!("{}/32", other.address);
        }
        let namespace =
            Labels::from([("kubernetes.io/metadata.name".into(), other.namespace.into())]);
        let is_there = match &peer["namespaceSelector"] {
            Value::Null => other.namespace == own.namespace,
            selector => selects(selector, &namespace),
        };
        is_there && selects(&peer["podSelector"], &other.labels)
    };
    let rule = |rule: &Value| {
        let peers = &rule[if direction == "ingress" { "from" } else { "to" }];
        (peers.is_null() || list(peers).iter().any(is_peer))
            && (rule["ports"].is_null() || list(&rule["ports"]).iter().any(is_port))
    };
    let policies = of_kind(objects, "NetworkPolicy").into_iter().map(|it| &it["spec"]);
    let mut for_own = policies.filter(|it| selects(&it["podSelector"], &own.labels));
    own.namespace != "holdfast" || for_own.any(|it| list(&it[direction]).iter().any(rule))
}

pub fn is_allowed(objects: &[Value], from: &Peer, to: &Peer, port: u64) -> bool {
    allows_direction(objects, "egress", from, to, port)
        && allows_direction(objects, "ingress", to, from, port)
}

/// Each connection in use, and its port.
fn connections_in_use(tree: &str) -> BTreeSet<(String, String, u64)> {
    let is_production = tree == "production";
    let (api, probes, admin) = (8080, 9090, 9091);
    // In production, the listeners and the registry are encrypted, and the contracts have a listener of their own.
    let (kafka, platform, registry) =
        if is_production { (9093, 9094, 8443) } else { (9092, 9092, api) };
    let mut used = BTreeSet::new();
    for service in deployed_services() {
        let database = format!("{service}-db");
        used.insert((service.into(), database.clone(), 5432));
        used.insert((format!("{service}-migrations"), database, 5432));
        used.insert((service.into(), "kafka".into(), kafka));
        used.insert((service.into(), "registry".into(), registry));
        for port in [api, probes, admin] {
            used.insert(("console".into(), service.into(), port));
        }
        if tree == "demo" {
            used.insert(("seed".into(), service.into(), api));
            used.insert((service.into(), "jaeger".into(), 4318));
        }
    }
    used.insert(("contracts".into(), "kafka".into(), platform));
    used.insert(("contracts".into(), "registry".into(), registry));
    used.insert(("registry".into(), "registry-db".into(), 5432));
    if is_production {
        used.insert(("lag-exporter".into(), "kafka".into(), platform));
        used.insert(("insights".into(), "kafka".into(), kafka));
        used.insert(("insights".into(), "registry".into(), registry));
        used.insert(("console".into(), "insights".into(), api));
    }
    used
}

#[test]
fn every_connection_in_use_is_allowed_and_no_other() {
    for (tree, objects) in OVERLAYS.iter() {
        let deny = &find(objects, "NetworkPolicy", "default-deny")["spec"];
        assert_eq!(*deny, json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
        let is_production = tree == "production";
        let (api, probes, admin, platform) =
            (8080, 9090, 9091, if is_production { 9094 } else { 9092 });
        let used = connections_in_use(tree);
        let mut apps: BTreeSet<String> = BTreeSet::new();
        used.iter().for_each(|(from, to, _)| apps.extend([from.clone(), to.clone()]));
        for from in &apps {
            for to in apps.iter().filter(|to| *to != from) {
                for port in [5432, 9092, 9093, 9094, 8443, 4318, 16686, api, probes, admin] {
                    let is_used = used.contains(&(from.clone(), to.clone(), port));
                    let [from, to] = [from, to].map(|app| Peer::app(objects, app));
                    let is_open = is_allowed(objects, &from, &to, port);
                    let (from, to) = (&from.labels["app"], &to.labels["app"]);
                    assert_eq!(is_open, is_used, "{tree}: {from} to {to}, port {port}");
                }
            }
        }
        for service in deployed_services() {
            let service = Peer::app(objects, service);
            let reached = |namespace, port| {
                is_allowed(objects, &Peer::in_namespace(namespace), &service, port)
            };
            assert!(reached("gateway", api) && !reached("gateway", probes));
            assert_eq!(reached("default", api), !is_production, "{tree}: any pod reaches the API");
            assert!(reached("monitoring", probes));
            assert!(!["gateway", "monitoring"].iter().any(|from| reached(from, admin)));
        }
        let own = Peer::app(objects, "kafka");
        for port in [9092, 9093, 9094] {
            let is_open =
                |namespace| is_allowed(objects, &Peer::in_namespace(namespace), &own, port);
            assert!(!is_open("gateway"), "{tree}: pods of other namespaces reach Kafka");
            assert_eq!(is_open("keda"), is_production && port == platform, "{tree}: {port}");
        }
    }
}

/// The ports of DNS pods: kubeadm and most others, OpenShift, Gardener. Policies apply to the pod's
/// port and not to the Service's.
const DNS_PORTS: [u64; 3] = [53, 5353, 8053];

#[test]
fn every_pod_resolves_names_wherever_the_cluster_keeps_its_dns() {
    for (tree, objects) in OVERLAYS.iter() {
        let policy = &find(objects, "NetworkPolicy", "all-to-dns")["spec"];
        let rules = list(&policy["egress"]);
        let ports: BTreeSet<(u64, &str)> = rules
            .iter()
            .flat_map(|rule| list(&rule["ports"]))
            .map(|port| (port["port"].as_u64().unwrap(), text(&port["protocol"])))
            .collect();
        let wanted = DNS_PORTS.iter().flat_map(|port| [(*port, "TCP"), (*port, "UDP")]);
        assert_eq!(ports, wanted.collect(), "{tree}");

        let templates = objects.iter().filter(|it| pod(it).is_some());
        let apps = templates.map(|it| text(&it["spec"]["template"]["metadata"]["labels"]["app"]));
        for app in apps.collect::<BTreeSet<_>>() {
            let own = Peer::app(objects, app);
            // NodeLocal DNSCache listens on a link-local address of the node, which no selector
            // matches.
            let places = [
                Peer::in_namespace("kube-system").with_label("k8s-app", "kube-dns"),
                Peer::in_namespace("openshift-dns"),
                Peer::outside_cluster("169.254.20.10"),
            ];
            // Names are a way out of the cluster, to a server of an attacker. The second address has the credentials
            // of a node in many clouds.
            let others = [
                Peer::in_namespace("kube-system"),
                Peer::outside_cluster("203.0.113.9"),
                Peer::outside_cluster("169.254.169.254"),
            ];
            let is_open_elsewhere = others.iter().any(|it| is_allowed(objects, &own, it, 53));
            assert_eq!(is_open_elsewhere, tree != "production", "{tree}: {app}");
            for dns in &places {
                let is_open = |port| is_allowed(objects, &own, dns, port);
                let place = dns.namespace;
                assert!(DNS_PORTS.into_iter().all(is_open), "{tree}: {app} to DNS in `{place}`");
                assert!(![80, 443, 8080].into_iter().any(is_open), "{tree}: {app} to `{place}`");
            }
        }
    }
}

/// The services ask the issuer of tokens for its keys, operators sign in there, and no other address is reached.
#[test]
fn services_and_control_room_in_production_reach_their_issuer_alone() {
    let Some((_, objects)) = OVERLAYS.iter().find(|(tree, _)| tree == "production") else {
        return println!("skipped: there is no kubectl");
    };
    // The address is that of no machine until a forker puts in the one of the issuer.
    let issuer = Peer::outside_cluster("192.0.2.2");
    let internet = Peer::outside_cluster("203.0.113.9");
    for service in deployed_services().into_iter().chain(["console", "insights"]) {
        let own = Peer::app(objects, service);
        assert!(is_allowed(objects, &own, &issuer, 443), "{service}");
        assert!(!is_allowed(objects, &own, &issuer, 80), "{service}");
        assert!(!is_allowed(objects, &own, &internet, 443), "{service}");
    }
    for other in ["contracts", "registry", "order-migrations", "order-db"] {
        assert!(!is_allowed(objects, &Peer::app(objects, other), &issuer, 443), "{other}");
    }
}

/// The operands of the operators ask the cluster's API, and nothing else outside of their own cluster.
#[test]
fn operands_in_production_reach_the_api_of_the_cluster_alone() {
    let objects = file("k8s/overlays/production/network.yaml");
    let base = file("k8s/base/network.yaml");
    let objects: Vec<Value> = objects.into_iter().chain(base).collect();
    let instance = |cluster: &str| {
        Peer::app(&objects, cluster)
            .with_label("cnpg.io/cluster", cluster)
            .with_label("app.kubernetes.io/managed-by", "cloudnative-pg")
    };
    // The address is that of no machine until a forker puts in the one of the cluster.
    let api_server = Peer::outside_cluster("192.0.2.1");
    let internet = Peer::outside_cluster("203.0.113.9");
    let clusters = ["order-db", "payment-db", "stock-db", "registry-db"];
    for cluster in clusters {
        let own = instance(cluster);
        assert!(is_allowed(&objects, &own, &api_server, 6443), "{cluster}");
        assert!(![80, 443, 6443].iter().any(|port| is_allowed(&objects, &own, &internet, *port)));
        for other in clusters {
            let is_open = is_allowed(&objects, &own, &instance(other), 5432);
            assert_eq!(is_open, cluster == other, "{cluster} to {other}");
        }
    }
}
