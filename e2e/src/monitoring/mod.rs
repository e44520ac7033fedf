//! The files of `k8s/monitoring`: the rules of Prometheus and the boards of Grafana, and a Prometheus that runs them.

pub mod promql;
pub mod server;

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::stack_description::checkout;

/// The folder of these files.
pub const FOLDER: &str = "k8s/monitoring";

/// The rule groups that ship, as a rule file of Prometheus.
pub fn rule_file() -> Result<Value> {
    let text = read("rules.yaml")?;
    let mut manifest: Value = serde_saphyr::from_str(&text).context("rules.yaml")?;
    Ok(manifest["spec"].take())
}

/// The same with a tenth of each duration, for tests on a running stack.
pub fn rule_file_with_tenths() -> Result<Value> {
    let mut rule_file = rule_file()?;
    for group in rule_file["groups"].as_array_mut().into_iter().flatten() {
        for rule in group["rules"].as_array_mut().into_iter().flatten() {
            let expression = rule["expr"].as_str().context("a rule without an expression")?;
            rule["expr"] = json!(promql::with_tenth_of_durations(expression));
            if let Some(waits) = rule["for"].as_str().and_then(promql::tenth) {
                rule["for"] = json!(waits);
            }
        }
    }
    Ok(rule_file)
}

/// The rules of a rule file: those that record and those that alert.
pub fn rules(rule_file: &Value) -> impl Iterator<Item = &Value> {
    let groups = rule_file["groups"].as_array().into_iter().flatten();
    groups.flat_map(|group| group["rules"].as_array().into_iter().flatten())
}

/// A query of a board.
#[derive(Clone, Debug)]
pub struct PanelQuery {
    /// The file of the board.
    pub board: String,
    /// The title of the panel.
    pub panel: String,
    /// The query, in PromQL.
    pub query: String,
}

/// Every query of every board.
pub fn panel_queries() -> Result<Vec<PanelQuery>> {
    let folder = checkout().join(FOLDER).join("boards");
    let mut files: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut queries = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let board: Value =
            serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for panel in board["panels"].as_array().context("panels")? {
            for target in panel["targets"].as_array().into_iter().flatten() {
                queries.push(PanelQuery {
                    board: name.clone(),
                    panel: panel["title"].as_str().unwrap_or_default().to_string(),
                    query: target["expr"].as_str().unwrap_or_default().to_string(),
                });
            }
        }
    }
    Ok(queries)
}

/// A file of the folder.
pub fn read(name: &str) -> Result<String> {
    let path = checkout().join(FOLDER).join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}
