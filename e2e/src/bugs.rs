//! Seeded bugs: what the fault suite is worth is how much of what is wrong it finds. Each is a patch in
//! `e2e/bugs`, put into a scratch copy of the checkout, built there, and run through the trial that
//! is to catch it, by the invariant that it is to be caught by. The code that people fork holds none
//! of them. Each trial runs with our own programs as well, and finds nothing then.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;

use crate::findings::Findings;
use crate::invariants::Invariant::{self, *};
use crate::narration::say;
use crate::scratch::Scratch;
use crate::stack::programs;
use crate::template::checkout;
use crate::trial::{Programs, Trial, Trouble};

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only these, as in `B1 B7`; all of them if none is named
    pub only: Vec<String>,
    /// Leave out the trials with our own programs
    #[arg(long)]
    pub without_controls: bool,
}

/// A bug, and what is to catch it.
#[derive(Clone, Copy, Debug)]
pub struct Bug {
    pub id: &'static str,
    pub what: &'static str,
    pub violates: Invariant,
    pub catcher: Catcher,
    /// The one service that has it; `None`: all.
    pub service: Option<&'static str>,
}

/// What is run to bring it to light.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Catcher {
    Trial(Trial),
    /// A test of the chassis: of what a real broker can't be made to do.
    Test(&'static str),
}

const fn bug(id: &'static str, what: &'static str, violates: Invariant, trouble: Trouble) -> Bug {
    let catcher = Catcher::Trial(Trial { trouble, instances: 1 });
    Bug { id, what, violates, catcher, service: None }
}

const fn of_two(bug: Bug) -> Bug {
    match bug.catcher {
        Catcher::Trial(trial) => {
            Bug { catcher: Catcher::Trial(Trial { instances: 2, ..trial }), ..bug }
        }
        Catcher::Test(_) => bug,
    }
}

const fn by_test(test: &'static str, bug: Bug) -> Bug {
    Bug { catcher: Catcher::Test(test), ..bug }
}

const fn of(service: &'static str, bug: Bug) -> Bug {
    Bug { service: Some(service), ..bug }
}

/// Its broker tells a producer that it is out of sequence, which no real one can be made to do.
const BEYOND_REPAIR: &str = "a_producer_beyond_repair_is_replaced_and_loses_nothing";

/// Its broker refuses the first of two requests that are under way and takes the second: of a real one, that
/// is a moment.
const SUPPOSED: &str =
    "what_no_broker_acknowledged_is_sent_again_though_the_client_takes_it_for_written";

/// The ids are names and nothing more. There is no B14: it was about a payment provider, and payment
/// has none.
pub const BUGS: [Bug; 16] = [
    bug("B1", "offset stored before the commit", I13, Trouble::DatabaseThenService("payment")),
    bug("B2", "inbox in its own transaction", I7, Trouble::Closed("payment", "payments")),
    bug("B3", "outbox outside the transaction", I11, Trouble::Closed("order", "orders")),
    bug("B4", "outbox row deleted when it is sent", I8, Trouble::KafkaThenService("order")),
    bug("B5", "relay goes on after the last position", I8, Trouble::LongTails("order")),
    of_two(bug("B6", "two active relays", I9, Trouble::Nothing)),
    bug("B7", "no tombstone in stock", I4, Trouble::Overtaken("stock")),
    bug("B8", "no tombstone in payment", I5, Trouble::Overtaken("payment")),
    of_two(bug("B9", "items not locked", I6, Trouble::Nothing)),
    of("payment", bug("B10", "a new group skips", I13, Trouble::StartedLate("payment"))),
    bug("B11", "the first of two answers dropped", I13, Trouble::Nothing),
    bug("B12", "dead letter of what would pass", I10, Trouble::Closed("payment", "payments")),
    bug("B13", "key outside the transaction", I2, Trouble::Closed("order", "idempotency_keys")),
    bug("B15", "a task ends unnoticed", I13, Trouble::DatabaseAway("payment")),
    by_test(BEYOND_REPAIR, bug("B16", "a dead producer is kept", I13, Trouble::Nothing)),
    by_test(SUPPOSED, bug("B17", "taken for written without an offset", I8, Trouble::Nothing)),
];

/// How a bug fared, or a trial without one.
struct Row {
    id: &'static str,
    what: &'static str,
    catcher: String,
    meant: Option<Invariant>,
    violated: BTreeSet<Invariant>,
    /// Why it is not as it should be.
    fault: Option<String>,
    took: Duration,
}

/// Where a bug's patch lies.
pub fn patch(root: &Path, bug: &Bug) -> PathBuf {
    root.join("e2e/bugs").join(format!("{}.patch", bug.id))
}

