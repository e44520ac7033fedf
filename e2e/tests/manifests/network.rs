//! The network policies, evaluated: every connection in use is allowed, and no other.

use super::*;

type Labels = BTreeMap<String, String>;

/// Each connection in use: in which overlays, who opens it, and to whom at which ports. A line with SERVICE stands for
/// one of each service, and one with PUBLISHER for one of each service that publishes. 192.0.2.1 is the API of the
/// cluster, 192.0.2.2 the issuer of tokens and 192.0.2.3 the carrier, until a forker puts in theirs. In production, the
/// listeners and the registry are encrypted.
const CONNECTIONS: &str = "\
all SERVICE SERVICE-db:5432
all SERVICE-migrations SERVICE-db:5432
all console SERVICE:8080,9090,9091
all monitoring SERVICE:9090
all registry registry-db:5432
demo SERVICE kafka:9092 registry:8080 jaeger:4318
demo contracts kafka:9092 registry:8080
demo seed SERVICE:8080
demo-shipping shipping carrier:8080
demo-shipping carrier shipping:8080
production SERVICE kafka:9093 registry:8443 192.0.2.2:443
production contracts kafka:9094 registry:8443
production gateway SERVICE:8080
production keda kafka:9094
production lag-exporter kafka:9094
production insights kafka:9093 registry:8443 192.0.2.2:443
production console insights:8080 192.0.2.2:443
production monitoring insights:9090 lag-exporter:8000
production kafka 192.0.2.1:443,6443
production SERVICE-db SERVICE-db:5432,8000 192.0.2.1:443,6443
production registry-db registry-db:5432,8000 192.0.2.1:443,6443
production cnpg-system SERVICE-db:5432,8000 registry-db:5432,8000
production-flows connect PUBLISHER-db:5432 reporting-db:5432 kafka:9093 registry:8443 connect:8083
production-flows reporting-tables reporting-db:5432
production-flows monitoring connect:9404
production-flows reporting-db reporting-db:5432,8000 192.0.2.1:443,6443
production-flows cnpg-system reporting-db:5432,8000
production-shipping shipping 192.0.2.3:443";

/// Where clusters keep their DNS, and its ports: kubeadm and most others, OpenShift, Gardener. Policies apply to the
/// pod's port and not to the Service's. NodeLocal DNSCache has an address of the node, which no selector matches.
const DNS: [&str; 3] = ["kube-dns", "openshift-dns", "169.254.20.10"];
const DNS_PORTS: [u64; 3] = [53, 5353, 8053];

/// Ports that are tried in every overlay, in addition to those in use.
const PORTS: [u64; 9] = [80, 4180, 4318, 8083, 8443, 9092, 9093, 9094, 16686];

/// Other namespaces, and addresses: those above, one of the internet, and that of a node's credentials in many clouds.
const OUTSIDE: &str = "gateway monitoring keda cnpg-system default kube-system openshift-dns \
    169.254.20.10 192.0.2.1 192.0.2.2 192.0.2.3 203.0.113.9 169.254.169.254";

/// A sender or receiver.
#[derive(Default)]
struct Peer<'a> {
    /// Its namespace, or its address if it is no pod.
    place: &'a str,
    labels: Labels,
    ports: BTreeMap<&'a str, u64>,
    /// The policies that select it.
    policies: Vec<&'a Value>,
}

impl<'a> Peer<'a> {
    /// A pod of the namespace, by its label `app`.
    fn pod(objects: &'a [Value], app: &str) -> Peer<'a> {
        let is_it = |it: &&Value| pod_labels(it).get("app").is_some_and(|it| it == app);
        let object = objects.iter().find(is_it).unwrap_or(&Value::Null);
        let mut labels = pod_labels(object);
        labels.insert("app".into(), app.into());
        let ports =
            containers(&object["spec"]["template"]["spec"]).flat_map(|it| list(&it["ports"]));
        let ports = ports.map(|it| (text(&it["name"]), it["containerPort"].as_u64().unwrap()));
        let policies = of_kind(objects, "NetworkPolicy").into_iter().map(|it| &it["spec"]);
        let policies = policies.filter(|it| selects(&it["podSelector"], &labels)).collect();
        Peer { place: "holdfast", ports: ports.collect(), policies, labels }
    }

    fn is_ours(&self) -> bool {
        self.place == "holdfast"
    }

    /// Whether the policies of this side, `ingress` or `egress`, allow a connection.
    fn allows(&self, side: &str, other: &Peer, port: u64) -> bool {
        let (peers, receiver) = if side == "ingress" { ("from", self) } else { ("to", other) };
        let is_port = |it: &Value| match &it["port"] {
            Value::String(name) => receiver.ports.get(&**name) == Some(&port),
            number => number.as_u64() == Some(port),
        };
        let allows = |rule: &Value| {
            (rule[peers].is_null() || list(&rule[peers]).iter().any(|it| other.is_meant(it)))
                && (rule["ports"].is_null() || list(&rule["ports"]).iter().any(is_port))
        };
        !self.is_ours() || self.policies.iter().any(|it| list(&it[side]).iter().any(allows))
    }

    /// Whether a rule of a policy means it. Selectors match pods alone.
    fn is_meant(&self, peer: &Value) -> bool {
        let is_address = self.place.contains('.');
        if let Some(block) = peer["ipBlock"]["cidr"].as_str() {
            // A block of more than one address is taken for all of them.
            return is_address && block.strip_suffix("/32").is_none_or(|it| it == self.place);
        }
        let namespace = Labels::from([("kubernetes.io/metadata.name".into(), self.place.into())]);
        let is_there = match &peer["namespaceSelector"] {
            Value::Null => self.is_ours(),
            selector => selects(selector, &namespace),
        };
        !is_address && is_there && selects(&peer["podSelector"], &self.labels)
    }
}

/// The labels of the pods of an object: of a workload, or of a resource whose pods an operator makes.
pub fn pod_labels(object: &Value) -> Labels {
    let managed_by = |operator| ("app.kubernetes.io/managed-by", operator);
    let template = &object["spec"]["template"];
    let (own, by_operator) = match text(&object["kind"]) {
        "Cluster" => (
            &object["spec"]["inheritedMetadata"],
            vec![managed_by("cloudnative-pg"), ("cnpg.io/cluster", name(object))],
        ),
        "KafkaNodePool" | "KafkaConnect" => {
            (&template["pod"]["metadata"], vec![managed_by("strimzi-cluster-operator")])
        }
        _ => (&template["metadata"], vec![]),
    };
    let own = fields(&own["labels"]).map(|(key, value)| (&**key, text(value)));
    own.chain(by_operator).map(|(key, value)| (key.into(), value.into())).collect()
}

pub fn selects(selector: &Value, labels: &Labels) -> bool {
    let has = |(key, value): (&String, &Value)| labels.get(key).is_some_and(|it| value == it);
    let holds = |expression: &Value| {
        let value = labels.get(text(&expression["key"]));
        let is_in = value.is_some_and(|it| texts(&expression["values"]).contains(&&**it));
        match text(&expression["operator"]) {
            "In" => is_in,
            "NotIn" => !is_in,
            other => panic!("this test does not know {other}"),
        }
    };
    fields(&selector["matchLabels"]).all(has)
        && list(&selector["matchExpressions"]).iter().all(holds)
}

/// The services of an overlay. Those that are named by it have shipping.
fn services_of(tree: &str) -> Vec<&'static str> {
    let shipping = tree.ends_with("-shipping").then_some("shipping");
    deployed_services().into_iter().chain(shipping).collect()
}

