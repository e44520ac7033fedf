//! A load at a fixed rate. It is an open loop: a slow response delays no other client, so the
//! latency is what clients experience. Each client sends its order, and repeats it with the same
//! key until its outcome is settled.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use checker::group_digits;
use faults::database_faults;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::client_history::{Attempt, CancelOutcome, ClientHistory};
use crate::client::http_client::Client;
use crate::client::order_plan::OrderPlan;
use crate::client::outcome::Outcome;
use crate::workload::history_check;
use crate::workload::load_summary::{DISK_STALL_MIN, DiskStats, LoadSummary};
use crate::workload::options::Load;
use crate::workload::plan::{self, Customers};

/// The number of concurrent requests. Beyond it requests wait, and their waiting time counts as
/// latency.
const IN_FLIGHT_MAX: usize = 4_096;

/// How long a client repeats a request whose outcome is unknown.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(180);

/// The interval at which the duration of a commit is measured.
const COMMIT_PROBE_INTERVAL: Duration = Duration::from_millis(200);

const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Runs a load: orders are placed, settled and drained. `meanwhile` begins with the first order.
/// Orders must end within their time, counted from the last order or from the end of `meanwhile`,
/// whichever is later.
pub async fn run<T>(
    client: &Client,
    load: &Load,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<(LoadSummary, T)> {
    place_and_drain(client, load, &AtomicBool::new(false), meanwhile).await
}

/// The same, but orders are placed only while `meanwhile` runs.
pub async fn run_while<T>(
    client: &Client,
    load: &Load,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<(LoadSummary, T)> {
    let stop = AtomicBool::new(false);
    let meanwhile = async {
        let done = meanwhile.await;
        stop.store(true, Ordering::Relaxed);
        done
    };
    place_and_drain(client, load, &stop, meanwhile).await
}

async fn place_and_drain<T>(
    client: &Client,
    load: &Load,
    stop: &AtomicBool,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<(LoadSummary, T)> {
    ensure!(load.rate > 0, "a rate of 0 loads nothing");
    let customers = Customers::generate();
    let prices = plan::provision(client, load, &customers).await?;
    let mut plans = plan::generate(load);
    plans.iter_mut().for_each(|plan| plan.customer_id = customers.replacement_of(plan.customer_id));
    let began = Instant::now();
    let placing = place_all(client, plans, began, stop);
    let work = async { tokio::try_join!(placing, meanwhile) };
    let (done, disk) = with_commit_probe(client, work).await;
    let (histories, done) = done?;
    let mut summary =
        LoadSummary { disk, ..LoadSummary::from_histories(&histories, began.elapsed()) };
    summary.drain(client, &histories, &prices, load.drain_timeout).await?;
    history_check::check(
        &histories,
        &history_check::find_stored_orders(client, &histories).await?,
        &mut summary.findings,
    );
    Ok((summary, done))
}

/// The result of some work, and the commit latency of the order service's disk during it.
pub async fn with_commit_probe<T>(
    client: &Client,
    work: impl Future<Output = T>,
) -> (T, DiskStats) {
    let disk = Mutex::new(DiskStats::default());
    // On the heap: without optimisation, nested futures exceed a thread's stack.
    let done = tokio::select! {
        done = Box::pin(work) => done,
        never = Box::pin(probe_commits(client, &disk)) => match never {},
    };
    (done, disk.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Measures commits. While the database is away, nothing is recorded.
async fn probe_commits(client: &Client, disk: &Mutex<DiskStats>) -> Infallible {
    let url = &client.addresses.databases["order"];
    let stats = || disk.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let began = Instant::now();
        let mut commit = std::pin::pin!(database_faults::commit_nothing_at(url));
        let stood_still_before = stats().stalled_for;
        loop {
            let committed = timeout(COMMIT_PROBE_INTERVAL, commit.as_mut()).await;
            if !matches!(committed, Ok(Err(_))) {
                let (mut disk, took) = (stats(), began.elapsed());
                disk.slowest_commit = disk.slowest_commit.max(took);
                if took > DISK_STALL_MIN {
                    disk.stalled_for = stood_still_before + took;
                }
            }
            if committed.is_ok() {
                break;
            }
        }
        sleep(COMMIT_PROBE_INTERVAL).await;
    }
}

async fn place_all(
    client: &Client,
    plans: Vec<OrderPlan>,
    began: Instant,
    stop: &AtomicBool,
) -> Result<Vec<ClientHistory>> {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut placing = JoinSet::new();
    let mut histories = Vec::with_capacity(plans.len());
    let (count, mut last_progress) = (plans.len(), began);
    for (nth, plan) in plans.into_iter().enumerate() {
        sleep_until(began + plan.due_at).await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (client, slots) = (client.clone(), slots.clone());
        placing.spawn(async move {
            let _room = slots.acquire_owned().await;
            run_client(&client, plan, began).await
        });
        while let Some(ended) = placing.try_join_next() {
            histories.push(ended?);
        }
        if last_progress.elapsed() > PROGRESS_INTERVAL {
            last_progress = Instant::now();
            let (nth, count) = (group_digits(nth as u64), group_digits(count as u64));
            eprintln!("{:>6.1} s  {nth} of {count} orders placed …", began.elapsed().as_secs_f64());
        }
    }
    while let Some(ended) = placing.join_next().await {
        histories.push(ended?);
    }
    Ok(histories)
}

/// One client and its order.
async fn run_client(client: &Client, plan: OrderPlan, began: Instant) -> ClientHistory {
    let send = async || {
        let outcome = client.place_order(plan.customer_id, &plan.lines, &plan.key).await;
        Attempt { outcome, answered_at: began.elapsed() }
    };
    let mut history = if let Some(after) = plan.disconnect_after {
        let hung_up = || Outcome::Unknown("the client hung up".to_string());
        let outcome =
            timeout(after, send()).await.map_or_else(|_| hung_up(), |attempt| attempt.outcome);
        ClientHistory::new(&plan, vec![Attempt { outcome, answered_at: began.elapsed() }])
    } else if plan.duplicated {
        // At once or a little later, as impatient clients do.
        let again = async || {
            random_delay(0..60).await;
            send().await
        };
        let (first, second) = tokio::join!(send(), again());
        ClientHistory::new(&plan, vec![first, second])
    } else {
        ClientHistory::new(&plan, vec![send().await])
    };
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    while !history.is_settled() && Instant::now() < deadline {
        random_delay(100..500).await;
        history.attempts.push(send().await);
    }
    if plan.key_reused && history.order().is_some() {
        history.conflicting = Some(place_conflicting(client, &plan).await);
    }
    if let (Some(after), Some(order)) = (plan.cancel_after, history.order()) {
        sleep(after).await;
        history.cancel = match client.cancel_order(&order).await.status() {
            Some(200) => CancelOutcome::Accepted,
            Some(409) => CancelOutcome::TooLate,
            Some(503) | None => CancelOutcome::Unknown,
            Some(status) => CancelOutcome::Unexpected(status),
        };
    }
    history
}

/// Another order with an accepted key, repeated while the response is 503.
async fn place_conflicting(client: &Client, plan: &OrderPlan) -> Outcome {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let outcome =
            client.place_order(plan.customer_id, &plan.conflicting_lines(), &plan.key).await;
        let is_final = outcome.status().is_some_and(|status| status != 503);
        if is_final || Instant::now() > deadline {
            return outcome;
        }
        random_delay(100..500).await;
    }
}

/// A different delay for each client, so that they do not all connect when a service is back.
async fn random_delay(ms: std::ops::Range<u64>) {
    sleep(Duration::from_millis(rand::random_range(ms))).await;
}
