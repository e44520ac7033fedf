//! The alerts on a running stack: each fault is made, its alerts must fire, the fault is repaired, and they must resolve.
//! The durations of the rules are a tenth of those that ship, whose proof is `promtool test rules`.

mod fault;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use launcher::{Stack, eventually};
use serde_json::Value;
use tokio::time::Instant;

use self::fault::{AlertFault, Context};
use crate::checker::run as checker;
use crate::client::http_client::Client;
use crate::console::{print_line, print_step};
use crate::monitoring::server::Prometheus;
use crate::monitoring::{rule_file_with_tenths, rules};
use crate::scenarios::proof::with_stack_restored;
use crate::stack_description::stack_description;
use crate::workload::load;
use crate::workload::options::Load;
use crate::workload::seed;

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

/// What became of one alert.
struct AlertReport {
    alert: &'static str,
    service: &'static str,
    fault: AlertFault,
    fired_after: Duration,
    resolved_after: Duration,
}

/// Runs `e2e alerts` on a stack of its own, which is deleted if every alert fired and resolved.
pub async fn command(options: &AlertOptions) -> Result<bool> {
    let (stack, _lock) = Stack::for_exclusive_run(&stack_description(), "alerts").await?;
    let stack = stack.quiet();
    let holds = with_stack_restored(&stack, false, run(&stack, options)).await?;
    if holds {
        stack.clean().await?;
    } else {
        print_line(&format!("Logs and data are kept in {}.", stack.directory().display()));
    }
    Ok(holds)
}

async fn run(stack: &Stack, options: &AlertOptions) -> Result<bool> {
    let rule_file = rule_file_with_tenths()?;
    let alerts = alert_names(&rule_file);
    fault::prepare(stack)?;
    stack.up().await?;
    let client = Client::for_stack(stack)?;
    seed::run(&client).await?;
    let prometheus = Prometheus::start_with_exporters(stack, &rule_file).await?;
    let context = Context { stack, client, prometheus };
    let wanted = |fault: &AlertFault| {
        options.only.as_ref().is_none_or(|only| format!("{fault:?}").contains(only))
    };
    let (mut reports, mut failures) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for (number, fault) in (1..).zip(AlertFault::ALL.into_iter().filter(wanted)) {
        print_step(number, fault.description());
        match prove(&context, fault).await {
            Ok(proved) => reports.extend(proved),
            Err(error) => {
                print_line(&format!("  FAILED: {error:#}"));
                failures.push(format!("{fault:?}: {error:#}"));
                fault.repair(&context).await?;
            }
        }
    }
    let took = began.elapsed();
    print_line("");
    let verdict = checker::run(&context.client, &checker::CheckOptions::default()).await?;
    verdict.lines().iter().for_each(|line| print_line(line));
    print_reports(&reports);
    let proved: BTreeSet<String> = reports.iter().map(|it| it.alert.to_string()).collect();
    let missing: Vec<&String> = alerts.difference(&proved).collect();
    let is_complete = missing.is_empty() || options.only.is_some();
    if !missing.is_empty() {
        print_line(&format!("Not shown: {missing:?}"));
    }
    let is_in_time = took < RUN_DURATION_MAX;
    let holds = failures.is_empty() && is_complete && is_in_time && verdict.holds();
    failures.iter().for_each(|failure| print_line(&format!("FAILED  {failure}")));
    let minutes = took.as_secs_f64() / 60.0;
    let words = if holds { "every alert fired and resolved" } else { "BROKEN" };
    let (shown, all) = (proved.len(), alerts.len());
    print_line(&format!("\nVERDICT  {words} ({shown} of {all}, in {minutes:.1} minutes)."));
    Ok(holds)
}

fn alert_names(rule_file: &Value) -> BTreeSet<String> {
    rules(rule_file).filter_map(|rule| Some(rule["alert"].as_str()?.to_string())).collect()
}

/// Makes one fault under load, and returns how long each of its alerts took.
async fn prove(context: &Context<'_>, fault: AlertFault) -> Result<Vec<AlertReport>> {
    eventually("no alert to fire", RESOLVE_TIMEOUT, async || {
        let firing = context.prometheus.firing().await?;
        ensure!(firing.is_empty(), "{firing:?}");
        Ok(())
    })
    .await?;
    let load = Load { rate: RATE, duration: Duration::from_secs(1_200), ..Load::default() };
    let meanwhile = async {
        // The load is under way, so that events are on their way.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let began = Instant::now();
        fault.inject(context).await?;
        let mut fired = Vec::new();
        for (alert, service) in fault.alerts() {
            wait_for(context, alert, service, true, FIRE_TIMEOUT).await?;
            print_line(&format!(
                "  {alert} of {service} fires after {:.0} s",
                began.elapsed().as_secs_f64()
            ));
            fired.push((*alert, *service, began.elapsed()));
        }
        fault.repair(context).await?;
        Ok((fired, Instant::now()))
    };
    let (_, (fired, repaired)) = load::run_while(&context.client, &load, meanwhile).await?;
    let mut reports = Vec::new();
    for (alert, service, fired_after) in fired {
        wait_for(context, alert, service, false, RESOLVE_TIMEOUT).await?;
        let resolved_after = repaired.elapsed();
        print_line(&format!(
            "  {alert} of {service} is over {:.0} s after the repair",
            resolved_after.as_secs_f64()
        ));
        reports.push(AlertReport { alert, service, fault, fired_after, resolved_after });
    }
    Ok(reports)
}

async fn wait_for(
    context: &Context<'_>,
    alert: &str,
    service: &str,
    fires: bool,
    timeout: Duration,
) -> Result<()> {
    let what = format!("{alert} of {service} to {}", if fires { "fire" } else { "end" });
    eventually(&what, timeout, async || {
        let firing = context.prometheus.firing().await?;
        let is_firing = firing.contains(&(alert.to_string(), service.to_string()));
        ensure!(is_firing == fires, "{firing:?}");
        Ok(())
    })
    .await
}

fn print_reports(reports: &[AlertReport]) {
    print_line("\n  alert               service   fault              fires   is over");
    for AlertReport { alert, service, fault, fired_after, resolved_after } in reports {
        print_line(&format!(
            "  {alert:<18}  {service:<8}  {:<16}  {:>4.0} s  {:>6.0} s",
            format!("{fault:?}"),
            fired_after.as_secs_f64(),
            resolved_after.as_secs_f64()
        ));
    }
}

#[test]
fn every_alert_has_a_fault_that_causes_it() {
    let caused = AlertFault::ALL.iter().flat_map(|fault| fault.alerts());
    let caused: BTreeSet<String> = caused.map(|(alert, _)| alert.to_string()).collect();
    assert_eq!(caused, alert_names(&crate::monitoring::rule_file().unwrap()));
}
