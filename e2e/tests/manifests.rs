//! What `k8s/` and `docker-compose.yml` say, held against the code that they start, and each workload
//! against the rules for what runs in a cluster. Needs the files alone; where there is `kubectl`, the
//! overlays are read as it renders them, else file by file.

// Clippy knows tests by their attribute, and all of this is one.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use chassis::event::Retention;
use e2e::stack::programs;
use e2e::template::checkout;
use e2e::topology::SERVICES;
use events::TOPICS;
use serde_json::{Value, json};

// ------------------------------------------------------------------------------------ reading

fn path(file: &str) -> PathBuf {
    checkout().unwrap().join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn objects(yaml: &str, whence: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{whence}: {error}"))
}

fn file(name: &str) -> Vec<Value> {
    objects(&read(name), name)
}

fn compose() -> Value {
    file("docker-compose.yml").remove(0)
}

/// The services that `k8s/` knows. `make service` makes one for the native stack and for compose; to
/// Kubernetes it goes when somebody writes its file, and from then on it is held to all of this.
fn deployed() -> Vec<&'static str> {
    let has_file = |service: &&str| path(&format!("k8s/base/{service}.yaml")).exists();
    SERVICES.into_iter().filter(has_file).collect()
}

/// What is applied together: base and overlays, with what they consist of.
static TREES: LazyLock<Vec<(String, Vec<Value>)>> = LazyLock::new(trees);

fn trees() -> Vec<(String, Vec<Value>)> {
    let rendered: Vec<_> = ["demo", "production"]
        .into_iter()
        .filter_map(|it| Some((it.into(), render(it)?)))
        .collect();
    if rendered.len() == 2 {
        return rendered;
    }
    println!("there is no kubectl: the files are read as they stand");
    let base = "k8s/base";
    let named = file(&format!("{base}/kustomization.yaml")).remove(0);
    let names = texts(&named["resources"]);
    let mut objects: Vec<Value> =
        names.iter().flat_map(|name| file(&format!("{base}/{name}"))).collect();
    for map in list(&named["configMapGenerator"]) {
        let pairs = texts(&map["literals"]);
        let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
        let data: BTreeMap<&str, &str> = pairs.collect();
        objects.push(json!({"kind": "ConfigMap", "metadata": {"name": map["name"]}, "data": data}));
    }
    let demo = ["kafka", "seed"].map(|name| file(&format!("k8s/overlays/demo/{name}.yaml")));
    let demo = objects.iter().cloned().chain(demo.into_iter().flatten()).collect();
    vec![("base".into(), objects), ("demo".into(), demo)]
}

fn render(overlay: &str) -> Option<Vec<Value>> {
    let overlay = path(&format!("k8s/overlays/{overlay}"));
    let told = Command::new("kubectl").arg("kustomize").arg(&overlay).output().ok()?;
    let said = String::from_utf8(told.stderr).unwrap();
    assert!(told.status.success(), "{}: {said}", overlay.display());
    Some(objects(&String::from_utf8(told.stdout).unwrap(), &overlay.display().to_string()))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, named: &str) -> &'a Value {
    let found = of_kind(objects, kind).into_iter().find(|object| name(object) == named);
    found.unwrap_or_else(|| panic!("there is no {kind} {named}"))
}

/// The pod of whatever has a template of one.
fn pod(object: &Value) -> Option<&Value> {
    let has_pods = matches!(text(&object["kind"]), "Deployment" | "StatefulSet" | "Job");
    has_pods.then(|| &object["spec"]["template"]["spec"])
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"]))
}

/// `holdfast/order:local` and `registry.example.com/holdfast/order:1.2.3` are `order`.
fn program(image: &str) -> Option<&str> {
    let (_, program) = image.split_once("holdfast/")?;
    program.split(':').next()
}

// ------------------------------------------------------------------------------------- wiring

/// What a program says of a variable in its `--help`.
#[derive(Debug)]
struct Variable {
    is_required: bool,
    default: Option<String>,
}

