//! A service whose crash points are armed: which of their hits kill, which have, and how it is
//! started again each time.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use super::points;
use crate::Stack;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long it may take until every instance of a service runs again.
const RUNS_WITHIN: Duration = Duration::from_secs(60);

/// The points of one service that are armed together, from its next start on.
pub struct Armed<'a> {
    stack: &'a Stack,
    pub service: &'static str,
    round: &'static str,
    points: Vec<&'static str>,
    hits: Vec<u32>,
    log: PathBuf,
}

/// A hit that killed its process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kill {
    pub point: String,
    pub hit: u32,
    pub pid: u32,
}

/// What came of one point.
#[derive(Clone, Debug)]
pub struct Row {
    pub round: &'static str,
    pub service: &'static str,
    pub point: &'static str,
    pub kills: Vec<Kill>,
    /// Hits that never came.
    pub missing: Vec<u32>,
}

impl<'a> Armed<'a> {
    pub fn new(
        stack: &'a Stack,
        round: &'static str,
        service: &'static str,
        points: &[&'static str],
        hits: &[u32],
    ) -> Result<Armed<'a>> {
        let log = stack.directory().join("run").join(format!("crash-points-{round}-{service}"));
        let (points, hits) = (points.to_vec(), hits.to_vec());
        let armed = Armed { stack, service, round, points, hits, log };
        let hits = armed.hits.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let each: Vec<String> =
            armed.points.iter().map(|point| format!("{point}:{hits}")).collect();
        let log = armed.log.display().to_string();
        stack.set_environment(service, points::POINTS, Some(&each.join(";")))?;
        stack.set_environment(service, points::LOG, Some(&log))?;
        Ok(armed)
    }

    /// Starts the service with its points armed, and again each time, until all have killed or the
    /// time is up. Afterwards it runs, and nothing is armed.
    pub async fn killed_at_each(&self, within: Duration) -> Result<()> {
        let over = AtomicBool::new(false);
        let fired = async {
            self.fired(within).await?;
            over.store(true, Ordering::Relaxed);
            Ok(())
        };
        self.stop().await?;
        tokio::try_join!(self.keep_alive(&over), fired)?;
        self.disarm().await
    }

    /// Starts whatever instance does not run, until told that it is over. Never dropped half-way: a
    /// process whose start was broken off would be taken for a stranger's.
    pub async fn keep_alive(&self, over: &AtomicBool) -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            self.revive().await?;
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until every point has killed at each of its hits, or the time is up.
    pub async fn fired(&self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while !self.all_fired()? && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Leaves the service running, with nothing armed.
    pub async fn disarm(&self) -> Result<()> {
        self.forget()?;
        if !self.all_fired()? {
            self.stop().await?;
        }
        // The last kill may be under way.
        let deadline = Instant::now() + RUNS_WITHIN;
        while !self.revive().await? {
            ensure!(Instant::now() < deadline, "not all of {} dies and comes back", self.service);
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Arms nothing in what is started from now on.
    pub fn forget(&self) -> Result<()> {
        self.stack.set_environment(self.service, points::POINTS, None)?;
        self.stack.set_environment(self.service, points::LOG, None)
    }

    /// Stops every instance: the next start has what was set.
    pub async fn stop(&self) -> Result<()> {
        for name in self.stack.instances_of(self.service)? {
            self.stack.stop(&name).await?;
        }
        Ok(())
    }

    /// Starts every instance that does not run; answers whether all run. One that dies while it
    /// starts is started again at the next look.
    async fn revive(&self) -> Result<bool> {
        let mut all_run = true;
        for name in self.stack.instances_of(self.service)? {
            let killed: BTreeSet<u32> = self.kills()?.iter().map(|kill| kill.pid).collect();
            match self.stack.process(&name.parse()?).living() {
                Some(living) => all_run &= !killed.contains(&living.pid),
                None => {
                    let started = self.stack.start(&name).await;
                    if self.stack.is_running(&name).await? {
                        started?;
                    }
                    all_run = false;
                }
            }
        }
        Ok(all_run)
    }

    /// Every kill so far, in order.
    pub fn kills(&self) -> Result<Vec<Kill>> {
        if !self.log.exists() {
            return Ok(Vec::new());
        }
        let log = std::fs::read_to_string(&self.log).context("the log of crash points")?;
        let kill = |line: &str| {
            let mut words = line.split(' ');
            let (point, hit, what) = (words.next()?, words.next()?, words.next()?);
            let pid = words.next()?.parse().ok()?;
            let kill = Kill { point: point.to_string(), hit: hit.parse().ok()?, pid };
            (what == "kills").then_some(kill)
        };
        // A line without its end is still being written.
        let whole = log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        Ok(whole.filter_map(kill).collect())
    }

    pub fn all_fired(&self) -> Result<bool> {
        Ok(self.kills()?.len() >= self.points.len() * self.hits.len())
    }

    /// What came of each point.
    pub fn rows(&self) -> Result<Vec<Row>> {
        let kills = self.kills()?;
        let row = |point: &&'static str| {
            let own: Vec<Kill> =
                kills.iter().filter(|kill| kill.point == *point).cloned().collect();
            let came = |hit: &&u32| !own.iter().any(|kill| kill.hit == **hit);
            let missing = self.hits.iter().filter(came).copied().collect();
            let (round, service) = (self.round, self.service);
            Row { round, service, point, kills: own, missing }
        };
        Ok(self.points.iter().map(row).collect())
    }
}