/// Runs what was asked for, writes the table into `target/bugs.md`, and answers whether every bug
/// was caught and nothing found without one.
pub async fn run(options: &Options) -> Result<bool> {
    let known = |id: &&String| BUGS.iter().any(|bug| bug.id == **id);
    let unknown = options.only.iter().find(|id| !known(id));
    ensure!(unknown.is_none(), "there is no bug {}", unknown.map_or("", String::as_str));
    let is_wanted = |bug: &&Bug| options.only.is_empty() || options.only.contains(&bug.id.into());
    let bugs: Vec<&Bug> = BUGS.iter().filter(is_wanted).collect();
    let mut rows = Vec::new();
    if !options.without_controls {
        // The tests run without a bug wherever tests are run.
        let trials = bugs.iter().filter_map(|bug| match bug.catcher {
            Catcher::Trial(trial) => Some(trial),
            Catcher::Test(_) => None,
        });
        for trial in trials.collect::<BTreeSet<Trial>>() {
            note(&mut rows, control(&trial).await);
        }
    }
    let root = checkout()?;
    let scratch = Scratch::copy_for_many_builds("bugs").await?;
    for bug in bugs {
        note(&mut rows, seeded(&root, &scratch, bug).await);
    }
    let table = table(&rows);
    say("");
    table.iter().for_each(|line| say(line));
    let file = scratch.root.ancestors().nth(2).context("a scratch copy lies in target")?;
    std::fs::write(file.join("bugs.md"), table.join("\n") + "\n")?;
    let faults = rows.iter().filter(|row| row.fault.is_some()).count();
    say(&format!("\nVERDICT  {} of {} as they should be.", rows.len() - faults, rows.len()));
    Ok(faults == 0)
}

fn note(rows: &mut Vec<Row>, row: Row) {
    let outcome = row.fault.clone().unwrap_or_else(|| format!("as it should be: {}", row.caught()));
    say(&format!("{:>6.1} s  {} ({}): {outcome}", row.took.as_secs_f64(), row.id, row.catcher));
    rows.push(row);
}

/// A trial that finds something where there is nothing catches no bug.
async fn control(trial: &Trial) -> Row {
    let began = Instant::now();
    let ran = trial.run(None).await.and_then(|proof| proof.holds());
    let fault = ran.err().map(|error| format!("{error:#}"));
    let (catcher, took, violated) = (trial.describe(), began.elapsed(), BTreeSet::new());
    Row { id: "-", what: "no bug", catcher, meant: None, violated, fault, took }
}

async fn seeded(root: &Path, scratch: &Scratch, bug: &Bug) -> Row {
    let began = Instant::now();
    let ran = tried(root, scratch, bug).await;
    let (violated, fault) = match ran {
        Ok(findings) => {
            let violated = findings.violated();
            let is_caught = violated.contains(&bug.violates);
            let shown = || findings.lines().join("\n");
            let fault = format!("NOT CAUGHT by {}:\n{}", bug.violates, shown());
            (violated, (!is_caught).then_some(fault))
        }
        Err(error) => (BTreeSet::new(), Some(format!("it broke off: {error:#}"))),
    };
    let catcher = match bug.catcher {
        Catcher::Trial(trial) => trial.describe(),
        Catcher::Test(test) => format!("`{test}`"),
    };
    let (meant, took) = (Some(bug.violates), began.elapsed());
    Row { id: bug.id, what: bug.what, catcher, meant, violated, fault, took }
}

/// Puts it in, builds, takes it out again, and tries what was built.
async fn tried(root: &Path, scratch: &Scratch, bug: &Bug) -> Result<Findings> {
    let patch = patch(root, bug);
    scratch.patch(&patch, false).await.context("it does not apply")?;
    let build: &[&str] = match bug.catcher {
        Catcher::Trial(_) => &["build", "--bin=order", "--bin=payment", "--bin=stock"],
        Catcher::Test(_) => &["test", "--lib", "--no-run"],
    };
    let built = scratch.cargo(build).await;
    let ran = match (built, bug.catcher) {
        (Err(broken), _) => Err(broken.context("it does not compile")),
        (Ok(_), Catcher::Trial(trial)) => {
            let programs = scratch.programs();
            let programs = Programs { directory: &programs, service: bug.service };
            trial.run(Some(programs)).await.map(|proof| proof.findings)
        }
        (Ok(_), Catcher::Test(test)) => tested(scratch, bug, test).await,
    };
    scratch.patch(&patch, true).await?;
    ran
}

/// Runs a test of the chassis on parts of its own. One that fails is a finding.
async fn tested(scratch: &Scratch, bug: &Bug, test: &str) -> Result<Findings> {
    let cargo = format!("cargo test --workspace --profile ci --locked --lib -- {test}");
    let ran = scratch.run(programs()?.join("e2e"), &["with-parts", "--", "sh", "-c", &cargo]).await;
    let mut findings = Findings::default();
    if let Err(failed) = ran {
        let told = format!("{failed:#}");
        ensure!(told.contains(&format!("{test} ... FAILED")), "{told}");
        findings.add(bug.violates, "test", || format!("{test} failed"));
    }
    Ok(findings)
}

impl Row {
    fn caught(&self) -> String {
        if self.meant.is_none() {
            return "nothing found".to_string();
        }
        let mut named: Vec<Invariant> = self.meant.into_iter().collect();
        named.extend(self.violated.iter().filter(|violated| Some(**violated) != self.meant));
        let named: Vec<String> = named.iter().map(Invariant::to_string).collect();
        format!("caught by {}", named.join(", "))
    }
}

/// In Markdown.
fn table(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![
        "| bug | what | brought to light by | verdict | s |".into(),
        "| --- | --- | --- | --- | --- |".into(),
    ];
    for row in rows {
        let verdict = match row.fault {
            Some(_) => "**RED**".to_string(),
            None => row.caught(),
        };
        let Row { id, what, catcher, took, .. } = row;
        lines
            .push(format!("| {id} | {what} | {catcher} | {verdict} | {:.0} |", took.as_secs_f64()));
    }
    lines
}
