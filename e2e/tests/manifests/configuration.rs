//! The manifests agree with the code: variables, ports, probes and topics.

use std::collections::BTreeSet;

use launcher::directories::programs_directory;

use super::*;

/// A variable in the `--help` of a program.
#[derive(Debug)]
pub struct Variable {
    pub is_required: bool,
    pub default: Option<String>,
}

fn variables(program: &str) -> BTreeMap<String, Variable> {
    match program {
        events::insights::NAME => return stream_processor::variables(),
        connect::PROGRAM => return connect::variables(),
        _ => {}
    }
    let output = Command::new(programs_directory().unwrap().join(program)).arg("--help").output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} --help: {error}: run `make build`"));
    let help = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    let is_name = |name: &str| {
        !name.is_empty()
            && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
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

pub fn default_value(program: &str, variable: &str) -> String {
    variables(program)[variable].default.clone().unwrap()
}

fn port(address: &str) -> u64 {
    address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap()
}

/// Variables of the logging library, which every program reads.
const LOG_VARIABLE: &str = "RUST_LOG";

/// OpenSSL's file of certificate authorities, if that of the registry is no public one.
const OPENSSL_VARIABLE: &str = "SSL_CERT_FILE";

/// The password of a role in a database, for every client of Postgres.
const PASSWORD_VARIABLE: &str = "PGPASSWORD";

fn assert_environment(program: &str, set: &BTreeSet<String>, source: &str) {
    if program == "e2e" {
        let is_known = set.iter().all(|name| name == PASSWORD_VARIABLE);
        assert!(is_known, "{source}: e2e is configured by arguments, not by {set:?}");
        return;
    }
    let known = variables(program);
    // A secret may be given as a file.
    let name = |name: &String| match name.strip_suffix("_FILE") {
        Some(secret) if known.contains_key(secret) => secret.to_string(),
        _ => name.clone(),
    };
    let set: BTreeSet<String> = set.iter().map(name).collect();
    let required = known.iter().filter(|(_, variable)| variable.is_required);
    let missing: Vec<&String> = required.map(|it| it.0).filter(|it| !set.contains(*it)).collect();
    assert!(missing.is_empty(), "{source}: {program} needs {missing:?}");
    let is_known = |name: &&String| {
        known.contains_key(*name)
            || *name == OPENSSL_VARIABLE
            || (*name == LOG_VARIABLE && program != "contracts")
    };
    let unknown: Vec<&String> = set.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "{source}: {program} does not read {unknown:?}");
}

/// The variables of a container, from its own list and from its ConfigMaps.
fn environment_names(container: &Value, objects: &[Value]) -> BTreeSet<String> {
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
        assert_environment(program, &set, &format!("docker-compose.yml, {name}"));
        checked.insert(name.clone());
    }
    for service in SERVICES {
        assert!(checked.contains(service), "docker-compose.yml has no {service}");
        assert!(checked.contains(&format!("{service}-migrations")));
    }
    for (tree, objects) in OVERLAYS.iter() {
        let mut checked = BTreeSet::new();
        for object in objects {
            for container in pod(object).into_iter().flat_map(containers) {
                let Some(program) = program(text(&container["image"])) else { continue };
                let set = environment_names(container, objects);
                assert_environment(program, &set, &format!("k8s, {tree}, {}", name(object)));
                checked.insert(name(object));
            }
        }
        for service in deployed_services() {
            assert!(checked.contains(service), "{tree} has no {service}");
            assert!(checked.contains(&*format!("{service}-migrations")));
        }
        assert!(checked.contains("contracts"));
    }
}

#[test]
fn ports_and_probes_are_those_that_the_code_serves() {
    let probes = read("shared/chassis/src/http/health.rs");
    for (tree, objects) in OVERLAYS.iter() {
        for service in deployed_services() {
            let [api, probe, admin] =
                ["HTTP_ADDR", "PROBE_ADDR", "ADMIN_ADDR"].map(|it| default_value(service, it));
            assert!(admin.starts_with("127.0.0.1:"), "the admin port is on loopback by default");
            let container =
                &find(objects, "Deployment", service)["spec"]["template"]["spec"]["containers"][0];
            let ports = json!([
                {"name": "api", "containerPort": port(&api)},
                {"name": "probes", "containerPort": port(&probe)},
                {"name": "admin", "containerPort": port(&admin)},
            ]);
            assert_eq!(container["ports"], ports, "{tree}, {service}");
            let paths = [("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")];
            for (probe, path) in paths {
                let asked = &container[format!("{probe}Probe")]["httpGet"];
                assert_eq!(*asked, json!({"path": path, "port": "probes"}), "{tree}, {service}");
                assert!(probes.contains(&format!(".route(\"{path}\"")), "{path} is not served");
            }
            let reached = &find(objects, "Service", service)["spec"];
            assert_eq!(reached["ports"][0]["port"], port(&api));
            assert_eq!(reached["ports"][0]["targetPort"], "api");
            assert_eq!(list(&reached["ports"]).len(), 1, "{tree}, {service}: clients see the API");
            let pods = &find(objects, "Service", &format!("{service}-pods"))["spec"];
            assert_eq!(
                (&pods["clusterIP"], &pods["publishNotReadyAddresses"]),
                (&json!("None"), &json!(true))
            );
        }
    }
    let compose = compose();
    for service in SERVICES {
        let ports =
            ["HTTP_ADDR", "PROBE_ADDR", "ADMIN_ADDR"].map(|it| port(&default_value(service, it)));
        let published = texts(&compose["services"][format!("{service}-ports")]["ports"]);
        let inside: Vec<u64> = published.iter().map(|published| port(published)).collect();
        assert_eq!(inside, ports, "docker-compose.yml, {service}");
    }
}

