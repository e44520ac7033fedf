//! The tables of the chassis are created by the chassis alone.

use super::{files, read};

/// A later version of the chassis changes its tables in every service that depends on it, and in no copy of them.
#[test]
fn only_the_chassis_creates_its_tables() {
    let sql = |folder: &str| files(folder, &[".sql"]).into_iter().map(|file| (read(&file), file));
    let of_chassis = sql("shared/messaging/migrations").map(|(text, _)| text).collect::<String>();
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
