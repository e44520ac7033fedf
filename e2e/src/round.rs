//! One round of a chaos run: load and faults, all healed, every order ended, everything checked.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::client::{Client, grouped};
use crate::fault::{self, Class};
use crate::footprint::Footprint;
use crate::load::{self, Load};
use crate::narration::say;
use crate::nemesis::{Happened, Nemesis};
use crate::pairs::Pairs;
use crate::sights::{Sight, Sights};
use crate::{Stack, ends, strangers, verify};

/// How long orders are placed, with faults, and how many a second.
pub const LOAD: Duration = Duration::from_secs(90);
pub const RATE: u32 = 40;

/// How long every order may take to end once everything is healed, and everything to rest.
const DRAINED_WITHIN: Duration = Duration::from_secs(120);

/// What a round has to come to, or it says nothing.
const CONFIRMED_MIN: u64 = 500;
const CANCELLED_MIN: u64 = 50;
const REJECTED_MIN: u64 = 20;

/// A round that was run to its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    pub seen: BTreeMap<String, u64>,
}

/// A fault, and how many orders were on their way meanwhile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Struck {
    pub happened: Happened,
    pub orders_in_flight: i64,
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

/// Runs the nth round. What happened in those before it is in `before`.
pub async fn run(arena: &Arena<'_>, nth: u64, before: &[Round]) -> Result<Round> {
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
    let (summary, happened) = load::run(client, &load, async {
        let happened = nemesis.run(&faults, LOAD).await;
        nemesis.heal_all().await.context("healing everything")?;
        say(&format!("{:>6.1} s  all is healed", began.elapsed().as_secs_f64()));
        Ok(happened)
    })
    .await?;
    say(&format!(
        "         {} accepted, {} refused, {} unknown at first; all ended {:.1} s after",
        grouped(summary.accepted),
        grouped(summary.refused),
        grouped(summary.unknown),
        summary.drained_in.as_secs_f64()
    ));
    let spoiled = strangers::spoiled(client).await?;
    let options = verify::Options { within: DRAINED_WITHIN };
    let mut verdict = verify::knowing(client, &options, &spoiled).await?;
    Footprint::of(stack, client).await?.check(footprint, &mut verdict.findings);

    let mut violations = Vec::new();
    if !summary.holds() {
        violations.push(format!("a promise to a client:\n{}", summary.lines().join("\n")));
    }
    if !verdict.holds() {
        violations.push(format!("the checker:\n{}", verdict.lines().join("\n")));
    }
    let broken = happened.iter().filter_map(|happened| {
        let broken = happened.broken.as_ref()?;
        Some(format!("{}: {broken}", happened.fault))
    });
    violations.extend(broken);
    let mut ends = stack.ends().await?;
    ends.retain(|end| !ended_before.contains(end));
    // Of a database whose backend was killed, the postmaster lives on.
    violations.extend(ends::deaths(&ends));

    let mut faults = Vec::new();
    let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
    for happened in happened {
        let orders_in_flight = in_flight(&mut db, happened.began, happened.ended).await?;
        faults.push(Struck { happened, orders_in_flight });
    }
    // What the nemesis wrote again is none of the relays' doing.
    let struck = before.iter().flat_map(|round| &round.faults).chain(&faults);
    let repeated: u64 = struck.map(|struck| struck.happened.repeated).sum();
    verdict.tally.repeats = verdict.tally.repeats.saturating_sub(repeated);
    let sights = Sights::of(&verdict);
    let seen = |sight: Sight| (sight.name().to_string(), sights.count(sight));
    let cancelled: u64 = summary.cancelled.values().sum();
    let rejected = summary.cancelled.get("stock_rejected").copied().unwrap_or(0);
    let minima = [
        ("confirmed", summary.confirmed, CONFIRMED_MIN),
        ("cancelled", cancelled, CANCELLED_MIN),
        ("rejected by stock", rejected, REJECTED_MIN),
    ];
    let void = minima.iter().filter(|(_, count, least)| count < least);
    let void = void.map(|(what, count, least)| format!("only {count} {what}, {least} at least"));
    Ok(Round {
        nth,
        faults,
        accepted: summary.accepted,
        refused: summary.refused,
        unknown: summary.unknown,
        confirmed: summary.confirmed,
        void: void.collect(),
        cancelled: summary.cancelled,
        records: verdict.records,
        drained_in: summary.drained_in,
        verified_in: verdict.took,
        took: began.elapsed(),
        violations,
        seen: Sight::ALL.map(seen).into(),
    })
}

/// Orders that were pending at some moment of a span.
async fn in_flight(db: &mut PgConnection, from: DateTime<Utc>, to: DateTime<Utc>) -> Result<i64> {
    let count = sqlx::query_scalar(
        "select count(*) from orders
         where created_at <= $2 and (ended_at is null or ended_at >= $1)",
    );
    Ok(count.bind(from).bind(to).fetch_one(db).await?)
}

impl Round {
    pub fn kills(&self) -> usize {
        let struck = self.faults.iter().map(|struck| &struck.happened);
        let kills = struck.filter(|happened| happened.fault.class.is_kill());
        kills.filter(|happened| happened.counts()).count()
    }

    pub fn other_faults(&self) -> usize {
        self.faults.iter().filter(|struck| struck.happened.counts()).count() - self.kills()
    }

    /// Of each class, how often it happened, and how often while orders were on their way.
    pub fn classes(&self) -> BTreeMap<Class, (u64, u64)> {
        let mut classes = BTreeMap::<Class, (u64, u64)>::new();
        for Struck { happened, orders_in_flight } in &self.faults {
            if happened.counts() {
                let (all, overlapping) = classes.entry(happened.fault.class).or_default();
                *all += 1;
                *overlapping += u64::from(*orders_in_flight > 0);
            }
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
