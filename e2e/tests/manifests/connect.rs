//! The worker of Kafka Connect: its settings, its variables, and what docker compose gives it.

use std::collections::BTreeSet;

use launcher::directories::programs_directory;

use super::configuration::Variable;
use super::*;

/// The name of its image and of its container.
pub const PROGRAM: &str = "connect";

const SETTINGS: &str = "services/connect/worker.properties";
const NATIVE: &str = "e2e/launcher/src/connect_worker.rs";

/// The files of a connector that name variables of the worker.
const CONNECTORS: [&str; 4] = [
    "services/reporting/connectors/reporting-orders.json",
    "services/reporting/connectors/reporting-outcomes.json",
    "services/reporting/connectors/reporting-sales.json",
    "e2e/src/admin/connector_container.rs",
];

/// What makes a record of a connector the same wherever the worker runs, and its effect exact.
pub const SHARED: [(&str, &str); 6] = [
    ("group.id", PROGRAM),
    ("plugin.discovery", "service_load"),
    ("exactly.once.source.support", "enabled"),
    ("key.converter", "org.apache.kafka.connect.storage.StringConverter"),
    ("value.converter", "org.apache.kafka.connect.converters.ByteArrayConverter"),
    ("header.converter", "org.apache.kafka.connect.storage.StringConverter"),
];

/// Each `${env:NAME}` of the settings and of the connectors. The worker does not start without the first ones, and a
/// connector not without the others.
pub fn variables() -> BTreeMap<String, Variable> {
    let files = CONNECTORS.into_iter().chain([SETTINGS]).map(read);
    let names = files.flat_map(|text| {
        let named = text.split("${env:").skip(1).map(|rest| rest.split('}').next().unwrap());
        named.map(str::to_string).collect::<Vec<_>>()
    });
    names.map(|name| (name, Variable { is_required: true, default: None })).collect()
}

fn settings() -> BTreeMap<String, String> {
    let text = read(SETTINGS);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

#[test]
fn a_connector_may_name_each_variable_that_it_needs_and_no_other() {
    let settings = settings();
    let allowed = settings["config.providers.env.param.allowlist.pattern"].split('|');
    let (prefixes, names): (Vec<&str>, Vec<&str>) = allowed.partition(|it| it.ends_with(".*"));
    let [prefix] = prefixes[..] else { panic!("{prefixes:?}") };
    let is_of_prefix = |name: &str| name.starts_with(prefix.trim_end_matches(".*"));
    let needed: BTreeSet<String> = variables().into_keys().collect();
    assert_eq!(needed.iter().filter(|name| is_of_prefix(name)).count(), 4, "{needed:?}");
    let others = needed.iter().map(String::as_str).filter(|name| !is_of_prefix(name));
    assert_eq!(others.collect::<BTreeSet<_>>(), names.into_iter().collect());
}

#[test]
fn the_worker_of_the_image_has_the_settings_of_the_native_one() {
    let (settings, native) = (settings(), read(NATIVE));
    for (key, value) in SHARED {
        assert_eq!(settings[key], value, "{SETTINGS}: {key}");
        let written = [format!("{key}={value}"), format!("{key}={{CONNECT}}")];
        assert!(written.iter().any(|line| native.contains(line)), "{NATIVE}: {key}");
    }
    for key in ["session.timeout.ms", "heartbeat.interval.ms", "scheduled.rebalance.max.delay.ms"] {
        assert!(native.contains(&format!("\"{key}={}\"", settings[key])), "{NATIVE}: {key}");
    }
    let dockerfile = read("services/connect/Dockerfile");
    assert!(
        dockerfile.contains(&format!("COPY --from=build /plugins {}\n", settings["plugin.path"]))
    );
}

/// The profile has the rest of what docker compose needs for the connectors, and the databases have it always: a
/// database whose log was read once does not start with a smaller `wal_level`.
#[test]
fn compose_starts_the_worker_and_its_connectors_by_their_profile_alone() {
    let compose = compose();
    let services = &compose["services"];
    let roles = SERVICES.map(|service| format!("{service}-connector-role"));
    let own = [PROGRAM, "connectors", "reporting-db", events::insights::NAME].map(str::to_string);
    for name in own.iter().chain(&roles) {
        assert_eq!(services[name]["profiles"], json!(["flows"]), "{name}");
    }
    for service in SERVICES {
        let command = text(&services[format!("{service}-db")]["command"]);
        assert!(command.contains("-c wal_level=logical -c max_slot_wal_keep_size="), "{service}");
        let migrations = &services[format!("{service}-migrations")];
        let role = text(&migrations["environment"]["CONNECTOR_ROLE"]);
        assert_eq!(role, format!("${{RELAY:+{service}_connector}}"));
        let needed = &migrations["depends_on"][format!("{service}-connector-role")];
        assert_eq!(needed["required"], false, "{service}");
    }
}

/// The program takes the words that docker compose gives it: `--help` behind them is only reached then.
#[test]
fn the_container_of_the_connectors_has_arguments_that_its_program_takes() {
    let compose = compose();
    let connectors = &compose["services"]["connectors"];
    let check = texts(&connectors["healthcheck"]["test"]);
    for words in [&texts(&connectors["command"])[..], &check[2..]] {
        let words = words.iter().map(|word| word.replace("${RELAY:-service}", "cdc"));
        let output = Command::new(programs_directory().unwrap().join("e2e"))
            .args(words)
            .arg("--help")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{error}");
    }
}
