//! Layers: the folders that a folder may import; no two modules import each other.

use e2e::stack_description::checkout;

use super::imports::{Imports, folder_of};
use super::{Source, sources};

/// The messaging of the chassis from the bottom up: a folder may import folders of its own line and of the lines
/// above it here.
const MESSAGING: [&[&str]; 6] = [
    &["crash_point", "integer", "telemetry", "flow"],
    &["event", "db", "kafka"],
    &["unit_of_work"],
    &["outbox", "dead_letter", "inbox", "scheduled", "deliveries", "calls", "tasks"],
    &["transaction"],
    &["commands", "consumer", "call_loop"],
];

/// The layers of its host, in the same way. Each may import messaging.
const HOST: [&[&str]; 4] = [&["config", "telemetry"], &["db", "http"], &["admin"], &["service"]];

/// The parts that a fork may delete, each with its crate and its files.
const DELETABLE: [(&str, &[&str]); 5] = [
    ("messaging", &["kafka/compacted_topic"]),
    ("messaging", &["outbox/republish_source"]),
    ("host", &["http/openapi", "http/openapi_responses"]),
    ("host", &["http/change_feed", "http/sse", "http/caller_shares"]),
    ("host", &["admin/republish", "admin/published_events"]),
];

/// The layers of the e2e crate, in the same way.
const E2E: [&[&str]; 8] = [
    &["stack_description", "console", "format", "port_forward"],
    &["client"],
    &["metrics", "monitoring"],
    &["checker"],
    &["workload"],
    &["scenarios", "admin", "mutants"],
    &["new_service", "image_pins"],
    &["new_repository"],
];

/// The layers of the launcher, in the same way. The life cycle knows no component by its name.
const LAUNCHER: [&[&str]; 10] = [
    &["environment", "eventually", "description"],
    &["directories", "processes", "ports"],
    &["artifacts", "secrets", "status"],
    &["state"],
    &["component"],
    &["components", "readiness"],
    &["stack"],
    &["lifecycle"],
    &["operations"],
    &["program", "run_with_infrastructure"],
];

fn messaging() -> Imports {
    Imports::read("shared/messaging/src", &[""])
}

/// `testing` and the root may import everything.
fn host() -> Imports {
    Imports::read("shared/host/src", &["", "testing"])
}

fn e2e() -> Imports {
    Imports::read("e2e/src", &["", "checker/test_cases"])
}

/// The crates without layers.
fn other_crates() -> impl Iterator<Item = Imports> {
    let folders = [
        "e2e/bench/src",
        "e2e/carrier/src",
        "e2e/checker/src",
        "e2e/faults/src",
        "e2e/model",
        "e2e/test_service/src",
        "services/console/src",
        "services/order/src",
        "services/payment/src",
        "services/shipping/src",
        "services/stock/src",
        "shared/chassis/src",
        "shared/contracts/src",
        "shared/declaration/src",
        "shared/derive/src",
        "shared/events/src",
        "shared/ops-client/src",
        "shared/testing/src",
    ];
    folders.into_iter().map(|folder| Imports::read(folder, &[""]))
}

fn launcher() -> Imports {
    Imports::read("e2e/launcher/src", &[""])
}

/// Every import of a higher layer, and every file without a layer.
fn upward_imports(imports: &Imports, layers: &[&[&str]]) -> Vec<String> {
    let layer = |module: &str| layers.iter().position(|it| it.contains(&folder_of(module)));
    let unknown = imports.0.keys().filter(|it| layer(it).is_none());
    let mut found: Vec<String> = unknown.map(|it| format!("{it} has no layer")).collect();
    let upward = imports.pairs().filter(|(from, to)| layer(from) < layer(to));
    found.extend(upward.map(|(from, to)| format!("{from} imports {to}, which lies above it")));
    found
}

#[test]
fn the_chassis_imports_downwards_only() {
    let mut found = upward_imports(&messaging(), &MESSAGING);
    found.extend(upward_imports(&host(), &HOST));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn events_lie_below_kafka() {
    let imports = messaging();
    let upward =
        imports.pairs().filter(|(from, to)| (folder_of(from), folder_of(to)) == ("event", "kafka"));
    assert_eq!(upward.collect::<Vec<_>>(), []);
}

#[test]
fn the_end_to_end_tests_import_downwards_only() {
    let found = upward_imports(&e2e(), &E2E);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_launcher_imports_downwards_only() {
    let found = upward_imports(&launcher(), &LAUNCHER);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn no_two_parts_of_a_crate_import_each_other() {
    for imports in other_crates().chain([messaging(), host(), e2e(), launcher()]) {
        let (files, by_folder) = (imports.circles(), imports.by_folder());
        let folders = by_folder.circles();
        assert!(files.is_empty() && folders.is_empty(), "{files:#?} {folders:#?}");
    }
}

#[test]
fn what_a_fork_may_delete_is_imported_by_the_service_alone() {
    for (of, part) in DELETABLE {
        for module in part {
            let file = checkout().join(format!("shared/{of}/src/{module}.rs"));
            assert!(file.exists(), "{} does not exist", file.display());
        }
        let imports = if of == "host" { host() } else { messaging() };
        let used = imports.pairs().filter(|(from, to)| part.contains(to) && !part.contains(from));
        let others: Vec<_> = used.filter(|(from, _)| *from != "service").collect();
        assert!(others.is_empty(), "{others:#?}");
    }
}

/// What republishes and the service name these parts of messaging, and no other file of the host does.
#[test]
fn what_a_fork_may_delete_of_messaging_is_imported_by_few_files_of_the_host() {
    let deletable = [
        ("kafka::compacted_topic", &["service/mod.rs"][..]),
        ("outbox::republish_source", &["admin/republish.rs", "admin/published_events.rs"]),
    ];
    for (part, users) in deletable {
        for Source { path, code } in sources("shared/host/src") {
            let is_user = users.iter().any(|user| path.ends_with(user));
            assert!(is_user || !code.contains(part), "{path} imports {part}");
        }
    }
}
