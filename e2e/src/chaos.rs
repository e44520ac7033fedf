//! The long run: a stack of its own with a proxy in every way, rounds of load and faults drawn from a
//! seed, and after each round the proof that nothing was lost. A run that was broken off goes on with
//! its next round when it is asked for again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::client::Client;
use crate::fault::{self, Class};
use crate::footprint::Footprint;
use crate::narration::say;
use crate::pairs::Pairs;
use crate::round::{self, Arena, Round, Times};
use crate::sights::Sight;
use crate::stack::{lock_run, state_directory};
use crate::{Ports, Stack, chaos_report, sabotage, seed, witness};

/// What half an hour has to have seen.
/// How far the registry may be behind: poison is set aside within a round.
const REGISTRY_LAG_SECONDS: u32 = 10;

const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);
const KILLS_MIN: usize = 100;
const CLASSES_MIN: usize = 20;

/// Of all faults, so many at most may have failed or come too late for their round.
const LOST_PERCENT_MAX: usize = 10;

/// A run that is slow goes on until it has seen that, for half as long again at most.
const LONGEST: f64 = 1.5;

/// A chaos run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// For how long rounds begin; each takes two to three minutes
    #[arg(long, default_value_t = 30)]
    pub minutes: u64,
    /// What everything is drawn from; drawn itself, and said, if not named
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where the report goes
    #[arg(long, default_value = "target/chaos")]
    pub into: PathBuf,
}

/// All that is remembered of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    pub seed: u64,
    pub instances: u16,
    pub rounds: Vec<Round>,
    /// How often it was broken off and went on.
    pub resumed: u64,
    /// What could not even be run.
    pub broken_off: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Held,
    /// It says nothing: something that it is about did not happen.
    Inconclusive,
    Violated,
}

/// Runs rounds until the time is up or something is violated.
pub async fn run(options: &Options) -> Result<Outcome> {
    let seed = options.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    let name = format!("chaos-{seed}");
    let _lock = lock_run(&name).await?;
    let stack = Stack::at_rest(&state_directory()?.join(name))?;
    let file = stack.directory().join("rounds.json");
    let mut run = read(&file, seed)?;
    say(&format!(
        "Chaos with SEED={seed}: {} of each service, {} orders a second, a proxy in each of nine ways.",
        run.instances,
        round::RATE
    ));
    if !run.rounds.is_empty() {
        run.resumed += 1;
        say(&format!("It was broken off after {} rounds, and goes on.", run.rounds.len()));
    }
    let mut terminated = signal(SignalKind::terminate())?;
    let ran = tokio::select! {
        ran = rounds(&stack, &mut run, options.minutes, &file) => ran,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("terminated")),
    };
    if ran.as_ref().is_err_and(|error| ["interrupted", "terminated"].contains(&&*error.to_string()))
    {
        stack.kill_everything()?;
        bail!("broken off: the same command with SEED={seed} goes on with the next round");
    }
    run.broken_off = ran.err().map(|error| format!("{error:#}"));
    let outcome = run.outcome(options.minutes);
    let report = chaos_report::write(&run, options.minutes, &options.into)?;
    say(&format!("\nVERDICT  {}", run.says(options.minutes)));
    say(&format!("The report is in {}.", report.display()));
    if outcome == Outcome::Held {
        stack.clean().await?;
    } else {
        stack.down().await?;
        say(&format!("All data and logs stay in {}.", stack.directory().display()));
    }
    Ok(outcome)
}

/// What was written down of a run that was broken off, or a new one.
fn read(file: &Path, seed: u64) -> Result<Run> {
    if file.exists() {
        let text = fs::read(file)?;
        return serde_json::from_slice(&text).with_context(|| format!("{}", file.display()));
    }
    let instances = fault::lots(seed, 0, 0).random_range(1..=2);
    Ok(Run { seed, instances, ..Run::default() })
}

async fn rounds(stack: &Stack, run: &mut Run, minutes: u64, file: &Path) -> Result<()> {
    if run.is_over(minutes) {
        return Ok(());
    }
    let pairs = Pairs::between(stack).await?;
    stack.set_instances(run.instances).await?;
    let began = Instant::now();
    // A run that was broken off amid a fault left it as it was.
    sabotage::mend_all(stack).await.context("mending the stack")?;
    stack.up().await.context("starting the stack")?;
    let client = Client::of(stack)?;
    seed::run(&client).await?;
    witness::install(&client).await?;
    let footprint = Footprint::of(stack, &client).await?;
    say(&format!("Everything runs after {:.1} s.", began.elapsed().as_secs_f64()));
    while !run.is_over(minutes) {
        let nth = run.rounds.len() as u64;
        say(&format!(
            "\nRound {}, {:.0} of {minutes} minutes",
            nth + 1,
            run.took().as_secs_f64() / 60.0
        ));
        let (instances, seed) = (run.instances, run.seed);
        let (client, pairs, footprint) = (&client, &pairs, &footprint);
        let arena = Arena { stack, client, pairs, instances, seed, footprint };
        let round = round::run(&arena, nth).await;
        let round = round.with_context(|| format!("round {} could not be run", nth + 1))?;
        say(&round.verdict());
        round.violations.iter().for_each(|violation| say(&format!("  VIOLATED  {violation}")));
        run.rounds.push(round);
        let fresh = file.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(run)?)?;
        fs::rename(fresh, file)?;
    }
    Ok(())
}

