//! Domain words, which do not belong into the parts that serve any domain.

use std::collections::BTreeSet;

use super::{Source, sources};

/// The terms of the services, in one form. The chassis serves any other domain as well.
const DOMAIN: [&str; 12] = [
    "order",
    "payment",
    "stock",
    "customer",
    "sku",
    "cents",
    "currency",
    "refund",
    "reservation",
    "warehouse",
    "ledger",
    "deposit",
];

/// Every word of every name and string of a source, without comments, in lower case and singular.
/// SQL's `order by` does not count as an order, and neither does `Ordering`.
fn words(source: &str) -> BTreeSet<String> {
    let mut text = String::new();
    for line in source.lines() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        // A comment after code; `://` is part of addresses.
        let code = code.split_once(" // ").map_or(code, |(code, _)| code);
        text.push_str(code);
        text.push('\n');
    }
    let mut words = BTreeSet::new();
    let names: Vec<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|name| !name.is_empty()).collect();
    for (nth, name) in names.iter().enumerate() {
        if *name == "order" && names.get(nth + 1) == Some(&"by") {
            continue;
        }
        let mut word = String::new();
        for c in name.chars() {
            if c.is_ascii_uppercase()
                && !word.is_empty()
                && !word.ends_with(|c: char| c.is_ascii_uppercase())
            {
                words.insert(singular(&word));
                word.clear();
            }
            word.push(c);
        }
        words.insert(singular(&word));
    }
    words
}

fn singular(word: &str) -> String {
    let word = word.to_ascii_lowercase();
    match word.as_str() {
        "cents" => word,
        plural => plural.strip_suffix('s').unwrap_or(plural).to_string(),
    }
}

#[test]
fn words_are_found_in_names_and_texts_and_not_in_comments() {
    let source = r#"
        // the order's comment
        let OrderCreated { total_cents, .. } = from("payments.verified"); // refund
        select("select * from t order by position", "http://stock");
        use std::sync::atomic::Ordering;
    "#;
    let found = words(source);
    let domain: Vec<&str> = DOMAIN.into_iter().filter(|word| found.contains(*word)).collect();
    assert_eq!(domain, ["order", "payment", "stock", "cents"]);
    assert!(!words("select * from t order by sum").contains("order"));
    assert!(words("Ordering::Relaxed").is_disjoint(&DOMAIN.map(str::to_string).into()));
}

/// The domain words in a folder's sources, by file.
fn domain_words(folder: &str) -> Vec<String> {
    let found = sources(folder).into_iter().filter_map(|Source { path, code, .. }| {
        let found = words(&code);
        let domain: Vec<&str> = DOMAIN.into_iter().filter(|word| found.contains(*word)).collect();
        (!domain.is_empty()).then(|| format!("{path} uses the words {domain:?}"))
    });
    found.collect()
}

#[test]
fn the_chassis_the_launcher_and_the_faults_use_no_word_of_the_domain() {
    let folders = [
        "shared/chassis/src",
        "shared/contracts/src",
        "shared/contracts/examples",
        "e2e/launcher",
        "e2e/faults",
        "e2e/checker",
    ];
    for folder in folders {
        let found = domain_words(folder);
        assert!(found.is_empty(), "{found:#?}");
    }
}
