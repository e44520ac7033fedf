//! The imports between the source files of a crate, read from its `use` lines and paths.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, sources};

/// The modules of a crate, each by its path without `mod`, such as `outbox` and `outbox/sender`,
/// with the modules that it imports. The root has the empty path.
pub(super) struct Imports(pub BTreeMap<String, BTreeSet<String>>);

impl Imports {
    /// Reads a crate. `free` lists files, and folders at its root, that may import anything and are
    /// left out. A file that re-exports names of its own children does not import them.
    pub fn read(folder: &str, free: &[&str]) -> Imports {
        let all: Vec<(String, String)> = sources(folder)
            .into_iter()
            .map(|Source { path, code }| {
                let module = module_of(&path[folder.len() + 1..]);
                let code = without_reexports(&without_comments(&code), &module);
                (module, code)
            })
            .collect();
        let names: BTreeSet<String> = all.iter().map(|(name, _)| name.clone()).collect();
        let imported = all
            .into_iter()
            .filter(|(name, _)| !free.contains(&&**name) && !free.contains(&folder_of(name)));
        let imported = imported.map(|(name, code)| {
            let named = paths(&code, &name).into_iter().filter_map(|path| resolve(&path, &names));
            let children =
                names.iter().filter(|other| is_named_child(&name, other, &code)).cloned();
            let imported = named.chain(children).filter(|it| *it != name).collect();
            (name, imported)
        });
        Imports(imported.collect())
    }

    /// Every import, as a pair of importer and imported module.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|(from, to)| to.iter().map(|it| (from.as_str(), it.as_str())))
    }

    /// The circles: groups of modules that import each other, directly or indirectly.
    pub fn circles(&self) -> Vec<Vec<&str>> {
        let reached = |from: &str| {
            let (mut found, mut open) = (BTreeSet::new(), vec![from.to_string()]);
            while let Some(next) = open.pop() {
                for to in self.0.get(&next).into_iter().flatten() {
                    if found.insert(to.clone()) {
                        open.push(to.clone());
                    }
                }
            }
            found
        };
        let reached: BTreeMap<&str, _> =
            self.0.keys().map(|it| (it.as_str(), reached(it))).collect();
        let mut circles = BTreeSet::new();
        for (name, to) in &reached {
            let mutual = |other: &&&str| to.contains(**other) && reached[**other].contains(*name);
            let circle: Vec<&str> = reached.keys().filter(mutual).copied().collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }

    /// The same imports between folders and files at the root.
    pub fn by_folder(&self) -> Imports {
        let mut folders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for name in self.0.keys() {
            folders.entry(folder_of(name).to_string()).or_default();
        }
        for (from, to) in self.pairs().map(|(from, to)| (folder_of(from), folder_of(to))) {
            if from != to {
                folders.get_mut(from).unwrap().insert(to.to_string());
            }
        }
        Imports(folders)
    }
}

pub(super) fn folder_of(module: &str) -> &str {
    module.split('/').next().unwrap_or_default()
}

fn module_of(file: &str) -> String {
    let name = file.strip_suffix(".rs").unwrap_or(file);
    let name = name.strip_suffix("/mod").unwrap_or(name);
    if ["lib", "main"].contains(&name) { String::new() } else { name.to_string() }
}

/// Whether the code of a folder's `mod.rs` names a file of that folder by a path, such as
/// `sender::send(…)`.
fn is_named_child(parent: &str, other: &str, code: &str) -> bool {
    let child = other.strip_prefix(parent).and_then(|rest| rest.strip_prefix('/'));
    let Some(child) = child.filter(|child| !child.contains('/')) else { return false };
    code.match_indices(&format!("{child}::")).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !"_:$.".contains(c))
            || code[..at].ends_with("self::")
    })
}

