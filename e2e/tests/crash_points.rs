//! Crash points: a short run of `make crash-points`, and the proof that shipped programs contain
//! none.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::scenarios::crash_points::{
    self, CrashPointOptions, CrashPointReport, armed_service, list,
};
use e2e::stack_description::stack_description;
use launcher::Stack;
use launcher::directories::programs_directory;

use crate::fixture::*;

const SERVICES: [&str; 3] = ["order", "payment", "stock"];

/// Kills each service once at every crash point, or at those of its loops alone.
async fn kill_once(loops_only: bool) -> Result<()> {
    without_fixture(async || {
        let stack = Stack::ephemeral(&stack_description())?;
        let timeout = Duration::from_secs(900);
        let options = CrashPointOptions { once: true, seed: None, timeout, loops_only };
        let CrashPointReport { report, held, table } = crash_points::run(&stack, &options).await?;
        let text = format!("{}\n{}", table.join("\n"), report.verdict(&held));
        ensure!(report.holds(), "{text}");
        println!("{text}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_once_at_every_crash_point_of_its_loops_no_service_loses_anything() -> Result<()> {
    kill_once(true).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes six minutes: make faults"]
async fn killed_once_at_every_crash_point_the_services_lose_nothing() -> Result<()> {
    kill_once(false).await
}

/// The names of crash points are searched for in the programs themselves.
#[test]
fn shipped_programs_contain_no_crash_point_and_crash_programs_contain_them_all() -> Result<()> {
    let ordinary = programs_directory()?;
    // `make bench` compiles these, like the images; they do not always exist.
    let release = ordinary.with_file_name("release");
    for service in SERVICES {
        for directory in [&ordinary, &release] {
            let program = directory.join(service);
            if directory == &ordinary || program.exists() {
                let found = list::names_in(&program)?;
                ensure!(found.is_empty(), "{} holds {found:?}", program.display());
            }
        }
        let crashing = list::names_in(&armed_service::programs()?.join(service))?;
        ensure!(crashing.len() == list::all().len() + 2, "{service} holds only {crashing:?}");
    }
    Ok(())
}
