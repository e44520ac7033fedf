//! What was measured, for people and for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::costs::Costs;
use crate::yardstick::Yardstick;

/// One run: a name that its repeats share, and figures.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub name: String,
    pub figures: BTreeMap<String, f64>,
}

pub const SAGAS: &str = "sagas/s";
const MICRO: &str = "µs/saga ";

impl Run {
    /// The figures that follow from what was spent on so many sagas.
    pub fn of(name: &str, spent: &Costs, sagas: f64, seconds: f64) -> Run {
        let mut run = Run { name: name.to_string(), figures: BTreeMap::new() };
        let each = sagas.max(1.0);
        run.set(SAGAS, sagas / seconds);
        run.set("CPU µs/saga", spent.all_micros() / each);
        run.set("Postgres µs/saga", spent.postgres_micros() / each);
        for (name, micros) in &spent.cpu_micros {
            run.set(&format!("{MICRO}{name}"), micros / each);
        }
        for (name, bytes) in &spent.memory_bytes {
            run.set(&format!("MB {name}"), *bytes as f64 / 1e6);
        }
        run.set("bytes/saga loopback", spent.loopback_bytes / each);
        run.set("bytes/saga WAL", spent.wal_bytes / each);
        run.set("bytes/saga tables", spent.table_bytes / each);
        run.set("bytes/saga Kafka", spent.kafka_bytes / each);
        run
    }

    pub fn set(&mut self, what: &str, figure: f64) {
        self.figures.insert(what.to_string(), figure);
    }

    pub fn get(&self, what: &str) -> f64 {
        self.figures.get(what).copied().unwrap_or_default()
    }

    /// Ratios to the yardstick of the same minute.
    pub fn beside(mut self, yardstick: &Yardstick) -> Run {
        self.set("× tx4", self.get(SAGAS) / yardstick.per_second);
        let postgres = self.get("Postgres µs/saga") / yardstick.postgres_micros;
        self.set("Postgres CPU × tx4", postgres);
        self
    }

    /// What is said of it at once.
    pub fn line(&self) -> String {
        let cpu: Vec<String> = self
            .figures
            .iter()
            .filter_map(|(what, figure)| Some(format!("{} {figure:.0}", what.strip_prefix(MICRO)?)))
            .collect();
        format!(
            "  {:<28} {:>7.0} sagas/s  POST p50 {:.1} p99 {:.1}  end p50 {:.1} p99 {:.1} ms  CPU {:.0} µs: {}",
            self.name,
            self.get(SAGAS),
            self.get("POST p50 ms"),
            self.get("POST p99 ms"),
            self.get("end p50 ms"),
            self.get("end p99 ms"),
            self.get("CPU µs/saga"),
            cpu.join(", "),
        )
    }
}

/// Of all repeats.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

/// All runs, and what they ran on.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub on: BTreeMap<String, String>,
    pub runs: Vec<Run>,
}

impl Report {
    /// Names in the order in which they first ran, each with the spread of its figures.
    pub fn spreads(&self) -> Vec<(String, BTreeMap<String, Spread>)> {
        let mut names: Vec<&String> = Vec::new();
        for run in &self.runs {
            if !names.contains(&&run.name) {
                names.push(&run.name);
            }
        }
        names.into_iter().map(|name| (name.clone(), self.spread_of(name))).collect()
    }

    fn spread_of(&self, name: &str) -> BTreeMap<String, Spread> {
        let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for run in self.runs.iter().filter(|run| run.name == name) {
            for (what, figure) in &run.figures {
                figures.entry(what.clone()).or_default().push(*figure);
            }
        }
        figures.into_iter().map(|(what, figures)| (what, spread(figures))).collect()
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from("# Benchmark\n\n");
        for (what, value) in &self.on {
            let _ = writeln!(text, "- {what}: {value}");
        }
        let columns = [
            SAGAS,
            "× tx4",
            "POST p50 ms",
            "POST p99 ms",
            "end p50 ms",
            "end p99 ms",
            "end p99.9 ms",
            "refused/s",
            "CPU µs/saga",
            "Postgres CPU × tx4",
            "load average",
        ];
        let _ = writeln!(text, "\nMedian (min to max) of all repeats.\n");
        text += &table(&self.spreads(), &columns);
        let mut costs: Vec<String> =
            self.runs.iter().flat_map(|run| run.figures.keys().cloned()).collect();
        costs.retain(|what| {
            what.starts_with(MICRO) || what.starts_with("MB ") || what.starts_with("bytes/saga")
        });
        costs.sort();
        costs.dedup();
        for prefix in [MICRO, "MB ", "bytes/saga "] {
            let columns: Vec<&str> =
                costs.iter().map(String::as_str).filter(|what| what.starts_with(prefix)).collect();
            if !columns.is_empty() {
                text += "\n";
                text += &table(&self.spreads(), &columns);
            }
        }
        text
    }

    pub fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("bench.md"), self.markdown())?;
        std::fs::write(directory.join("bench.json"), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

fn spread(mut figures: Vec<f64>) -> Spread {
    figures.sort_by(f64::total_cmp);
    let last = figures.len() - 1;
    Spread { min: figures[0], median: figures[last / 2], max: figures[last] }
}

fn table(rows: &[(String, BTreeMap<String, Spread>)], columns: &[&str]) -> String {
    let mut text =
        format!("| | {} |\n|---|{}\n", columns.join(" | "), "---:|".repeat(columns.len()));
    for (name, figures) in rows {
        let cells: Vec<String> =
            columns.iter().map(|column| figures.get(*column).map_or("".into(), cell)).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
    }
    text
}

fn cell(spread: &Spread) -> String {
    let number = |figure: f64| match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    };
    if spread.min == spread.max {
        return number(spread.median);
    }
    format!("{} ({} to {})", number(spread.median), number(spread.min), number(spread.max))
}
