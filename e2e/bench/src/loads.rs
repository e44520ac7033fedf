//! The loads: a closed loop, where each caller posts its next order when its last has ended, and an
//! open one, where orders are due at a fixed rate whatever becomes of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use hyper::body::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::caller::{Answer, Caller};
use crate::ends::Ends;
use crate::wishes::Wishes;

/// Connections that an open loop posts over, and orders that wait for one of them at most: who comes
/// then is turned away by the load itself, and counted.
const CONNECTIONS: usize = 1_024;
const QUEUED_MAX: usize = 10_000;

/// How long a caller that was refused waits, as `Retry-After` asks of it at least.
const REFUSED_WAIT: Duration = Duration::from_secs(1);

/// What callers were told, and when.
pub struct Told {
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    /// Due, and never posted, since too many were waiting.
    pub turned_away: AtomicU64,
    /// Latencies count from here to there.
    window: Mutex<Option<(Instant, Instant)>>,
    pub post: Mutex<Histogram<u64>>,
    pub end: Mutex<Histogram<u64>>,
}

impl Told {
    pub fn new() -> Arc<Told> {
        // To a microsecond up to two minutes, with two digits.
        let latencies = || {
            let bounded = Histogram::new_with_bounds(1, 120_000_000, 2);
            Mutex::new(bounded.expect("the bounds are in order"))
        };
        Arc::new(Told {
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            window: Mutex::new(None),
            post: latencies(),
            end: latencies(),
        })
    }

    pub fn open_window(&self, lasting: Duration) {
        let now = Instant::now();
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, now + lasting));
    }

    /// Notes how long something took that began at `due`, if that lies in the window.
    fn note(&self, of: &Mutex<Histogram<u64>>, due: Instant, at: Instant) {
        let window = *self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.is_some_and(|(from, to)| (from..to).contains(&due)) {
            let micros = u64::try_from((at - due).as_micros()).unwrap_or(u64::MAX);
            of.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros);
        }
    }
}

/// Where the load goes, and what it consists of.
#[derive(Clone)]
pub struct Target {
    /// The APIs of the order service's instances.
    pub apis: Vec<SocketAddr>,
    pub ends: Arc<Ends>,
    pub wishes: Wishes,
}

/// A load that runs until it is stopped.
pub struct Running {
    pub told: Arc<Told>,
    over: Arc<AtomicBool>,
    callers: JoinSet<Result<()>>,
}

impl Running {
    /// Stops, and waits until every order that was accepted has ended.
    pub async fn stop(mut self) -> Result<Arc<Told>> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended??;
        }
        Ok(self.told)
    }
}

/// So many callers, each with one order at a time.
pub fn closed(target: &Target, callers: usize) -> Running {
    let (told, over) = (Told::new(), Arc::new(AtomicBool::new(false)));
    let mut running = JoinSet::new();
    for nth in 0..callers {
        let (target, told, over) = (target.clone(), told.clone(), over.clone());
        running.spawn(async move {
            let mut caller = Caller::to(target.apis[nth % target.apis.len()]);
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                if let Some(ended) = place(&target, &told, &mut caller, began).await? {
                    told.note(&told.end, began, ended.await?);
                } else {
                    tokio::time::sleep(REFUSED_WAIT).await;
                }
            }
            Ok(())
        });
    }
    Running { told, over, callers: running }
}

/// So many orders a second. What waits because others are slow counts as slow itself: an order's
/// time begins when it is due.
pub fn open(target: &Target, per_second: f64) -> Running {
    let (told, over) = (Told::new(), Arc::new(AtomicBool::new(false)));
    let mut running = JoinSet::new();
    let (queue, waiting) = mpsc::channel::<Instant>(QUEUED_MAX);
    let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
    for nth in 0..CONNECTIONS {
        let (target, told, waiting) = (target.clone(), told.clone(), waiting.clone());
        running.spawn(async move {
            let mut caller = Caller::to(target.apis[nth % target.apis.len()]);
            let mut awaited = JoinSet::new();
            loop {
                let due = waiting.lock().await.recv().await;
                let Some(due) = due else { break };
                if let Some(ended) = place(&target, &told, &mut caller, due).await? {
                    let told = told.clone();
                    awaited.spawn(async move {
                        told.note(&told.end, due, ended.await?);
                        anyhow::Ok(())
                    });
                }
                while let Some(ended) = awaited.try_join_next() {
                    ended??;
                }
            }
            while let Some(ended) = awaited.join_next().await {
                ended??;
            }
            Ok(())
        });
    }
    let (turned_away, stopped) = (told.clone(), over.clone());
    running.spawn(async move {
        let began = Instant::now();
        let mut nth = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let due = (began.elapsed().as_secs_f64() * per_second) as u64;
            while nth < due {
                let at = began + Duration::from_secs_f64(nth as f64 / per_second);
                if queue.try_send(at).is_err() {
                    turned_away.turned_away.fetch_add(1, Ordering::Relaxed);
                }
                nth += 1;
            }
        }
        Ok(())
    });
    Running { told, over, callers: running }
}

/// Posts one order; answers what waits for its end, unless it was refused.
async fn place(
    target: &Target,
    told: &Told,
    caller: &mut Caller,
    due: Instant,
) -> Result<Option<impl Future<Output = Result<Instant>> + use<>>> {
    let wish: Bytes = target.wishes.draw();
    match caller.place(wish).await? {
        Answer::Accepted(order_id) => {
            told.accepted.fetch_add(1, Ordering::Relaxed);
            told.note(&told.post, due, Instant::now());
            let ends = target.ends.clone();
            Ok(Some(async move { ends.of(order_id).await }))
        }
        Answer::Refused => {
            told.refused.fetch_add(1, Ordering::Relaxed);
            Ok(None)
        }
    }
}

/// A percentile in milliseconds.
pub fn percentile(of: &Mutex<Histogram<u64>>, percent: f64) -> f64 {
    let latencies = of.lock().unwrap_or_else(PoisonError::into_inner);
    latencies.value_at_quantile(percent / 100.0) as f64 / 1_000.0
}

/// How many were counted.
pub fn counted(of: &Mutex<Histogram<u64>>) -> Result<u64> {
    let latencies = of.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(!latencies.is_empty(), "no order was placed in the time that was measured");
    Ok(latencies.len())
}