/// The time after `SHUTDOWN_TIMEOUT_SECONDS` within which the chassis ends the process.
const EXIT_DELAY_SECONDS_MAX: u64 = 5;

#[test]
fn every_grace_period_is_longer_than_a_stop_may_take() {
    let compose = compose();
    for service in SERVICES {
        let within: u64 = default_value(service, "SHUTDOWN_TIMEOUT_SECONDS").parse().unwrap();
        let given = text(&compose["services"][service]["stop_grace_period"]);
        let given: u64 = given.strip_suffix('s').unwrap().parse().unwrap();
        assert!(
            given > within + EXIT_DELAY_SECONDS_MAX,
            "docker-compose.yml, {service}: {given} s"
        );
    }
    for (tree, objects) in OVERLAYS.iter() {
        for service in deployed_services() {
            let within: u64 = default_value(service, "SHUTDOWN_TIMEOUT_SECONDS").parse().unwrap();
            let (grace, waits) = grace(pod(find(objects, "Deployment", service)).unwrap());
            assert!(waits > 0, "{tree}, {service}: requests still arrive after SIGTERM");
            assert!(
                grace > waits + within + EXIT_DELAY_SECONDS_MAX,
                "{tree}, {service}: {grace} s"
            );
        }
    }
}

#[test]
fn production_pulls_every_image_from_a_registry() {
    let base = file("k8s/base/kustomization.yaml").remove(0);
    let production = file("k8s/overlays/production/kustomization.yaml").remove(0);
    let renamed: Vec<&str> =
        list(&production["images"]).iter().map(|image| text(&image["name"])).collect();
    let objects =
        texts(&base["resources"]).into_iter().flat_map(|name| file(&format!("k8s/base/{name}")));
    let images: BTreeSet<String> = objects
        .filter_map(|object| {
            Some(
                containers(pod(&object)?)
                    .map(|it| text(&it["image"]).to_string())
                    .collect::<Vec<_>>(),
            )
        })
        .flatten()
        .collect();
    let ours = images.iter().filter_map(|image| image.strip_suffix(":local"));
    assert!(ours.clone().count() >= 4, "{images:?}");
    for image in ours {
        assert!(renamed.contains(&image), "{image} is not among the images of production");
    }
}

/// Without a loaded image, a pull would run whatever a stranger published by its name.
#[test]
fn the_demo_pulls_none_of_our_images() {
    // Patches set this, so it is visible in kubectl's output, if there is kubectl.
    if OVERLAYS.iter().all(|(tree, _)| tree != "production") {
        let demo = file("k8s/overlays/demo/kustomization.yaml").remove(0);
        let patches = demo["patches"].as_array().unwrap().iter();
        let never: Vec<_> =
            patches.filter(|it| text(&it["patch"]).contains("value: Never")).collect();
        assert_eq!(
            text(&never[0]["target"]["name"]),
            format!("{}|console", deployed_services().join("|"))
        );
        assert_eq!(text(&never[1]["target"]["kind"]), "Job");
        return;
    }
    let (_, demo) = OVERLAYS.iter().find(|(tree, _)| tree == "demo").unwrap();
    let containers = demo.iter().filter_map(pod).flat_map(containers);
    let ours = containers.filter(|container| program(text(&container["image"])).is_some());
    let policies: Vec<&str> = ours.map(|container| text(&container["imagePullPolicy"])).collect();
    assert!(
        policies.len() >= 8 && policies.iter().all(|policy| *policy == "Never"),
        "{policies:?}"
    );
}

#[test]
fn a_service_that_is_deployed_has_all_that_it_needs() {
    let base = file("k8s/base/kustomization.yaml").remove(0);
    let demo = file("k8s/overlays/demo/kustomization.yaml").remove(0);
    for service in deployed_services() {
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
