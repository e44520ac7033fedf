//! The rules for every description of an API.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{programs, read};

/// The descriptions of the admin port: what each service has, and what order adds.
const ADMIN_DESCRIPTIONS: [&str; 2] =
    ["shared/host/admin-openapi.json", "services/order/admin-openapi.json"];

fn description(path: &str) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

/// The descriptions of all APIs, including that of the template, and of the admin port.
fn descriptions() -> Vec<(String, Value)> {
    let paths = programs().into_iter().map(|service| format!("services/{service}/openapi.json"));
    let others = ["e2e/template/openapi.json"].into_iter().chain(ADMIN_DESCRIPTIONS);
    let paths = paths.chain(others.map(str::to_string));
    paths.map(|path| (path.clone(), description(&path))).collect()
}

/// Every value within a document.
fn values<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    found.push(value);
    match value {
        Value::Object(fields) => fields.values().for_each(|field| values(field, found)),
        Value::Array(elements) => elements.iter().for_each(|element| values(element, found)),
        _ => {}
    }
}

#[test]
fn every_enumeration_of_an_api_is_documented_as_extensible() {
    let mut all = 0;
    for (path, api) in descriptions() {
        let mut found = Vec::new();
        assert!(!api.to_string().contains("\"enum\":"), "{path} has a closed enumeration");
        values(&api, &mut found);
        for enumeration in found.iter().filter(|it| it.get("x-extensible-enum").is_some()) {
            all += 1;
            let description = enumeration["description"].as_str().unwrap_or_default();
            assert!(description.contains("may add values"), "{path}: {enumeration}");
        }
    }
    assert!(all >= 6, "only {all} were checked");
}

#[test]
fn every_reference_within_an_api_leads_to_a_component() {
    for (path, api) in descriptions() {
        let mut found = Vec::new();
        values(&api, &mut found);
        let references: Vec<&str> = found.iter().filter_map(|it| it["$ref"].as_str()).collect();
        assert!(!references.is_empty(), "{path}");
        for reference in references {
            let pointer = reference.trim_start_matches('#');
            assert!(api.pointer(pointer).is_some(), "{path}: {reference}");
        }
    }
}

#[test]
fn every_list_of_an_api_documents_its_order() {
    let mut lists = 0;
    for (path, api) in descriptions() {
        for (place, item) in api["paths"].as_object().unwrap() {
            let parameters = item["get"]["parameters"].as_array().into_iter().flatten();
            if parameters.filter(|it| it["name"] == "limit").count() > 0 {
                let description = item["get"]["description"].as_str().unwrap_or_default();
                assert!(description.contains("Ordered by `"), "{path}: {place}: {description}");
                lists += 1;
            }
        }
    }
    assert!(lists >= 3, "only {lists} were checked");
}

#[test]
fn the_page_of_operations_lists_every_request_of_the_admin_port() {
    let page = read("docs/operations.md");
    let rows = page.lines().skip_while(|line| *line != "## The admin port");
    let rows = rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let listed =
        rows.filter(|request| request.starts_with("GET /") || request.starts_with("POST /"));
    let without_query = |request: &str| request.split('?').next().unwrap_or_default().to_string();
    let listed: BTreeSet<String> = listed.map(without_query).collect();
    let mut described = BTreeSet::new();
    for (path, item) in ADMIN_DESCRIPTIONS.map(description).iter().flat_map(operations) {
        described.extend(item.keys().map(|method| format!("{} {path}", method.to_uppercase())));
    }
    assert_eq!(listed, described);
}

/// The paths of a description, each with its operations.
fn operations(description: &Value) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    let paths = description["paths"].as_object().unwrap().iter();
    paths.map(|(path, item)| (path, item.as_object().unwrap()))
}
