//! What keeps the tree in the shape that the README promises. `make check` runs these by name; they
//! need nothing but the files.

// Clippy knows tests by their attribute, and all of this is one.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::crash_points;
use e2e::template::messaging;
use e2e::topology::SERVICES;
use events::TOPICS;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every service, by its folder.
fn services() -> BTreeSet<String> {
    std::fs::read_dir(root().join("services"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[test]
fn every_service_has_the_same_messaging_tables() {
    // Under the numbers that each has free.
    let texts = |service: &String| -> Vec<String> {
        let files = messaging(&root().join("services").join(service)).unwrap();
        files.into_iter().map(|(_, text)| text).collect()
    };
    let copies: BTreeSet<_> = services().iter().map(texts).collect();
    assert_eq!(copies.len(), 1, "the services' *_messaging.sql differ");
}

/// A newer version's migration adds a column while this one runs. A prepared statement whose columns
/// are then others fails for as long as its connection lives ("cached plan must not change result
/// type"): the older version would go on refusing whatever it is asked.
#[test]
fn no_statement_that_is_kept_asks_for_all_columns_of_a_table() {
    let folders = services().into_iter().map(|service| format!("services/{service}/src"));
    for folder in folders.chain(["shared/chassis/src".into(), "e2e/template".into()]) {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for statement in code.split(';').filter(|it| !it.contains(".persistent(false)")) {
                for (at, _) in statement.match_indices('*') {
                    let (before, after) = (&statement[..at], statement[at + 1..].trim_start());
                    let all = before.ends_with("select ") || before.ends_with("returning ");
                    let of_arrays = after.starts_with("from unnest(");
                    // Its own next line says that it is not kept.
                    let unkept = after.starts_with("from {table}");
                    let around = before.chars().rev().take(80).collect::<String>();
                    assert!(
                        !all || of_arrays || after.starts_with("from heard") || unkept,
                        "{}: {} *",
                        path.display(),
                        around.chars().rev().collect::<String>()
                    );
                }
            }
        }
    }
}

/// A process that is killed keeps what it gave to the system, so no test that kills can tell.
#[test]
fn nothing_that_we_start_gives_up_what_makes_a_commit_last() {
    let mut files = ["docker-compose.yml", "Makefile", "e2e/src/settings.rs"]
        .map(|it| root().join(it))
        .to_vec();
    let mut folders = vec![root().join("k8s")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    assert!(files.len() > 10, "{files:?}");
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let set = ["=", ":", " ="].iter().any(|is| text.contains(&format!("{setting}{is}")));
            assert!(!set, "{} sets {setting}", path.display());
        }
    }
}

/// The descriptions of all APIs, that of a service to come included.
fn descriptions() -> Vec<(String, Value)> {
    let paths = services().into_iter().map(|service| format!("services/{service}/openapi.json"));
    let paths = paths.chain(["e2e/template/openapi.json".to_string()]);
    paths.map(|path| (path.clone(), serde_json::from_str(&read(&path)).unwrap())).collect()
}

fn enumerations<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    if value.get("enum").is_some() {
        found.push(value);
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|field| enumerations(field, found)),
        Value::Array(values) => values.iter().for_each(|value| enumerations(value, found)),
        _ => {}
    }
}

#[test]
fn every_enumeration_of_an_api_says_that_it_may_grow() {
    let mut all = 0;
    for (path, api) in descriptions() {
        let mut found = Vec::new();
        enumerations(&api, &mut found);
        for enumeration in &found {
            let says = enumeration["description"].as_str().unwrap_or_default();
            assert!(says.contains("may add values"), "{path}: {enumeration}");
        }
        all += found.len();
    }
    assert!(all >= 6, "only {all} were looked at");
}

#[test]
fn every_list_of_an_api_says_by_what_it_is_ordered() {
    let mut lists = 0;
    for (path, api) in descriptions() {
        for (place, item) in api["paths"].as_object().unwrap() {
            let parameters = item["get"]["parameters"].as_array().into_iter().flatten();
            if parameters.filter(|it| it["name"] == "limit").count() > 0 {
                let says = item["get"]["description"].as_str().unwrap_or_default();
                assert!(says.contains("Ordered by `"), "{path}: {place}: {says}");
                lists += 1;
            }
        }
    }
    assert!(lists >= 3, "only {lists} were looked at");
}

