//! The stream processor has no `--help`: its file of properties names the variables that it reads.

use super::configuration::Variable;
use super::*;

const RESOURCES: &str = "services/insights/src/main/resources";

/// Each `${NAME}`, `${NAME:-default}` and `${file:NAME}` of the file. The last kind and one with a default are optional.
pub fn variables() -> BTreeMap<String, Variable> {
    let properties = read(&format!("{RESOURCES}/insights.properties"));
    let lines = properties.lines().filter(|line| !line.starts_with('#'));
    let mut found: BTreeMap<String, Variable> = lines
        .flat_map(|line| line.split("${").skip(1))
        .map(|named| {
            let (is_file, named) = match named.strip_prefix("file:") {
                Some(named) => (true, named),
                None => (false, named),
            };
            let end = named.find([':', '}']).unwrap();
            let default = named[end..].strip_prefix(":-").and_then(|it| it.split('}').next());
            let is_required = !is_file && default.is_none();
            let default = default.filter(|it| !it.is_empty() && !it.contains('$'));
            let variable = Variable { is_required, default: default.map(str::to_string) };
            (named[..end].to_string(), variable)
        })
        .collect();
    assert!(read(&format!("{RESOURCES}/log4j2.properties")).contains("${env:LOG_FORMAT:-text}"));
    found.insert("LOG_FORMAT".into(), Variable { is_required: false, default: None });
    found
}

#[test]
fn the_variables_of_the_stream_processor_are_found() {
    let variables = variables();
    let required = variables.iter().filter(|(_, variable)| variable.is_required);
    let required: Vec<&str> = required.map(|(name, _)| &**name).collect();
    assert_eq!(required, ["KAFKA_BOOTSTRAP_SERVERS", "SCHEMA_REGISTRY_URL"]);
    assert_eq!(variables["PROBE_ADDR"].default.as_deref(), Some("0.0.0.0:9090"));
    for optional in ["KAFKA_SASL_PASSWORD", "KAFKA_SASL_PASSWORD_FILE", "HTTP_TLS_KEY_LOCATION"] {
        assert_eq!(variables[optional].default, None, "{optional}");
    }
}
