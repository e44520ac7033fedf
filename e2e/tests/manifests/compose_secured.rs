//! Docker compose with the switch: every connection is encrypted, every client is known, and each container reads its
//! own secrets alone.

use std::collections::BTreeSet;

use launcher::directories::programs_directory;

use super::*;

const MOUNTED_AT: &str = "/etc/holdfast";

/// What the two files say of each service. Docker merges their variables by name, and appends their volumes.
fn secured() -> Value {
    let mut services = compose()["services"].clone();
    let secured = file("docker-compose.secure.yml").remove(0)["services"].clone();
    for (name, over) in secured.as_object().unwrap() {
        for (field, value) in over.as_object().unwrap() {
            let merged = &mut services[name][field];
            match value {
                Value::Object(fields) if merged.is_object() => {
                    merged.as_object_mut().unwrap().extend(fields.clone());
                }
                Value::Array(more) if merged.is_array() && field == "volumes" => {
                    merged.as_array_mut().unwrap().extend(more.clone());
                }
                _ => *merged = value.clone(),
            }
        }
    }
    let services = services.as_object().unwrap();
    // These profiles are for the stack without the switch, and the forwarders pass on what they cannot read.
    let is_secured = |name: &str, it: &Value| {
        let profiles = texts(&it["profiles"]);
        let is_left_out = ["observe", "ui", "flows"].iter().any(|it| profiles.contains(it));
        let is_in = name == events::insights::NAME || !is_left_out;
        is_in && name != "demo" && !name.ends_with("-ports")
    };
    let kept = services.iter().filter(|(name, it)| is_secured(name, it));
    kept.map(|(name, it)| (name.clone(), it.clone())).collect()
}

/// The rules that a container breaks, by name.
fn broken_rules(name: &str, service: &Value) -> Vec<&'static str> {
    let set = |variable: &str| text(&service["environment"][variable]);
    let image = text(&service["image"]);
    let mut rules = vec![("its own secrets", mounts_its_own_secrets(name, service))];
    rules.push(("no secret in a variable", holds_no_secret(&service["environment"])));
    if image.starts_with("postgres") {
        let command = texts(&service["entrypoint"]).join(" ");
        let is_encrypted = command.contains(" -c ssl=on ") && command.contains("hba_file=/etc/");
        rules.push(("TLS to Postgres", is_encrypted));
    } else if image.starts_with("apache/kafka") {
        let protocols = set("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP").split(',');
        let listeners: BTreeSet<&str> =
            protocols.clone().filter_map(|it| it.split(':').next()).collect();
        let named = set("KAFKA_LISTENERS").split(',').filter_map(|it| it.split(':').next());
        let are_all = named.collect::<BTreeSet<_>>() == listeners;
        rules.push((
            "encrypted listeners",
            are_all && protocols.clone().all(|it| it.ends_with("SSL")),
        ));
        let knows = protocols.filter(|it| it.ends_with(":SSL")).all(|it| {
            let listener = it.split(':').next().unwrap_or_default();
            set(&format!("KAFKA_LISTENER_NAME_{listener}_SSL_CLIENT_AUTH")) == "required"
        });
        rules.push(("known clients", knows));
        let is_closed = set("KAFKA_ALLOW_EVERYONE_IF_NO_ACL_FOUND") == "false"
            && set("KAFKA_AUTHORIZER_CLASS_NAME").ends_with(".StandardAuthorizer");
        rules.push(("no rule means no", is_closed));
    } else if name == "registry" {
        rules.push(("HTTPS", set("QUARKUS_HTTP_INSECURE_REQUESTS") == "disabled"));
    } else if name != "secrets" {
        rules.push(("the switch", set("SECURE") == "1"));
    }
    rules.into_iter().filter(|(_, is_kept)| !is_kept).map(|(rule, _)| rule).collect()
}

fn mounts_its_own_secrets(name: &str, service: &Value) -> bool {
    let volumes = texts(&service["volumes"]);
    let secrets: Vec<&&str> = volumes.iter().filter(|it| it.starts_with("secrets")).collect();
    let own = format!("secrets-{name}:{MOUNTED_AT}:ro");
    name == "secrets" || secrets == [&own.as_str()]
}

