//! Concepts: the names of the chassis that a service uses. A newcomer learns each of them before the first change.

use std::collections::BTreeSet;

use super::{Source, sources};

/// So many names each may use: what it uses today.
const NAMES_MAX: [(&str, usize); 4] = [
    ("e2e/template", 15),
    ("services/stock/src", 29),
    ("services/payment/src", 28),
    ("services/order/src", 45),
];

/// The names behind `chassis::`, alone or in braces; of a path, the first.
fn names(code: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for (at, prefix) in code.match_indices("chassis::") {
        let rest = &code[at + prefix.len()..];
        let listed = rest.strip_prefix('{').and_then(|list| list.split_once('}'));
        let listed = listed.map_or(rest, |(list, _)| list).split(',');
        // Without braces, what follows the first comma is other code.
        let listed = listed.take(if rest.starts_with('{') { usize::MAX } else { 1 });
        let name = |path: &'_ str| path.find(|c: char| !c.is_alphanumeric() && c != '_');
        found.extend(listed.map(str::trim).map(|path| &path[..name(path).unwrap_or(path.len())]));
    }
    found.remove("");
    found
}

#[test]
fn the_names_of_the_chassis_are_counted_once_each() {
    let code = "use chassis::{A, B,\n    c,\n};\nuse chassis::D;\nchassis::main(\"e\", f); chassis::g::H::new();";
    assert_eq!(Vec::from_iter(names(code)), ["A", "B", "D", "c", "g", "main"]);
}

#[test]
fn no_service_uses_more_names_of_the_chassis_than_it_did() {
    for (folder, most) in NAMES_MAX {
        let sources = sources(folder);
        let used: BTreeSet<&str> =
            sources.iter().flat_map(|Source { code, .. }| names(code)).collect();
        println!("{folder} uses {} names of the chassis: {used:?}", used.len());
        assert!(used.len() <= most, "{folder} uses {} names: {used:?}", used.len());
    }
}