#[test]
fn every_main_fits_on_a_page() {
    for service in services() {
        let main = read(&format!("services/{service}/src/main.rs"));
        // What stands before `mod` says what the service is; it is not wiring.
        let wiring = main.split_once("\nmod ").map_or(&*main, |(_, wiring)| wiring);
        let lines = wiring.lines().count();
        assert!(
            lines <= 50,
            "services/{service}/src/main.rs has {lines} lines after what it says of itself"
        );
    }
}

/// Which members of the workspace each one depends on, by cargo's own account.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let told = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .unwrap();
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let packages = told["packages"].as_array().unwrap();
    let name = |package: &Value| package["name"].as_str().unwrap().to_string();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    let of = |package: &Value| {
        package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(name)
            .filter(|it| members.contains(it))
            .collect()
    };
    packages.iter().map(|package| (name(package), of(package))).collect()
}

#[test]
fn dependencies_point_one_way_and_no_service_knows_another() {
    let dependencies = dependencies();
    let on = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(dependencies["chassis"], on(&[]));
    assert_eq!(dependencies["events"], on(&["chassis"]));
    for service in services() {
        assert_eq!(dependencies[&service], on(&["chassis", "events"]), "{service}");
    }
    let members: BTreeSet<String> = dependencies.into_keys().collect();
    let others = on(&["chassis", "events", "e2e", "model", "bench"]);
    let named = members.difference(&others).cloned().collect();
    assert_eq!(services(), named, "a service's folder, crate and name are one word");
    assert_eq!(services(), on(&SERVICES), "the native stack starts each");
}

/// What the services speak of, in one form. The chassis serves any other trade as well.
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

/// Every word of every name and of every text in quotes, comments left out, in lower case and
/// singular. SQL's `order by` is no order, and neither is the first word of `Ordering`.
fn words(source: &str) -> BTreeSet<String> {
    let mut text = String::new();
    for line in source.lines() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        // A comment behind code; `://` stands in addresses.
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

#[test]
fn the_chassis_has_never_heard_of_an_order() {
    let source = root().join("shared/chassis/src");
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        // Its tests run on the messaging tables of a service, which has a name.
        if path.is_dir() || path.ends_with("tests.rs") {
            continue;
        }
        let found = words(&std::fs::read_to_string(&path).unwrap());
        let domain: Vec<&str> = DOMAIN.into_iter().filter(|word| found.contains(*word)).collect();
        assert!(domain.is_empty(), "{} speaks of {domain:?}", path.display());
    }
}

#[test]
fn every_crash_point_of_the_chassis_is_known_to_the_runner_and_the_other_way_round() {
    let mut there = Vec::new();
    for entry in std::fs::read_dir(root().join("shared/chassis/src")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.ends_with("crash.rs") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let points = source.split("crash::point!(\"").skip(1);
        there.extend(points.map(|rest| rest.split('"').next().unwrap().to_string()));
    }
    there.sort_unstable();
    let mut known = crash_points::points::all();
    known.sort_unstable();
    assert_eq!(there, known);
}

#[test]
fn crash_points_are_compiled_in_by_one_target_of_make_and_by_nothing_else() {
    let members = ["shared/chassis", "shared/events", "e2e", "e2e/model", "e2e/bench"];
    let services = services().into_iter().map(|service| format!("services/{service}"));
    let members = services.chain(members.map(str::to_string)).map(|it| it + "/Cargo.toml");
    let others = ["Cargo.toml", "services/Dockerfile", "docker-compose.yml"].map(str::to_string);
    for file in members.chain(others) {
        let uses = read(&file).matches("crash-points").count();
        assert_eq!(uses, usize::from(file == "shared/chassis/Cargo.toml"), "{file}");
    }
    assert!(!read("shared/chassis/Cargo.toml").contains("default ="));
    assert_eq!(read("Makefile").matches("--features chassis/crash-points").count(), 1);
}

