//! The report of a run: each point with the hits that killed each service, and the verdict.

use std::collections::BTreeSet;
use std::time::Duration;

use super::armed_service::PointResult;
use super::rounds::ARMED_SERVICES;
use crate::launcher::format::group_digits;

/// The result of a run.
pub struct CrashPointReport {
    pub rows: Vec<PointResult>,
    /// Everything that was not as promised, as sentences.
    pub failures: Vec<String>,
    pub kills: usize,
    pub orders: u64,
    pub seed: u64,
    pub duration: Duration,
}

impl CrashPointReport {
    pub fn holds(&self) -> bool {
        self.failures.is_empty()
    }

    /// Every point with the hits that killed each service.
    pub fn table(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "\n  {:<12} {:<24} {:<10} {:<10} {:<10}",
            "ROUND", "POINT", ARMED_SERVICES[0], ARMED_SERVICES[1], ARMED_SERVICES[2]
        )];
        let mut seen = BTreeSet::new();
        for PointResult { round, point, .. } in &self.rows {
            if !seen.insert((round, point)) {
                continue;
            }
            let of = |service: &str| {
                let same = |row: &&PointResult| (&row.round, &row.point) == (round, point);
                let row = self.rows.iter().filter(same).find(|row| row.service == service);
                row.map_or("-".to_string(), PointResult::cell)
            };
            let [first, second, third] = ARMED_SERVICES.map(of);
            let line = format!("  {round:<12} {point:<24} {first:<10} {second:<10} {third}");
            lines.push(line.trim_end().to_string());
        }
        lines
    }

    pub fn verdict(&self) -> String {
        if !self.holds() {
            return format!("BROKEN, seed {}: {}.", self.seed, self.failures.join("; "));
        }
        let points: BTreeSet<&str> = self.rows.iter().map(|row| row.point).collect();
        format!(
            "held: {} crash points, {} kills, {} orders accepted; every point was hit, no event was lost, \
             no effect happened twice, no other process exited ({:.1} minutes, seed {}).",
            points.len(),
            self.kills,
            group_digits(self.orders),
            self.duration.as_secs_f64() / 60.0,
            self.seed
        )
    }
}

impl PointResult {
    fn cell(&self) -> String {
        let kills = self.kills.iter().map(|kill| kill.hit.to_string());
        let missing = self.missing.iter().map(|hit| format!("NOT {hit}"));
        kills.chain(missing).collect::<Vec<_>>().join(" ")
    }
}
