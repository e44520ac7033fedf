//! Crash points: the small tier of `make crash-points`, and that what ships holds none.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::Stack;
use e2e::crash_points::{self, points};
use e2e::stack::programs;

use crate::stage::aside;

const SERVICES: [&str; 3] = ["order", "payment", "stock"];

#[tokio::test(flavor = "multi_thread")]
async fn killed_once_at_every_crash_point_the_services_lose_nothing() -> Result<()> {
    aside(async || {
        let stack = Stack::ephemeral()?;
        let within = Duration::from_secs(900);
        let options = crash_points::Options { once: true, seed: None, within };
        let report = crash_points::run(&stack, &options).await?;
        let table = report.table().join("\n");
        ensure!(report.holds(), "{}\n{table}", report.verdict());
        println!("{table}\n{}", report.verdict());
        Ok(())
    })
    .await
}

/// Their names are looked for in the programs themselves.
#[test]
fn what_ships_holds_no_crash_point_and_what_is_made_to_crash_holds_them_all() -> Result<()> {
    let ordinary = programs()?;
    // Compiled by `make bench`, and like the images; not here every day.
    let release = ordinary.with_file_name("release");
    for service in SERVICES {
        for directory in [&ordinary, &release] {
            let program = directory.join(service);
            if directory == &ordinary || program.exists() {
                let found = points::found_in(&program)?;
                ensure!(found.is_empty(), "{} holds {found:?}", program.display());
            }
        }
        let crashing = points::found_in(&crash_points::programs()?.join(service))?;
        ensure!(crashing.len() == points::all().len() + 2, "{service} holds only {crashing:?}");
    }
    Ok(())
}
