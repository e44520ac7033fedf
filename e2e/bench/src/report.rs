//! The results, as Markdown and JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use crate::cpu_costs::{Costs, PUBLISHED};
use crate::yardstick::Yardstick;

/// One run: a name that its repeats share, and figures.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub name: String,
    pub figures: BTreeMap<String, f64>,
}

pub const SAGAS_PER_SECOND: &str = "sagas/s";
const OUTPUT_FILES: [&str; 2] = ["bench.md", "bench.json"];
const CPU_PREFIX: &str = "µs/saga ";

/// The ratio of a figure to that of another commit.
pub const RATIO_PREFIX: &str = "ratio ";

/// The load of the machine before the run, and of other processes during it.
const CONTEXT_FIGURES: [&str; 2] = ["load average", "others' cores"];
/// The columns of the first two tables.
const RATES: &str = "offered/s, sagas/s, published/s, × tx4, tx4 % apart, POST p50 ms, POST p99 ms, commit p50 ms, \
    commit p99 ms, end p50 ms, end p99 ms, end p99.9 ms, refused/s, dropped/s, CPU µs/saga, Postgres CPU × tx4";
const RATIOS: &str = "tx4/s, Postgres µs/tx4, tx4 alone p50 ms, commit p50 × tx4 alone, end p50 × tx4 alone, \
    goodput × peak, drained/s, drained/s from its start, drain × peak, × without";
/// Each prefix has a table of its own.
const COST_PREFIXES: [&str; 6] =
    [RATIO_PREFIX, CPU_PREFIX, "MB ", "% of a core ", "bytes/saga ", "work/saga "];

/// Whether the ratio of such figures says something: rates, latencies and costs of a saga.
pub fn is_ratio_figure(figure: &str) -> bool {
    let latencies = ["commit p50 ms", "commit p99 ms", "end p50 ms", "end p99 ms"];
    latencies.contains(&figure)
        || [SAGAS_PER_SECOND, "CPU µs/saga", "Postgres µs/saga"].contains(&figure)
        || [CPU_PREFIX, "bytes/saga ", "work/saga "].iter().any(|it| figure.starts_with(it))
}

impl Run {
    pub fn new(name: &str) -> Run {
        Run { name: name.to_string(), figures: BTreeMap::new() }
    }

    /// The figures that follow from the cost of this number of sagas.
    pub fn from_costs(name: &str, spent: &Costs, sagas: f64, seconds: f64) -> Run {
        let mut run = Run::new(name);
        let each = sagas.max(1.0);
        run.set(SAGAS_PER_SECOND, sagas / seconds);
        run.set("CPU µs/saga", spent.all_micros() / each);
        run.set("Postgres µs/saga", spent.postgres_micros() / each);
        for (name, micros) in &spent.cpu_micros {
            run.set(&format!("{CPU_PREFIX}{name}"), micros / each);
        }
        let others = spent.busy_micros - spent.all_micros();
        run.set("others' cores", others / seconds / 1e6);
        for (figure, sum) in &spent.sums {
            run.set(figure, sum / each);
        }
        let published = spent.sums.get(PUBLISHED).copied().unwrap_or_default();
        run.set("published/s", published / seconds);
        run
    }

    pub fn set(&mut self, what: &str, figure: f64) {
        self.figures.insert(what.to_string(), figure);
    }

    pub fn get(&self, what: &str) -> f64 {
        self.figures.get(what).copied().unwrap_or_default()
    }

    /// Ratios to the yardstick right before and right after, and the difference of the two. If that
    /// is large, the machine changed during the run, and the ratios mean little.
    pub fn relative_to(mut self, before: &Yardstick, after: &Yardstick) -> Run {
        let per_second = f64::midpoint(before.per_second, after.per_second);
        self.set("× tx4", self.get(SAGAS_PER_SECOND) / per_second);
        let micros = f64::midpoint(before.postgres_micros, after.postgres_micros);
        self.set("Postgres CPU × tx4", self.get("Postgres µs/saga") / micros);
        let apart = (before.per_second - after.per_second).abs() / per_second;
        self.set("tx4 % apart", 100.0 * apart);
        self
    }

    /// The line that is printed after a run.
    pub fn summary_line(&self) -> String {
        let cpu: Vec<String> = self
            .figures
            .iter()
            .filter_map(|(what, figure)| {
                Some(format!("{} {figure:.0}", what.strip_prefix(CPU_PREFIX)?))
            })
            .collect();
        format!(
            "  {:<28} {:>7.0} sagas/s  POST p50 {:.1} p99 {:.1}  end p50 {:.1} p99 {:.1} ms  load {:.1}  CPU {:.0} µs: {}",
            self.name,
            self.get(SAGAS_PER_SECOND),
            self.get("POST p50 ms"),
            self.get("POST p99 ms"),
            self.get("end p50 ms"),
            self.get("end p99 ms"),
            self.get("load average"),
            self.get("CPU µs/saga"),
            cpu.join(", "),
        )
    }
}

