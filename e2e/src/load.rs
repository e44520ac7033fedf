//! A load at a fixed rate. An open loop: a slow answer delays nobody, so latency is what clients
//! feel. Each client asks, and asks again with its key until it is told what became of its order.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::Client;
use crate::figures::grouped;
use crate::history::{Disk, STANDSTILL, Summary};
use crate::outcome::Outcome;
use crate::plan::{self, Crowd, Plan};
use crate::sabotage;
use crate::told::{self, Cancel, Told, Try};

/// Beyond this many, requests wait for answers; the time they wait counts as latency.
const WAITING_MAX: usize = 4_096;

/// How long a client whose order's outcome is unknown goes on asking.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);

/// How often it is looked how long a commit takes.
const COMMIT_EVERY: Duration = Duration::from_millis(200);

const SAY_EVERY: Duration = Duration::from_secs(5);

/// What to load with.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Orders a second
    #[arg(long = "rate-per-second", default_value_t = 100)]
    pub rate: u32,
    /// For how long
    #[arg(long = "seconds", value_parser = seconds, default_value = "90")]
    pub lasting: Duration,
    /// So many orders are cancelled by their customer within a second
    #[arg(long, default_value_t = 5)]
    pub cancelled_percent: u32,
    /// So many orders are placed by a customer who can't pay
    #[arg(long, default_value_t = 5)]
    pub poor_percent: u32,
    /// So many orders want more of an item than there is
    #[arg(long, default_value_t = 5)]
    pub scarce_percent: u32,
    /// So many orders are posted twice with the same key
    #[arg(long, default_value_t = 5)]
    pub repeated_percent: u32,
    /// So many keys come once more with another order, which has to be refused
    #[arg(long, default_value_t = 2)]
    pub confused_percent: u32,
    /// So many clients hang up before they are answered, and ask again
    #[arg(long, default_value_t = 0)]
    pub disconnected_percent: u32,
    /// Lines of an order at most
    #[arg(long = "lines", default_value_t = 4)]
    pub lines_max: usize,
    /// What the clients want is drawn with this seed; with one of its own if not named
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long the orders may take to end, after the last one
    #[arg(long = "drain-seconds", value_parser = seconds, default_value = "60")]
    pub drained_within: Duration,
}

/// `90` or `0.5`, as an option says a span of time.
pub fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

impl Default for Load {
    fn default() -> Load {
        Load {
            rate: 100,
            lasting: Duration::from_secs(90),
            cancelled_percent: 5,
            poor_percent: 5,
            scarce_percent: 5,
            repeated_percent: 5,
            confused_percent: 2,
            disconnected_percent: 0,
            lines_max: 4,
            seed: None,
            drained_within: Duration::from_secs(60),
        }
    }
}

impl Load {
    /// How many orders that makes.
    pub fn orders(&self) -> u64 {
        (f64::from(self.rate) * self.lasting.as_secs_f64()).round() as u64
    }
}

