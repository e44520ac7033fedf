//! The manifests agree with the code: variables, ports, probes and the time to stop.

use super::*;
use crate::structure::files;

/// The variables in the `--help` of a program, with the note behind each, or those in its files. The worker of Kafka
/// Connect does not start without those of its own file, and a connector not without those of the others.
pub fn variables(program: &str) -> Variables {
    let files = match program {
        events::insights::NAME => files("services/insights/src/main/resources", &[".properties"]),
        connectors::PROGRAM => [
            files("services/reporting/connectors", &[".json"]),
            vec![connectors::SETTINGS.into(), "e2e/src/admin/connector_container.rs".into()],
        ]
        .concat(),
        _ => Vec::new(),
    };
    if !files.is_empty() {
        return files.iter().flat_map(|file| variables_in(&read(file))).collect();
    }
    let output = command(program).arg("--help").output().unwrap();
    let help = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let is_in_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    let lines = lines.map(|line| line.split_once(' ').unwrap_or((line, "")));
    let found = lines.filter(|(name, _)| !name.is_empty() && name.chars().all(is_in_name));
    let found: Variables = found.map(|(name, note)| (name.into(), note.into())).collect();
    assert!(found.len() > 2, "{program} --help: {help}");
    found
}

/// Each `${NAME}`, `${env:NAME}`, `${NAME:-default}` and `${file:NAME}`. The last two kinds are optional.
fn variables_in(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let named = lines.flat_map(|line| line.split("${").skip(1));
    let variables = named.filter_map(|named| {
        let name = named.trim_start_matches("env:").trim_start_matches("file:");
        let end = name.find([':', '}'])?;
        let is_required = name[end..].starts_with('}') && !named.starts_with("file:");
        Some((name[..end].to_string(), if is_required { "(required)" } else { "" }.to_string()))
    });
    variables.collect()
}

pub fn default_value(program: &str, variable: &str) -> String {
    let note = variables(program).remove(variable).unwrap();
    let default = note.strip_prefix("(default ").and_then(|it| it.strip_suffix(')'));
    default.unwrap().to_string()
}

/// The ports of a service by default: of the API, of the probes and of its administration.
pub fn ports(service: &str) -> [u64; 3] {
    ["HTTP_ADDR", "PROBE_ADDR", "ADMIN_ADDR"].map(|variable| {
        let address = default_value(service, variable);
        address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap()
    })
}

/// How long a service may take to stop: the chassis ends the process five seconds after its timeout.
pub fn seconds_to_stop(service: &str) -> u64 {
    default_value(service, "SHUTDOWN_TIMEOUT_SECONDS").parse::<u64>().unwrap() + 5
}

fn check_environment(subject: &str, program: &str, set: &Variables, found: &mut Violations) {
    // This one is configured by arguments. The variable is one of every client of Postgres.
    if program == "e2e" {
        return set.keys().for_each(|name| found.check(subject, name, name == "PGPASSWORD"));
    }
    // It plays a system outside, and has options in place of variables.
    if program == "carrier" {
        return;
    }
    let known = variables(program);
    // The secrets of a system outside are read for each request. No help names them.
    let is_of_outside = |name: &str| {
        let mut systems =
            ["_WEBHOOK_SECRET", "_TOKEN"].iter().filter_map(|end| name.strip_suffix(end));
        systems.any(|system| known.contains_key(&format!("{system}_URL")))
    };
    // A secret may be given as a file.
    let is_secret = |name: &&str| known.contains_key(*name) || is_of_outside(name);
    let set = set.keys().map(|it| it.strip_suffix("_FILE").filter(is_secret).unwrap_or(it));
    let set: BTreeSet<&str> = set.collect();
    for (name, note) in &known {
        let is_missing = note == "(required)" && !set.contains(&**name);
        found.check(subject, format!("{program} needs {name}"), !is_missing);
    }
    for name in set {
        // Variables of libraries: OpenSSL's file of authorities, attributes of traces with the name of the pod, and logs.
        let of_libraries = ["SSL_CERT_FILE", "OTEL_RESOURCE_ATTRIBUTES", "POD_NAME"];
        let is_log = name == "RUST_LOG" && program != "contracts";
        let is_of_library = of_libraries.contains(&name) || is_log;
        let is_known = known.contains_key(name) || is_of_library || is_of_outside(name);
        found.check(subject, format!("{program} does not read {name}"), is_known);
    }
}

