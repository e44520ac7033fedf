//! Docker compose: every container has the rights that it needs and no more, runs on every machine, and reads its own
//! secrets alone. With the switch, every connection is encrypted, and every client is known.

use std::path::Path;

use super::configuration::{ports, seconds_to_stop};
use super::*;

#[test]
fn every_container_of_compose_is_locked_down_and_runs_on_every_machine() {
    let mut found = Violations::default();
    for source in ["docker-compose.yml", "e2e/repository_template/docker-compose.yml"] {
        let compose = file(source).remove(0);
        assert!(fields(&compose["services"]).count() >= 6);
        for (name, service) in fields(&compose["services"]) {
            let subject = format!("{source}, {name}");
            check_container(&subject, service, &compose["volumes"], &mut found);
        }
        let configs = fields(&compose["configs"]).chain(fields(&compose["secrets"]));
        configs.for_each(|(name, it)| found.fields(name, it, &json!({"file": null})));
        // Some versions of compose give 0440. An octal number is one for compose, and not for the parser of this test.
        for line in read(source).lines().filter(|line| line.contains("{ source: ")) {
            found.check(source, line, line.contains(", mode: 0444 }"));
        }
    }
}

fn check_container(subject: &str, service: &Value, volumes: &Value, found: &mut Violations) {
    let rights = json!({
        "cap_drop": ["ALL"], "cap_add": null, "security_opt": ["no-new-privileges:true"],
        "privileged": null, "network_mode": null, "pid": null, "mem_limit": "*", "env_file": null,
    });
    found.fields(subject, service, &rights);
    // Docker refuses to copy the script of `configs` into a read-only container.
    let has_config = !list(&service["configs"]).is_empty();
    found.check(subject, "read-only root", service["read_only"] == true || has_config);
    // Our own images, which are never pulled, and the browser of topics name a user themselves.
    let has_user =
        !service["pull_policy"].is_null() || text(&service["image"]).contains("/kafka-ui:");
    let user = text(&service["user"]);
    found.check(subject, "not root", !user.starts_with('0') && (!user.is_empty() || has_user));
    let is_local = texts(&service["ports"]).iter().all(|it| it.starts_with("127.0.0.1:"));
    found.check(subject, "published on loopback", is_local);
    // A clone under umask 077, SELinux and a daemon on another machine each make a bind mount unreadable.
    let parts = |volume| text(volume).split_once(':').unwrap_or_default();
    let mounted: Vec<(&str, &str)> = list(&service["volumes"]).iter().map(parts).collect();
    for (source, _) in &mounted {
        found.check(subject, format!("a volume `{source}`"), volumes.get(source).is_some());
    }
    // `docker compose up --wait` of some versions fails at a container that runs on and whose check is disabled.
    let (is_job, check) = (service["restart"] == "no", &service["healthcheck"]);
    found.equal(subject, check["disable"] == true, is_job);
    // Docker's client puts the proxy of its configuration into every container, also for local addresses.
    let asks = |program: &str| check["test"].to_string().contains(program);
    let is_direct = (!asks("curl") || asks("--noproxy")) && (!asks("wget") || asks("--no-proxy"));
    found.check(subject, "asks no proxy for itself", is_direct);
    // Since version 18 the image has another default directory, and declares another volume. A shallower mount than the
    // volume that version 17 declares would hide the data inside that volume.
    if text(&service["image"]).starts_with("postgres:") && !is_job {
        let data = Path::new(text(&service["environment"]["PGDATA"]));
        let is_kept = mounted.iter().any(|(_, target)| data.starts_with(target))
            && mounted.iter().all(|(_, target)| *target != "/var/lib/postgresql");
        found.check(subject, "its data is in its volume", is_kept);
    }
}

#[test]
fn a_bad_container_is_refused_by_the_rules_that_it_breaks() {
    let compose = file("docker-compose.yml").remove(0);
    let bad = json!({
        "privileged": true, "user": "0:0", "ports": ["8001:8080"], "volumes": ["./data:/data"],
    });
    let bad = merged(&compose["services"]["order"], &bad);
    let mut found = Violations::default();
    check_container("order", &bad, &compose["volumes"], &mut found);
    let expected = [
        "order/privileged: Bool(true) is not Null",
        "order: a volume `./data`",
        "order: not root",
        "order: published on loopback",
    ];
    assert_eq!(Vec::from_iter(std::mem::take(&mut found.0)), expected);
}

/// The default of a variable in a connection string or an environment: `${A:-${B:-default}}`.
fn default_password(container: &Value, variable: &str) -> String {
    let value = text(&container["environment"][variable]);
    let (_, default) = value.rsplit_once(":-").unwrap_or_else(|| panic!("{value} has no default"));
    default.split('}').next().unwrap().to_string()
}

