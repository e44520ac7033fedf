//! One round of a chaos run: load and faults, all healed, every order ended, everything checked.

use std::collections::BTreeMap;
use std::iter::{self, Sum};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::client::Client;
use crate::fault::{self, Class};
use crate::figures::grouped;
use crate::footprint::Footprint;
use crate::history::Summary;
use crate::invariants::Invariant::I13;
use crate::leaders::Leaders;
use crate::load::{self, Load};
use crate::narration::say;
use crate::nemesis::{Happened, Nemesis};
use crate::pairs::Pairs;
use crate::sights::Sights;
use crate::verdict::Verdict;
use crate::{Stack, ends, replays, strangers, verify};

/// How long orders are placed, with faults, and how many a second.
pub const LOAD: Duration = Duration::from_secs(90);
pub const RATE: u32 = 40;

/// How long every order may take to end once everything is healed, and everything to rest.
const DRAINED_WITHIN: Duration = Duration::from_secs(120);

/// What a round has to come to, or it says nothing: orders that were confirmed, that a customer or the
/// deadline cancelled, and that payment or stock turned down.
const ENDED_MIN: [(&str, u64); 4] =
    [("confirmed", 500), ("cancelled", 50), ("declined", 20), ("rejected", 20)];

/// A round that was run to its end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Round {
    pub nth: u64,
    pub faults: Vec<Struck>,
    pub accepted: u64,
    pub refused: u64,
    pub unknown: u64,
    pub confirmed: u64,
    /// By reason.
    pub cancelled: BTreeMap<String, u64>,
    pub records: u64,
    pub drained_in: Duration,
    pub verified_in: Duration,
    pub took: Duration,
    /// What was broken, word for word.
    pub violations: Vec<String>,
    /// What keeps the round from saying anything.
    pub void: Vec<String>,
    /// How often each of what happens sometimes did, in the whole run so far.
    pub seen: Sights,
}

/// How often the faults of a class were drawn, came about, struck anything, and did so while orders
/// were on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub drawn: u64,
    pub befell: u64,
    pub struck: u64,
    pub overlapping: u64,
}

/// A fault, and how many orders were on their way meanwhile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Struck {
    pub happened: Happened,
    pub orders_in_flight: i64,
}

impl Sum for Times {
    fn sum<I: Iterator<Item = Times>>(all: I) -> Times {
        all.fold(Times::default(), |sum, times| Times {
            drawn: sum.drawn + times.drawn,
            befell: sum.befell + times.befell,
            struck: sum.struck + times.struck,
            overlapping: sum.overlapping + times.overlapping,
        })
    }
}

/// Where rounds take place.
pub struct Arena<'a> {
    pub stack: &'a Stack,
    pub client: &'a Client,
    pub pairs: &'a Pairs,
    pub instances: u16,
    pub seed: u64,
    /// What everything took up before.
    pub footprint: &'a Footprint,
}

