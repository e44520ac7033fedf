//! A service with armed crash points: the hits that kill, those that have killed, and the restart
//! after each.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::{Stack, directories};
use tokio::time::{Instant, sleep};

use super::list;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long until every instance of a service runs again.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// The directory of the programs with crash points, beside that of the ordinary ones.
pub fn programs() -> Result<PathBuf> {
    let ordinary = directories::programs_directory()?;
    let (target, profile) = (ordinary.parent(), ordinary.file_name());
    let profile = profile.context("programs lie in the directory of a profile")?;
    Ok(target.context("a profile lies in a target")?.join("crash-points").join(profile))
}

/// The points of one service that are armed together, from its next start.
pub struct ArmedService<'a> {
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

/// The result of one point.
#[derive(Clone, Debug)]
pub struct PointResult {
    pub round: &'static str,
    pub service: &'static str,
    pub point: &'static str,
    pub kills: Vec<Kill>,
    /// Hits that did not occur.
    pub missing: Vec<u32>,
}

impl<'a> ArmedService<'a> {
    pub fn new(
        stack: &'a Stack,
        round: &'static str,
        service: &'static str,
        points: &[&'static str],
        hits: &[u32],
    ) -> Result<ArmedService<'a>> {
        let log = stack.directory().join("run").join(format!("crash-points-{round}-{service}"));
        let (points, hits) = (points.to_vec(), hits.to_vec());
        let armed = ArmedService { stack, service, round, points, hits, log };
        let hits = armed.hits.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let each: Vec<String> =
            armed.points.iter().map(|point| format!("{point}:{hits}")).collect();
        let log = armed.log.display().to_string();
        stack.set_environment(service, list::POINTS_VARIABLE, Some(&each.join(";")))?;
        stack.set_environment(service, list::LOG_VARIABLE, Some(&log))?;
        Ok(armed)
    }

    /// Starts the service with its points armed, and again after each kill, until all have killed
    /// or the time is up. Then it runs with no point armed.
    pub async fn run_until_killed(&self, within: Duration) -> Result<()> {
        let over = AtomicBool::new(false);
        let fired = async {
            self.wait_until_fired(within).await?;
            over.store(true, Ordering::Relaxed);
            Ok(())
        };
        self.stop().await?;
        tokio::try_join!(self.keep_alive(&over), fired)?;
        self.disarm().await
    }

    /// Starts each stopped instance, until `over` is set. This future is not dropped half-way: the
    /// process of an interrupted start would belong to no stack.
    pub async fn keep_alive(&self, over: &AtomicBool) -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            self.restart_stopped().await?;
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Waits until every point has killed at each of its hits, or the time is up.
    pub async fn wait_until_fired(&self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while !self.all_fired()? && Instant::now() < deadline {
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Leaves the service running, with nothing armed.
    pub async fn disarm(&self) -> Result<()> {
        self.clear_points()?;
        if !self.all_fired()? {
            self.stop().await?;
        }
        // The last kill may still be in progress.
        let deadline = Instant::now() + RECOVERY_TIMEOUT;
        while !self.restart_stopped().await? {
            ensure!(
                Instant::now() < deadline,
                "not all instances of {} were killed and restarted",
                self.service
            );
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Disarms the points of every later start.
    pub fn clear_points(&self) -> Result<()> {
        self.stack.set_environment(self.service, list::POINTS_VARIABLE, None)?;
        self.stack.set_environment(self.service, list::LOG_VARIABLE, None)
    }

    /// Stops every instance, so that the next start has the new environment.
    pub async fn stop(&self) -> Result<()> {
        for name in self.stack.instances_of(self.service)? {
            self.stack.stop(&name).await?;
        }
        Ok(())
    }

    /// Starts every stopped instance, and returns whether all run. An instance that dies during its
    /// start is started by the next call.
    async fn restart_stopped(&self) -> Result<bool> {
        let mut all_run = true;
        for name in self.stack.instances_of(self.service)? {
            let killed: BTreeSet<u32> = self.kills()?.iter().map(|kill| kill.pid).collect();
            match self.stack.main_process(&name)? {
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

    /// The result of each point.
    pub fn rows(&self) -> Result<Vec<PointResult>> {
        let kills = self.kills()?;
        let row = |point: &&'static str| {
            let own: Vec<Kill> =
                kills.iter().filter(|kill| kill.point == *point).cloned().collect();
            let came = |hit: &&u32| !own.iter().any(|kill| kill.hit == **hit);
            let missing = self.hits.iter().filter(came).copied().collect();
            let (round, service) = (self.round, self.service);
            PointResult { round, service, point, kills: own, missing }
        };
        Ok(self.points.iter().map(row).collect())
    }
}

impl PointResult {
    /// Its hits, for the table.
    pub fn cell(&self) -> String {
        let kills = self.kills.iter().map(|kill| kill.hit.to_string());
        let missing = self.missing.iter().map(|hit| format!("NOT {hit}"));
        kills.chain(missing).collect::<Vec<_>>().join(" ")
    }
}
