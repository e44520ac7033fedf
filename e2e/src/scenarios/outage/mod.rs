//! Outages: a load, a victim that is killed again and again, and a run of the checker. It proves
//! that an outage of any component loses no order and duplicates none. Each step prints what it
//! does, and the last line is the verdict. After a long outage the victim has to catch up while new
//! orders arrive: `catch_up.rs`.

pub mod options;
mod catch_up;

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use checker::group_digits;
use futures::future::try_join_all;
use launcher::Stack;
use launcher::program::format_table;
use tokio::time::{Instant, sleep, sleep_until};

use self::catch_up::{Drain, ObservedDatabase};
use self::options::{INSTANCES, Outage, OutageOptions};
use crate::checker::run;
use crate::client::http_client::Client;
use crate::console::{print_line, print_lines};
use crate::scenarios::runner::{Report, Run, on_stack};
use crate::scenarios::shipping::{self, Lies};
use crate::stack_description::SERVICES;
use crate::workload::load_summary::LoadSummary;
use crate::workload::stall_detector::{Stall, StallDetector};

/// The longest time that a redundant service may be without progress.
const STALL_MAX: Duration = Duration::from_secs(20);

/// The result of an outage.
#[derive(Debug)]
pub struct OutageReport {
    pub victims: String,
    pub kills: u32,
    pub summary: LoadSummary,
    pub checker_holds: bool,
    pub stalls: Vec<Stall>,
    pub report: Report,
}

/// Runs the outages, and returns whether all of them held. The stack is stopped again if it was not
/// up before.
pub async fn run(stack: &Stack, options: &OutageOptions) -> Result<bool> {
    let began = Instant::now();
    let reports = on_stack(stack, async {
        let grows = options.victim == INSTANCES && stack.instances_of(SERVICES[0])?.len() < 2;
        if grows {
            stack.set_instances(2).await?;
        }
        let lies = Lies::begin(stack, &[]).await?;
        let reports = run_all(stack, options).await;
        lies.end().await?;
        if grows {
            stack.set_instances(1).await?;
        }
        reports
    })
    .await?;
    let holds = reports.iter().all(|report| report.report.holds());
    if reports.len() > 1 {
        print_line("");
        print_lines(&table(&reports));
        let verdict = if holds { "every outage held" } else { "NOT every outage held" };
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        let count = reports.len();
        print_line(&format!("\nVERDICT  {verdict} ({count} of them, {minutes:.0} minutes)."));
    }
    Ok(holds)
}

async fn run_all(stack: &Stack, options: &OutageOptions) -> Result<Vec<OutageReport>> {
    print_line("Starting the components that do not run …");
    let mut reports = Vec::new();
    for outage in options.plan(stack)? {
        let client = Run::start(stack).await?.client;
        // An outage that fails to complete does not stop the others.
        let report = run_one(stack, &client, &outage).await;
        let report = report.unwrap_or_else(|error| {
            let violations = vec![format!("the outage was interrupted: {error:#}")];
            OutageReport {
                victims: outage.name(),
                kills: outage.kills,
                summary: LoadSummary::default(),
                checker_holds: false,
                stalls: Vec::new(),
                report: Report { violations, ..Report::default() },
            }
        });
        print_line(&format!("\nVERDICT  {}.", report.verdict()));
        reports.push(report);
    }
    Ok(reports)
}

/// Runs one outage on a stack where every component runs.
pub async fn run_one(stack: &Stack, client: &Client, outage: &Outage) -> Result<OutageReport> {
    let (times, down) = (times(outage.kills), outage.downtime.as_secs_f64());
    let each = if outage.is_redundant { "killed in turn" } else { "killed" };
    let victims = outage.victims.join(", ");
    print_line(&format!("\nOutage: {victims}, {each} {times}, for {down} s each time"));
    let mut run = Run::new(stack, client.clone()).await?;
    let mut detector = match outage.is_redundant {
        true => Some(StallDetector::connect(client).await?),
        false => None,
    };
    let observed: &[&str] = if outage.catches_up { &SERVICES } else { &[] };
    let observed = observed.iter().map(|service| ObservedDatabase::open(stack, service));
    let databases = try_join_all(observed).await?;
    // No poison is sent here: any new dead letter is a finding.
    let expected = run::dead_letter_positions(client).await?;
    let (summary, (found_dead, drain)) = tokio::select! {
        loaded = run.load(&outage.load, kill_in_turn(stack, outage, &databases)) => loaded?,
        ended = watch(detector.as_mut(), &databases) => match ended? {},
        ended = shipping::cancel_some(stack, client) => match ended? {},
    };
    run.report.violations.extend(found_dead);
    expect_clients(outage, &summary, &mut run.report);
    let stalls = detector.map(|detector| detector.stalls()).unwrap_or_default();
    if outage.is_redundant {
        expect_progress(&stalls, &summary, &mut run.report);
    }
    if let Some(drain) = drain {
        drain.evaluate(outage.load.rate, &mut run.report);
        run.step("The relays' queries were fast, and the outboxes are small again");
        for database in databases {
            database.evaluate(&mut run.report).await?;
        }
    }
    let options = run::CheckOptions { timeout: shipping::check_timeout(client) };
    let verdict = run.check(&options, Some(&expected)).await?;
    run.report.require(!outage.catches_up || verdict.dead_letters_waiting == 0, || {
        format!("{} dead letters wait", verdict.dead_letters_waiting)
    });
    run.add_exits().await?;
    let (victims, kills, checker_holds) = (outage.name(), outage.kills, verdict.holds());
    Ok(OutageReport { victims, kills, summary, checker_holds, stalls, report: run.report })
}

