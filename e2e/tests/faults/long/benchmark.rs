//! The benchmark: each of its parts measures something and stands in the report. The figures mean nothing here, because
//! the programs are not optimised and each case takes a second.

use e2e::mutants::worktree::run_to_end;
use launcher::directories::{create_public_directory, programs_directory};
use tokio::process::Command;

use super::*;

/// One case of each part that runs unless others are asked for.
const CASES: [&str; 8] = [
    "4 callers",
    "open, 150 % of the peak",
    "drain after stock was away",
    "2 of each service",
    "one item",
    "50 lines an order",
    "idle",
    "0.001 million old orders",
];

/// The old orders are made with a first stack and borrowed by a second one, which has passwords of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make faults"]
async fn every_part_of_the_benchmark_measures_and_is_reported() -> Result<()> {
    without_fixture(async || {
        let root = stack_description().own_temp_directory("benchmark");
        create_public_directory(&root)?;
        let mut command = Command::new(programs_directory()?.join("bench"));
        command.args("--repeats 1 --seconds 1 --warm-seconds 1 --warm-first-seconds 5".split(' '));
        command.args("--callers 1,4 --old-orders 1000 --into".split(' ')).arg(root.join("report"));
        command.env("HOLDFAST_STATE", &root);
        run_to_end(command).await?;
        let report = std::fs::read_to_string(root.join("report/bench.md"))?;
        for case in CASES {
            ensure!(report.contains(&format!("| {case} |")), "no {case} in the report:\n{report}");
        }
        Ok(std::fs::remove_dir_all(root)?)
    })
    .await
}
