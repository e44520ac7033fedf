//! The boards of Grafana, on a live Prometheus: Grafana itself is not needed to know that a panel is not empty.

use std::collections::BTreeSet;

use e2e::monitoring::server::{self, Prometheus};
use e2e::monitoring::{panel_queries, promql, rule_file};

use super::*;
use crate::manifests::monitoring::metrics_of_services;

/// The panels of a board are read over the last minute.
const FILL_TIMEOUT: Duration = Duration::from_secs(60);

/// What Prometheus itself adds once an alert is pending.
const OF_PROMETHEUS: &str = "ALERTS";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn no_panel_of_a_board_is_empty_after_a_load_and_every_metric_is_scraped() -> Result<()> {
    for name in ["prometheus", "lag-exporter", "postgres-exporter"] {
        let found = tokio::task::spawn_blocking(move || server::program(name)).await?;
        if let Err(reason) = found {
            return skip_or_fail(&format!("{reason:#}"));
        }
    }
    on_ephemeral_stack(boards).await
}

async fn boards(stack: &Stack) -> Result<()> {
    let client = start_and_seed(stack).await?;
    let prometheus = Prometheus::start_with_exporters(stack, &rule_file()?).await?;
    // Each service gets commands of its own as well.
    let commands = async {
        for nth in 0..20 {
            sleep(Duration::from_secs(1)).await;
            let key = format!("boards-{nth}");
            client.deposit(Uuid::now_v7(), 100, &key).await?;
            client.deliver("deck-lantern", 1, &key).await?;
        }
        Ok(())
    };
    under_load_without_errors(&client, 30, 20, commands).await?;
    let queries = panel_queries()?;
    ensure!(queries.len() > 50, "only {} queries were found", queries.len());
    eventually("every panel to show something", FILL_TIMEOUT, async || {
        let mut empty = Vec::new();
        for query in &queries {
            // A board has one variable.
            for service in
                SERVICES.iter().filter(|it| query.query.contains("$service") || **it == SERVICES[0])
            {
                let asked = query.query.replace("$service", service);
                let series =
                    prometheus.query(&asked).await.with_context(|| format!("{query:?}"))?;
                if !series.iter().any(|one| one["value"][1] != "NaN") {
                    empty.push(format!("{}, {}, {service}: {asked}", query.board, query.panel));
                }
            }
        }
        ensure!(empty.is_empty(), "{empty:#?}");
        Ok(())
    })
    .await?;
    let named: BTreeSet<String> =
        queries.iter().flat_map(|it| promql::metrics(&it.query)).collect();
    // A metric of a service exists once it was counted, so a service's code tells which there are.
    let of_services = metrics_of_services();
    let is_elsewhere = |it: &&String| *it != OF_PROMETHEUS && !of_services.contains(*it);
    for metric in named.iter().filter(is_elsewhere) {
        let series = prometheus.query(&format!("count({metric})")).await?;
        ensure!(!series.is_empty(), "no target has {metric}");
    }
    Ok(())
}
