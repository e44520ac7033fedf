//! Names: one type for one name, and the field's terms.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, deployables, read, sources};

/// Prepositions cannot be searched for.
const PREPOSITIONS: [&str; 12] =
    ["About", "After", "At", "Before", "By", "For", "From", "In", "Of", "On", "To", "With"];

/// The source folders of every crate.
fn crates() -> Vec<String> {
    let services = deployables().into_iter().map(|service| format!("services/{service}/src"));
    let others = [
        "shared/chassis/src",
        "shared/contracts/src",
        "shared/events/src",
        "e2e/src",
        "e2e/launcher/src",
        "e2e/faults/src",
        "e2e/checker/src",
        "e2e/bench/src",
        "e2e/model",
    ];
    services.chain(others.map(str::to_string)).collect()
}

/// The definition in a line: the kind, the name, and whether it is visible outside.
fn definition(line: &str) -> Option<(&str, &str, bool)> {
    let line = line.trim_start();
    let is_visible = line.starts_with("pub");
    let line = line.strip_prefix("pub").map_or(line, |rest| {
        let rest = rest.strip_prefix('(').and_then(|it| it.split_once(')')).map_or(rest, |it| it.1);
        rest.trim_start()
    });
    let mut words = line.split_whitespace();
    let mut kind = words.next()?;
    while ["async", "const", "static", "extern"].contains(&kind) {
        match words.next()? {
            "fn" => kind = "fn",
            // Of `const NAME: T`, the name comes next.
            name => return Some((kind, identifier(name)?, is_visible)),
        }
    }
    let is_item = ["fn", "struct", "enum", "trait", "type", "mod", "macro_rules!"].contains(&kind);
    Some((kind, identifier(words.next()?)?, is_visible)).filter(|_| is_item)
}

fn identifier(word: &str) -> Option<&str> {
    let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
    Some(&word[..end]).filter(|name| !name.is_empty())
}

#[test]
fn definitions_are_read() {
    assert_eq!(definition("    pub(crate) async fn a<T>(b: T) {"), Some(("fn", "a", true)));
    assert_eq!(definition("const A: i32 = 1;"), Some(("const", "A", false)));
    assert_eq!(definition("pub struct A(B);"), Some(("struct", "A", true)));
    assert_eq!(definition("pub const fn a() {"), Some(("fn", "a", true)));
    assert_eq!(definition("let a = b;"), None);
}

#[test]
fn no_two_types_of_a_crate_have_one_name() {
    let mut twice = Vec::new();
    for folder in crates() {
        let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for Source { path, code } in sources(&folder) {
            for (kind, name, is_visible) in code.lines().filter_map(definition) {
                // The type of a trait's item is indented, and belongs to its trait.
                let is_type = ["struct", "enum", "trait", "type"].contains(&kind);
                if is_type && is_visible {
                    places.entry(name.to_string()).or_default().insert(path.clone());
                }
            }
        }
        twice.extend(places.into_iter().filter(|(_, files)| files.len() > 1));
    }
    assert!(twice.is_empty(), "{twice:#?}");
}

#[test]
fn constructors_are_called_new_and_no_type_is_a_preposition() {
    let mut found = Vec::new();
    for Source { path, code } in crates().iter().flat_map(|folder| sources(folder)) {
        for (kind, name, _) in code.lines().filter_map(definition) {
            let is_type = ["struct", "enum", "trait", "type"].contains(&kind);
            if (kind, name) == ("fn", "of") || is_type && PREPOSITIONS.contains(&name) {
                found.push(format!("{path}: {kind} {name}"));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The names before the rename, for which the field has standard terms.
#[test]
fn no_banned_name_is_defined() {
    let text = read("e2e/tests/structure/banned_names.txt");
    let banned: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .collect();
    let ends: Vec<&str> = banned.iter().filter_map(|name| name.strip_prefix('*')).collect();
    let is_banned =
        |name: &String| banned.contains(&**name) || ends.iter().any(|end| name.ends_with(end));
    let mut found = Vec::new();
    for Source { path, code } in crates().iter().flat_map(|folder| sources(folder)) {
        // An associated type has the name that its trait gives it.
        let own = code.lines().filter(|line| !line.starts_with("    type "));
        let defined = own.filter_map(definition).map(|(_, name, _)| name.to_string());
        let file = path.rsplit('/').next().and_then(|name| name.strip_suffix(".rs"));
        let all = defined.chain(file.map(str::to_string));
        found.extend(all.filter(is_banned).map(|name| format!("{path}: {name}")));
    }
    assert!(found.is_empty(), "{found:#?}");
}