/// A program would name its own arguments, which nobody who types `make` has seen.
#[test]
fn what_a_target_of_make_cannot_do_without_is_asked_for_in_the_words_of_make() {
    for (target, name) in [
        ("order", "ID"),
        ("dead-letter", "SERVICE"),
        ("replay", "SERVICE"),
        ("discard", "SERVICE"),
        ("sql", "SERVICE"),
    ] {
        let mut make = Command::new("make");
        let told = make.args(["-n", target]).current_dir(root()).env_remove("MAKEFLAGS");
        let told = told.env_remove("SERVICE").env_remove("ID").output().unwrap();
        let said = String::from_utf8_lossy(&told.stderr);
        assert!(!told.status.success() && said.contains(&format!("say {name}=")), "{said}");
    }
}

/// The handlers that a `main.rs` wires, by name.
fn wired(service: &str) -> BTreeSet<String> {
    let main = read(&format!("services/{service}/src/main.rs"));
    let handlers = main.split(".on(saga::").skip(1);
    handlers.map(|rest| rest.split([')', ',']).next().unwrap().to_string()).collect()
}

/// The topic of an event's struct, which is named like its record.
fn topic_of(event: &str) -> String {
    let named = TOPICS.into_iter().find(|topic| {
        let schema: Value = serde_json::from_str(topic.schema).unwrap();
        schema["name"] == event
    });
    named.unwrap_or_else(|| panic!("there is no event {event}")).name.to_string()
}

/// The topic that a handler hears, by the type of its first argument.
fn heard_by(service: &str, handler: &str) -> String {
    let saga = read(&format!("services/{service}/src/saga.rs"));
    let signature = saga.split(&format!("pub fn {handler}(")).nth(1).expect("a handler in saga.rs");
    let event = signature.split(": &").nth(1).and_then(|rest| rest.split(',').next());
    topic_of(event.expect("a handler's first argument is a reference to its event"))
}

#[test]
fn a_service_handles_exactly_the_topics_that_name_it_as_subscriber() {
    for service in services() {
        let handlers = wired(&service);
        let heard: Vec<String> =
            handlers.iter().map(|handler| heard_by(&service, handler)).collect();
        let subscribed = TOPICS.iter().filter(|topic| topic.subscribers.contains(&&*service));
        let subscribed: BTreeSet<String> = subscribed.map(|topic| topic.name.to_string()).collect();
        assert_eq!(heard.len(), subscribed.len(), "{service}: one handler a topic");
        assert_eq!(BTreeSet::from_iter(heard), subscribed, "services/{service}/src/main.rs");
    }
}

/// `stock.items` of stock, `orders.created` of order.
fn is_named_after(publisher: &str, topic: &str) -> bool {
    let first = topic.split('.').next().unwrap();
    first.strip_prefix(publisher).is_some_and(|rest| ["", "s"].contains(&rest))
}

#[test]
fn a_topic_is_named_after_its_publisher_and_its_schema_file_after_it() {
    assert!(is_named_after("sms", "sms.sent"), "a service's name may end in s");
    assert!(!is_named_after("order", "ordering.begun") && !is_named_after("sms", "sm.sent"));
    for topic in TOPICS {
        assert!(is_named_after(topic.publisher, topic.name), "{}", topic.name);
        assert_eq!(read(&format!("schemas/{}.avsc", topic.name)), topic.schema);
        assert!(topic.subscribers.iter().all(|subscriber| services().contains(*subscriber)));
        assert!(!topic.subscribers.contains(&topic.publisher));
    }
    let files = std::fs::read_dir(root().join("schemas")).unwrap();
    let files = files.filter(|file| file.as_ref().unwrap().path().is_file());
    assert_eq!(files.count(), TOPICS.len());
}

#[test]
fn the_table_of_topics_says_what_is_declared() {
    let text = read("shared/events/src/lib.rs");
    for topic in TOPICS {
        let row = text.lines().find_map(|line| line.strip_prefix(&format!("/// {} ", topic.name)));
        let row = row.unwrap_or_else(|| panic!("{} is not in the table", topic.name));
        let words: Vec<&str> =
            row.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(words[0], topic.publisher, "{}", topic.name);
        // In brackets stand those who may come and go: no part of the saga.
        if !words[1].starts_with('(') {
            assert_eq!(words[1], topic.subscribers.join(", "), "{}", topic.name);
        }
    }
}
