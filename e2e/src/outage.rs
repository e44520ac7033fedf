//! Outages: a load, a victim that is killed again and again, and the proof that nothing was lost.
//! Each step says what it does, and the last line is the verdict.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::Client;
use crate::ends::{self, End};
use crate::figures::grouped;
use crate::history::Summary;
use crate::invariants::Invariant;
use crate::load::{self, Load, seconds};
use crate::narration::{as_found, is_up, say, step};
use crate::progress::{Standstill, Watch};
use crate::topology::{Member, SERVICES};
use crate::{Stack, seed, verify};

/// No service may be without progress for longer, whichever of its instances die.
const STANDSTILL_MAX: Duration = Duration::from_secs(20);

/// One kill in so much time, where instances are the victims.
const INSTANCE_KILLED_EVERY: Duration = Duration::from_secs(5);

const ALL: &str = "all";
const INSTANCES: &str = "instances";

/// An outage.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Who is killed: a member, `all` (each member, one after the other), or `instances` (two of each
    /// service run, and one of them is killed every five seconds)
    pub victim: String,
    /// Orders a second
    #[arg(long = "rate-per-second", default_value_t = 100)]
    pub rate: u32,
    /// How long orders are placed; 60 where instances are the victims, 90 otherwise
    #[arg(long = "load-seconds", value_parser = seconds)]
    pub lasting: Option<Duration>,
    /// How often the victim is killed; one in five seconds where instances are the victims, 3 otherwise
    #[arg(long)]
    pub kills: Option<u32>,
    /// How long it is away each time; 2 where instances are the victims, 5 otherwise
    #[arg(long = "down-seconds", value_parser = seconds)]
    pub down: Option<Duration>,
}

/// What is done in one run, every option decided.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Killed by turns.
    pub victims: Vec<String>,
    pub rate: u32,
    pub lasting: Duration,
    pub kills: u32,
    pub down: Duration,
    pub drained_within: Duration,
    /// Whether every service has a further instance, and so may never stand still.
    pub watched: bool,
}

/// How an outage went.
#[derive(Debug)]
pub struct Report {
    pub victims: String,
    pub kills: u32,
    pub summary: Summary,
    pub verify_holds: bool,
    /// By the clients' word and by the checker's.
    pub violated: BTreeSet<Invariant>,
    pub standstills: Vec<Standstill>,
    /// Whatever was not as promised, in sentences.
    pub faults: Vec<String>,
}

impl Options {
    /// What to do, one run after the other.
    fn outages(&self, stack: &Stack) -> Result<Vec<Outage>> {
        let rounds = match self.victim.as_str() {
            ALL => Member::all().iter().map(|member| vec![member.to_string()]).collect(),
            INSTANCES => {
                // The services in turn, and of each its instances in turn.
                let instances = SERVICES.map(|service| stack.instances_of(service));
                let instances: Vec<Vec<String>> = instances.into_iter().collect::<Result<_>>()?;
                let nth = |nth| instances.iter().filter_map(move |of: &Vec<String>| of.get(nth));
                vec![(0..2).flat_map(nth).cloned().collect()]
            }
            one => vec![vec![one.parse::<Member>()?.to_string()]],
        };
        let watched = self.victim == INSTANCES;
        let (lasting, down) = if watched { (60, 2) } else { (90, 5) };
        let lasting = self.lasting.unwrap_or(Duration::from_secs(lasting));
        let often = lasting.as_secs_f64() / INSTANCE_KILLED_EVERY.as_secs_f64();
        let kills = self.kills.unwrap_or(if watched { often as u32 } else { 3 });
        let down = self.down.unwrap_or(Duration::from_secs(down));
        let outage = |victims| Outage {
            victims,
            rate: self.rate,
            lasting,
            kills,
            down,
            drained_within: Duration::from_secs(60),
            watched,
        };
        Ok(rounds.into_iter().map(outage).collect())
    }
}

/// Runs what was asked for, and answers whether all of it held. The stack is taken down again if it
/// was not up before.
pub async fn run(stack: &Stack, options: &Options) -> Result<bool> {
    let was_up = is_up(stack).await?;
    let began = Instant::now();
    let reports = as_found(stack, was_up, async {
        say("Starting what does not run yet …");
        let before = stack.instances_of(SERVICES[0])?.len();
        if options.victim == INSTANCES && before < 2 {
            stack.set_instances(2).await?;
        }
        let reports = run_all(stack, options).await;
        if options.victim == INSTANCES && before < 2 {
            stack.set_instances(1).await?;
        }
        reports
    })
    .await?;
    let holds = reports.iter().all(Report::holds);
    if reports.len() > 1 {
        say("");
        table(&reports).iter().for_each(|line| say(line));
        let verdict = if holds { "every outage held" } else { "NOT every outage held" };
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        say(&format!("\nVERDICT  {verdict} ({} of them, {minutes:.0} minutes).", reports.len()));
    }
    Ok(holds)
}

