//! What is Java: the stream processor, because Kafka Streams is, and a converter for Kafka Connect, because its plugins
//! are.

use std::collections::BTreeSet;

use super::{read, root};

const FOLDERS: [&str; 2] = ["services/insights", "services/reporting"];

/// The image of the worker that runs those plugins. It has no code.
const WORKER: &str = "services/connect";

/// The text between two tags.
fn element(text: &str, tag: &str) -> String {
    let rest = text.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
    rest.split('<').next().unwrap_or_default().to_string()
}

#[test]
fn every_folder_of_services_is_a_crate_or_java_or_the_worker() {
    let entries = std::fs::read_dir(root().join("services")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let others: BTreeSet<String> = folders
        .filter(|path| !path.join("Cargo.toml").is_file())
        .map(|path| path.strip_prefix(root()).unwrap().display().to_string())
        .collect();
    let expected = FOLDERS.into_iter().chain([WORKER]);
    assert_eq!(others, expected.map(str::to_string).collect());
}

#[test]
fn its_libraries_have_the_versions_of_the_broker() {
    let (workspace, launcher) = (read("Cargo.toml"), read("e2e/launcher/pom.xml"));
    for folder in FOLDERS {
        let own = read(&format!("{folder}/pom.xml"));
        assert_eq!(element(&own, "kafka.version"), element(&launcher, "kafka.version"), "{folder}");
        let log4j = element(&own, "log4j.version");
        assert!(log4j.is_empty() || log4j == element(&launcher, "log4j.version"), "{folder}");
        assert!(workspace.contains(&format!("version = \"{}\"", element(&own, "version"))));
    }
    assert_eq!(element(&launcher, "connect.version"), element(&launcher, "kafka.version"));
}
