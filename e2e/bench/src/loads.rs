//! The loads: a closed loop, where each caller posts its next order when its last has ended, and an
//! open loop, where orders are due at a fixed rate.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::access::Access;
use crate::caller::{Caller, PlaceOutcome};
use crate::completion_watch::CompletionWatch;
use crate::workload::Workload;

/// The number of connections that an instance of the order service keeps open.
pub const CONNECTIONS_MAX: usize = 1_024;

/// The largest number of orders of an open loop that wait for a connection. The load itself drops
/// the others, and counts them.
const QUEUED_MAX: usize = 10_000;

/// The delay of a caller after a refusal: the shortest one that `Retry-After` requests.
const REFUSED_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The responses to callers, and their times.
pub struct Measurements {
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    /// Orders due in the window and never posted, since too many were waiting.
    pub dropped: AtomicU64,
    /// Latencies count inside this window.
    window: Mutex<Option<(Instant, Instant)>>,
    pub post_latency: Mutex<Histogram<u64>>,
    pub completion_latency: Mutex<Histogram<u64>>,
    /// Accepted orders that were due in the window, and the time of their acceptance.
    pub orders: Mutex<HashMap<Uuid, DateTime<Utc>>>,
}

impl Measurements {
    pub fn new() -> Arc<Measurements> {
        // Microseconds up to two minutes, with two significant digits.
        let latencies = || {
            let bounded = Histogram::new_with_bounds(1, 120_000_000, 2);
            Mutex::new(bounded.expect("the bounds are in order"))
        };
        Arc::new(Measurements {
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            window: Mutex::new(None),
            post_latency: latencies(),
            completion_latency: latencies(),
            orders: Mutex::default(),
        })
    }

    pub fn open_window(&self, lasting: Duration) {
        let now = Instant::now();
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, now + lasting));
    }

    /// Records a latency that began at `due`, if that is inside the window.
    fn record(&self, of: &Mutex<Histogram<u64>>, due: Instant, at: Instant) {
        if self.is_in_window(due) {
            let micros = u64::try_from((at - due).as_micros()).unwrap_or(u64::MAX);
            of.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros);
        }
    }

    fn record_order(&self, order_id: Uuid, due: Instant) {
        if self.is_in_window(due) {
            let due = Utc::now() - due.elapsed();
            self.orders.lock().unwrap_or_else(PoisonError::into_inner).insert(order_id, due);
        }
    }

    fn is_in_window(&self, due: Instant) -> bool {
        let window = *self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.is_some_and(|(from, to)| (from..to).contains(&due))
    }
}

/// The target and the workload of a load.
#[derive(Clone)]
pub struct Target {
    /// The APIs of the order service's instances.
    pub apis: Vec<SocketAddr>,
    pub access: Option<Arc<Access>>,
    pub completions: Arc<CompletionWatch>,
    pub workload: Workload,
}

/// How orders arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// A closed loop: this number of callers, each with one order at a time.
    Callers(usize),
    /// An open loop: this number of orders a second. An order that waits because others are slow
    /// counts as slow itself: its time begins when it is due.
    PerSecond(f64),
}

/// A load that runs until it is stopped.
pub struct RunningLoad {
    pub measurements: Arc<Measurements>,
    pub completions: Arc<CompletionWatch>,
    stopping: Arc<AtomicBool>,
    callers: JoinSet<Result<()>>,
}

impl RunningLoad {
    /// Stops, and waits until every accepted order has ended.
    pub async fn stop(mut self) -> Result<Arc<Measurements>> {
        self.stopping.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended??;
        }
        Ok(self.measurements)
    }
}

impl Load {
    /// Enough callers to find the peak, and as many as the order service keeps connections.
    pub const SATURATING: Load = Load::Callers(CONNECTIONS_MAX);

