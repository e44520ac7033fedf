//! The rules for every description of an API.

use serde_json::Value;

use super::{read, services};

/// The descriptions of all APIs, including that of the template.
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
fn every_enumeration_of_an_api_is_documented_as_extensible() {
    let mut all = 0;
    for (path, api) in descriptions() {
        let mut found = Vec::new();
        enumerations(&api, &mut found);
        for enumeration in &found {
            let description = enumeration["description"].as_str().unwrap_or_default();
            assert!(description.contains("may add values"), "{path}: {enumeration}");
        }
        all += found.len();
    }
    assert!(all >= 6, "only {all} were checked");
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
