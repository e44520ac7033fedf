//! Monitoring: each alert has what an operator needs and a test, every metric exists, and docker compose and production
//! have what `k8s/monitoring` has.

use e2e::monitoring::{self, FOLDER, panel_queries, promql, rule_file, rules};

use super::network::{pod_labels, selects};
use super::*;
use crate::structure::files;

/// Where a fork has the page of the runbooks on the web.
const RUNBOOKS: &str = "https://git.example.com/holdfast/docs/runbooks.md#";

/// The boards, by the names of their files.
const BOARDS: [&str; 4] = ["saga", "service", "kafka", "postgres"];

/// The metrics that Prometheus adds, and those of the exporter of lag, by its page; a long test asks a running one.
const OF_OTHERS: &str = "up ALERTS kafka_consumergroup_group_lag_retention_ratio \
    kafka_consumergroup_group_max_lag kafka_consumergroup_group_max_lag_seconds \
    kafka_consumergroup_group_state kafka_consumergroup_group_sum_lag \
    kafka_consumergroup_group_topic_sum_lag kafka_lag_exporter_up kafka_partition_latest_offset";

/// Every metric of the services, by its name in their code, with what Prometheus makes of a histogram.
pub fn metrics_of_services() -> BTreeSet<String> {
    // Named by a constant.
    let mut found = BTreeSet::from(["access_refused_total".to_string()]);
    let parts = ["", "_bucket", "_sum", "_count"];
    let kinds =
        [("counter!(\"", &parts[..1]), ("gauge!(\"", &parts[..1]), ("histogram!(\"", &parts[..])];
    for file in ["shared/messaging/src", "shared/host/src", "services"]
        .iter()
        .flat_map(|it| files(it, &[".rs"]))
    {
        let text = read(&file);
        for (kind, parts) in kinds {
            let names = text.split(kind).skip(1).filter_map(|rest| rest.split('"').next());
            found.extend(names.flat_map(|name| parts.iter().map(move |it| format!("{name}{it}"))));
        }
    }
    found
}

/// Returns the anchor of its runbook.
fn check_alert(alert: &Value, tests: &str, found: &mut Violations) -> String {
    let name = text(&alert["alert"]);
    let is_known = ["critical", "warning"].contains(&text(&alert["labels"]["severity"]));
    found.check(name, "a severity", is_known);
    found.fields(name, alert, &json!({"annotations": {"summary": "*"}}));
    let runbook = text(&alert["annotations"]["runbook_url"]).strip_prefix(RUNBOOKS);
    let runbook = runbook.unwrap_or_default();
    found.check(name, "a runbook", runbook.replace('-', "") == name.to_lowercase());
    for (state, expects) in [("fires", "\n        exp_alerts:\n"), ("no", ", exp_alerts: [] }")] {
        let is_tested = tests.contains(&format!("alertname: {name}{expects}"));
        found.check(name, format!("a test: {state}"), is_tested);
    }
    runbook.to_string()
}

#[test]
fn a_bad_alert_is_refused_by_the_rules_that_it_breaks() {
    let bad = json!({
        "alert": "ServiceDown", "labels": {"severity": "high"},
        "annotations": {"summary": "", "runbook_url": format!("{RUNBOOKS}relay-inactive")},
    });
    let mut found = Violations::default();
    check_alert(&bad, "", &mut found);
    let expected = [
        "ServiceDown/annotations/summary: is there",
        "ServiceDown: a runbook",
        "ServiceDown: a severity",
        "ServiceDown: a test: fires",
        "ServiceDown: a test: no",
    ];
    assert_eq!(Vec::from_iter(std::mem::take(&mut found.0)), expected);
}

