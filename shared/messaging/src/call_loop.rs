//! The loop that performs outside calls: it takes those that are due, has them performed, and schedules what came back.
//! One instance of the service does it at a time, so the calls to a target are bounded for the whole service.
//!
//! Promise: what is heard of a call is true. *Done* and *refused* are said by the target. After a try without an answer
//! the outcome is uncertain, and stays so until the target says *done*: a later refusal may be about a repeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use metrics::{counter, gauge, histogram};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::calls::{self, AfterTry, PendingCall};
use crate::crash_point;
use crate::db;
use crate::db::lease::{Lease, with_query_timeout};
use crate::event::Method;
use crate::flow::backoff::RetryBackoff;
use crate::flow::heartbeat::Heartbeat;

/// The advisory lock of the active loop: one number for every service, since each has its own database.
const CALLS_LOCK_ID: i64 = 0x0063_616c_6c73;

/// How often pending calls are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long after its time limit a try without a result counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(15);

/// After so many failures in a row a target counts as away: one call at a time probes it.
const FAILURES_MAX: u32 = 5;

const REPORT_INTERVAL: Duration = Duration::from_secs(10);

const LEASE_BACKOFF: RetryBackoff = RetryBackoff::constant(Duration::from_millis(1_500));

/// Characters of an answer that are kept of a refusal or an error.
const DETAIL_CHARS_MAX: usize = 500;

/// How calls to one target are tried.
#[derive(Clone, Debug)]
pub struct CallPolicy {
    /// The pauses between two tries of one call, and between two probes of a target that is away: each about twice as
    /// long as the one before, up to the longest.
    pub pause_min: Duration,
    pub pause_max: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// For how long after its decision a call is tried. It is shorter than the time for which the target knows the key.
    pub total_age: Duration,
    /// Calls that are under way at a time, at most.
    pub concurrency: usize,
    /// Which statuses refuse a call for good.
    pub is_final: fn(u16) -> bool,
}

/// Every status of a client's mistake, but those that ask to come back later: 408, 409, 425 and 429.
pub fn is_final_status(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 408 | 409 | 425 | 429)
}

/// What a try met.
#[derive(Clone, Debug, PartialEq)]
pub enum Tried {
    /// An answer.
    Answered { status: u16, body: Vec<u8>, retry_after: Option<Duration> },
    /// The request was not sent, so it was not done.
    NotSent(String),
    /// It may have been done.
    NoAnswer(String),
}

/// Sends the request of a call to its target, within the time limit of the policy.
pub trait Performer: Send + Sync + 'static {
    /// Sends it once.
    fn perform<'a>(&'a self, call: &'a PendingCall) -> BoxFuture<'a, Tried>;
}

/// A system outside.
pub struct Target {
    pub policy: CallPolicy,
    pub performer: Arc<dyn Performer>,
}

/// The loop.
pub struct CallLoop {
    pub db: PgPool,
    pub heartbeat: Heartbeat,
    /// By name.
    pub targets: BTreeMap<&'static str, Target>,
}

/// What is known of a target since the loop began.
#[derive(Default)]
struct TargetState {
    under_way: usize,
    failures: u32,
    /// When a target that is away is probed next.
    probe_at: Option<Instant>,
}

impl TargetState {
    /// How many calls may begin now.
    fn room(&self, policy: &CallPolicy) -> usize {
        match self.probe_at {
            None => policy.concurrency.saturating_sub(self.under_way),
            Some(at) if at <= Instant::now() && self.under_way == 0 => 1,
            Some(_) => 0,
        }
    }

    /// Notes the end of a try.
    fn end(&mut self, is_there: bool, policy: &CallPolicy) {
        self.under_way -= 1;
        if is_there {
            (self.failures, self.probe_at) = (0, None);
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            let pause = pause(policy, self.failures - FAILURES_MAX + 1);
            self.probe_at = Some(Instant::now() + pause);
        }
    }
}

fn pause(policy: &CallPolicy, failures: u32) -> Duration {
    RetryBackoff { delay_min: policy.pause_min, delay_max: policy.pause_max }.pause_after(failures)
}