#[test]
fn each_service_of_compose_can_be_scaled_and_stopped_and_its_roles_have_their_own_passwords() {
    let compose = compose();
    let services = &compose["services"];
    let mut found = Violations::default();
    for service in SERVICES.into_iter().chain(["shipping"]) {
        let parts = ["", "-ports", "-migrations", "-db", "-connector-role"];
        let [own, published, migrations, database, connector] =
            parts.map(|it| &services[format!("{service}{it}")]);
        // A second container cannot have the same port of the host, so another container publishes the ports.
        found.fields(service, own, &json!({"ports": null, "container_name": null}));
        let [api, probes, admin] = ports(service).map(|port| port.to_string());
        let inside = texts(&published["ports"]).into_iter().filter_map(|it| it.rsplit(':').next());
        found.equal(service, inside.collect(), vec![&*api, &probes, &admin]);
        let to = format!("--to={service}");
        found.fields(service, published, &json!({"command": ["forward", to, api, probes, admin]}));
        let given = text(&own["stop_grace_period"]).strip_suffix('s').unwrap();
        let is_enough = given.parse::<u64>().unwrap() > seconds_to_stop(service);
        found.check(service, format!("{given} s to stop"), is_enough);
        let serving = default_password(migrations, "DATABASE_URL");
        let migrating = default_password(migrations, "MIGRATION_DATABASE_URL");
        let superuser = default_password(database, "POSTGRES_PASSWORD");
        found.equal(service, &default_password(database, "SERVICE_PASSWORD"), &serving);
        found.equal(service, &default_password(database, "MIGRATOR_PASSWORD"), &migrating);
        let mut all = vec![serving, migrating, superuser];
        // No connector carries the outbox of shipping.
        if !connector.is_null() {
            found.equal(service, &default_password(connector, "PGPASSWORD"), &all[2]);
            all.push(default_password(connector, "CONNECTOR_PASSWORD"));
        }
        let number = all.len();
        found.equal(service, BTreeSet::from_iter(all).len(), number);
        let is_owner = own["environment"].to_string().contains("MIGRATION_DATABASE_URL");
        found.check(service, "does not serve as the owner", !is_owner);
        let target = "/docker-entrypoint-initdb.d/roles.sh";
        let script = json!({"configs": [{"source": "roles", "target": target}]});
        found.fields(service, database, &script);
    }
    let [registry, database] = ["registry", "registry-db"].map(|name| &services[name]);
    let owner = json!({
        "APICURIO_DATASOURCE_USERNAME": "registry_migrator",
        "APICURIO_DATASOURCE_PASSWORD": database["environment"]["MIGRATOR_PASSWORD"],
    });
    found.fields("registry", &registry["environment"], &owner);
    let [own, superuser] =
        ["MIGRATOR_PASSWORD", "POSTGRES_PASSWORD"].map(|it| default_password(database, it));
    found.check("registry", "is no superuser", own != superuser);
}

#[test]
fn compose_starts_streams_connectors_and_observers_by_their_profiles_alone() {
    let compose = compose();
    let services = &compose["services"];
    let mut found = Violations::default();
    for (names, profile) in [
        ("connect connectors reporting-db insights", "flows"),
        ("prometheus grafana lag-exporter jaeger", "observe"),
        ("shipping shipping-ports shipping-migrations shipping-db carrier", "shipping"),
    ] {
        let by_profile = json!({"profiles": [profile]});
        names.split(' ').for_each(|it| found.fields(it, &services[it], &by_profile));
    }
    for service in SERVICES {
        // A database whose log was read once does not start with a smaller `wal_level`.
        let command = text(&services[format!("{service}-db")]["command"]);
        let is_captured = command.contains("-c wal_level=logical -c max_slot_wal_keep_size=");
        found.check(service, "a log that a connector can read", is_captured);
        let role = format!("{service}-connector-role");
        found.fields(&role, &services[&role], &json!({"profiles": ["flows"]}));
        let connector = json!({
            "environment": {"CONNECTOR_ROLE": format!("${{RELAY:+{service}_connector}}")},
            "depends_on": {role: {"required": false}},
        });
        found.fields(service, &services[format!("{service}-migrations")], &connector);
    }
    for exporter in deployed_services().into_iter().map(|it| format!("{it}-db-exporter")) {
        found.fields(&exporter, &services[&exporter], &json!({"profiles": ["observe"]}));
    }
}

const MOUNTED_AT: &str = "/etc/holdfast";

/// The containers of the second file, with the images and variables of the first one. Docker merges variables by name.
fn secured() -> BTreeMap<String, Value> {
    let base = compose()["services"].take();
    let mut secured = file("docker-compose.secure.yml").remove(0)["services"].take();
    merge_override(&mut secured, "docker-compose.secure.override.yml");
    let services = fields(&base).filter_map(|(name, first)| {
        let mut service = secured[name].take();
        // These are for the stack without the switch, and the forwarders pass on what they cannot read.
        let is_left_out = ["observe", "ui"].iter().any(|it| first["profiles"] == json!([it]))
            || ["-ports", "-connector-role"].iter().any(|it| name.ends_with(it))
            || service["scale"] == 0;
        service["environment"] = merged(&first["environment"], &service["environment"]);
        service["image"] = first["image"].clone();
        (!is_left_out).then(|| (name.clone(), service))
    });
    services.collect()
}