async fn run_all(stack: &Stack, options: &Options) -> Result<Vec<Report>> {
    let outages = options.outages(stack)?;
    let mut reports = Vec::new();
    for outage in outages {
        stack.up().await?;
        let client = Client::of(stack)?;
        seed::run(&client).await?;
        // One that could not be run to its end is no reason to leave the others out.
        let report = one(stack, &client, &outage).await;
        let report = report.unwrap_or_else(|error| Report {
            victims: outage.victims.join(", "),
            kills: outage.kills,
            summary: Summary::default(),
            verify_holds: false,
            violated: BTreeSet::new(),
            standstills: Vec::new(),
            faults: vec![format!("it broke off: {error:#}")],
        });
        say(&format!("\nVERDICT  {}", report.verdict()));
        reports.push(report);
    }
    Ok(reports)
}

/// One outage on a stack where everything runs.
pub async fn one(stack: &Stack, client: &Client, outage: &Outage) -> Result<Report> {
    let Outage { rate, lasting, kills, down, drained_within, .. } = *outage;
    let who = outage.victims.join(", ");
    let times = times(kills);
    let each = if outage.watched { "one of them killed by turns" } else { "killed" };
    say(&format!("\nOutage: {who}, {each} {times}, for {} s each time", down.as_secs_f64()));
    step(1, &format!("{rate} orders a second for {} s", lasting.as_secs_f64()));
    let ended_before = stack.ends().await?;
    let load = Load { rate, lasting, drained_within, ..Load::default() };
    let mut watch = Watch::open(client).await?;
    // Nothing is spoiled here: a letter that is new is one that should not be.
    let spoiled = verify::letters_now(client).await?;
    let loaded = load::run(client, &load, kill_again_and_again(stack, outage));
    let (summary, faults) = if outage.watched {
        tokio::select! {
            loaded = loaded => loaded?,
            broken = watch.run() => return Err(broken.err().context("the watch ended")?),
        }
    } else {
        loaded.await?
    };
    step(2, "Every order is settled and must have ended");
    summary.lines().iter().for_each(|line| say(line));
    let standstills = if outage.watched { watch.standstills() } else { Vec::new() };
    if outage.watched {
        standstill_lines(&standstills, &summary).iter().for_each(|line| say(line));
    }
    step(3, "Nothing may be lost or done twice (make verify)");
    let verdict = verify::knowing(client, &verify::Options::default(), &spoiled).await?;
    verdict.lines().iter().for_each(|line| say(line));
    let mut report = Report {
        victims: if outage.watched { INSTANCES.to_string() } else { who },
        kills,
        verify_holds: verdict.holds(),
        violated: verdict
            .findings
            .violated()
            .union(&summary.findings.violated())
            .copied()
            .collect(),
        summary,
        standstills,
        faults,
    };
    let mut ends = stack.ends().await?;
    ends.retain(|end| !ended_before.contains(end));
    report.judge(outage, &ends);
    Ok(report)
}

/// Kills and starts the victims by turns while the load lasts, evenly spread. Answers whom it found
/// dead already.
async fn kill_again_and_again(stack: &Stack, outage: &Outage) -> Result<Vec<String>> {
    let began = Instant::now();
    let mut found_dead = Vec::new();
    let at = |began: Instant| format!("{:>6.1} s ", began.elapsed().as_secs_f64());
    ensure!(!outage.victims.is_empty(), "an outage has a victim");
    for (nth, victim) in (0..outage.kills).zip(outage.victims.iter().cycle()) {
        let every = outage.lasting / outage.kills;
        ensure!(outage.down < every, "{} kills do not fit into the load", outage.kills);
        // The first comes when half of its time has passed, so the load goes on after the last.
        sleep_until(began + every * nth + (every - outage.down) / 2).await;
        if !stack.kill(victim).await? {
            found_dead.push(format!("{victim} did not run when it was to be killed"));
        }
        say(&format!("{} SIGKILL to {victim}", at(began)));
        sleep(outage.down).await;
        let start = Instant::now();
        stack.start(victim).await.with_context(|| format!("starting {victim} again"))?;
        say(&format!(
            "{} {victim} is back, {:.1} s after its start",
            at(began),
            start.elapsed().as_secs_f64()
        ));
    }
    Ok(found_dead)
}