/// Runs the nth round. What does not work although everything is healed is a violation, and what
/// happened until then is kept.
pub async fn run(arena: &Arena<'_>, nth: u64) -> Result<Round> {
    let Arena { stack, client, pairs, instances, seed, footprint } = *arena;
    let began = Instant::now();
    let faults = fault::draw(seed, nth, instances, LOAD);
    let nemesis = Nemesis::new(stack, client, pairs, instances, &faults);
    let ended_before = stack.ends().await?;
    let load = Load {
        rate: RATE,
        lasting: LOAD,
        cancelled_percent: 10,
        repeated_percent: 20,
        disconnected_percent: 2,
        lines_max: 8,
        seed: Some(fault::lots_seed(seed, nth)),
        drained_within: DRAINED_WITHIN,
        ..Load::default()
    };
    let (mut happened, mut healed) = (Vec::new(), Ok(()));
    let loaded = load::run(client, &load, async {
        happened = nemesis.run(&faults, LOAD).await;
        healed = nemesis.heal_all().await;
        say(&format!("{:>6.1} s  all was to be healed", began.elapsed().as_secs_f64()));
        Ok(())
    })
    .await;
    if happened.is_empty() {
        loaded?;
        bail!("no fault was drawn");
    }

    let mut round = Round { nth, ..Round::default() };
    round.has_to("healing everything", healed);
    if let Some((summary, ())) = round.has_to("ending the load", loaded) {
        round.enter_load(&summary);
    }
    // Meanwhile nothing is broken: while something is, who was cut off may take itself for the leader.
    let mut leaders = Leaders::default();
    let checked = tokio::select! {
        checked = verified(client) => checked,
        broken = leaders.watch(stack, client) => broken.and_then(|()| bail!("the watch ended")),
    };
    if let Some(mut verdict) = round.has_to("checking", checked) {
        leaders.check(&mut verdict.findings);
        if let Some(now) = round.has_to("measuring", Footprint::of(stack, client).await) {
            now.check(footprint, &mut verdict.findings);
        }
        let copies = round.has_to("counting the copies", replays::copies(client).await);
        round.enter_verdict(&verdict, copies.unwrap_or_default());
    }
    for Happened { fault, broken, .. } in &happened {
        round.violations.extend(broken.iter().map(|broken| format!("{fault}: {broken}")));
    }
    let mut ends = stack.ends().await?;
    ends.retain(|end| !ended_before.contains(end));
    // Of a database whose backend was killed, the postmaster lives on.
    round.violations.extend(ends::deaths(&ends));
    let counted = in_flight(client, &happened).await;
    let counted = round.has_to("counting the orders", counted).unwrap_or_default();
    let counted = counted.into_iter().chain(iter::repeat(0));
    let struck = happened.into_iter().zip(counted);
    round.faults =
        struck.map(|(happened, orders_in_flight)| Struck { happened, orders_in_flight }).collect();
    round.took = began.elapsed();
    Ok(round)
}

/// The checker's word for it.
async fn verified(client: &Client) -> Result<Verdict> {
    let options = verify::Options { within: DRAINED_WITHIN };
    verify::asking(client, &options, async || strangers::spoiled(client).await).await
}

/// Of each fault, the orders that were pending at some moment of it.
async fn in_flight(client: &Client, happened: &[Happened]) -> Result<Vec<i64>> {
    let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
    let mut counts = Vec::new();
    for Happened { began, ended, .. } in happened {
        let count = sqlx::query_scalar(
            "select count(*) from orders
             where created_at <= $2 and (ended_at is null or ended_at >= $1)",
        );
        counts.push(count.bind(began).bind(ended).fetch_one(&mut db).await?);
    }
    Ok(counts)
}

impl Round {
    /// Once everything is healed this has to work, or the stack does not come back to life.
    fn has_to<T>(&mut self, what: &str, done: Result<T>) -> Option<T> {
        done.inspect_err(|error| {
            self.violations.push(format!("{what} did not succeed ({I13}): {error:#}"))
        })
        .ok()
    }

    fn enter_load(&mut self, summary: &Summary) {
        say(&format!(
            "         {} accepted, {} refused, {} unknown at first; all ended {:.1} s after",
            grouped(summary.accepted),
            grouped(summary.refused),
            grouped(summary.unknown),
            summary.drained_in.as_secs_f64()
        ));
        if !summary.holds() {
            let lines = summary.lines().join("\n");
            self.violations.push(format!("a promise to a client:\n{lines}"));
        }
        self.accepted = summary.accepted;
        self.refused = summary.refused;
        self.unknown = summary.unknown;
        self.confirmed = summary.confirmed;
        self.cancelled = summary.cancelled.clone();
        self.drained_in = summary.drained_in;
        self.void.extend(too_few(summary.confirmed, &summary.cancelled));
    }

    fn enter_verdict(&mut self, verdict: &Verdict, copies: u64) {
        if !verdict.holds() {
            let lines = verdict.lines().join("\n");
            self.violations.push(format!("the checker:\n{lines}"));
        }
        if verdict.changes.is_none_or(|changes| changes == 0) {
            self.void.push("the databases wrote down no change of theirs".to_string());
        }
        self.records = verdict.records;
        self.verified_in = verdict.took;
        self.seen = Sights::of(verdict, copies);
    }

    pub fn kills(&self) -> usize {
        let struck = self.faults.iter().map(|struck| &struck.happened);
        let kills = struck.filter(|happened| happened.fault.class.is_kill());
        kills.filter(|happened| happened.counts()).count()
    }

