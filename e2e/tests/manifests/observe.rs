//! Monitoring in docker compose and in production: what is mounted is what `k8s/monitoring` has.

use std::collections::BTreeSet;

use e2e::monitoring::{self, FOLDER, panel_queries, promql, rule_file};

use super::monitoring::known_metrics;
use super::*;

const CONFIGS: &str = "k8s/monitoring/compose-configs.yaml";

/// The boards, by the names of their files.
const BOARDS: [&str; 4] = ["saga", "service", "kafka", "postgres"];

/// The metrics of the exporter of Postgres that the boards name; a long test asks a running one.
const POSTGRES_EXPORTER: &str = "pg_";

/// The file that docker compose includes: each file of the folder as the content of a config.
fn compose_configs() -> String {
    let rules = monitoring::read("rules.yaml").unwrap();
    let (_, rules) = rules.split_once("\nspec:\n").unwrap();
    let rules: String = rules
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix("  ").unwrap_or(line)))
        .collect();
    let mut contents: Vec<(String, String)> = vec![("rules".to_string(), rules)];
    let named = [
        ("prometheus", "prometheus.yml"),
        ("lag-exporter", "lag-exporter.toml"),
        ("grafana-datasource", "grafana-datasource.yaml"),
        ("grafana-boards", "grafana-boards.yaml"),
    ];
    contents.extend(named.map(|(name, file)| (name.to_string(), monitoring::read(file).unwrap())));
    for board in BOARDS {
        let text = monitoring::read(&format!("boards/{board}.json")).unwrap();
        let board_json: Value = serde_json::from_str(&text).unwrap();
        contents.push((format!("board-{board}"), format!("{board_json}\n")));
    }
    let mut text = "# Written by `make monitoring` from the other files of this folder. For compose, each dollar sign is doubled.\nconfigs:\n".to_string();
    for (name, content) in contents {
        text += &format!("  {name}:\n    content: |\n");
        for line in content.lines() {
            let line = format!("      {}", line.replace('$', "$$"));
            text += &format!("{}\n", line.trim_end());
        }
    }
    text
}

#[test]
fn docker_compose_mounts_what_the_folder_has() {
    let configs = compose_configs();
    if std::env::var("REWRITE_MONITORING").is_ok() {
        std::fs::write(path(CONFIGS), &configs).unwrap();
    }
    assert!(
        read(CONFIGS) == configs,
        "{CONFIGS} differs from its sources: `make monitoring` writes it"
    );
    let compose = compose();
    assert_eq!(compose["include"], json!([CONFIGS]));
    let included = objects(&configs, CONFIGS).remove(0);
    let there: BTreeSet<&str> =
        included["configs"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut mounted = BTreeSet::new();
    for (_, service) in compose["services"].as_object().unwrap() {
        for config in list(&service["configs"]) {
            mounted.insert(text(&config["source"]));
        }
    }
    for of_the_file_itself in compose["configs"].as_object().unwrap().keys() {
        mounted.remove(of_the_file_itself.as_str());
    }
    assert_eq!(mounted, there);
    let files = std::fs::read_dir(path(FOLDER).join("boards")).unwrap().count();
    assert_eq!(files, BOARDS.len());
}

#[test]
fn what_observes_starts_by_its_profile_alone() {
    let compose = compose();
    let observers = ["prometheus", "grafana", "lag-exporter"].map(str::to_string).into_iter();
    let exporters = deployed_services().into_iter().map(|service| format!("{service}-db-exporter"));
    for name in observers.chain(exporters) {
        assert_eq!(compose["services"][&name]["profiles"], json!(["observe"]), "{name}");
    }
    let prometheus =
        objects(&monitoring::read("prometheus.yml").unwrap(), "prometheus.yml").remove(0);
    let targets = serde_json::to_string(&prometheus["scrape_configs"]).unwrap();
    for service in deployed_services() {
        assert!(targets.contains(&format!("{service}-db-exporter:9187")), "{service}");
    }
}

/// A second container of a service cannot have the same port of the host.
#[test]
fn services_of_compose_can_be_scaled() {
    let compose = compose();
    for service in SERVICES {
        let [own, ports] = [service.to_string(), format!("{service}-ports")]
            .map(|name| compose["services"][name].clone());
        assert!(own["ports"].is_null() && own["container_name"].is_null(), "{service}");
        let forwarded = texts(&ports["command"]);
        assert_eq!(forwarded[..2], ["forward", &format!("--to={service}")], "{service}");
        let published: Vec<&str> =
            texts(&ports["ports"]).iter().filter_map(|port| port.rsplit(':').next()).collect();
        assert_eq!(published, forwarded[2..], "{service}");
    }
}

#[test]
fn every_query_of_a_board_asks_for_metrics_that_exist() {
    let known = known_metrics(&rule_file().unwrap());
    let mut boards = BTreeSet::new();
    for query in panel_queries().unwrap() {
        let named = promql::metrics(&query.query);
        let unknown: Vec<_> = named
            .iter()
            .filter(|it| !known.contains(*it) && !it.starts_with(POSTGRES_EXPORTER))
            .collect();
        assert!(unknown.is_empty() && !named.is_empty(), "{query:?}: {unknown:?}");
        boards.insert(query.board);
    }
    assert_eq!(boards, BOARDS.map(str::to_string).into());
}

#[test]
fn production_is_scraped_and_has_the_rules_and_the_boards() {
    let Some((_, objects)) = OVERLAYS.iter().find(|(tree, _)| tree == "production") else {
        return println!("skipped: there is no kubectl");
    };
    let rules = find(objects, "PrometheusRule", "holdfast");
    assert_eq!(rules["spec"], rule_file().unwrap());
    for monitor in of_kind(objects, "PodMonitor") {
        let selector = &monitor["spec"]["selector"];
        let port = &monitor["spec"]["podMetricsEndpoints"][0]["port"];
        let selected = objects.iter().filter_map(|object| {
            let template = &object["spec"]["template"];
            let app = &template["metadata"]["labels"]["app"];
            let wanted = &selector["matchLabels"]["app"];
            let one_of =
                list(&selector["matchExpressions"]).iter().flat_map(|it| list(&it["values"]));
            let is_meant =
                pod(object).is_some() && (app == wanted || one_of.into_iter().any(|it| it == app));
            is_meant.then(|| {
                (
                    text(app),
                    containers(pod(object).unwrap())
                        .flat_map(|it| list(&it["ports"]))
                        .any(|it| it["name"] == *port),
                )
            })
        });
        let selected: Vec<(&str, bool)> = selected.collect();
        assert!(
            !selected.is_empty() && selected.iter().all(|it| it.1),
            "{}: {selected:?}",
            name(monitor)
        );
    }
    let boards = find(objects, "ConfigMap", "boards");
    assert_eq!(boards["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(boards["data"].as_object().unwrap().len(), 3, "all but that of Postgres");
}