impl Report {
    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    fn judge(&mut self, outage: &Outage, ends: &[End]) {
        let Summary { accepted, unknown, refused, .. } = self.summary;
        if !self.summary.holds() {
            self.faults.push("the promise to a client was broken (step 2)".to_string());
        }
        if !self.verify_holds {
            self.faults.push("verify found something (step 3)".to_string());
        }
        if !self.violated.is_empty() {
            let violated: Vec<String> = self.violated.iter().map(Invariant::to_string).collect();
            self.faults.push(format!("violated is {}", violated.join(", ")));
        }
        // With another instance to take the order, a client is left in doubt and never refused.
        let takes_orders = |victim: &String| victim.starts_with("order");
        let may_doubt = outage.victims.iter().any(takes_orders);
        let excused = self.summary.excused();
        if unknown > excused && !may_doubt {
            self.faults.push(format!("{unknown} clients were left without an answer"));
        }
        if refused > excused && (!may_doubt || outage.watched) {
            self.faults.push(format!("{refused} clients were refused"));
        }
        // A run in which everything failed would hold as well.
        if accepted + unknown + refused < self.summary.placed || accepted * 5 < self.summary.placed
        {
            self.faults.push(format!("only {accepted} orders were accepted"));
        }
        self.faults.extend(ends::deaths(ends));
        for still in &self.standstills {
            let longest = still.consumer.max(still.relay);
            if longest > STANDSTILL_MAX {
                self.faults.push(format!(
                    "{} made no progress for {:.1} s",
                    still.service,
                    longest.as_secs_f64()
                ));
            }
        }
        if outage.watched && self.summary.longest_silence > STANDSTILL_MAX {
            let silence = self.summary.longest_silence.as_secs_f64();
            self.faults.push(format!("no order was accepted for {silence:.1} s"));
        }
    }

    fn verdict(&self) -> String {
        let Report { victims, kills, summary, faults, .. } = self;
        if !self.holds() {
            return format!("{victims}: BROKEN: {}.", faults.join("; "));
        }
        let still = self.standstills.iter().map(|still| still.consumer.max(still.relay)).max();
        let still = still.map_or(String::new(), |still| {
            format!(", no service stood still for more than {:.1} s", still.as_secs_f64())
        });
        format!(
            "{victims}: held. Killed {}; {} orders accepted and none lost, {} unknown outcomes \
             settled, all ended {:.1} s after the load{still}, verify found nothing.",
            times(*kills),
            grouped(summary.accepted),
            grouped(summary.unknown),
            summary.drained_in.as_secs_f64()
        )
    }
}

fn times(count: u32) -> String {
    if count == 1 { "once".to_string() } else { format!("{count} times") }
}

fn standstill_lines(standstills: &[Standstill], summary: &Summary) -> Vec<String> {
    let mut lines = vec!["  the longest time with work and without progress:".to_string()];
    for still in standstills {
        lines.push(format!(
            "    {:<12} consumer {:>4.1} s, relay {:>4.1} s",
            still.service,
            still.consumer.as_secs_f64(),
            still.relay.as_secs_f64()
        ));
    }
    let silence = summary.longest_silence.as_secs_f64();
    lines.push(format!("    {:<12} {silence:.1} s between two accepted orders", "API"));
    lines
}

fn table(reports: &[Report]) -> Vec<String> {
    let mut lines = vec![format!(
        "  {:<12} {:>5}  {:>8}  {:>7}  {:>7}  {:>9}  {:>8}  {:>6}  {}",
        "VICTIM",
        "KILLS",
        "ACCEPTED",
        "REFUSED",
        "UNKNOWN",
        "POST p99",
        "DRAINED",
        "VERIFY",
        "VERDICT"
    )];
    for report in reports {
        let summary = &report.summary;
        lines.push(format!(
            "  {:<12} {:>5}  {:>8}  {:>7}  {:>7}  {:>6.1} ms  {:>6.1} s  {:>6}  {}",
            report.victims,
            report.kills,
            grouped(summary.accepted),
            grouped(summary.refused),
            grouped(summary.unknown),
            summary.latency.p99.as_secs_f64() * 1_000.0,
            summary.drained_in.as_secs_f64(),
            if report.verify_holds { 0 } else { 1 },
            if report.holds() { "held".to_string() } else { report.faults.join("; ") }
        ));
    }
    lines
}
