//! The rules of Prometheus and the runbooks: each alert has what an operator needs, and asks for metrics that exist.

use std::collections::BTreeSet;

use e2e::monitoring::{self, promql, rule_file, rules};

use super::*;

/// More alerts than these are not read.
const ALERTS_MAX: usize = 16;

/// Where a fork has the page of the runbooks on the web.
const RUNBOOKS: &str = "https://git.example.com/holdfast/docs/runbooks.md#";

/// The metrics that the exporter of lag has, by its page; a long test asks a running one.
const LAG_EXPORTER: [&str; 8] = [
    "kafka_consumergroup_group_lag_retention_ratio",
    "kafka_consumergroup_group_max_lag",
    "kafka_consumergroup_group_max_lag_seconds",
    "kafka_consumergroup_group_state",
    "kafka_consumergroup_group_sum_lag",
    "kafka_consumergroup_group_topic_sum_lag",
    "kafka_lag_exporter_up",
    "kafka_partition_latest_offset",
];

/// Every metric of the services, by its name in their code, with what Prometheus makes of a histogram.
pub fn metrics_of_services() -> BTreeSet<String> {
    let mut folders = vec![path("shared/chassis/src"), path("services")];
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|it| it == "rs") {
                let text = std::fs::read_to_string(&entry).unwrap();
                for kind in ["counter!(\"", "gauge!(\"", "histogram!(\""] {
                    let names = text.split(kind).skip(1).filter_map(|rest| rest.split('"').next());
                    found.extend(names.map(str::to_string));
                    if kind.starts_with("histogram") {
                        let names =
                            text.split(kind).skip(1).filter_map(|rest| rest.split('"').next());
                        let parts = names.flat_map(|name| {
                            ["bucket", "sum", "count"].map(|part| format!("{name}_{part}"))
                        });
                        found.extend(parts.collect::<Vec<_>>());
                    }
                }
            }
        }
    }
    // Named by a constant.
    found.insert("access_refused_total".to_string());
    found
}

/// Every metric that a rule or a board may name.
pub fn known_metrics(rule_file: &Value) -> BTreeSet<String> {
    let mut known = metrics_of_services();
    known.extend(LAG_EXPORTER.map(str::to_string));
    known.extend(["up", "ALERTS"].map(str::to_string));
    known.extend(rules(rule_file).filter_map(|rule| Some(rule["record"].as_str()?.to_string())));
    known
}

/// The anchors of that page: one for each alert.
fn runbooks() -> BTreeSet<String> {
    let page = read("docs/runbooks.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
    headings.map(|heading| heading.to_lowercase().replace(' ', "-")).collect()
}

/// What is wrong with an alert, by name.
fn broken_rules(alert: &Value, known: &BTreeSet<String>) -> Vec<&'static str> {
    let annotations = &alert["annotations"];
    let expression = text(&alert["expr"]);
    let mut broken = Vec::new();
    if !["critical", "warning"].contains(&text(&alert["labels"]["severity"])) {
        broken.push("a severity");
    }
    if text(&annotations["summary"]).is_empty() {
        broken.push("a summary");
    }
    let runbook = text(&annotations["runbook_url"]).strip_prefix(RUNBOOKS);
    let name = text(&alert["alert"]).to_lowercase();
    if !runbook.is_some_and(|it| runbooks().contains(it) && it.replace('-', "") == name) {
        broken.push("a runbook");
    }
    let named = promql::metrics(expression);
    if named.is_empty() || !named.is_subset(known) {
        broken.push("metrics that exist");
    }
    broken
}

fn alerts(rule_file: &Value) -> Vec<&Value> {
    rules(rule_file).filter(|rule| rule["alert"].is_string()).collect()
}

#[test]
fn every_alert_has_a_severity_a_summary_a_runbook_and_metrics_that_exist() {
    let rule_file = rule_file().unwrap();
    let known = known_metrics(&rule_file);
    let alerts = alerts(&rule_file);
    assert!((8..=ALERTS_MAX).contains(&alerts.len()), "{} alerts", alerts.len());
    for alert in alerts {
        let broken = broken_rules(alert, &known);
        assert!(broken.is_empty(), "{}: {broken:?}", alert["alert"]);
    }
    for rule in rules(&rule_file) {
        let named = promql::metrics(text(&rule["expr"]));
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{} names {unknown:?}", rule["record"]);
    }
}

#[test]
fn each_bad_alert_is_refused_by_the_rule_that_it_breaks() {
    let rule_file = rule_file().unwrap();
    let known = known_metrics(&rule_file);
    let good = alerts(&rule_file)[0];
    let other = "https://git.example.com/holdfast/docs/runbooks.md#outbox-stuck";
    let faults = [
        ("/labels/severity", json!("page"), "a severity"),
        ("/annotations/summary", json!(""), "a summary"),
        (
            "/annotations/runbook_url",
            json!("https://git.example.com/holdfast/docs/none.md"),
            "a runbook",
        ),
        ("/annotations/runbook_url", json!(other), "a runbook"),
        ("/expr", json!("sum by (service) (relay_activ) > 0"), "metrics that exist"),
    ];
    for (place, value, rule) in faults {
        let mut bad = good.clone();
        *bad.pointer_mut(place).unwrap() = value;
        assert_eq!(broken_rules(&bad, &known), [rule], "{place}");
    }
}

#[test]
fn every_runbook_belongs_to_an_alert_and_every_alert_to_a_test() {
    let rule_file = rule_file().unwrap();
    let alerts = alerts(&rule_file);
    let named: BTreeSet<String> = alerts
        .iter()
        .filter_map(|alert| text(&alert["annotations"]["runbook_url"]).strip_prefix(RUNBOOKS))
        .map(str::to_string)
        .collect();
    assert_eq!(runbooks(), named);
    let tests = monitoring::read("tests.yaml").unwrap();
    for alert in alerts {
        let name = text(&alert["alert"]);
        let of = |expects: &str| tests.matches(&format!("alertname: {name}{expects}")).count();
        assert!(of("\n        exp_alerts:\n") > 0, "no test has {name} fire");
        assert!(of(", exp_alerts: [] }") > 0, "no test has {name} silent");
    }
}

/// A service that is down where addresses are looked up has no series at all.
#[test]
fn every_deployed_service_is_missed_and_scraped() {
    let rule_file = rule_file().unwrap();
    let down = rules(&rule_file).find(|rule| rule["alert"] == "ServiceDown").unwrap();
    let pods = monitoring::read("pod-monitor.yaml").unwrap();
    let pods = objects(&pods, "pod-monitor.yaml").remove(0);
    let scraped = texts(&pods["spec"]["selector"]["matchExpressions"][0]["values"]);
    let compose = objects(&monitoring::read("prometheus.yml").unwrap(), "prometheus.yml").remove(0);
    let job = &compose["scrape_configs"][0];
    let looked_up = texts(&job["dns_sd_configs"][0]["names"]);
    for service in deployed_services() {
        let missed = format!("absent(service:up:sum{{service=\"{service}\"}})");
        assert!(text(&down["expr"]).contains(&missed), "{service}");
        assert!(scraped.contains(&service) && looked_up.contains(&service), "{service}");
    }
    assert_eq!(job["job_name"], "holdfast");
}