fn variables(program: &str) -> BTreeMap<String, Variable> {
    let told = Command::new(programs().unwrap().join(program)).arg("--help").output();
    let told = told.unwrap_or_else(|error| panic!("{program} --help: {error}: run `make build`"));
    let help = String::from_utf8([told.stdout, told.stderr].concat()).unwrap();
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let found: BTreeMap<_, _> = lines
        .filter_map(|line| {
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            let default = rest.strip_prefix("(default ").and_then(|it| it.strip_suffix(')'));
            let is_required = rest == "(required)";
            let variable = Variable { is_required, default: default.map(str::to_string) };
            is_name(name).then(|| (name.to_string(), variable))
        })
        .collect();
    assert!(found.len() > 2, "{program} --help: {help}");
    found
}

fn default(program: &str, variable: &str) -> String {
    variables(program)[variable].default.clone().unwrap()
}

fn port(address: &str) -> u64 {
    address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap()
}

/// Read by what every program logs with, whatever its settings.
const READ_BY_THE_LOGS: &str = "RUST_LOG";

fn hold_environment(program: &str, set: &BTreeSet<String>, whence: &str) {
    if program == "e2e" {
        assert!(set.is_empty(), "{whence}: e2e is told by its arguments, not by {set:?}");
        return;
    }
    let known = variables(program);
    let required = known.iter().filter(|(_, variable)| variable.is_required);
    let missing: Vec<&String> = required.map(|it| it.0).filter(|it| !set.contains(*it)).collect();
    assert!(missing.is_empty(), "{whence}: {program} needs {missing:?}");
    let is_known = |name: &&String| {
        known.contains_key(*name) || (*name == READ_BY_THE_LOGS && program != "contracts")
    };
    let unknown: Vec<&String> = set.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "{whence}: {program} does not know {unknown:?}");
}

/// The variables of a container, from its own list and from the ConfigMaps that it names.
fn environment(container: &Value, objects: &[Value]) -> BTreeSet<String> {
    let own = list(&container["env"]).iter().map(|variable| text(&variable["name"]).to_string());
    let maps = list(&container["envFrom"]).iter().flat_map(|from| {
        let map = find(objects, "ConfigMap", text(&from["configMapRef"]["name"]));
        map["data"].as_object().unwrap().keys().cloned()
    });
    own.chain(maps).collect()
}

#[test]
fn every_variable_that_a_program_needs_is_set_and_none_that_it_does_not_know() {
    let compose = compose();
    let mut checked = BTreeSet::new();
    for (name, service) in compose["services"].as_object().unwrap() {
        let Some(program) = program(text(&service["image"])) else { continue };
        let variables = service["environment"].as_object();
        let set = variables.into_iter().flat_map(|it| it.keys().cloned()).collect();
        hold_environment(program, &set, &format!("docker-compose.yml, {name}"));
        checked.insert(name.clone());
    }
    for service in SERVICES {
        assert!(checked.contains(service), "docker-compose.yml has no {service}");
        assert!(checked.contains(&format!("{service}-migrations")));
    }
    for (tree, objects) in TREES.iter() {
        let mut checked = BTreeSet::new();
        for object in objects {
            for container in pod(object).into_iter().flat_map(containers) {
                let Some(program) = program(text(&container["image"])) else { continue };
                let set = environment(container, objects);
                hold_environment(program, &set, &format!("k8s, {tree}, {}", name(object)));
                checked.insert(name(object));
            }
        }
        for service in deployed() {
            assert!(checked.contains(service), "{tree} has no {service}");
            assert!(checked.contains(&*format!("{service}-migrations")));
        }
        assert!(checked.contains("contracts"));
    }
}