impl CallLoop {
    /// Performs calls until it is stopped. After any failure it starts again, for ever.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            if let Err(error) = self.run_as_leader(&stop).await {
                warn!("the loop of outside calls failed and is retried: {error:#}");
                self.heartbeat.beat();
                stop.run_until_cancelled(sleep(LEASE_BACKOFF.pause_after(1))).await;
            }
        }
        Ok(())
    }

    async fn run_as_leader(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut lease = Lease::open(&self.db, CALLS_LOCK_ID, &db::PLANNER_SETTINGS).await?;
        while !lease.try_acquire().await? {
            self.heartbeat.beat();
            stop.run_until_cancelled(sleep(LEASE_BACKOFF.pause_after(1))).await;
            if stop.is_cancelled() || lease.is_outdated(&self.db) {
                return Ok(());
            }
        }
        info!("the loop of outside calls is active");
        let ended = self.lead(&mut lease, stop).await;
        self.report(&[]);
        lease.close().await;
        ended
    }

    async fn lead(&self, lease: &mut Lease, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut states: BTreeMap<&'static str, TargetState> =
            self.targets.keys().map(|name| (*name, TargetState::default())).collect();
        let mut under_way = FuturesUnordered::new();
        let mut reported_at = None::<Instant>;
        while !stop.is_cancelled() && !lease.is_outdated(&self.db) {
            self.heartbeat.beat();
            if reported_at.is_none_or(|at| at.elapsed() > REPORT_INTERVAL) {
                reported_at = Some(Instant::now());
                self.report(&with_query_timeout(calls::oldest(&mut lease.session)).await?);
            }
            for (name, target) in &self.targets {
                let state = states.entry(name).or_default();
                let begun = self.begin_tries(&mut lease.session, name, target, state).await?;
                crash_point!("calls.begun", !begun.is_empty());
                for call in begun {
                    state.under_way += 1;
                    under_way.push(self.perform(name, target, call));
                }
            }
            let poll = sleep(POLL_INTERVAL);
            tokio::pin!(poll);
            loop {
                tokio::select! {
                    Some((name, is_there)) = under_way.next() => {
                        let state = states.entry(name).or_default();
                        state.end(is_there, &self.targets[name].policy);
                    }
                    () = &mut poll => break,
                    () = stop.cancelled() => break,
                }
            }
        }
        // What is under way is not waited for: its tries count as lost, and the next instance tries them again.
        Ok(())
    }

    async fn begin_tries(
        &self,
        db: &mut PgConnection,
        name: &'static str,
        target: &Target,
        state: &TargetState,
    ) -> sqlx::Result<Vec<PendingCall>> {
        let room = state.room(&target.policy);
        if room == 0 {
            return Ok(Vec::new());
        }
        let limit = i64::try_from(room).unwrap_or(i64::MAX);
        let lost_after = (target.policy.timeout + LOST_AFTER).as_secs_f64();
        with_query_timeout(calls::begin_tries(db, name, limit, lost_after)).await
    }

    /// Tries a call. Returns whether its target is there.
    async fn perform(
        &self,
        name: &'static str,
        target: &Target,
        call: PendingCall,
    ) -> (&'static str, bool) {
        let began = Instant::now();
        let tried = target.performer.perform(&call).await;
        crash_point!("calls.answered");
        let took = began.elapsed().as_secs_f64();
        let outcome = outcome_label(&tried);
        counter!("calls_tried_total", "call" => call.asked.name.clone(), "outcome" => outcome)
            .increment(1);
        histogram!("call_seconds", "call" => call.asked.name.clone()).record(took);
        let is_there = is_there(&tried);
        let after = after_try(&call, tried, &target.policy);
        if let AfterTry::Again { error, .. } | AfterTry::Unknown { error } = &after {
            let (name, key, tries) = (&call.asked.name, &call.asked.key, call.tries);
            warn!("try {tries} of {name} for {key} has no final answer: {error}");
        }
        // Without it the try counts as lost.
        if let Err(error) = with_query_timeout(calls::end_try(&self.db, &call, &after)).await {
            warn!(
                "what came back of {} for {} could not be stored: {error}",
                call.asked.name, call.asked.key
            );
        }
        (name, is_there)
    }

    fn report(&self, oldest: &[(String, f64)]) {
        for name in self.targets.keys() {
            gauge!("call_oldest_seconds", "target" => *name).set(0);
        }
        for (name, seconds) in oldest {
            gauge!("call_oldest_seconds", "target" => name.clone()).set(*seconds);
        }
    }
}