    pub fn other_faults(&self) -> usize {
        self.faults.iter().filter(|struck| struck.happened.counts()).count() - self.kills()
    }

    pub fn classes(&self) -> BTreeMap<Class, Times> {
        let mut classes = BTreeMap::<Class, Times>::new();
        for Struck { happened, orders_in_flight } in &self.faults {
            let times = classes.entry(happened.fault.class).or_default();
            let befell = happened.counts();
            let struck = befell && happened.struck > 0;
            times.drawn += 1;
            times.befell += u64::from(befell);
            times.struck += u64::from(struck);
            times.overlapping += u64::from(struck && *orders_in_flight > 0);
        }
        classes
    }

    pub fn verdict(&self) -> String {
        let cancelled: u64 = self.cancelled.values().sum();
        let verdict = match (self.violations.is_empty(), self.void.is_empty()) {
            (false, _) => "VIOLATED".to_string(),
            (true, false) => format!("void: {}", self.void.join(", ")),
            (true, true) => "held".to_string(),
        };
        format!(
            "round {}: {verdict}. {} kills, {} other faults; {} orders confirmed, {} cancelled; \
             drained in {:.1} s, {} records verified in {:.1} s",
            self.nth + 1,
            self.kills(),
            self.other_faults(),
            grouped(self.confirmed),
            grouped(cancelled),
            self.drained_in.as_secs_f64(),
            grouped(self.records),
            self.verified_in.as_secs_f64()
        )
    }
}

/// What too few orders came to.
fn too_few(confirmed: u64, cancelled: &BTreeMap<String, u64>) -> impl Iterator<Item = String> {
    let by =
        |reasons: &[&str]| reasons.iter().filter_map(|reason| cancelled.get(*reason)).sum::<u64>();
    let counts = [
        confirmed,
        by(&["customer", "deadline"]),
        by(&["payment_declined"]),
        by(&["stock_rejected"]),
    ];
    let ended = ENDED_MIN.into_iter().zip(counts);
    let few = ended.filter(|((_, least), count)| count < least);
    few.map(|((how, least), count)| format!("only {count} {how}, {least} at least"))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::fault::Fault;

    #[test]
    fn orders_that_were_turned_down_are_none_that_were_cancelled() {
        let mut cancelled: BTreeMap<String, u64> =
            [("customer", 45), ("deadline", 5), ("payment_declined", 20), ("stock_rejected", 20)]
                .map(|(reason, count)| (reason.to_string(), count))
                .into();
        assert_eq!(too_few(500, &cancelled).count(), 0);
        cancelled.insert("customer".to_string(), 44);
        cancelled.insert("payment_declined".to_string(), 900);
        assert_eq!(
            too_few(500, &cancelled).collect::<Vec<_>>(),
            ["only 49 cancelled, 50 at least"]
        );
    }

    #[test]
    fn what_does_not_work_once_all_is_healed_is_a_violation_and_the_round_goes_on() {
        let mut round = Round::default();
        assert_eq!(round.has_to("healing everything", Ok(7)), Some(7));
        assert!(round.violations.is_empty());
        assert_eq!(round.has_to::<()>("healing everything", Err(anyhow::anyhow!("away"))), None);
        assert_eq!(round.violations, ["healing everything did not succeed (I13): away"]);
    }

    #[test]
    fn a_fault_that_struck_nothing_met_no_order() {
        let struck = |struck, failed: Option<&str>| {
            let fault = fault::draw(1, 0, 1, LOAD).remove(0);
            let fault = Fault { class: Class::SessionsEnded, ..fault };
            let (at, began) = (fault.at, DateTime::UNIX_EPOCH);
            let failed = failed.map(String::from);
            let (broken, left_out, ended) = (None, false, began);
            let happened = Happened { fault, at, began, ended, struck, broken, failed, left_out };
            Struck { happened, orders_in_flight: 9 }
        };
        let faults = vec![struck(3, None), struck(0, None), struck(0, Some("it was away"))];
        let times = Round { faults, ..Round::default() }.classes()[&Class::SessionsEnded];
        assert_eq!(times, Times { drawn: 3, befell: 2, struck: 1, overlapping: 1 });
    }
}