#[test]
fn ports_and_probes_are_those_that_the_code_answers_on() {
    let probes = read("shared/chassis/src/probes.rs");
    for (tree, objects) in TREES.iter() {
        for service in deployed() {
            let [api, probe, operator] =
                ["HTTP_ADDR", "PROBE_ADDR", "OPERATOR_ADDR"].map(|it| default(service, it));
            assert!(operator.starts_with("127.0.0.1:"), "the operators' port is on loopback");
            let container =
                &find(objects, "Deployment", service)["spec"]["template"]["spec"]["containers"][0];
            let ports = json!([
                {"name": "api", "containerPort": port(&api)},
                {"name": "probes", "containerPort": port(&probe)},
            ]);
            assert_eq!(container["ports"], ports, "{tree}, {service}");
            let paths = [("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")];
            for (probe, path) in paths {
                let asked = &container[format!("{probe}Probe")]["httpGet"];
                assert_eq!(*asked, json!({"path": path, "port": "probes"}), "{tree}, {service}");
                assert!(probes.contains(&format!(".route(\"{path}\"")), "{path} is not answered");
            }
            let reached = &find(objects, "Service", service)["spec"];
            assert_eq!(reached["ports"][0]["port"], port(&api));
            assert_eq!(reached["ports"][0]["targetPort"], "api");
            assert_eq!(list(&reached["ports"]).len(), 1, "{tree}, {service}: clients see the API");
        }
    }
    let compose = compose();
    for service in SERVICES {
        let ports =
            ["HTTP_ADDR", "PROBE_ADDR", "OPERATOR_ADDR"].map(|it| port(&default(service, it)));
        let published = texts(&compose["services"][service]["ports"]);
        let inside: Vec<u64> = published.iter().map(|published| port(published)).collect();
        assert_eq!(inside, ports, "docker-compose.yml, {service}");
    }
}

