//! What is Java: the stream processor, because Kafka Streams is, and a converter for Kafka Connect, because its plugins
//! are.

use std::collections::BTreeSet;

use super::{read, root};

/// Each folder, with the largest number of lines of its code, without its tests, comments, imports and blank lines.
const FOLDERS: [(&str, usize); 2] = [("services/insights", 850), ("services/reporting", 150)];

/// The image of the worker that runs those plugins. It has no code.
const WORKER: &str = "services/connect";

/// The text between two tags.
fn element(text: &str, tag: &str) -> String {
    let rest = text.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
    rest.split('<').next().unwrap_or_default().to_string()
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    let others = ["//", "/*", "*", "import ", "package "];
    !line.is_empty() && !others.iter().any(|other| line.starts_with(other))
}

#[test]
fn every_folder_of_services_is_a_crate_or_java_or_the_worker() {
    let entries = std::fs::read_dir(root().join("services")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let others: BTreeSet<String> = folders
        .filter(|path| !path.join("Cargo.toml").is_file())
        .map(|path| path.strip_prefix(root()).unwrap().display().to_string())
        .collect();
    let expected = FOLDERS.iter().map(|(folder, _)| *folder).chain([WORKER]);
    assert_eq!(others, expected.map(str::to_string).collect());
}

#[test]
fn what_is_java_is_small() {
    for (folder, lines_max) in FOLDERS {
        let name = folder.rsplit('/').next().unwrap();
        let main = format!("{folder}/src/main/java/{name}");
        let files = std::fs::read_dir(root().join(&main)).unwrap();
        let lines = files.map(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            read(&format!("{main}/{name}")).lines().filter(|line| is_code(line)).count()
        });
        let lines: usize = lines.sum();
        assert!((1..=lines_max).contains(&lines), "{folder}: {lines} lines of Java");
    }
}

#[test]
fn its_libraries_have_the_versions_of_the_broker() {
    let (workspace, launcher) = (read("Cargo.toml"), read("e2e/launcher/pom.xml"));
    for (folder, _) in FOLDERS {
        let own = read(&format!("{folder}/pom.xml"));
        assert_eq!(element(&own, "kafka.version"), element(&launcher, "kafka.version"), "{folder}");
        let log4j = element(&own, "log4j.version");
        assert!(log4j.is_empty() || log4j == element(&launcher, "log4j.version"), "{folder}");
        assert!(workspace.contains(&format!("version = \"{}\"", element(&own, "version"))));
    }
    assert_eq!(element(&launcher, "connect.version"), element(&launcher, "kafka.version"));
}
