//! The crates of the workspace, and what each depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use super::{deployables, programs, read, root};

/// Every crate that is no service, with its folder.
pub const CRATES: [(&str, &str); 17] = [
    ("holdfast-derive", "shared/derive"),
    ("holdfast-messaging", "shared/messaging"),
    ("holdfast-host", "shared/host"),
    ("holdfast-chassis", "shared/chassis"),
    ("holdfast-contracts", "shared/contracts"),
    ("holdfast-testing", "shared/testing"),
    ("holdfast-ops-client", "shared/ops-client"),
    ("events", "shared/events"),
    ("declaration", "shared/declaration"),
    ("holdfast-launcher", "e2e/launcher"),
    ("holdfast-faults", "e2e/faults"),
    ("holdfast-checker", "e2e/checker"),
    ("e2e", "e2e"),
    ("model", "e2e/model"),
    ("bench", "e2e/bench"),
    ("parcels", "e2e/test_service"),
    ("carrier", "e2e/carrier"),
];

/// What lies below `services/` and is no service of the saga: it has no database, and asks the services over HTTP.
const WITHOUT_DATABASE: [&str; 1] = ["console"];

/// The crates that a team depends on: they know no order, and they are released together.
pub fn libraries() -> impl Iterator<Item = (&'static str, &'static str)> {
    CRATES.into_iter().filter(|(name, _)| name.starts_with("holdfast-"))
}

/// The dependencies between members of the workspace, according to cargo. Those of tests alone end with `(dev)`.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |package: &Value| package["name"].as_str().unwrap().to_string();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        let own = all.filter(|it| members.contains(&name(it)));
        own.map(|it| name(it) + if it["kind"] == "dev" { " (dev)" } else { "" }).collect()
    };
    packages.iter().map(|package| (name(package), of(package))).collect()
}

#[test]
fn dependencies_point_one_way_and_no_service_depends_on_another() {
    let dependencies = dependencies();
    let on = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    for (name, depends) in [
        ("holdfast-derive", &[][..]),
        ("holdfast-messaging", &["holdfast-derive (dev)"]),
        ("holdfast-host", &["holdfast-messaging", "holdfast-derive (dev)"]),
        ("holdfast-chassis", &["holdfast-derive", "holdfast-host", "holdfast-messaging"]),
        ("holdfast-testing", &["holdfast-chassis", "holdfast-host", "holdfast-messaging"]),
        ("holdfast-contracts", &["holdfast-chassis"]),
        ("holdfast-checker", &["holdfast-chassis"]),
        ("holdfast-launcher", &[]),
        ("holdfast-ops-client", &[]),
        ("holdfast-faults", &["holdfast-launcher"]),
        ("events", &["holdfast-chassis", "holdfast-contracts"]),
    ] {
        assert_eq!(dependencies[name], on(depends), "{name}");
    }
    for service in programs() {
        let libraries = on(&["holdfast-chassis", "holdfast-testing (dev)", "events"]);
        // Those of an outage test, in a service of the template.
        let others = on(&["holdfast-checker (dev)", "holdfast-launcher (dev)"]);
        let own = dependencies[&service].difference(&others).cloned().collect::<BTreeSet<_>>();
        assert_eq!(own, libraries, "{service}");
    }
    let linked = dependencies["declaration"].iter().filter(|it| programs().contains(*it));
    assert_eq!(linked.cloned().collect::<BTreeSet<_>>(), programs(), "it links every service");
    let dependencies_of = |name: &str| dependencies[name].clone();
    let members: BTreeSet<String> = dependencies.keys().cloned().collect();
    let named = members.difference(&on(&CRATES.map(|(name, _)| name))).cloned().collect();
    assert_eq!(deployables(), named, "a service's folder, crate and name are one word");
    let depends_on_a_service = |depends: &BTreeSet<String>| {
        depends.iter().any(|it| deployables().contains(it.trim_end_matches(" (dev)")))
    };
    let calling = dependencies.iter().filter(|(_, depends)| depends_on_a_service(depends));
    let calling: Vec<&str> = calling.map(|(name, _)| name.as_str()).collect();
    assert_eq!(calling, ["declaration", "model"], "a service is known by its API and its events");
    let (own, others) = (deployables(), on(&WITHOUT_DATABASE));
    let saga: BTreeSet<String> = own.difference(&others).cloned().collect();
    assert_eq!(programs(), saga, "the native stack can start every service");
    for name in WITHOUT_DATABASE {
        let libraries = on(&["holdfast-chassis", "holdfast-ops-client", "events"]);
        assert_eq!(dependencies_of(name), libraries, "{name}");
        assert!(!root().join(format!("services/{name}/migrations")).exists(), "{name}");
    }
}

/// It returns refusals, which its host answers, and takes settings, which its host reads.
#[test]
fn messaging_knows_neither_http_nor_the_command_line() {
    let manifest = read("shared/messaging/Cargo.toml");
    let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
    let named: Vec<&str> =
        dependencies.lines().map_while(|line| line.split_once('.')).map(|it| it.0).collect();
    assert!(named.contains(&"rdkafka") && named.contains(&"sqlx"), "{named:?}");
    for of_the_host in ["axum", "clap", "hyper", "tower", "tracing-subscriber"] {
        assert!(!named.contains(&of_the_host), "{of_the_host}");
    }
}

#[test]
fn every_library_can_be_released() {
    let makefile = read("Makefile");
    let packaged = makefile.lines().find_map(|line| line.strip_prefix("LIBRARIES := ")).unwrap();
    let packaged: BTreeSet<String> =
        packaged.split(' ').map(|name| format!("holdfast-{name}")).collect();
    let named: BTreeSet<String> = libraries().map(|(name, _)| name.to_string()).collect();
    assert_eq!(packaged, named, "`make check` packages every library");
    for (name, folder) in libraries() {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        for line in
            ["description = ", "keywords = ", "categories = ", "readme = ", "version.workspace"]
        {
            assert!(manifest.contains(&format!("\n{line}")), "{name} has no {line}");
        }
        assert!(
            manifest.contains("license.workspace") && !manifest.contains("publish = "),
            "{name}"
        );
        let root = read(&format!("{folder}/src/lib.rs"));
        let (readme, docs) = ("#![doc = include_str!(\"../README.md\")]", "#![warn(missing_docs)]");
        assert!(root.contains(readme) && root.contains(docs), "{name}");
    }
}

#[test]
fn crash_points_are_compiled_in_by_one_target_of_make_and_by_nothing_else() {
    let services = deployables().into_iter().map(|service| format!("services/{service}"));
    let members =
        services.chain(CRATES.map(|(_, folder)| folder.to_string())).map(|it| it + "/Cargo.toml");
    let others = ["Cargo.toml", "services/Dockerfile", "docker-compose.yml"].map(str::to_string);
    for file in members.chain(others) {
        let uses = read(&file).matches("crash-points").count();
        assert_eq!(uses, usize::from(file == "shared/messaging/Cargo.toml"), "{file}");
    }
    assert!(!read("shared/messaging/Cargo.toml").contains("default ="));
    assert_eq!(read("Makefile").matches("--features holdfast-messaging/crash-points").count(), 1);
}
