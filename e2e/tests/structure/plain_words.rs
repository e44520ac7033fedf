//! Plain words: comments, messages and pages name the actor.

use std::collections::BTreeMap;

use super::{compare_ratchet, read, root};

/// Words for persons and for absence, which hide the actor.
const BANNED: [&str; 6] = ["nobody", "whoever", "somebody", "anew", "in vain", "of use"];

/// The folders and files that are read, beside the pages.
const PLACES: [&str; 7] =
    ["shared", "services", "e2e", "k8s", "schemas", "docker-compose.yml", "Makefile"];

/// The ends of names of files with comments or messages.
const ENDS: [&str; 9] =
    [".rs", ".sql", ".sh", ".yml", ".yaml", ".toml", ".avsc", "Makefile", "Dockerfile"];

/// Every banned word in a line. A longer name, such as `NOBODY_ID`, does not count.
pub fn banned_words(line: &str) -> impl Iterator<Item = &'static str> {
    let words = line.to_lowercase().replace(|c: char| !c.is_alphanumeric() && c != '_', " ");
    let words = format!(" {} ", words.split_whitespace().collect::<Vec<_>>().join(" "));
    BANNED.into_iter().filter(move |word| words.contains(&format!(" {word} ")))
}

/// Every file at or below a path that may contain comments or messages.
pub fn files(path: &str, found: &mut Vec<String>) {
    let file = root().join(path);
    if !file.is_dir() {
        // This file lists the words.
        let is_exempt = path.ends_with("/plain_words.rs");
        if ENDS.iter().any(|end| path.ends_with(end)) && !is_exempt {
            found.push(path.to_string());
        }
    } else if !path.ends_with("/target") {
        for entry in std::fs::read_dir(file).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            files(&format!("{path}/{name}"), found);
        }
    }
}

#[test]
fn banned_words_are_found_in_text_and_not_in_longer_names() {
    let found = |line| banned_words(line).collect::<Vec<_>>();
    assert_eq!(found("// Nobody waits in  vain."), ["nobody", "in vain"]);
    assert!(found("chown(NOBODY_ID); of useful").is_empty());
}

/// A recorded schema never changes, so its words stay in the list.
#[test]
fn sources_and_manifests_are_plain() {
    let mut all = Vec::new();
    PLACES.iter().for_each(|place| files(place, &mut all));
    assert!(all.len() > 300, "only {} files were found", all.len());
    let counts: BTreeMap<String, usize> = all
        .into_iter()
        .map(|path| (read(&path).lines().flat_map(banned_words).count(), path))
        .filter(|(count, _)| *count > 0)
        .map(|(count, path)| (path, count))
        .collect();
    compare_ratchet("banned_words.txt", &counts, 0);
}
