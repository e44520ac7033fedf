//! Layers: the folders that a folder may import; no two modules import each other.

use e2e::stack_description::checkout;

use super::imports::{Imports, folder_of};

/// The chassis from the bottom up: a folder may import folders of its own line and of the lines
/// above it here.
const CHASSIS: [&[&str]; 8] = [
    &["crash_point", "config", "telemetry", "flow"],
    &["event", "db", "kafka", "http"],
    &["unit_of_work"],
    &["outbox", "dead_letter", "inbox"],
    &["transaction"],
    &["commands", "consumer"],
    &["admin"],
    &["service"],
];

/// The parts that a fork may delete, each with its files.
const DELETABLE: [&[&str]; 4] = [
    &["kafka/compacted_topic"],
    &["http/openapi", "http/openapi_responses"],
    &["http/change_feed", "http/sse", "http/caller_shares"],
    &["admin/republish", "admin/republish_source", "admin/published_events"],
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

/// `testing` and the root may import everything.
const CHASSIS_FREE: [&str; 2] = ["", "testing"];

fn chassis() -> Imports {
    Imports::read("shared/chassis/src", &CHASSIS_FREE)
}

fn e2e() -> Imports {
    Imports::read("e2e/src", &["", "checker/test_cases"])
}

/// The crates without layers.
fn other_crates() -> impl Iterator<Item = Imports> {
    let folders = [
        "e2e/bench/src",
        "e2e/checker/src",
        "e2e/faults/src",
        "e2e/model",
        "services/console/src",
        "services/order/src",
        "services/payment/src",
        "services/stock/src",
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
    let found = upward_imports(&chassis(), &CHASSIS);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn events_lie_below_kafka() {
    let imports = chassis();
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
    for imports in other_crates().chain([chassis(), e2e(), launcher()]) {
        let (files, by_folder) = (imports.circles(), imports.by_folder());
        let folders = by_folder.circles();
        assert!(files.is_empty() && folders.is_empty(), "{files:#?} {folders:#?}");
    }
}

#[test]
fn what_a_fork_may_delete_is_imported_by_the_service_alone() {
    let imports = chassis();
    for part in DELETABLE {
        for module in part {
            let file = checkout().join(format!("shared/chassis/src/{module}.rs"));
            assert!(file.exists(), "{} does not exist", file.display());
        }
        let used = imports.pairs().filter(|(from, to)| part.contains(to) && !part.contains(from));
        let others: Vec<_> = used.filter(|(from, _)| *from != "service").collect();
        assert!(others.is_empty(), "{others:#?}");
    }
}
