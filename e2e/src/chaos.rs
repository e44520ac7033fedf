//! The long run: a stack of its own with a proxy in every way, rounds of load and faults drawn from a
//! seed, and after each round the proof that nothing was lost. A run that was broken off goes on with
//! its next round when it is asked for again.

use std::collections::BTreeMap;
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
use crate::round::{self, Arena, Round};
use crate::sights::Sight;
use crate::stack::state_directory;
use crate::{Ports, Stack, chaos_report, sabotage, seed, witness};

/// What half an hour has to have seen.
const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);
const KILLS_MIN: usize = 100;
const CLASSES_MIN: usize = 20;

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
    let stack = Stack::at_rest(&state_directory()?.join(format!("chaos-{seed}")))?;
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
    if outcome == Outcome::Violated {
        stack.down().await?;
        say(&format!("All data and logs stay in {}.", stack.directory().display()));
    } else {
        stack.clean().await?;
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
        let round = round::run(&arena, nth, &run.rounds).await;
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

    /// Every class that happened, and how often while orders were on their way.
    pub fn classes(&self) -> Vec<(Class, u64, u64)> {
        let of = |class| {
            let rounds = self.rounds.iter().map(Round::classes);
            let of_round = rounds.filter_map(|classes| classes.get(&class).copied());
            let (all, overlapping) = of_round.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
            (class, all, overlapping)
        };
        Class::all().map(of).filter(|(_, all, _)| *all > 0).collect()
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
        let alone = classes.iter().filter(|(_, _, overlapping)| *overlapping == 0);
        because.extend(
            alone.map(|(class, ..)| format!("no order was on its way whenever {}", class.says().0)),
        );
        if share >= 1.0 && classes.len() < CLASSES_MIN {
            because.push(format!("{} classes of faults, {CLASSES_MIN} at least", classes.len()));
        }
        let dealt: Vec<Class> = classes.iter().map(|(class, ..)| *class).collect();
        match self.rounds.last() {
            Some(last) => {
                because.extend(unseen(&last.seen, &dealt));
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
        let classes = self.classes();
        let overlapping = classes.iter().filter(|(_, _, overlapping)| *overlapping > 0).count();
        let what = format!(
            "SEED={}: {} rounds in {:.0} minutes, {} kills, {overlapping} classes of faults",
            self.seed,
            self.rounds.len(),
            self.took().as_secs_f64() / 60.0,
            self.kills(),
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

/// What never happened and should have, with these classes of faults.
fn unseen(seen: &BTreeMap<String, u64>, dealt: &[Class]) -> Vec<String> {
    let is_due = |sight: Sight| match sight {
        Sight::Deadline => dealt.contains(&Class::Deadline),
        Sight::LetterReplayed => dealt.contains(&Class::BadMigration),
        _ => true,
    };
    let never = |sight: &Sight| seen.get(sight.name()).is_none_or(|times| *times == 0);
    let unseen = Sight::ALL.into_iter().filter(|sight| is_due(*sight)).filter(never);
    unseen.map(|sight| format!("never seen: {}", sight.name())).collect()
}

impl Stack {
    /// A stack in this directory of which nothing runs, on free ports; whatever a broken-off run
    /// left is killed, and its data kept.
    fn at_rest(directory: &Path) -> Result<Stack> {
        if let Ok(left_behind) = Stack::open(directory) {
            left_behind.kill_everything()?;
        }
        Ok(Stack::at(directory, Ports::free()?)?.quiet())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_seen_is_missed_unless_no_fault_was_to_bring_it_about() {
        let all = Sight::ALL.into_iter().filter(|sight| *sight != Sight::Deadline);
        let mut seen: BTreeMap<String, u64> =
            all.map(|sight| (sight.name().to_string(), 3)).collect();
        assert_eq!(unseen(&seen, &[]), Vec::<String>::new());
        assert_eq!(unseen(&seen, &[Class::Deadline]).len(), 1);
        seen.insert(Sight::RelayResend.name().to_string(), 0);
        assert_eq!(unseen(&seen, &[]).len(), 1);
    }

    #[test]
    fn a_run_without_a_round_says_nothing() {
        assert_eq!(Run::default().outcome(30), Outcome::Inconclusive);
    }
}