fn holds_no_secret(environment: &Value) -> bool {
    let empty = Default::default();
    let variables = environment.as_object().unwrap_or(&empty);
    variables.iter().all(|(name, value)| {
        let is_secret = name.ends_with("_PASSWORD") || name.ends_with("DATABASE_URL");
        !is_secret || text(value).is_empty()
    })
}

#[test]
fn every_container_of_the_secured_compose_keeps_the_rules() {
    let services = secured();
    let services = services.as_object().unwrap();
    assert!(services.len() >= 18, "{:?}", services.keys());
    for (name, service) in services {
        let broken = broken_rules(name, service);
        assert!(broken.is_empty(), "{name}: {broken:?}");
    }
}

#[test]
fn each_bad_secured_container_is_refused_by_the_rule_that_it_breaks() {
    let services = secured();
    let env = |name: &str| format!("/environment/{name}");
    let protocols = json!("CLIENTS:SSL,CONTROLLER:SSL,HOST:PLAINTEXT,SERVICES:SASL_SSL");
    let other = json!(["secrets-payment:/etc/holdfast:ro"]);
    let faults = [
        ("order", env("SECURE"), json!(""), "the switch"),
        (
            "order",
            env("DATABASE_URL"),
            json!("postgres://order:a@order-db"),
            "no secret in a variable",
        ),
        ("order", "/volumes".to_string(), other, "its own secrets"),
        ("order-db", env("POSTGRES_PASSWORD"), json!("a"), "no secret in a variable"),
        ("order-db", "/entrypoint".to_string(), json!(["docker-entrypoint.sh"]), "TLS to Postgres"),
        ("kafka", env("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"), protocols, "encrypted listeners"),
        ("kafka", env("KAFKA_LISTENER_NAME_HOST_SSL_CLIENT_AUTH"), json!("none"), "known clients"),
        ("kafka-2", env("KAFKA_ALLOW_EVERYONE_IF_NO_ACL_FOUND"), json!("true"), "no rule means no"),
        ("registry", env("QUARKUS_HTTP_INSECURE_REQUESTS"), json!("enabled"), "HTTPS"),
    ];
    for (name, pointer, value, rule) in faults {
        let mut bad = services[name].clone();
        *bad.pointer_mut(&pointer).unwrap_or_else(|| panic!("{name}{pointer}")) = value;
        assert_eq!(broken_rules(name, &bad), [rule], "{name}{pointer}");
    }
}

/// The second file adds its settings to the command of the first one.
#[test]
fn a_database_of_the_secured_compose_has_the_settings_of_the_other() {
    let (base, secured) = (compose(), secured());
    for service in SERVICES.into_iter().chain(["registry"]) {
        let name = format!("{service}-db");
        assert_eq!(secured[&name]["command"], base["services"][&name]["command"], "{name}");
        let entrypoint = texts(&secured[&name]["entrypoint"]);
        let [_, _, script, _] = entrypoint[..] else { panic!("{name}: {entrypoint:?}") };
        assert!(script.starts_with("exec docker-entrypoint.sh \"$$@\" -c "), "{name}: {script}");
    }
}

#[test]
fn each_container_is_given_every_file_that_its_settings_name() {
    let home = std::env::temp_dir().join(format!("distributed-{}", std::process::id()));
    let (all, each) = (home.join("secrets"), home.join("containers"));
    std::fs::create_dir_all(&each).unwrap();
    let program = programs_directory().unwrap().join("e2e");
    let distribute = || {
        let output = Command::new(&program).arg("distribute-secrets").args([&all, &each]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    distribute();
    let certificate = || std::fs::read(each.join("order/server.pem")).unwrap();
    let before = certificate();
    distribute();
    assert_eq!(certificate(), before, "a second start changes nothing");
    for (name, service) in secured().as_object().unwrap() {
        let (settings, mount) = (service.to_string(), format!("{MOUNTED_AT}/"));
        let named = settings.split(&mount).skip(1);
        let is_end = |c: char| !(c.is_ascii_alphanumeric() || "-._".contains(c));
        for file in named.filter_map(|rest| rest.split(is_end).next()) {
            assert!(each.join(name).join(file).exists(), "{name}: {file}");
        }
    }
    std::fs::remove_dir_all(home).unwrap();
}