/// Runs a load to its end: placed, settled, drained. What is done `meanwhile` begins with the first
/// order; orders have to have ended within their time from the last order on, or from the end of
/// what was done if that was later.
pub async fn run<T>(
    client: &Client,
    load: &Load,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<(Summary, T)> {
    place_and_drain(client, load, &AtomicBool::new(false), meanwhile).await
}

/// The same, but orders are placed only for as long as what is done `meanwhile` takes.
pub async fn run_while<T>(
    client: &Client,
    load: &Load,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<(Summary, T)> {
    let enough = AtomicBool::new(false);
    let meanwhile = async {
        let done = meanwhile.await;
        enough.store(true, Ordering::Relaxed);
        done
    };
    place_and_drain(client, load, &enough, meanwhile).await
}

async fn place_and_drain<T>(
    client: &Client,
    load: &Load,
    enough: &AtomicBool,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<(Summary, T)> {
    ensure!(load.rate > 0, "a rate of 0 loads nothing");
    let crowd = Crowd::gather();
    let prices = plan::provide(client, load, &crowd).await?;
    let mut plans = plan::draw(load);
    plans.iter_mut().for_each(|plan| plan.customer_id = crowd.in_place_of(plan.customer_id));
    let began = Instant::now();
    let placing = place_all(client, plans, began, enough);
    let work = async { tokio::try_join!(placing, meanwhile) };
    let (done, disk) = beside_commits(client, work).await;
    let (told, done) = done?;
    let mut summary = Summary { disk, ..Summary::of(&told, began.elapsed()) };
    summary.drain(client, &told, &prices, load.drained_within).await?;
    told::check(&told, &told::stored(client, &told).await?, &mut summary.findings);
    Ok((summary, done))
}

/// What some work comes to, and how the order service's disk did meanwhile.
pub async fn beside_commits<T>(client: &Client, work: impl Future<Output = T>) -> (T, Disk) {
    let disk = Mutex::new(Disk::default());
    // On the heap: not optimised, what is awaited in one another is more than a thread's stack holds.
    let done = tokio::select! {
        done = Box::pin(work) => done,
        never = Box::pin(commit_again_and_again(client, &disk)) => match never {},
    };
    (done, disk.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Notes how it goes. Where the database is away, nothing is noted.
async fn commit_again_and_again(client: &Client, disk: &Mutex<Disk>) -> Infallible {
    let url = &client.addresses.databases["order"];
    let noted = || disk.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let began = Instant::now();
        let mut commit = std::pin::pin!(sabotage::commit_at(url));
        let stood_still_before = noted().stood_still;
        loop {
            let committed = timeout(COMMIT_EVERY, commit.as_mut()).await;
            if !matches!(committed, Ok(Err(_))) {
                let (mut disk, took) = (noted(), began.elapsed());
                disk.slowest_commit = disk.slowest_commit.max(took);
                if took > STANDSTILL {
                    disk.stood_still = stood_still_before + took;
                }
            }
            if committed.is_ok() {
                break;
            }
        }
        sleep(COMMIT_EVERY).await;
    }
}

async fn place_all(
    client: &Client,
    plans: Vec<Plan>,
    began: Instant,
    enough: &AtomicBool,
) -> Result<Vec<Told>> {
    let room = Arc::new(Semaphore::new(WAITING_MAX));
    let mut placing = JoinSet::new();
    let mut told = Vec::with_capacity(plans.len());
    let (count, mut said) = (plans.len(), began);
    for (nth, plan) in plans.into_iter().enumerate() {
        sleep_until(began + plan.at).await;
        if enough.load(Ordering::Relaxed) {
            break;
        }
        let (client, room) = (client.clone(), room.clone());
        placing.spawn(async move {
            let _room = room.acquire_owned().await;
            place(&client, plan, began).await
        });
        while let Some(ended) = placing.try_join_next() {
            told.push(ended?);
        }
        if said.elapsed() > SAY_EVERY {
            said = Instant::now();
            let (nth, count) = (grouped(nth as u64), grouped(count as u64));
            eprintln!("{:>6.1} s  {nth} of {count} orders placed …", began.elapsed().as_secs_f64());
        }
    }
    while let Some(ended) = placing.join_next().await {
        told.push(ended?);
    }
    Ok(told)
}

/// One client and its order.
async fn place(client: &Client, plan: Plan, began: Instant) -> Told {
    let ask = async || {
        let outcome = client.place(plan.customer_id, &plan.lines, &plan.key).await;
        Try { outcome, answered_at: began.elapsed() }
    };
    let mut told = if let Some(after) = plan.hung_up_after {
        let hung_up = || Outcome::Unknown("the client hung up".to_string());
        let outcome = timeout(after, ask()).await.map_or_else(|_| hung_up(), |told| told.outcome);
        Told::new(&plan, vec![Try { outcome, answered_at: began.elapsed() }])
    } else if plan.repeated {
        // At once or a little later: both are what impatient clients do.
        let again = async || {
            pause(0..60).await;
            ask().await
        };
        let (first, second) = tokio::join!(ask(), again());
        Told::new(&plan, vec![first, second])
    } else {
        Told::new(&plan, vec![ask().await])
    };
    let deadline = Instant::now() + SETTLED_WITHIN;
    while !told.is_settled() && Instant::now() < deadline {
        pause(100..500).await;
        told.tries.push(ask().await);
    }
    if plan.confused && told.order().is_some() {
        told.other = Some(place_other(client, &plan).await);
    }
    if let (Some(after), Some(order)) = (plan.cancel_after, told.order()) {
        sleep(after).await;
        told.cancel = match client.cancel(order.order_id).await.status() {
            Some(200) => Cancel::Accepted,
            Some(409) => Cancel::TooLate,
            Some(503) | None => Cancel::Unknown,
            Some(status) => Cancel::Denied(status),
        };
    }
    told
}

/// Another order under a key that was accepted, until somebody says something about it.
async fn place_other(client: &Client, plan: &Plan) -> Outcome {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let outcome = client.place(plan.customer_id, &plan.other_lines(), &plan.key).await;
        let is_told = outcome.status().is_some_and(|status| status != 503);
        if is_told || Instant::now() > deadline {
            return outcome;
        }
        pause(100..500).await;
    }
}

/// Each client at a moment of its own: together they would knock at a door that has just opened.
async fn pause(ms: std::ops::Range<u64>) {
    sleep(Duration::from_millis(rand::random_range(ms))).await;
}
