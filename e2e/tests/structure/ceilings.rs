//! Ceilings: how large each part may be. `ceilings.toml` has the numbers.

use std::collections::{BTreeMap, BTreeSet};

use events::participants::{ASKED_BY_EVERY_ORDER, PARTICIPANTS};

use super::{crates, deployables, pages, read, sources};

/// Compares each size with its ceiling. A part that is not listed, such as a new service, has the ceiling `others`.
fn assert_within(section: &str, sizes: impl IntoIterator<Item = (String, usize)>) {
    let text = read("ceilings.toml");
    let (_, rest) = text.split_once(&format!("[{section}]\n")).unwrap();
    let lines = rest.lines().take_while(|line| !line.starts_with('['));
    let mut ceilings: BTreeMap<&str, usize> = lines
        .filter_map(|line| line.split_once(" = "))
        .map(|(part, number)| (part.trim_matches('"'), number.parse().unwrap()))
        .collect();
    let others = ceilings.remove("others");
    let mut wrong = Vec::new();
    for (part, size) in sizes {
        let ceiling = ceilings.remove(&*part).or(others);
        if ceiling.is_none_or(|most| size > most) {
            wrong.push(format!("{part}: {size}, and its ceiling is {ceiling:?}"));
        }
    }
    wrong.extend(ceilings.keys().map(|part| format!("{part} does not exist")));
    assert!(wrong.is_empty(), "{section}: {wrong:#?}");
}

/// The crates that `make participant` adds to, and so many lines each at most.
const KNOW_PARTICIPANTS: [&str; 4] =
    ["services/order/src", "shared/events/src", "e2e/model", "e2e/src"];
const PARTICIPANT_LINES: usize = 110;

#[test]
fn crates_keep_their_lines_without_tests() {
    let services = deployables().into_iter().map(|name| format!("services/{name}/src"));
    let others = crates::CRATES.into_iter().map(|(_, folder)| match folder {
        "e2e/model" => folder.to_string(),
        _ => format!("{folder}/src"),
    });
    let joined = PARTICIPANTS - ASKED_BY_EVERY_ORDER;
    let lines = |folder: &str| {
        let lines: usize = sources(folder).iter().map(|it| it.code.lines().count()).sum();
        let knows_participants = KNOW_PARTICIPANTS.contains(&folder);
        if knows_participants { lines.saturating_sub(joined * PARTICIPANT_LINES) } else { lines }
    };
    assert_within("lines", services.chain(others).map(|it| (it.clone(), lines(&it))));
}

#[test]
fn pages_keep_their_words() {
    let mut words = BTreeMap::<String, usize>::new();
    for page in pages::pages() {
        let count = read(&page).split_whitespace().count();
        let is_decision = page.starts_with("docs/decisions/");
        *words.entry(if is_decision { "docs/decisions".into() } else { page }).or_default() +=
            count;
    }
    let all = words.values().sum();
    assert_within("words", words.into_iter().chain([("all pages".to_string(), all)]));
}

#[test]
fn make_and_the_environment_keep_their_names() {
    let (makefile, configuration) = (read("Makefile"), read("docs/configuration.md"));
    let targets = makefile.lines().filter(|line| line.contains(": ") && line.contains(" ## "));
    let is_variable = |name: &&str| {
        let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        name.contains('_') && name.chars().all(allowed)
    };
    let variables: BTreeSet<&str> = configuration.split('`').filter(is_variable).collect();
    let names = [("make targets", targets.count()), ("variables", variables.len())];
    assert_within("commands", names.map(|(part, count)| (part.to_string(), count)));
}

#[test]
fn services_keep_the_number_of_names_that_they_import() {
    let is_end = |c: char| !c.is_alphanumeric() && c != '_';
    let names = ["order", "payment", "stock"].map(|name| {
        let folder = format!("services/{name}/src");
        let code: String = sources(&folder).into_iter().map(|source| source.code).collect();
        assert!(!code.contains("chassis::*"), "{folder}: a glob brings names that nothing counts");
        let paths = code.split("chassis::").skip(1).flat_map(|rest| match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap().split(',').map(str::trim).collect(),
            None => vec![rest],
        });
        let names = paths.filter_map(|path| path.split(is_end).next());
        (folder, names.filter(|name| !name.is_empty()).collect::<BTreeSet<_>>().len())
    });
    assert_within("names", names);
}
