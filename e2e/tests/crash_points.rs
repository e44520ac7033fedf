//! Crash points: a short run of `make crash-points`, and the proof that shipped programs contain
//! none.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::scenarios::crash_points::{
    self, CrashPointOptions, CrashPointReport, armed_service, list,
};
use e2e::stack_description::{SHIPPING, stack_description, with_shipping};
use launcher::Stack;
use launcher::directories::programs_directory;

use crate::fixture::*;

const SERVICES: [&str; 4] = ["order", "payment", "stock", "shipping"];

/// Kills each service once at every crash point, or at those of its loops alone.
async fn kill_once(loops_only: bool) -> Result<()> {
    without_fixture(async || {
        let whole = if loops_only { stack_description() } else { with_shipping() };
        let stack = Stack::ephemeral(&whole)?;
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
        let variables = [list::POINTS_VARIABLE, list::LOG_VARIABLE];
        // The services of the saga call nothing outside.
        let may_lack = |point: &&str| service != SHIPPING && list::OUTSIDE.contains(point);
        let missing = list::all()
            .into_iter()
            .chain(variables)
            .filter(|point| !crashing.contains(*point) && !may_lack(point));
        let missing = Vec::from_iter(missing);
        ensure!(missing.is_empty(), "{service} lacks {missing:?}");
    }
    Ok(())
}
