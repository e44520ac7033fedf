//! The alerts on a running stack: each fault is made, its alerts must fire, the fault is repaired, and they must resolve.
//! The durations of the rules are a tenth of those that ship, whose proof is `promtool test rules`.

mod fault;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use launcher::program::format_table;
use launcher::{Stack, eventually};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use self::fault::{AlertFault, FAULTS};
use crate::checker::run::CheckOptions;
use crate::client::http_client::Client;
use crate::console::{print_line, print_lines};
use crate::monitoring::server::Prometheus;
use crate::monitoring::{rule_file_with_tenths, rules};
use crate::scenarios::runner::{Report, Run, on_own_stack};
use crate::stack_description::stack_description;
use crate::workload::load;
use crate::workload::options::Load;

/// The longest time until an alert fires: that of the lag is 100 s.
const FIRE_TIMEOUT: Duration = Duration::from_secs(240);

/// The longest time until an alert ends: the window of most counters is 30 s, and that of some 90 s.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(240);

/// All of it has to fit into this time, from the first fault on.
const RUN_DURATION_MAX: Duration = Duration::from_secs(30 * 60);

/// Orders meanwhile: enough that the lag of a service that is away passes a thousand records.
const RATE: u32 = 20;

/// Options of a run.
#[derive(Clone, Debug, clap::Args)]
pub struct AlertOptions {
    /// Only the faults whose names contain this
    #[arg(long)]
    pub only: Option<String>,
}

/// What became of one alert: its name, its service, the fault, and how long it took to fire and to end.
type AlertRow = [String; 5];

/// Runs `e2e alerts` on a stack of its own, which is deleted if every alert fired and resolved.
pub async fn command(options: &AlertOptions) -> Result<bool> {
    on_own_stack(&stack_description(), "alerts", async |stack| run(stack, options).await).await
}

async fn run(stack: &Stack, options: &AlertOptions) -> Result<(Report, String)> {
    let rule_file = rule_file_with_tenths()?;
    let alerts = alert_names(&rule_file);
    fault::prepare(stack)?;
    let mut run = Run::start(stack).await?;
    let prometheus = Prometheus::start_with_exporters(stack, &rule_file).await?;
    let is_wanted = |fault: &&AlertFault| {
        options.only.as_ref().is_none_or(|only| fault.name.contains(only.as_str()))
    };
    let mut rows = Vec::new();
    let began = Instant::now();
    for fault in FAULTS.iter().filter(is_wanted) {
        run.step(fault.description);
        match prove(stack, &run.client, &prometheus, fault).await {
            Ok(proved) => rows.extend(proved),
            Err(error) => {
                print_line(&format!("  FAILED: {error:#}"));
                run.report.violations.push(format!("{}: {error:#}", fault.name));
                (fault.repair)(stack).await?;
            }
        }
    }
    let took = began.elapsed();
    run.check(&CheckOptions::default(), None).await?;
    let proved: BTreeSet<String> =
        rows.iter().map(|[alert, ..]: &AlertRow| alert.clone()).collect();
    print_line("");
    print_lines(&format_table(["ALERT", "SERVICE", "FAULT", "FIRES", "IS OVER"], &[3, 4], rows));
    let missing: Vec<&String> = alerts.difference(&proved).collect();
    if !missing.is_empty() {
        print_line(&format!("Not shown: {missing:?}"));
    }
    let is_complete = missing.is_empty() || options.only.is_some();
    run.report.require(is_complete, || format!("alerts were not shown: {missing:?}"));
    let minutes = took.as_secs_f64() / 60.0;
    run.report.require(took < RUN_DURATION_MAX, || format!("it took {minutes:.1} minutes"));
    let (shown, all) = (proved.len(), alerts.len());
    let held =
        format!(": every alert fired and resolved ({shown} of {all}, in {minutes:.1} minutes)");
    Ok((run.report, held))
}

fn alert_names(rule_file: &Value) -> BTreeSet<String> {
    rules(rule_file).filter_map(|rule| Some(rule["alert"].as_str()?.to_string())).collect()
}

/// Makes one fault under load, and returns how long each of its alerts took.
async fn prove(
    stack: &Stack,
    client: &Client,
    prometheus: &Prometheus,
    fault: &AlertFault,
) -> Result<Vec<AlertRow>> {
    eventually("no alert to fire", RESOLVE_TIMEOUT, async || {
        let firing = prometheus.firing().await?;
        ensure!(firing.is_empty(), "{firing:?}");
        Ok(())
    })
    .await?;
    let load = Load { rate: RATE, duration: Duration::from_secs(1_200), ..Load::default() };
    let meanwhile = async {
        // The load is under way, so that events are on their way.
        sleep(Duration::from_secs(3)).await;
        let began = Instant::now();
        (fault.inject)(stack).await?;
        let mut fired = Vec::new();
        for (alert, service) in fault.alerts {
            wait_for(prometheus, alert, service, true, FIRE_TIMEOUT).await?;
            let after = began.elapsed();
            let seconds = after.as_secs_f64();
            print_line(&format!("  {alert} of {service} fires after {seconds:.0} s"));
            fired.push((alert, service, after));
        }
        (fault.repair)(stack).await?;
        Ok((fired, Instant::now()))
    };
    let (_, (fired, repaired)) = load::run_while(client, &load, meanwhile).await?;
    let mut rows = Vec::new();
    for (alert, service, fired_after) in fired {
        wait_for(prometheus, alert, service, false, RESOLVE_TIMEOUT).await?;
        let seconds = repaired.elapsed().as_secs_f64();
        print_line(&format!("  {alert} of {service} is over {seconds:.0} s after the repair"));
        let (fires, ends) =
            (format!("{:.0} s", fired_after.as_secs_f64()), format!("{seconds:.0} s"));
        rows.push([alert.to_string(), service.to_string(), fault.name.to_string(), fires, ends]);
    }
    Ok(rows)
}

async fn wait_for(
    prometheus: &Prometheus,
    alert: &str,
    service: &str,
    fires: bool,
    timeout: Duration,
) -> Result<()> {
    let what = format!("{alert} of {service} to {}", if fires { "fire" } else { "end" });
    eventually(&what, timeout, async || {
        let firing = prometheus.firing().await?;
        let is_firing = firing.contains(&(alert.to_string(), service.to_string()));
        ensure!(is_firing == fires, "{firing:?}");
        Ok(())
    })
    .await
}

#[test]
fn every_alert_has_a_fault_that_causes_it() {
    let caused = FAULTS.iter().flat_map(|fault| fault.alerts);
    let caused: BTreeSet<String> = caused.map(|(alert, _)| alert.to_string()).collect();
    assert_eq!(caused, alert_names(&crate::monitoring::rule_file().unwrap()));
}