/// Whether the target has answered by itself. A 500 may be about the one call, and the others are of a gateway or of a
/// target that cannot serve.
fn is_there(tried: &Tried) -> bool {
    matches!(tried, Tried::Answered { status, .. } if !matches!(status, 502..=504))
}

fn outcome_label(tried: &Tried) -> &'static str {
    match tried {
        Tried::Answered { status: 200..300, .. } => "done",
        Tried::Answered { status: ..500, .. } => "refused",
        Tried::Answered { .. } => "failed",
        Tried::NotSent(_) => "not_sent",
        Tried::NoAnswer(_) => "no_answer",
    }
}

/// What follows a try.
fn after_try(call: &PendingCall, tried: Tried, policy: &CallPolicy) -> AfterTry {
    let is_uncertain = call.is_uncertain;
    let (error, may_be_done, wait) = match tried {
        Tried::Answered { status: 200..300, body, .. } => {
            let kind = if call.was_unknown { "done_late" } else { "done" };
            return AfterTry::Known(json!({ kind: as_json(&body) }));
        }
        Tried::Answered { status, body, .. } if (policy.is_final)(status) => {
            let detail = detail(&body);
            return match is_uncertain {
                false => {
                    AfterTry::Known(json!({ "refused": { "status": status, "detail": detail } }))
                }
                // An earlier try may have been done, and this may be about its repeat.
                true => AfterTry::Unknown { error: format!("it answered {status}: {detail}") },
            };
        }
        Tried::Answered { status, body, retry_after } => {
            // The target says that it has not begun.
            let may_be_done = status != 429;
            (format!("it answered {status}: {}", detail(&body)), may_be_done, retry_after)
        }
        Tried::NotSent(error) => (error, false, None),
        Tried::NoAnswer(error) => (error, true, None),
    };
    let tries = u32::try_from(call.tries).unwrap_or(u32::MAX);
    let wait = wait.unwrap_or_default().min(policy.pause_max).max(pause(policy, tries));
    let seconds = wait.as_secs_f64();
    // A read does nothing that could have been done.
    let may_be_done = may_be_done && call.request.method != Method::Get;
    let is_uncertain = is_uncertain || may_be_done;
    match call.age_seconds + seconds > policy.total_age.as_secs_f64() {
        false => AfterTry::Again { seconds, is_uncertain: may_be_done, error },
        true if is_uncertain => AfterTry::Unknown { error },
        // It never began.
        true => AfterTry::Known(json!({ "refused": { "status": 0, "detail": error } })),
    }
}

/// The body of an answer, as its handler reads it: `null` without one, and its text if it is no JSON.
fn as_json(body: &[u8]) -> Value {
    match body {
        [] => Value::Null,
        _ => serde_json::from_slice(body).unwrap_or_else(|_| Value::String(detail(body))),
    }
}

fn detail(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.chars().filter(|c| *c != '\0').take(DETAIL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> Tried {
        Tried::Answered { status, body: Vec::new(), retry_after: None }
    }

    #[test]
    fn a_target_that_is_away_gets_one_probe_a_pause_until_it_answers() {
        let policy = CallPolicy {
            pause_min: Duration::from_secs(1),
            pause_max: Duration::from_secs(4),
            timeout: Duration::from_secs(1),
            total_age: Duration::from_secs(60),
            concurrency: 8,
            is_final: is_final_status,
        };
        for (last, rooms) in [
            (answered(503), [0, 1]),
            (Tried::NotSent("refused".into()), [0, 1]),
            (answered(500), [8, 8]),
        ] {
            let mut state = TargetState { under_way: 5, ..TargetState::default() };
            assert_eq!(state.room(&policy), 3, "five of eight are under way");
            for tried in
                [answered(502), answered(503), answered(504), Tried::NoAnswer("late".into())]
            {
                state.end(is_there(&tried), &policy);
            }
            assert_eq!(state.room(&policy), 7, "four failures may be those of a few calls");
            state.end(is_there(&last), &policy);
            assert_eq!(state.room(&policy), rooms[0], "{last:?}");
            state.probe_at = state.probe_at.map(|_| Instant::now());
            assert_eq!(state.room(&policy), rooms[1], "{last:?}");
            state.under_way = 1;
            state.end(is_there(&answered(404)), &policy);
            assert_eq!(state.room(&policy), 8, "it is back");
        }
    }
}