#[test]
fn every_variable_that_a_program_needs_is_set_and_none_that_it_does_not_know() {
    let mut found = Violations::default();
    let mut checked = 0;
    for (name, service) in fields(&compose()["services"]) {
        let Some(program) = program(&service["image"]) else { continue };
        let set = fields(&service["environment"]).map(|(name, _)| (name.clone(), String::new()));
        let subject = format!("docker-compose.yml, {name}");
        check_environment(&subject, program, &set.collect(), &mut found);
        checked += 1;
    }
    // Each service and its migrations, and the contracts.
    found.check("docker-compose.yml", "programs", checked > 2 * SERVICES.len());
    for (tree, objects) in OVERLAYS.iter() {
        checked = 0;
        for (object, pod) in pods(objects) {
            for container in containers(pod) {
                let Some(program) = program(&container["image"]) else { continue };
                let subject = format!("{tree}, {}", name(object));
                check_environment(&subject, program, &environment(container, objects), &mut found);
                checked += 1;
            }
        }
        found.check(tree, "programs", checked > 2 * deployed_services().len());
    }
}

#[test]
fn a_service_that_is_deployed_has_the_ports_probes_and_time_of_the_code_and_all_that_it_needs() {
    let demo = file("k8s/overlays/demo/kustomization.yaml").remove(0);
    let routes = read("shared/host/src/http/health.rs");
    let mut found = Violations::default();
    for path in ["/livez", "/readyz"] {
        found.check(path, "is served", routes.contains(&format!(".route(\"{path}\"")));
    }
    for service in deployed_services() {
        let [api, probes, admin] = ports(service);
        let is_local = default_value(service, "ADMIN_ADDR").starts_with("127.0.0.1:");
        found.check(service, "the admin port is on loopback by default", is_local);
        let asks = |path: &str| json!({"httpGet": {"path": path, "port": "probes"}});
        let container = json!({
            "ports": [
                {"name": "api", "containerPort": api}, {"name": "probes", "containerPort": probes},
                {"name": "admin", "containerPort": admin},
            ],
            "startupProbe": asks("/livez"), "livenessProbe": asks("/livez"), "readinessProbe": asks("/readyz"),
        });
        for (tree, objects) in OVERLAYS.iter() {
            let subject = format!("{tree}, {service}");
            let pod = &find(objects, "Deployment", service)["spec"]["template"]["spec"];
            found.fields(&subject, &pod["containers"][0], &container);
            // Clients see the API alone.
            let clients = json!({"ports": [{"port": api, "targetPort": "api"}]});
            found.fields(&subject, &find(objects, "Service", service)["spec"], &clients);
            let all = json!({"clusterIP": "None", "publishNotReadyAddresses": true});
            let pods = find(objects, "Service", &format!("{service}-pods"));
            found.fields(&subject, &pods["spec"], &all);
            // Requests still arrive after SIGTERM.
            let (grace, waits) = grace(pod);
            let is_enough = waits > 0 && grace > waits + seconds_to_stop(service);
            found.check(&subject, format!("{grace} s to stop"), is_enough);
            for kind in ["PodDisruptionBudget", "ServiceAccount"] {
                find(objects, kind, service);
            }
        }
        // Each role of the database has a URL of its own.
        let database = format!("k8s/overlays/demo/{service}-db/kustomization.yaml");
        let secret = named(&file(&database)[0]["secretGenerator"], "database").clone();
        for (url, role) in [("", ""), ("MIGRATION_", "_migrator")] {
            let start = format!("{url}DATABASE_URL=postgres://{service}{role}:");
            let end = format!("@{service}-db:5432/{service}");
            let mut urls = texts(&secret["literals"]).into_iter();
            let is_there = urls.any(|it| it.starts_with(&start) && it.ends_with(&end));
            found.check(service, format!("{start}…{end}"), is_there);
        }
        let resources = texts(&demo["resources"]);
        found.check(service, "a database", resources.contains(&&*format!("{service}-db")));
    }
}