fn check_secured(name: &str, service: &Value, found: &mut Violations) {
    let set = |variable: &str| text(&service["environment"][variable]);
    for (variable, value) in fields(&service["environment"]) {
        let is_secret = variable.ends_with("_PASSWORD") || variable.ends_with("DATABASE_URL");
        let is_held = is_secret && !text(value).is_empty();
        found.check(name, format!("no secret in {variable}"), !is_held);
    }
    let volumes = texts(&service["volumes"]).into_iter().filter(|it| it.starts_with("secrets"));
    let own = format!("secrets-{name}:{MOUNTED_AT}:ro");
    found.equal(name, volumes.collect::<Vec<_>>(), vec![&*own]);
    let image = text(&service["image"]);
    if image.starts_with("postgres") {
        // The settings are added to the command of the first file.
        let script = texts(&service["entrypoint"]).get(2).copied().unwrap_or_default();
        for part in ["exec docker-entrypoint.sh \"$$@\" -c ", " -c ssl=on ", " -c hba_file=/etc/"] {
            found.check(name, part, script.contains(part));
        }
        found.fields(name, service, &json!({"command": null}));
    } else if image.starts_with("apache/kafka") {
        let pairs = |variable| set(variable).split(',').filter_map(|it| it.split_once(':'));
        let protocols: BTreeMap<_, _> = pairs("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP").collect();
        for (listener, _) in pairs("KAFKA_LISTENERS") {
            let knows = set(&format!("KAFKA_LISTENER_NAME_{listener}_SSL_CLIENT_AUTH"));
            let protocol = protocols.get(listener).copied();
            let is_known = protocol == Some("SASL_SSL") || knows == "required";
            let is_secure = protocol.is_some_and(|it| it.ends_with("SSL")) && is_known;
            found.check(name, format!("{listener} is encrypted and knows its clients"), is_secure);
        }
        // No rule means no.
        found.equal(name, set("KAFKA_ALLOW_EVERYONE_IF_NO_ACL_FOUND"), "false");
        let authorizer = set("KAFKA_AUTHORIZER_CLASS_NAME");
        found.check(name, "an authorizer", authorizer.ends_with(".StandardAuthorizer"));
    } else if name == "carrier" {
        // It plays a system outside, and checks whom it tells.
        let checking = json!({"WEBHOOK_SECRET": "", "CA_FILE": "*"});
        found.fields(name, &service["environment"], &checking);
    } else if name == "registry" {
        found.equal(name, set("QUARKUS_HTTP_INSECURE_REQUESTS"), "disabled");
    } else {
        found.equal(name, set("SECURE"), "1");
    }
}

#[test]
fn every_container_of_the_secured_compose_keeps_the_rules() {
    let services = secured();
    let mut found = Violations::default();
    found.check("containers", "seventeen of them", services.len() >= 17);
    services.iter().for_each(|(name, service)| check_secured(name, service, &mut found));
}

#[test]
fn a_bad_secured_container_is_refused_by_the_rules_that_it_breaks() {
    let mut bad = secured().remove("order").unwrap();
    bad["environment"]["SECURE"] = json!("");
    bad["environment"]["DATABASE_URL"] = json!("postgres://order:service@order-db:5432/order");
    bad["volumes"] = json!(["secrets-payment:/etc/holdfast:ro"]);
    let mut found = Violations::default();
    check_secured("order", &bad, &mut found);
    let expected = [
        "order: \"\" is not \"1\"",
        "order: [\"secrets-payment:/etc/holdfast:ro\"] is not [\"secrets-order:/etc/holdfast:ro\"]",
        "order: no secret in DATABASE_URL",
    ];
    assert_eq!(Vec::from_iter(std::mem::take(&mut found.0)), expected);
}

#[test]
fn each_container_is_given_every_file_that_its_settings_name() {
    let home = std::env::temp_dir().join(format!("distributed-{}", std::process::id()));
    let (all, each) = (home.join("secrets"), home.join("containers"));
    std::fs::create_dir_all(&each).unwrap();
    let distribute = || {
        let output = command("e2e").arg("distribute-secrets").args([&all, &each]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(each.join("order/server.pem")).unwrap()
    };
    assert_eq!(distribute(), distribute(), "a second start changes nothing");
    let mut found = Violations::default();
    for (name, service) in secured() {
        let (settings, mount) = (service.to_string(), format!("{MOUNTED_AT}/"));
        let named = settings.split(&mount).skip(1);
        let is_end = |c: char| !(c.is_ascii_alphanumeric() || "-._".contains(c));
        for file in named.filter_map(|rest| rest.split(is_end).next()) {
            found.check(&name, file, each.join(&name).join(file).exists());
        }
    }
    std::fs::remove_dir_all(home).unwrap();
}
