//! The tables of the chassis are created by the chassis alone.

use std::path::{Path, PathBuf};

use super::root;

/// A later version of the chassis changes its tables in every service that depends on it, and in no copy of them.
#[test]
fn only_the_chassis_creates_its_tables() {
    let sql = |folder: &str| {
        let mut found = Vec::new();
        sql_files(&root().join(folder), &mut found);
        found.into_iter().map(|file| (file.clone(), std::fs::read_to_string(file).unwrap()))
    };
    let of_chassis = sql("shared/chassis/migrations").map(|(_, text)| text).collect::<String>();
    let tables: Vec<&str> = of_chassis.split("create table chassis.").skip(1).collect();
    let tables = tables.iter().map(|rest| rest.split_whitespace().next().unwrap());
    let tables = Vec::from_iter(tables);
    assert!(tables.len() >= 8 && tables.contains(&"outbox"), "{tables:?}");
    for (file, text) in sql("services").chain(sql("e2e/template")) {
        for table in &tables {
            let copies =
                [format!("create table {table} "), format!("create table chassis.{table}")];
            let is_copied = copies.iter().any(|copy| text.contains(copy.as_str()));
            assert!(!is_copied, "{} creates {table}", file.display());
        }
    }
}

fn sql_files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            sql_files(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|end| end == "sql") {
        found.push(path.to_path_buf());
    }
}
