//! The stream processor, which is Java because Kafka Streams is.

use std::collections::BTreeSet;

use super::{read, root};

const FOLDER: &str = "services/insights";

/// The largest number of lines of its code, without its tests, comments, imports and blank lines.
const LINES_MAX: usize = 500;

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
fn every_folder_of_services_is_a_crate_or_the_stream_processor() {
    let entries = std::fs::read_dir(root().join("services")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let others: BTreeSet<String> = folders
        .filter(|path| !path.join("Cargo.toml").is_file())
        .map(|path| path.strip_prefix(root()).unwrap().display().to_string())
        .collect();
    assert_eq!(others, BTreeSet::from([FOLDER.to_string()]));
}

#[test]
fn the_stream_processor_is_small() {
    let main = format!("{FOLDER}/src/main/java/insights");
    let files = std::fs::read_dir(root().join(&main)).unwrap();
    let lines = files.map(|file| {
        let name = file.unwrap().file_name().into_string().unwrap();
        read(&format!("{main}/{name}")).lines().filter(|line| is_code(line)).count()
    });
    let lines: usize = lines.sum();
    assert!((1..=LINES_MAX).contains(&lines), "{lines} lines of Java");
}

#[test]
fn its_libraries_have_the_versions_of_the_broker() {
    let (own, launcher) = (read(&format!("{FOLDER}/pom.xml")), read("e2e/launcher/pom.xml"));
    for version in ["kafka.version", "log4j.version"] {
        assert_eq!(element(&own, version), element(&launcher, version), "{version}");
    }
    let workspace = read("Cargo.toml");
    assert!(workspace.contains(&format!("version = \"{}\"", element(&own, "version"))));
}