/// The seconds that a pod has between being told to go and being killed, and those that it needs.
fn grace(pod: &Value) -> (u64, u64) {
    let waits = containers(pod).map(|it| it["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64());
    let waits = waits.map(Option::unwrap_or_default).max().unwrap_or_default();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    (grace, waits)
}

#[test]
fn whoever_stops_is_given_longer_than_it_may_take() {
    let compose = compose();
    for service in SERVICES {
        let within: u64 = default(service, "SHUTDOWN_TIMEOUT_SECONDS").parse().unwrap();
        let given = text(&compose["services"][service]["stop_grace_period"]);
        let given: u64 = given.strip_suffix('s').unwrap().parse().unwrap();
        assert!(given > within, "docker-compose.yml, {service}");
    }
    for (tree, objects) in TREES.iter() {
        for service in deployed() {
            let within: u64 = default(service, "SHUTDOWN_TIMEOUT_SECONDS").parse().unwrap();
            let (grace, waits) = grace(pod(find(objects, "Deployment", service)).unwrap());
            assert!(waits > 0, "{tree}, {service}: requests still come after it was told to go");
            assert!(grace > waits + within, "{tree}, {service}: {grace} s");
        }
    }
}

#[test]
fn topics_are_declared_to_strimzi_as_they_are_in_code() {
    let declared: BTreeMap<String, Value> = file("k8s/overlays/production/topics.yaml")
        .into_iter()
        .map(|topic| {
            assert_eq!(topic["kind"], "KafkaTopic");
            (name(&topic).to_string(), topic["spec"].clone())
        })
        .collect();
    let expected: BTreeMap<String, Value> = TOPICS
        .iter()
        .map(|topic| {
            let mut config =
                json!({"message.timestamp.type": "LogAppendTime", "min.insync.replicas": 2});
            match topic.retention {
                Retention::Compact => config["cleanup.policy"] = "compact".into(),
                Retention::Days(days) => {
                    config["cleanup.policy"] = "delete".into();
                    config["retention.ms"] = (i64::from(days) * 86_400_000).into();
                }
            }
            let spec = json!({"partitions": topic.partitions, "replicas": 3, "config": config});
            (topic.name.to_string(), spec)
        })
        .collect();
    assert_eq!(declared, expected);
}

#[test]
fn a_service_is_never_scaled_beyond_its_partitions_nor_beyond_its_database() {
    let scaled = file("k8s/overlays/production/scaling.yaml");
    let databases = file("k8s/overlays/production/databases.yaml");
    for service in deployed() {
        let scaled = &find(&scaled, "ScaledObject", service)["spec"];
        let replicas_max = scaled["maxReplicaCount"].as_u64().unwrap();
        let heard = TOPICS.iter().filter(|topic| topic.subscribers.contains(&service));
        let partitions = heard.map(|topic| topic.partitions as u64).min().unwrap();
        assert!(replicas_max <= partitions, "{service}: {replicas_max} of {partitions}");
        assert_eq!(scaled["minReplicaCount"], 2, "{service}");
        assert_eq!(scaled["scaleTargetRef"]["name"], service);
        let trigger = &scaled["triggers"][0];
        assert_eq!(
            trigger["metadata"]["consumerGroup"], service,
            "a group is named as its service"
        );
        let database = &find(&databases, "Cluster", &format!("{service}-db"))["spec"];
        let connections = text(&database["postgresql"]["parameters"]["max_connections"]);
        let pool: u64 = default(service, "DATABASE_POOL_SIZE").parse().unwrap();
        // One more while a rollout adds a replica.
        let needed = (replicas_max + 1) * pool;
        assert!(connections.parse::<u64>().unwrap() > needed, "{service} may take {needed}");
        assert_eq!(database["instances"], 3);
        assert_eq!(database["postgresql"]["synchronous"]["dataDurability"], "required");
    }
}

#[test]
fn a_service_that_is_deployed_has_all_that_it_needs() {
    let base = file("k8s/base/kustomization.yaml").remove(0);
    let demo = file("k8s/overlays/demo/kustomization.yaml").remove(0);
    for service in deployed() {
        let own = file(&format!("k8s/base/{service}.yaml"));
        assert!(texts(&base["resources"]).contains(&&*format!("{service}.yaml")));
        for kind in
            ["Deployment", "Service", "PodDisruptionBudget", "ServiceAccount", "NetworkPolicy"]
        {
            find(&own, kind, service);
        }
        find(&own, "Job", &format!("{service}-migrations"));
        assert!(texts(&demo["resources"]).contains(&&*format!("{service}-db")));
        let secrets = list(&demo["secretGenerator"]);
        let secret = secrets.iter().find(|it| it["name"] == format!("{service}-database")).unwrap();
        let (roles, host) =
            ([service, &format!("{service}_migrator")], format!("@{service}-db:5432/"));
        for (url, role) in texts(&secret["literals"]).iter().zip(roles) {
            assert!(url.contains(&format!("//{role}:")) && url.contains(&host), "{url}");
            assert!(url.ends_with(&format!("/{service}")), "{url}");
        }
    }
}

/// The version in an image's name.
fn tag(image: &str) -> &str {
    image.rsplit(':').next().unwrap()
}

#[test]
fn a_part_has_one_version_wherever_it_runs() {
    let pom = read("e2e/pom.xml");
    let natively = |part: &str| {
        let (_, rest) = pom.split_once(&format!("<{part}.version>")).unwrap();
        rest.split('<').next().unwrap().to_string()
    };
    let [kafka, registry, postgres] = ["kafka", "registry", "postgres"].map(natively);
    let postgres = postgres.split('.').next().unwrap();
    let wanted = |image: &str| match image.split(':').next().unwrap() {
        "apache/kafka" => Some(kafka.clone()),
        "apicurio/apicurio-registry" => Some(registry.clone()),
        "postgres" => Some(postgres.to_string()),
        _ => None,
    };
    let compose = compose();
    let mut images: Vec<String> = compose["services"]
        .as_object()
        .unwrap()
        .values()
        .map(|service| text(&service["image"]).to_string())
        .collect();
    for (_, objects) in TREES.iter() {
        let pods = objects.iter().filter_map(pod).flat_map(containers);
        images.extend(pods.map(|container| text(&container["image"]).to_string()));
    }
    let parts: Vec<(&String, String)> =
        images.iter().filter_map(|image| Some((image, wanted(image)?))).collect();
    assert!(parts.len() >= 8, "{parts:?}");
    for (image, version) in parts {
        assert_eq!(tag(image), version, "{image}");
    }
    let strimzi = file("k8s/overlays/production/kafka.yaml");
    assert_eq!(find(&strimzi, "Kafka", "kafka")["spec"]["kafka"]["version"], kafka);
    for cluster in file("k8s/overlays/production/databases.yaml") {
        let version = tag(text(&cluster["spec"]["imageName"])).split(['.', '-']).next();
        assert_eq!(version, Some(postgres), "{}", name(&cluster));
    }
}

// -------------------------------------------------------------------------------------- edges

type Labels = BTreeMap<String, String>;

/// Whoever sends or receives: its labels, its namespace, and the numbers of its ports by name.
struct Peer {
    namespace: &'static str,
    labels: Labels,
    ports: BTreeMap<String, u64>,
}

impl Peer {
    /// A pod by its label `app`: of a workload, or of what an operator makes of a custom resource.
    fn app(objects: &[Value], app: &str) -> Peer {
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
        Peer { namespace: "holdfast", labels, ports }
    }

    fn stranger(namespace: &'static str) -> Peer {
        Peer { namespace, labels: Labels::new(), ports: BTreeMap::new() }
    }
}

fn labels(value: &Value) -> Labels {
    let pairs = value.as_object().unwrap().iter();
    pairs.map(|(key, value)| (key.clone(), text(value).to_string())).collect()
}

fn selects(selector: &Value, of: &Labels) -> bool {
    let by_label = selector["matchLabels"].as_object().into_iter().flatten();
    let by_expression = list(&selector["matchExpressions"]);
    by_label.into_iter().all(|(key, value)| of.get(key).is_some_and(|it| it == text(value)))
        && by_expression.iter().all(|expression| {
            let value = of.get(text(&expression["key"]));
            match text(&expression["operator"]) {
                "In" => value.is_some_and(|it| texts(&expression["values"]).contains(&&**it)),
                "Exists" => value.is_some(),
                other => panic!("this test does not know {other}"),
            }
        })
}

/// Whether one side of an edge is open: `direction` is ingress or egress, seen from `own`.
fn open(objects: &[Value], direction: &str, own: &Peer, other: &Peer, to_port: u64) -> bool {
    let receiver = if direction == "ingress" { own } else { other };
    let is_port = |port: &Value| match &port["port"] {
        Value::String(name) => receiver.ports.get(name) == Some(&to_port),
        number => number.as_u64() == Some(to_port),
    };
    let is_peer = |peer: &Value| {
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

fn allowed(objects: &[Value], from: &Peer, to: &Peer, port: u64) -> bool {
    open(objects, "egress", from, to, port) && open(objects, "ingress", to, from, port)
}

#[test]
fn every_edge_in_use_is_open_and_no_other() {
    for (tree, objects) in TREES.iter() {
        let deny = &find(objects, "NetworkPolicy", "default-deny")["spec"];
        assert_eq!(*deny, json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
        let is_kafka_here = tree != "production";
        let (api, probes, operator) = (8080, 9090, 9091);
        let mut used: BTreeSet<(String, String, u64)> = BTreeSet::new();
        for service in deployed() {
            let database = format!("{service}-db");
            used.insert((service.into(), database.clone(), 5432));
            used.insert((format!("{service}-migrations"), database, 5432));
            used.insert((service.into(), "kafka".into(), 9092));
            used.insert((service.into(), "registry".into(), api));
            if tree == "demo" {
                used.insert(("seed".into(), service.into(), api));
            }
        }
        used.insert(("contracts".into(), "kafka".into(), 9092));
        used.insert(("contracts".into(), "registry".into(), api));
        used.insert(("registry".into(), "registry-db".into(), 5432));

        let mut apps: BTreeSet<String> = BTreeSet::new();
        used.iter().for_each(|(from, to, _)| apps.extend([from.clone(), to.clone()]));
        for from in &apps {
            for to in apps.iter().filter(|to| *to != from) {
                for port in [5432, 9092, api, probes, operator] {
                    let is_used = used.contains(&(from.clone(), to.clone(), port));
                    let [from, to] = [from, to].map(|app| Peer::app(objects, app));
                    let is_open = allowed(objects, &from, &to, port);
                    let (from, to) = (&from.labels["app"], &to.labels["app"]);
                    assert_eq!(is_open, is_used, "{tree}: {from} to {to}, port {port}");
                }
            }
        }
        for service in deployed() {
            let service = Peer::app(objects, service);
            let reached =
                |namespace, port| allowed(objects, &Peer::stranger(namespace), &service, port);
            assert!(reached("gateway", api) && !reached("gateway", probes));
            assert!(reached("monitoring", probes));
            assert!(!["gateway", "monitoring"].iter().any(|from| reached(from, operator)));
            let dns = Peer::stranger("kube-system");
            assert!(allowed(objects, &service, &dns, 53));
        }
        let own = Peer::app(objects, "kafka");
        let alone = !allowed(objects, &Peer::stranger("gateway"), &own, 9092);
        assert!(alone || !is_kafka_here, "{tree}: strangers reach Kafka");
    }
}

// -------------------------------------------------------------------------------------- rules

/// The rules that an object breaks, by name.
fn broken(object: &Value) -> Vec<&'static str> {
    let mut broken = Vec::new();
    let mut hold = |rule, is_kept: bool| {
        if !is_kept && !broken.contains(&rule) {
            broken.push(rule);
        }
    };
    if object["kind"] == "Service" {
        let kind = &object["spec"]["type"];
        hold("reached through a gateway", kind.is_null() || kind == "ClusterIP");
    }
    let Some(pod) = pod(object) else { return broken };
    let is_deployment = object["kind"] == "Deployment";
    let is_job = object["kind"] == "Job";
    hold("no token", pod["automountServiceAccountToken"] == false);
    hold("no variables of Services", pod["enableServiceLinks"] == false);
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        hold("nothing of the host's", pod[shared].is_null() || pod[shared] == false);
    }
    let of_host = list(&pod["volumes"]).iter().any(|volume| !volume["hostPath"].is_null());
    hold("nothing of the host's", !of_host);
    if is_deployment {
        let rollout = &object["spec"]["strategy"]["rollingUpdate"];
        hold("a rollout takes nothing away", rollout["maxUnavailable"] == 0);
        let (grace, waits) = grace(pod);
        hold("time to stop", waits > 0 && grace > waits + 20);
        hold("spread over nodes", !list(&pod["topologySpreadConstraints"]).is_empty());
    }
    if is_job {
        let spec = &object["spec"];
        let is_bounded = spec["backoffLimit"].is_u64() && spec["ttlSecondsAfterFinished"].is_u64();
        hold("a job ends and goes", is_bounded);
    }
    for container in containers(pod) {
        // What a container does not say, its pod says.
        let said = |field: &str| {
            let own = &container["securityContext"][field];
            if own.is_null() { pod["securityContext"][field].clone() } else { own.clone() }
        };
        let user = said("runAsUser").as_u64().unwrap_or(0);
        hold("not root", said("runAsNonRoot") == true && user > 0);
        hold("seccomp", said("seccompProfile")["type"] == "RuntimeDefault");
        let own = &container["securityContext"];
        hold("read-only root", own["readOnlyRootFilesystem"] == true);
        hold("no more rights", own["allowPrivilegeEscalation"] == false);
        hold("no more rights", own["privileged"].is_null() || own["privileged"] == false);
        let capabilities = &own["capabilities"];
        let is_dropped = capabilities["drop"] == json!(["ALL"]) && capabilities["add"].is_null();
        hold("no capabilities", is_dropped);
        let resources = &container["resources"];
        hold("limits", resources["limits"]["memory"].is_string());
        let requests = &resources["requests"];
        hold("requests", requests["memory"].is_string() && requests["cpu"].is_string());
        let image = text(&container["image"]);
        let tag = image.rsplit('/').next().and_then(|it| it.split_once([':', '@'])).map(|it| it.1);
        hold("a version", tag.is_some_and(|tag| !tag.is_empty() && tag != "latest"));
        if !is_job {
            hold("probes", container["readinessProbe"].is_object());
            hold("probes", !is_deployment || container["livenessProbe"].is_object());
        }
    }
    broken
}

#[test]
fn every_workload_keeps_every_rule() {
    for (tree, objects) in TREES.iter() {
        assert!(objects.iter().filter(|object| pod(object).is_some()).count() >= 8, "{tree}");
        for object in objects {
            let broken = broken(object);
            assert!(broken.is_empty(), "{tree}, {} {}: {broken:?}", object["kind"], name(object));
        }
        let namespace = find(objects, "Namespace", "holdfast");
        for mode in ["enforce", "warn", "audit"] {
            let label = format!("pod-security.kubernetes.io/{mode}");
            assert_eq!(namespace["metadata"]["labels"][label], "restricted", "{tree}");
        }
    }
}

/// A way to break a good manifest: which object, where in it, what is put there (nothing: it is
/// taken away), and the rule that must refuse it.
type Fault = (&'static str, &'static str, Option<Value>, &'static str);

fn faults() -> Vec<Fault> {
    vec![
        ("Deployment", "/spec/template/spec/securityContext/runAsUser", Some(json!(0)), "not root"),
        ("Deployment", "/spec/template/spec/securityContext/runAsNonRoot", None, "not root"),
        ("Deployment", "/spec/template/spec/securityContext/seccompProfile", None, "seccomp"),
        ("Deployment", "/spec/template/spec/automountServiceAccountToken", None, "no token"),
        (
            "Deployment",
            "/spec/template/spec/hostNetwork",
            Some(json!(true)),
            "nothing of the host's",
        ),
        (
            "Deployment",
            "/spec/template/spec/volumes",
            Some(json!([{"name": "host", "hostPath": {"path": "/"}}])),
            "nothing of the host's",
        ),
        (
            "Deployment",
            "/spec/template/spec/terminationGracePeriodSeconds",
            Some(json!(25)),
            "time to stop",
        ),
        (
            "Deployment",
            "/spec/strategy/rollingUpdate/maxUnavailable",
            Some(json!(1)),
            "a rollout takes nothing away",
        ),
        ("Deployment", "/spec/template/spec/containers/0/resources/limits", None, "limits"),
        ("Deployment", "/spec/template/spec/containers/0/resources/requests", None, "requests"),
        (
            "Deployment",
            "/spec/template/spec/containers/0/image",
            Some(json!("holdfast/order:latest")),
            "a version",
        ),
        (
            "Deployment",
            "/spec/template/spec/containers/0/image",
            Some(json!("host:5000/holdfast/order")),
            "a version",
        ),
        ("Deployment", "/spec/template/spec/containers/0/readinessProbe", None, "probes"),
        ("Deployment", "/spec/template/spec/containers/0/livenessProbe", None, "probes"),
        (
            "Deployment",
            "/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem",
            Some(json!(false)),
            "read-only root",
        ),
        (
            "Deployment",
            "/spec/template/spec/containers/0/securityContext/allowPrivilegeEscalation",
            None,
            "no more rights",
        ),
        (
            "Deployment",
            "/spec/template/spec/containers/0/securityContext/capabilities/add",
            Some(json!(["NET_ADMIN"])),
            "no capabilities",
        ),
        ("Job", "/spec/template/spec/securityContext/runAsUser", None, "not root"),
        ("Job", "/spec/ttlSecondsAfterFinished", None, "a job ends and goes"),
        ("Service", "/spec/type", Some(json!("NodePort")), "reached through a gateway"),
    ]
}

#[test]
fn each_bad_manifest_is_refused_by_the_rule_that_it_breaks() {
    let good = file("k8s/base/order.yaml");
    assert!(good.iter().all(|object| broken(object).is_empty()));
    for (kind, at, put, rule) in faults() {
        let mut bad = of_kind(&good, kind)[0].clone();
        let (inside, field) = at.rsplit_once('/').unwrap();
        let inside = bad.pointer_mut(inside).and_then(Value::as_object_mut).unwrap();
        match put {
            Some(value) => inside.insert(field.into(), value),
            None => Some(inside.remove(field).unwrap_or_else(|| panic!("{at} is not there"))),
        };
        assert_eq!(broken(&bad), [rule], "{kind}{at}");
    }
}