fn without_comments(code: &str) -> String {
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| line.split(" // ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The code without the re-exports of the file's own children.
fn without_reexports(code: &str, module: &str) -> String {
    let own = format!("use crate::{}::", module.replace('/', "::"));
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = rest.find(&own) {
        let line = rest[..at].rfind('\n').map_or(0, |end| end + 1);
        let end = rest[at..].find(';').map_or(rest.len(), |length| at + length + 1);
        let stays = if rest[line..at].starts_with("pub") { line } else { end };
        kept += &rest[..stays];
        rest = &rest[end..];
    }
    kept + rest
}

/// Every path from the crate's root in a file, with its groups in braces expanded.
fn paths(code: &str, module: &str) -> Vec<Vec<String>> {
    let own: Vec<String> = module.split('/').map(str::to_string).collect();
    let mut found = Vec::new();
    for (start, above) in [("crate::", own.len()), ("super::", 1), ("super::super::", 2)] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            // Part of a longer path or name, such as `$crate::` or `super::super::`.
            if before.is_some_and(|c| c.is_alphanumeric() || "_:$".contains(c)) {
                continue;
            }
            if start == "super::" && code[at..].starts_with("super::super::") {
                continue;
            }
            let base = own[..own.len().saturating_sub(above)].to_vec();
            tree(&code[at + start.len()..], &base, &mut found);
        }
    }
    found
}

/// Reads `a::b`, `a::{b, c::d}` or `*` from the beginning of `text`, and returns its length.
fn tree(text: &str, base: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let (mut path, mut at) = (base.to_vec(), 0);
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            while let Some(next) = text[at..].chars().next().filter(|c| *c != '}') {
                let skipped = next.is_whitespace() || next == ',';
                at +=
                    if skipped { next.len_utf8() } else { tree(&text[at..], &path, found).max(1) };
            }
            return at + 1;
        }
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        path.push(rest[..length].to_string());
        at += length;
        if !text[at..].starts_with("::") {
            found.push(path);
            // An alias is part of it.
            let alias = text[at..].find([',', '}', ';']).filter(|_| text[at..].starts_with(" as "));
            return at + alias.unwrap_or(0);
        }
        at += 2;
    }
}

/// The longest prefix of a path that is a module. A name that the root itself exports, such as a
/// macro, is no import of a module.
fn resolve(path: &[String], names: &BTreeSet<String>) -> Option<String> {
    let longest = (1..=path.len()).rev().map(|length| path[..length].join("/"));
    longest.into_iter().find(|name| names.contains(name))
}

#[test]
fn imports_are_read_from_use_lines_groups_and_paths() {
    let code = "use crate::a::{self, b::C, d::{e, f as g}};\nuse super::h::I;\nlet x = crate::j::K::l();\n\
                $crate::m::n!(); crate::o!(\"\")";
    let found: Vec<String> = paths(code, "p/q").iter().map(|path| path.join("/")).collect();
    assert_eq!(found, ["a/self", "a/b/C", "a/d/e", "a/d/f", "j/K/l", "o", "p/h/I"]);
    let names = BTreeSet::from(["a", "a/b"].map(str::to_string));
    let resolved =
        |path: &[&str]| resolve(&path.iter().map(|it| it.to_string()).collect::<Vec<_>>(), &names);
    assert_eq!(resolved(&["a", "b", "C"]).as_deref(), Some("a/b"));
    assert_eq!(resolved(&["a", "C"]).as_deref(), Some("a"));
    assert_eq!(resolved(&["C"]), None);
    assert!(is_named_child("p", "p/q", "q::r();") && is_named_child("p", "p/q", "use self::q::R;"));
    assert!(!is_named_child("p", "p/q", "crate::q::r(); pq::r();"));
    assert!(!is_named_child("p", "s/q", "q::r()"));
    assert_eq!(module_of("p/mod.rs") + &module_of("lib.rs") + &module_of("/q.rs"), "p/q");
}

#[test]
fn circles_are_found_and_chains_are_none() {
    let imports = |pairs: &[(&str, &str)]| {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in pairs {
            all.entry(from.to_string()).or_default().insert(to.to_string());
            all.entry(to.to_string()).or_default();
        }
        Imports(all)
    };
    assert!(imports(&[("a", "b"), ("b", "c"), ("a", "c")]).circles().is_empty());
    let ring = imports(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]);
    assert_eq!(ring.circles(), [["a", "b", "c"]]);
    let folders = imports(&[("a/b", "c/d"), ("c", "a")]);
    assert!(folders.circles().is_empty());
    assert_eq!(folders.by_folder().circles(), [["a", "c"]]);
}