#[test]
fn every_alert_has_a_severity_a_summary_a_runbook_and_tests() {
    let rule_file = rule_file().unwrap();
    let tests = monitoring::read("tests.yaml").unwrap();
    let mut found = Violations::default();
    let mut named = BTreeSet::new();
    for alert in rules(&rule_file).filter(|rule| rule["alert"].is_string()) {
        named.insert(check_alert(alert, &tests, &mut found));
    }
    // More alerts are not read.
    found.check("alerts", named.len(), (8..=16).contains(&named.len()));
    // A page has an anchor for each heading.
    let page = read("docs/runbooks.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
    let anchors = headings.map(|heading| heading.to_lowercase().replace(' ', "-"));
    found.equal("runbooks", anchors.collect(), named);
}

#[test]
fn every_rule_and_every_query_of_a_board_asks_for_metrics_that_exist() {
    let rule_file = rule_file().unwrap();
    let mut known = metrics_of_services();
    known.extend(OF_OTHERS.split_whitespace().map(str::to_string));
    known.extend(rules(&rule_file).filter_map(|rule| Some(rule["record"].as_str()?.to_string())));
    let mut found = Violations::default();
    let of_rules = rules(&rule_file).map(|rule| (text(&rule["alert"]), text(&rule["expr"])));
    let queries = panel_queries().unwrap();
    let of_boards = queries.iter().map(|it| (&*it.board, &*it.query));
    for (source, query) in of_rules.chain(of_boards) {
        let named = promql::metrics(query);
        // The boards also name metrics of the exporter of Postgres; a long test asks a running one.
        let is_of_postgres = |it: &str| BOARDS.contains(&source) && it.starts_with("pg_");
        let mut unknown = named.iter().filter(|it| !known.contains(*it) && !is_of_postgres(it));
        // A rule without an alert may name its metrics by a pattern.
        let is_named = source.is_empty() || !named.is_empty();
        found.check(source, query, is_named && unknown.next().is_none());
    }
    found.equal("boards", queries.iter().map(|it| &*it.board).collect(), BTreeSet::from(BOARDS));
}

/// The file that docker compose includes: each file of the folder as the content of a config.
fn compose_configs() -> String {
    let read = |file: &str| monitoring::read(file).unwrap();
    let manifest = read("rules.yaml");
    let (_, rules) = manifest.split_once("\nspec:\n").unwrap();
    let rules = rules.lines().map(|line| line.strip_prefix("  ").unwrap_or(line));
    let mut contents = vec![("rules".to_string(), rules.collect::<Vec<_>>().join("\n"))];
    let copied =
        ["prometheus.yml", "lag-exporter.toml", "grafana-datasource.yaml", "grafana-boards.yaml"];
    contents.extend(copied.map(|it| (it.split('.').next().unwrap().to_string(), read(it))));
    contents.extend(BOARDS.map(|board| {
        let json: Value = serde_json::from_str(&read(&format!("boards/{board}.json"))).unwrap();
        (format!("board-{board}"), json.to_string())
    }));
    let mut text = "# Written by `make monitoring` from the other files of this folder. For compose, each dollar sign is doubled.\nconfigs:\n".to_string();
    for (name, content) in contents {
        text += &format!("  {name}:\n    content: |\n");
        for line in content.lines() {
            text += format!("      {}", line.replace('$', "$$")).trim_end();
            text.push('\n');
        }
    }
    text
}

#[test]
fn docker_compose_mounts_what_the_folder_has() {
    let configs = compose_configs();
    let file = format!("{FOLDER}/compose-configs.yaml");
    compare_or_rewrite(&file, &configs, "REWRITE_MONITORING");
    let compose = compose();
    assert_eq!(compose["include"], json!([file]));
    let included = objects(&configs, &file).remove(0);
    let there = fields(&included["configs"]).chain(fields(&compose["configs"]));
    let mounted = fields(&compose["services"]).flat_map(|(_, it)| list(&it["configs"]));
    let mounted: BTreeSet<&str> = mounted.map(|it| text(&it["source"])).collect();
    assert_eq!(mounted, there.map(|(name, _)| &**name).collect());
}

#[test]
fn every_deployed_service_is_missed_and_scraped() {
    let services = deployed_services();
    // One that is off has no address.
    let scraped_services = [&services[..], &["shipping"]].concat();
    let exporters = services.iter().map(|service| format!("{service}-db-exporter:9187"));
    let scraped = json!({"scrape_configs": [
        {"job_name": "holdfast", "dns_sd_configs": [{"names": scraped_services}]},
        {"job_name": "lag"},
        {"job_name": "postgres", "static_configs": [{"targets": exporters.collect::<Vec<_>>()}]},
    ]});
    let mut found = Violations::default();
    found.fields("compose", &file(&format!("{FOLDER}/prometheus.yml"))[0], &scraped);
    let monitor = &file(&format!("{FOLDER}/pod-monitor.yaml"))[0];
    for service in &services {
        let labels = pod_labels(&file(&format!("k8s/base/{service}.yaml"))[0]);
        let is_selected = selects(&monitor["spec"]["selector"], &labels);
        found.check("production", format!("{service} is scraped"), is_selected);
    }
    // A service that is down where addresses are looked up has no series at all.
    let rule_file = rule_file().unwrap();
    let down = rules(&rule_file).find(|rule| rule["alert"] == "ServiceDown").unwrap();
    for service in services {
        let missed = format!("absent(service:up:sum{{service=\"{service}\"}})");
        found.check("ServiceDown", &missed, text(&down["expr"]).contains(&missed));
    }
}

#[test]
fn production_is_scraped_and_has_the_rules_and_the_boards() {
    let Some((tree, objects)) = production().next() else { return };
    let mut found = Violations::default();
    found.equal(tree, &find(objects, "PrometheusRule", "holdfast")["spec"], &rule_file().unwrap());
    for monitor in of_kind(objects, "PodMonitor").into_iter().map(|it| &it["spec"]) {
        let port = text(&monitor["podMetricsEndpoints"][0]["port"]);
        let is_meant = |object: &Value| selects(&monitor["selector"], &pod_labels(object));
        let selected = pods(objects).filter(|(object, _)| is_meant(object));
        let has_port =
            |pod: &Value| containers(pod).any(|it| named(&it["ports"], port).is_object());
        let have_port: Vec<bool> = selected.map(|(_, pod)| has_port(pod)).collect();
        let are_scraped = !have_port.is_empty() && have_port.iter().all(|it| *it);
        found.check(tree, monitor, are_scraped);
    }
    let boards = find(objects, "ConfigMap", "boards");
    found.fields(tree, &boards["metadata"]["labels"], &json!({"grafana_dashboard": "1"}));
    // All but that of Postgres.
    found.equal(tree, fields(&boards["data"]).count(), BOARDS.len() - 1);
}