/// The spread of a figure over all repeats.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

/// All runs, and their environment.
#[derive(Debug, Default)]
pub struct Report {
    pub environment: BTreeMap<String, String>,
    pub runs: Vec<Run>,
}

impl Report {
    pub fn add(&mut self, run: Run) -> &mut Run {
        self.runs.push(run);
        self.last_run()
    }

    /// The run that was added last.
    pub fn last_run(&mut self) -> &mut Run {
        self.runs.last_mut().expect("a run was added before")
    }

    /// Names in the order in which they first ran, each with the spread of its figures.
    pub fn spreads(&self) -> Vec<(String, BTreeMap<String, Spread>)> {
        let mut all: Vec<(String, BTreeMap<String, Vec<f64>>)> = Vec::new();
        for run in &self.runs {
            let nth = all.iter().position(|(name, _)| *name == run.name).unwrap_or_else(|| {
                all.push((run.name.clone(), BTreeMap::new()));
                all.len() - 1
            });
            for (what, figure) in &run.figures {
                all[nth].1.entry(what.clone()).or_default().push(*figure);
            }
        }
        let spreads = |figures: BTreeMap<String, Vec<f64>>| {
            figures.into_iter().map(|(what, figures)| (what, spread(figures))).collect()
        };
        all.into_iter().map(|(name, figures)| (name, spreads(figures))).collect()
    }

    pub fn environment_lines(&self) -> String {
        let lines: Vec<String> =
            self.environment.iter().map(|(what, text)| format!("- {what}: {text}")).collect();
        lines.join("\n")
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("# Benchmark\n\n{}\n", self.environment_lines());
        let spreads = self.spreads();
        let _ = writeln!(text, "\nMedian (min to max) of all repeats.\n");
        for figures in [RATES, RATIOS] {
            text +=
                &table(&spreads, &figures.split(", ").chain(CONTEXT_FIGURES).collect::<Vec<_>>());
            text += "\n";
        }
        let costs: BTreeSet<&str> =
            self.runs.iter().flat_map(|run| run.figures.keys().map(String::as_str)).collect();
        for prefix in COST_PREFIXES {
            let columns: Vec<&str> =
                costs.iter().copied().filter(|what| what.starts_with(prefix)).collect();
            if !columns.is_empty() {
                text += &table(&spreads, &columns);
                text += "\n";
            }
        }
        text
    }

    /// Deletes the report of an earlier run, so that it is not mistaken for one of this run if this
    /// run fails.
    pub fn delete_previous(directory: &Path) -> Result<()> {
        for name in OUTPUT_FILES {
            match std::fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => (),
            }
        }
        Ok(())
    }

    /// Writes the report of the experiments that have passed, in place of an earlier one of this run.
    pub fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        let [markdown, json] = OUTPUT_FILES.map(|name| directory.join(name));
        std::fs::write(markdown, self.markdown())?;
        let spreads: BTreeMap<_, _> = self.spreads().into_iter().collect();
        let all = json!({ "environment": self.environment, "spreads": spreads, "runs": self.runs });
        std::fs::write(json, serde_json::to_vec_pretty(&all)?)?;
        Ok(())
    }
}

fn spread(mut figures: Vec<f64>) -> Spread {
    figures.sort_by(f64::total_cmp);
    let last = figures.len() - 1;
    // For an even number, the mean of the two middle values.
    let median = f64::midpoint(figures[last / 2], figures[last.div_ceil(2)]);
    Spread { min: figures[0], median, max: figures[last] }
}

fn table(rows: &[(String, BTreeMap<String, Spread>)], columns: &[&str]) -> String {
    let mut text =
        format!("| | {} |\n|---|{}\n", columns.join(" | "), "---:|".repeat(columns.len()));
    for (name, figures) in rows {
        let cells: Vec<String> =
            columns.iter().map(|column| figures.get(*column).map_or("".into(), cell)).collect();
        let is_figure = |(column, cell): (&&str, &String)| {
            !cell.is_empty() && !CONTEXT_FIGURES.contains(column)
        };
        if columns.iter().zip(&cells).any(is_figure) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(spread(vec![4.0, 1.0, 3.0, 2.0]).median, 2.5);
        assert_eq!(spread(vec![7.0]).median, 7.0);
    }
}