/// Kills and starts the victims in turn during the load. Returns the victims that did not run when
/// their turn came, and how the backlog of observed databases was worked off.
async fn kill_in_turn(
    stack: &Stack,
    outage: &Outage,
    databases: &[ObservedDatabase],
) -> Result<(Vec<String>, Option<Drain>)> {
    let began = Instant::now();
    let (mut found_dead, mut drain) = (Vec::new(), None);
    let at = |began: Instant| format!("{:>6.1} s ", began.elapsed().as_secs_f64());
    ensure!(!outage.victims.is_empty(), "an outage has a victim");
    for (nth, victim) in (0..outage.kills).zip(outage.victims.iter().cycle()) {
        sleep_until(began + outage.kill_time(nth)?).await;
        if !stack.kill(victim).await? {
            found_dead.push(format!("{victim} did not run when its turn came"));
        }
        print_line(&format!("{} SIGKILL to {victim}", at(began)));
        sleep(outage.downtime).await;
        let backlog = match databases.first() {
            Some(orders) => Some((orders, orders.backlog(victim).await?)),
            None => None,
        };
        let start = Instant::now();
        stack.start(victim).await.with_context(|| format!("starting {victim} again"))?;
        let ready = start.elapsed().as_secs_f64();
        print_line(&format!("{} {victim} is ready, {ready:.1} s after its start", at(began)));
        if let Some((orders, backlog)) = backlog {
            let rate = outage.load.rate;
            drain = Some(Drain::wait(orders, backlog, rate, start, outage.downtime).await?);
        }
    }
    Ok((found_dead, drain))
}

/// Watches what the outage has, until it is dropped.
async fn watch(
    detector: Option<&mut StallDetector>,
    databases: &[ObservedDatabase],
) -> Result<Infallible> {
    let detected = async {
        match detector {
            Some(detector) => detector.run().await,
            None => Ok(()),
        }
    };
    tokio::try_join!(detected, try_join_all(databases.iter().map(ObservedDatabase::watch)))?;
    pending().await
}

/// What clients may notice: while another instance accepts orders, a client may get no answer but is
/// never refused.
fn expect_clients(outage: &Outage, summary: &LoadSummary, report: &mut Report) {
    let LoadSummary { placed, accepted, unknown, refused, .. } = *summary;
    let may_doubt = outage.victims.iter().any(|victim| victim.starts_with("order"));
    let excused = summary.excused_count();
    report
        .require(unknown <= excused || may_doubt, || format!("{unknown} clients got no response"));
    report.require(refused <= excused || (may_doubt && !outage.is_redundant), || {
        format!("{refused} clients were refused")
    });
    report.require(!outage.catches_up || summary.answered_all(), || {
        "a client was refused or got no response".to_string()
    });
    // A run in which every request failed would hold as well.
    let is_served = accepted + unknown + refused >= placed && accepted * 5 >= placed;
    report.require(is_served, || format!("only {accepted} orders were accepted"));
}

/// A redundant service always makes progress, and orders are always accepted.
fn expect_progress(stalls: &[Stall], summary: &LoadSummary, report: &mut Report) {
    print_line("  the longest time with work and without progress:");
    for Stall { service, consumer, relay, partition } in stalls {
        print_line(&format!(
            "    {service:<12} consumer {:>4.1} s, relay {:>4.1} s, one partition {:>4.1} s",
            consumer.as_secs_f64(),
            relay.as_secs_f64(),
            partition.as_secs_f64()
        ));
        let longest = *consumer.max(relay);
        report.require(longest <= STALL_MAX, || {
            format!("{service} made no progress for {:.1} s", longest.as_secs_f64())
        });
    }
    let gap = summary.longest_gap.as_secs_f64();
    print_line(&format!("    {:<12} {gap:.1} s between two accepted orders", "API"));
    report.require(summary.longest_gap <= STALL_MAX, || {
        format!("no order was accepted for {gap:.1} s")
    });
}

impl OutageReport {
    pub fn verdict(&self) -> String {
        let OutageReport { victims, kills, summary, stalls, report, .. } = self;
        let stall = stalls.iter().map(|stall| stall.consumer.max(stall.relay)).max();
        let stall = stall.map_or(String::new(), |stall| {
            format!(", no service stalled for more than {:.1} s", stall.as_secs_f64())
        });
        let held = format!(
            ". Killed {}; {} orders accepted and none lost, {} unknown outcomes settled, all ended \
             {:.1} s after the load{stall}, no violation found",
            times(*kills),
            group_digits(summary.accepted),
            group_digits(summary.unknown),
            summary.drained_in.as_secs_f64()
        );
        format!("{victims}: {}", report.verdict(&held))
    }
}

fn times(count: u32) -> String {
    if count == 1 { "once".to_string() } else { format!("{count} times") }
}

fn table(reports: &[OutageReport]) -> Vec<String> {
    let rows = reports.iter().map(
        |OutageReport { victims, kills, summary, checker_holds, report, .. }| {
            [
                victims.clone(),
                kills.to_string(),
                group_digits(summary.accepted),
                group_digits(summary.refused),
                group_digits(summary.unknown),
                format!("{:.1} ms", summary.latency.p99.as_secs_f64() * 1_000.0),
                format!("{:.1} s", summary.drained_in.as_secs_f64()),
                if *checker_holds { "0" } else { "1" }.to_string(),
                report.verdict(""),
            ]
        },
    );
    let header = [
        "VICTIM", "KILLS", "ACCEPTED", "REFUSED", "UNKNOWN", "POST p99", "DRAINED", "VERIFY",
        "VERDICT",
    ];
    format_table(header, &[1, 2, 3, 4, 5, 6, 7], rows)
}
