//! Every container of docker compose has the rights that it needs and no more, and no role of a database has the
//! password of another one.

use std::collections::BTreeSet;

use super::*;

/// The rules that a container breaks, by name. Docker refuses to copy the script of `configs` into a read-only container.
fn broken_rules(service: &Value) -> Vec<&'static str> {
    let has_config = !list(&service["configs"]).is_empty();
    let user = text(&service["user"]);
    // Our own images, which are never pulled, and the browser of topics name a user themselves.
    let has_user =
        !service["pull_policy"].is_null() || text(&service["image"]).contains("/kafka-ui:");
    let rules = [
        ("no capabilities", service["cap_drop"] == json!(["ALL"]) && service["cap_add"].is_null()),
        ("no more rights", service["security_opt"] == json!(["no-new-privileges:true"])),
        ("no more rights", service["privileged"].is_null()),
        ("read-only root", service["read_only"] == true || has_config),
        ("not root", !user.starts_with('0') && (!user.is_empty() || has_user)),
        ("limits", service["mem_limit"].is_string()),
        ("nothing of the host's", service["network_mode"].is_null() && service["pid"].is_null()),
        ("loopback", texts(&service["ports"]).iter().all(|port| port.starts_with("127.0.0.1:"))),
    ];
    let mut broken: Vec<_> = rules.iter().filter(|(_, is_kept)| !is_kept).map(|it| it.0).collect();
    broken.dedup();
    broken
}

#[test]
fn every_container_of_compose_is_locked_down() {
    for compose in [compose(), file("e2e/repository_template/docker-compose.yml").remove(0)] {
        let services = compose["services"].as_object().unwrap();
        assert!(services.len() >= 6);
        for (name, service) in services {
            let broken = broken_rules(service);
            assert!(broken.is_empty(), "{name}: {broken:?}");
        }
    }
}

#[test]
fn each_bad_container_is_refused_by_the_rule_that_it_breaks() {
    let services = compose()["services"].clone();
    let faults = [
        ("kafka", "cap_drop", json!([]), "no capabilities"),
        ("kafka", "cap_add", json!(["NET_ADMIN"]), "no capabilities"),
        ("registry", "security_opt", Value::Null, "no more rights"),
        ("registry", "privileged", json!(true), "no more rights"),
        ("registry", "read_only", json!(false), "read-only root"),
        ("order-db", "user", Value::Null, "not root"),
        ("kafka", "user", json!("0:0"), "not root"),
        ("kafka-ui", "mem_limit", Value::Null, "limits"),
        ("order", "network_mode", json!("host"), "nothing of the host's"),
        ("kafka", "ports", json!(["9092:9094"]), "loopback"),
    ];
    for (name, field, value, rule) in faults {
        let mut bad = services[name].clone();
        bad[field] = value;
        assert_eq!(broken_rules(&bad), [rule], "{name}, {field}");
    }
}

/// The default of a variable in a connection string or an environment: `${A:-${B:-default}}`.
fn default_password(value: &str) -> &str {
    let (_, default) = value.rsplit_once(":-").unwrap_or_else(|| panic!("{value} has no default"));
    default.split('}').next().unwrap()
}

#[test]
fn no_role_of_a_database_has_the_password_of_another_and_the_registry_is_no_superuser() {
    let compose = compose();
    let services = &compose["services"];
    for service in SERVICES {
        let migrations = &services[format!("{service}-migrations")]["environment"];
        let database = &services[format!("{service}-db")]["environment"];
        let serving = default_password(text(&migrations["DATABASE_URL"]));
        let migrating = default_password(text(&migrations["MIGRATION_DATABASE_URL"]));
        let superuser = default_password(text(&database["POSTGRES_PASSWORD"]));
        assert_eq!(default_password(text(&database["SERVICE_PASSWORD"])), serving);
        assert_eq!(default_password(text(&database["MIGRATOR_PASSWORD"])), migrating);
        let role = &services[format!("{service}-connector-role")]["environment"];
        assert_eq!(default_password(text(&role["PGPASSWORD"])), superuser);
        let capturing = default_password(text(&role["CONNECTOR_PASSWORD"]));
        let all = BTreeSet::from([serving, migrating, superuser, capturing]);
        assert_eq!(all.len(), 4, "{service}");
        let served = serde_json::to_string(&services[service]["environment"]).unwrap();
        assert!(!served.contains("MIGRATION_DATABASE_URL"), "{service} serves as the owner");
    }
    let [registry, database] =
        ["registry", "registry-db"].map(|name| &services[name]["environment"]);
    assert_eq!(registry["APICURIO_DATASOURCE_USERNAME"], "registry_migrator");
    assert_eq!(registry["APICURIO_DATASOURCE_PASSWORD"], database["MIGRATOR_PASSWORD"]);
    let own = default_password(text(&database["MIGRATOR_PASSWORD"]));
    assert_ne!(own, default_password(text(&database["POSTGRES_PASSWORD"])));
}
