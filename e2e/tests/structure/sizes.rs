//! Sizes of files, functions and the chassis. A file beside this one lists what is larger; it may
//! only shrink.

use std::collections::BTreeMap;

use super::{Source, compare_ratchet, deployables, sources};

/// The largest number of lines of a file, without its tests.
const FILE_LINES_MAX: usize = 300;

/// The largest number of lines of a function's body, without comments and blank lines. Clippy's
/// `too_many_lines` counts in the same way, but has no list of exceptions.
const FUNCTION_LINES_MAX: usize = 60;

/// The number of lines by which the chassis may shrink without being recorded.
const CHASSIS_SLACK: usize = 100;

/// All counted sources.
fn all_sources() -> impl Iterator<Item = Source> {
    let folders = deployables().into_iter().map(|service| format!("services/{service}/src"));
    let others =
        ["shared/chassis/src", "shared/events/src", "e2e/src", "e2e/tests", "e2e/bench/src"];
    let others = others.into_iter().chain([
        "shared/contracts/src",
        "e2e/launcher",
        "e2e/faults/src",
        "e2e/checker/src",
        "shared/testing/src",
        "shared/derive/src",
        "e2e/model",
        "e2e/template",
        "e2e/fuzz/src",
    ]);
    folders.chain(others.map(str::to_string)).flat_map(|folder| sources(&folder))
}

#[test]
fn no_file_has_more_than_300_lines() {
    let sizes = all_sources().map(|Source { path, code }| (path, code.lines().count()));
    compare_ratchet("file_sizes.txt", &sizes.filter(|it| it.1 > FILE_LINES_MAX).collect(), 0);
}

/// Every function of a file with the lines of its body: rustfmt ends it with a brace at the depth
/// of its beginning.
fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    // The depth of the current function, and whether its body has begun.
    let mut open: Option<(usize, bool)> = None;
    for line in code.lines() {
        let inner = line.trim_start();
        let depth = line.len() - inner.len();
        match &mut open {
            None => {
                let head = inner.split('"').next().unwrap_or_default();
                let name = head.split_once("fn ").filter(|(before, _)| {
                    before.split(' ').all(|word| word.is_empty() || is_qualifier(word))
                });
                if let Some((_, name)) = name.filter(|_| !inner.ends_with(';')) {
                    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
                    found.push((name[..end.unwrap_or(name.len())].to_string(), 0));
                    open = (!inner.ends_with('}')).then_some((depth, inner.ends_with('{')));
                }
            }
            Some((start, _)) if depth == *start && (inner == "}" || inner.ends_with(';')) => {
                open = None;
            }
            Some((start, begun @ false)) => *begun = depth == *start && inner.ends_with('{'),
            Some(_) if inner.is_empty() || inner.starts_with("//") => {}
            Some(_) => found.last_mut().unwrap().1 += 1,
        }
    }
    found
}

fn is_qualifier(word: &str) -> bool {
    ["const", "async", "unsafe"].contains(&word) || word.starts_with("pub")
}

#[test]
fn the_lines_of_functions_are_counted() {
    let code = "pub(crate) async fn a(\n    b: C,\n) -> D {\n    e;\n\n    // f\n    g {\n    }\n}\n\
                impl H {\n    fn i() {}\n    fn j(&self);\n    const fn k() {\n        l\n    }\n}\n";
    let found = functions(code);
    assert_eq!(
        found,
        [("a", 3), ("i", 0), ("k", 1)].map(|(name, lines)| (name.to_string(), lines))
    );
}

#[test]
fn no_function_has_more_than_60_lines() {
    let sizes = all_sources().flat_map(|Source { path, code }| {
        let functions = functions(&code).into_iter();
        functions.map(move |(name, lines)| (format!("{path}::{name}"), lines)).collect::<Vec<_>>()
    });
    compare_ratchet(
        "function_sizes.txt",
        &sizes.filter(|it| it.1 > FUNCTION_LINES_MAX).collect(),
        0,
    );
}

/// A team has to own the chassis: a change that makes it larger shows that in the diff, and gives
/// the reason.
#[test]
fn the_chassis_keeps_its_budget() {
    let shipped =
        sources("shared/chassis/src").into_iter().filter(|it| !it.path.ends_with("/testing.rs"));
    let lines = shipped.map(|Source { code, .. }| code.lines().count()).sum();
    let lines = BTreeMap::from([("shared/chassis/src".to_string(), lines)]);
    compare_ratchet("chassis_lines.txt", &lines, CHASSIS_SLACK);
}