    pub fn start(self, target: Target) -> RunningLoad {
        let (measurements, stopping) = (Measurements::new(), Arc::new(AtomicBool::new(false)));
        let mut callers = JoinSet::new();
        let connections = if let Load::Callers(count) = self { count } else { CONNECTIONS_MAX };
        let (queue, due) = mpsc::channel(QUEUED_MAX);
        let due = Arc::new(tokio::sync::Mutex::new(due));
        for nth in 0..connections {
            let caller = Caller::new(target.apis[nth % target.apis.len()], target.access.clone());
            let (target, measurements) = (target.clone(), measurements.clone());
            match self {
                Load::Callers(_) => {
                    callers.spawn(run_closed_loop(target, measurements, caller, stopping.clone()));
                }
                Load::PerSecond(_) => {
                    callers.spawn(run_open_loop(target, measurements, caller, due.clone()));
                }
            }
        }
        if let Load::PerSecond(per_second) = self {
            callers.spawn(schedule_orders(
                per_second,
                queue,
                measurements.clone(),
                stopping.clone(),
            ));
        }
        RunningLoad { measurements, completions: target.completions, stopping, callers }
    }
}

async fn run_closed_loop(
    target: Target,
    measurements: Arc<Measurements>,
    mut caller: Caller,
    stopping: Arc<AtomicBool>,
) -> Result<()> {
    while !stopping.load(Ordering::Relaxed) {
        match place(&target, &measurements, &mut caller, Instant::now()).await? {
            Some(ended) => ended.await?,
            None => tokio::time::sleep(REFUSED_RETRY_DELAY).await,
        }
    }
    Ok(())
}

async fn run_open_loop(
    target: Target,
    measurements: Arc<Measurements>,
    mut caller: Caller,
    due: Arc<tokio::sync::Mutex<mpsc::Receiver<Instant>>>,
) -> Result<()> {
    let mut awaited = JoinSet::new();
    loop {
        let Some(due) = due.lock().await.recv().await else { break };
        if let Some(ended) = place(&target, &measurements, &mut caller, due).await? {
            awaited.spawn(ended);
        }
        while let Some(ended) = awaited.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = awaited.join_next().await {
        ended??;
    }
    Ok(())
}

/// Emits the due time of each order, until the load is over.
async fn schedule_orders(
    per_second: f64,
    queue: mpsc::Sender<Instant>,
    measurements: Arc<Measurements>,
    stopping: Arc<AtomicBool>,
) -> Result<()> {
    let began = Instant::now();
    let mut nth = 0_u64;
    while !stopping.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let due = (began.elapsed().as_secs_f64() * per_second) as u64;
        while nth < due {
            let at = began + Duration::from_secs_f64(nth as f64 / per_second);
            if queue.try_send(at).is_err() && measurements.is_in_window(at) {
                measurements.dropped.fetch_add(1, Ordering::Relaxed);
            }
            nth += 1;
        }
    }
    Ok(())
}

/// Posts an order that was due at a time. Returns the wait for its end, unless it was refused. Both
/// record their latency.
async fn place(
    target: &Target,
    measurements: &Arc<Measurements>,
    caller: &mut Caller,
    due: Instant,
) -> Result<Option<impl Future<Output = Result<()>> + use<>>> {
    match caller.place(target.workload.random_order()).await? {
        PlaceOutcome::Accepted(order_id) => {
            measurements.accepted.fetch_add(1, Ordering::Relaxed);
            measurements.record(&measurements.post_latency, due, Instant::now());
            measurements.record_order(order_id, due);
            let (completions, measurements) = (target.completions.clone(), measurements.clone());
            Ok(Some(async move {
                let ended = completions.wait_for(order_id).await?;
                measurements.record(&measurements.completion_latency, due, ended);
                Ok(())
            }))
        }
        PlaceOutcome::Refused => {
            measurements.refused.fetch_add(1, Ordering::Relaxed);
            Ok(None)
        }
    }
}

/// A percentile in milliseconds.
pub fn percentile_ms(of: &Mutex<Histogram<u64>>, percent: f64) -> f64 {
    let latencies = of.lock().unwrap_or_else(PoisonError::into_inner);
    latencies.value_at_quantile(percent / 100.0) as f64 / 1_000.0
}

/// The number of recorded values.
pub fn sample_count(of: &Mutex<Histogram<u64>>) -> Result<u64> {
    let latencies = of.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(!latencies.is_empty(), "no order was placed during the measurement");
    Ok(latencies.len())
}
