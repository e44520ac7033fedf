//! The tables of the chassis are created by the chassis alone.

use super::{read, root};

/// A later version of the chassis changes its tables in every service that depends on it, and in no copy of them.
#[test]
fn only_the_chassis_creates_its_tables() {
    let sql = |folder: &str| {
        let mut found = Vec::new();
        files(folder, &mut found);
        found.into_iter().map(|file| (read(&file), file))
    };
    let of_chassis = sql("shared/chassis/migrations").map(|(text, _)| text).collect::<String>();
    let tables: Vec<&str> = of_chassis.split("create table chassis.").skip(1).collect();
    let tables = tables.iter().map(|rest| rest.split_whitespace().next().unwrap());
    let tables = Vec::from_iter(tables);
    assert!(tables.len() >= 8 && tables.contains(&"outbox"), "{tables:?}");
    for (text, file) in sql("services").chain(sql("e2e/template")) {
        for table in &tables {
            let copies =
                [format!("create table {table} "), format!("create table chassis.{table}")];
            let is_copied = copies.iter().any(|copy| text.contains(copy.as_str()));
            assert!(!is_copied, "{file} creates {table}");
        }
    }
}

/// Every file of SQL below a folder.
fn files(folder: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().into_string().unwrap());
        match entry.path().is_dir() {
            true if path.ends_with("/target") => {}
            true => files(&path, found),
            false if path.ends_with(".sql") => found.push(path),
            false => {}
        }
    }
}
