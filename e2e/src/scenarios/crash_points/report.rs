//! The report of a run: each point with the hits that killed each service, and the verdict.

use checker::group_digits;

use std::collections::BTreeSet;
use std::time::Duration;

use super::armed_service::PointResult;
use super::rounds::ARMED_SERVICES;
use launcher::program::format_table;

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
        let mut rows = Vec::new();
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
            rows.push([round.to_string(), point.to_string(), first, second, third]);
        }
        let [first, second, third] = ARMED_SERVICES;
        format_table(["ROUND", "POINT", first, second, third], &[], rows)
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