/// The sender, the receiver and the port of each connection in use.
fn connections_in_use(tree: &str) -> BTreeSet<(String, String, u64)> {
    let mut used = BTreeSet::new();
    let publishing = publishing_services();
    let lines = services_of(tree).into_iter().flat_map(|service| {
        let publishes = publishing.contains(&service);
        let lines = CONNECTIONS.lines().filter(move |it| publishes || !it.contains("PUBLISHER"));
        lines.map(move |it| it.replace("SERVICE", service).replace("PUBLISHER", service))
    });
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let [overlays, from, to @ ..] = &words[..] else { panic!("{line}") };
        let to = to.iter().filter(|_| *overlays == "all" || tree.starts_with(*overlays));
        for (to, ports) in to.map(|it| it.split_once(':').unwrap()) {
            let ports = ports.split(',').map(|port| port.parse().unwrap());
            used.extend(ports.map(|port| (from.to_string(), to.to_string(), port)));
        }
    }
    used
}

pub fn check_network(tree: &str, objects: &[Value], found: &mut Violations) {
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    found.equal(tree, &find(objects, "NetworkPolicy", "default-deny")["spec"], &deny);
    let dns = &find(objects, "NetworkPolicy", "all-to-dns")["spec"]["egress"][0]["ports"];
    for (port, protocol) in DNS_PORTS.iter().flat_map(|it| [(it, "UDP"), (it, "TCP")]) {
        let is_open = list(dns).contains(&json!({"port": port, "protocol": protocol}));
        found.check(tree, format!("DNS by {protocol} at {port}"), is_open);
    }
    let (used, services) = (connections_in_use(tree), services_of(tree));
    let of_used = used.iter().flat_map(|(from, to, _)| [from.clone(), to.clone()]);
    let apps = objects.iter().filter_map(|it| pod_labels(it).remove("app")).chain(of_used);
    let mut peers: BTreeMap<_, _> = apps.map(|it| (it.clone(), Peer::pod(objects, &it))).collect();
    for place in OUTSIDE.split_whitespace() {
        peers.insert(place.into(), Peer { place, ..Peer::default() });
    }
    let labels = Labels::from([("k8s-app".into(), "kube-dns".into())]);
    peers.insert("kube-dns".into(), Peer { place: "kube-system", labels, ..Peer::default() });
    let ports: BTreeSet<u64> =
        used.iter().map(|(_, _, port)| *port).chain(DNS_PORTS).chain(PORTS).collect();
    // Outside of production, every address is one of DNS, and a gateway is anywhere.
    let is_anywhere = !tree.starts_with("production");
    for (from_name, from) in &peers {
        for (to_name, to) in peers.iter().filter(|(_, to)| from.is_ours() || to.is_ours()) {
            for &port in &ports {
                let is_dns = DNS_PORTS.contains(&port)
                    && (DNS.contains(&&**to_name) || is_anywhere && !to.is_ours());
                let is_api = is_anywhere && !from.is_ours() && port == 8080;
                let is_in_use = is_dns
                    || is_api && services.contains(&&**to_name)
                    || used.contains(&(from_name.clone(), to_name.clone(), port));
                let is_open = from.allows("egress", to, port) && to.allows("ingress", from, port);
                let state = if is_open { "is open" } else { "is closed" };
                let connection = format!("{tree}, {from_name} to {to_name}, port {port}");
                found.check(connection, state, is_open == is_in_use);
            }
        }
    }
}

#[test]
fn every_connection_in_use_is_allowed_and_no_other() {
    let mut found = Violations::default();
    OVERLAYS.iter().for_each(|(tree, objects)| check_network(tree, objects, &mut found));
}