impl Run {
    pub fn took(&self) -> Duration {
        self.rounds.iter().map(|round| round.took).sum()
    }

    pub fn kills(&self) -> usize {
        self.rounds.iter().map(Round::kills).sum()
    }

    pub fn is_violated(&self) -> bool {
        self.rounds.iter().any(|round| !round.violations.is_empty())
    }

    /// Every class that was drawn.
    pub fn classes(&self) -> Vec<(Class, Times)> {
        let of = |class| {
            let rounds = self.rounds.iter().map(Round::classes);
            let times = rounds.filter_map(|classes| classes.get(&class).copied());
            (class, times.sum::<Times>())
        };
        Class::all().map(of).filter(|(_, times)| times.drawn > 0).collect()
    }

    fn overlapping_classes(&self) -> usize {
        self.classes().iter().filter(|(_, times)| times.overlapping > 0).count()
    }

    fn is_over(&self, minutes: u64) -> bool {
        let wanted = Duration::from_secs(minutes * 60);
        let time_is_up = !self.rounds.is_empty() && self.took() >= wanted;
        let too_long = self.took() >= wanted.mul_f64(LONGEST);
        self.is_violated() || too_long || time_is_up && self.inconclusive(minutes).is_empty()
    }

    /// Why it says nothing, where that is so.
    pub fn inconclusive(&self, minutes: u64) -> Vec<String> {
        let mut because: Vec<String> = self.broken_off.iter().cloned().collect();
        for round in self.rounds.iter().filter(|round| !round.void.is_empty()) {
            because.push(format!("round {} is void: {}", round.nth + 1, round.void.join(", ")));
        }
        let classes = self.classes();
        let share = (minutes as f64 * 60.0 / HALF_AN_HOUR.as_secs_f64()).min(1.0);
        let kills_min = (KILLS_MIN as f64 * share) as usize;
        if self.kills() < kills_min {
            because.push(format!("{} kills, {kills_min} at least", self.kills()));
        }
        let is_full = share >= 1.0;
        because.extend(classes.iter().filter_map(|(class, times)| missed(*class, times, is_full)));
        let faults = self.rounds.iter().flat_map(|round| &round.faults);
        let lost = faults.clone().filter(|struck| !struck.happened.counts()).count();
        if lost * 100 > faults.count() * LOST_PERCENT_MAX {
            because.push(format!(
                "{lost} faults failed or came too late, {LOST_PERCENT_MAX} of a hundred at most"
            ));
        }
        let overlapping = self.overlapping_classes();
        if is_full && overlapping < CLASSES_MIN {
            because.push(format!("{overlapping} classes of faults, {CLASSES_MIN} at least"));
        }
        let befell = |class| classes.iter().any(|(of, times)| *of == class && times.befell > 0);
        let is_due = |sight: &Sight| match sight {
            Sight::Deadline => is_full || befell(Class::Deadline),
            Sight::LetterReplayed => is_full || befell(Class::BadMigration),
            _ => true,
        };
        let due: Vec<Sight> = Sight::ALL.into_iter().filter(is_due).collect();
        match self.rounds.last() {
            Some(last) => {
                let unseen = last.seen.lacks(&due);
                because.extend(unseen.iter().map(|sight| format!("never seen: {}", sight.name())));
            }
            None => because.push("there was no round".to_string()),
        }
        because
    }

    pub fn outcome(&self, minutes: u64) -> Outcome {
        match (self.is_violated(), self.inconclusive(minutes).is_empty()) {
            (true, _) => Outcome::Violated,
            (false, true) => Outcome::Held,
            (false, false) => Outcome::Inconclusive,
        }
    }

    pub fn says(&self, minutes: u64) -> String {
        let what = format!(
            "SEED={}: {} rounds in {:.0} minutes, {} kills, {} classes of faults",
            self.seed,
            self.rounds.len(),
            self.took().as_secs_f64() / 60.0,
            self.kills(),
            self.overlapping_classes(),
        );
        match self.outcome(minutes) {
            Outcome::Held => format!("held. {what}, nothing was lost and nothing happened twice."),
            Outcome::Violated => format!("VIOLATED. {what}."),
            Outcome::Inconclusive => {
                format!("INCONCLUSIVE: {}. {what}.", self.inconclusive(minutes).join("; "))
            }
        }
    }
}

