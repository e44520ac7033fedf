//! The structure rules of docs/architecture.md. `make check` runs these tests by name; they only
//! need the files.

// Clippy recognises tests by their attribute, and this whole module is a test.
#![allow(clippy::unwrap_used)]

mod apis;
mod ceilings;
mod connectors;
mod crates;
mod imports;
mod java;
mod layers;
mod migrations;
mod pages;
mod topics;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::scenarios::crash_points;
use e2e::stack_description::{SERVICES, SHIPPING};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every service of the saga: a deployable with a database.
fn services() -> BTreeSet<String> {
    SERVICES.into_iter().map(String::from).collect()
}

/// The same with those that only some stacks have.
fn programs() -> BTreeSet<String> {
    services().into_iter().chain([SHIPPING.to_string()]).collect()
}

/// Every crate below `services/`, by its folder: the services of the saga, and the control room. `java.rs` has those
/// that are no crates.
fn deployables() -> BTreeSet<String> {
    std::fs::read_dir(root().join("services"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// A source file of the workspace.
struct Source {
    /// Its path from the root of the checkout.
    path: String,
    /// Its code without its tests.
    code: String,
}

/// The files below a folder whose names end so, in the order of their paths. What a build writes is left out.
pub fn files(folder: &str, ends: &[&str]) -> Vec<String> {
    let (mut folders, mut found) = (vec![folder.to_string()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}/{}", entry.file_name().into_string().unwrap());
            match entry.path().is_dir() {
                true if path.ends_with("/target") => {}
                true => folders.push(path),
                false if ends.iter().any(|end| path.ends_with(end)) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{folder} has no file that ends with {ends:?}");
    found
}

/// The two crates of the chassis, without its face.
const CHASSIS: [&str; 2] = ["shared/messaging/src", "shared/host/src"];

/// The sources below a folder, without the files that are tests.
fn sources(folder: &str) -> Vec<Source> {
    let is_test = |path: &String| {
        let mut names = path[folder.len()..].split('/');
        names.any(|name| ["tests", "tests.rs"].contains(&name) || name.ends_with("_tests.rs"))
    };
    let paths = files(folder, &[".rs"]).into_iter().filter(|path| !is_test(path));
    let found: Vec<Source> =
        paths.map(|path| Source { code: without_tests(&read(&path)), path }).collect();
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// The tests of a file are its last module.
fn without_tests(text: &str) -> String {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_string()
}

/// A newer version's migration adds a column while this version runs. A prepared statement whose
/// columns change fails for the life of its connection ("cached plan must not change result type"),
/// so the older version would refuse every such request.
#[test]
fn no_prepared_statement_selects_all_columns_of_a_table() {
    let folders = programs().into_iter().map(|service| format!("services/{service}/src"));
    for folder in folders.chain(CHASSIS.map(String::from)).chain(["e2e/template".into()]) {
        for Source { path, code, .. } in sources(&folder) {
            for statement in code.split(';').filter(|it| !it.contains(".persistent(false)")) {
                for (at, _) in statement.match_indices('*') {
                    let (before, after) = (&statement[..at], statement[at + 1..].trim_start());
                    let all = before.ends_with("select ") || before.ends_with("returning ");
                    let of_arrays = after.starts_with("from unnest(");
                    // Its next line makes it unprepared.
                    let unkept = after.starts_with("from {table}");
                    let around = before.chars().rev().take(80).collect::<String>();
                    assert!(
                        !all || of_arrays || after.starts_with("from staged_items") || unkept,
                        "{path}: {} *",
                        around.chars().rev().collect::<String>()
                    );
                }
            }
        }
    }
}

/// A killed process keeps what it gave to the operating system, so a test that kills cannot detect
/// this.
#[test]
fn no_setting_gives_up_the_durability_of_commits() {
    let named = ["docker-compose.yml", "Makefile", "e2e/launcher/src/components/postgres.rs"];
    let files: Vec<String> =
        named.into_iter().map(String::from).chain(files("k8s", &[""])).collect();
    assert!(files.len() > 10, "{files:?}");
    for path in files {
        let text = read(&path);
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let set = ["=", ":", " ="].iter().any(|is| text.contains(&format!("{setting}{is}")));
            assert!(!set, "{path} sets {setting}");
        }
    }
}

#[test]
fn the_crash_points_of_the_chassis_and_of_the_runner_are_the_same() {
    let mut declared = Vec::new();
    for Source { path, code, .. } in CHASSIS.into_iter().flat_map(sources) {
        if path.ends_with("/crash_point.rs") {
            continue;
        }
        let points = code.split("crash_point!(\"").skip(1);
        declared.extend(points.map(|rest| rest.split('"').next().unwrap().to_string()));
        // Those of the one path have other names for commands than for events.
        for list in code.split("const CRASH_POINTS").skip(1) {
            let list = list.split(';').nth(1).unwrap();
            declared.extend(list.split('"').skip(1).step_by(2).map(str::to_string));
        }
    }
    declared.sort_unstable();
    let mut known = crash_points::list::all();
    known.sort_unstable();
    assert_eq!(declared, known);
}

/// The program's own message would name its arguments, which a user of `make` has not seen.
#[test]
fn make_asks_for_a_missing_variable_by_its_name() {
    for (target, name) in [
        ("timeline", "ID"),
        ("dead-letter", "SERVICE"),
        ("replay", "SERVICE"),
        ("discard", "SERVICE"),
        ("sql", "SERVICE"),
    ] {
        let mut make = Command::new("make");
        let command = make.args(["-n", target]).current_dir(root()).env_remove("MAKEFLAGS");
        let output = command.env_remove("SERVICE").env_remove("ID").output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(&format!("set {name}=")), "{error}");
    }
}