/// Why a class of faults says nothing, where that is so. A short run has each about once, which may
/// strike nothing; a full one has it again and again.
fn missed(class: Class, times: &Times, is_full: bool) -> Option<String> {
    let what = class.says().0;
    match times {
        Times { befell: 0, .. } if is_full => Some(format!("it never came about that {what}")),
        Times { struck: 0, .. } if is_full => Some(format!("nothing was struck whenever {what}")),
        Times { struck: 1.., overlapping: 0, .. } => {
            Some(format!("no order was on its way whenever {what}"))
        }
        _ => None,
    }
}

impl Stack {
    /// A stack in this directory of which nothing runs, on free ports; whatever a broken-off run
    /// left is killed, and its data kept.
    fn at_rest(directory: &Path) -> Result<Stack> {
        if let Ok(left_behind) = Stack::open(directory) {
            left_behind.kill_everything()?;
        }
        let stack = Stack::at(directory, Ports::free()?)?.quiet();
        stack.set_registry_lag(REGISTRY_LAG_SECONDS)?;
        Ok(stack)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::fault::Fault;
    use crate::nemesis::Happened;
    use crate::round::Struck;
    use crate::sights::Sights;

    /// So many rounds whose faults all struck while orders were on their way, and that saw everything.
    fn whole(rounds: u64) -> Run {
        let round = |nth| {
            let faults = fault::draw(1, nth, 1, round::LOAD).into_iter().map(struck).collect();
            let mut seen = Sights::default();
            Sight::ALL.into_iter().for_each(|sight| seen.saw(sight, 1));
            Round { nth, faults, seen, took: Duration::from_secs(180), ..Round::default() }
        };
        Run { rounds: (0..rounds).map(round).collect(), ..Run::default() }
    }

    fn struck(fault: Fault) -> Struck {
        let (at, began, ended) = (fault.at, DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH);
        let (struck, broken, failed, left_out) = (1, None, None, false);
        let happened = Happened { fault, at, began, ended, struck, broken, failed, left_out };
        Struck { happened, orders_in_flight: 1 }
    }

    /// The same, but for what is done to every fault of a class.
    fn but(mut run: Run, class: Class, change: impl Fn(&mut Struck)) -> Run {
        let faults = run.rounds.iter_mut().flat_map(|round| &mut round.faults);
        faults.filter(|struck| struck.happened.fault.class == class).for_each(change);
        run
    }

    #[test]
    fn a_full_run_holds_only_if_every_class_that_was_drawn_struck() {
        assert_eq!(whole(10).inconclusive(30), Vec::<String>::new());
        for class in [Class::Deadline, Class::BlackHole, Class::KillService] {
            let failed = |it: &mut Struck| it.happened.failed = Some("it was away".to_string());
            assert!(!but(whole(10), class, failed).inconclusive(30).is_empty());
            let nothing = |it: &mut Struck| it.happened.struck = 0;
            assert_eq!(but(whole(10), class, nothing).inconclusive(30).len(), 1);
            assert_eq!(but(whole(2), class, nothing).inconclusive(5), Vec::<String>::new());
            let alone = |it: &mut Struck| it.orders_in_flight = 0;
            assert_eq!(but(whole(10), class, alone).inconclusive(30).len(), 1);
        }
    }

    #[test]
    fn a_full_run_has_seen_everything_and_a_short_one_what_its_faults_bring_about() {
        let without = |sight, mut run: Run| {
            let mut seen = Sights::default();
            let others = Sight::ALL.into_iter().filter(|other| *other != sight);
            others.for_each(|sight| seen.saw(sight, 1));
            run.rounds.last_mut().unwrap().seen = seen;
            run
        };
        let failed = |it: &mut Struck| it.happened.failed = Some("it was away".to_string());
        for (sight, class) in
            [(Sight::Deadline, Class::Deadline), (Sight::LetterReplayed, Class::BadMigration)]
        {
            let full = but(without(sight, whole(10)), class, failed).inconclusive(30);
            assert!(full.contains(&format!("never seen: {}", sight.name())), "{full:?}");
            assert_eq!(without(sight, whole(3)).inconclusive(5).len(), 1);
            let short = but(without(sight, whole(3)), class, failed);
            assert_eq!(short.inconclusive(5), Vec::<String>::new());
        }
        assert_eq!(without(Sight::RelayResend, whole(3)).inconclusive(5).len(), 1);
    }

    #[test]
    fn a_run_whose_faults_failed_too_often_says_nothing() {
        let mut run = whole(2);
        let faults = run.rounds.iter_mut().flat_map(|round| &mut round.faults);
        faults.step_by(9).for_each(|it| it.happened.left_out = true);
        assert_eq!(run.inconclusive(3).len(), 1, "{:?}", run.inconclusive(3));
    }

    #[test]
    fn a_run_without_a_round_says_nothing() {
        assert_eq!(Run::default().outcome(30), Outcome::Inconclusive);
    }
}
