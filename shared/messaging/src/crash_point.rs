//! Crash points: places where a test can kill the process, as SIGKILL would at the worst moment.
//!
//! `crash_point!("relay.sent")` expands to nothing unless this crate is built with the feature `crash-points`, which
//! no shipped build has. With that feature, two variables control it:
//! `HOLDFAST_CRASH_POINTS=relay.sent:1,2,7;consumer.polled:1` lists points and the hits of each that kill; the file
//! `HOLDFAST_CRASH_LOG` gets a line for each hit of those points, before the kill. Hits are counted in that file,
//! across restarts and across instances that share it. A point without remaining kills is not logged any more.
//!
//! A point stands right after the step that it is named after, and may have a condition:
//! `crash_point!("relay.sending", sent > 0)`.

#[cfg(feature = "crash-points")]
mod armed {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::sync::LazyLock;

    use parking_lot::Mutex;
    use rustix::process::{Signal, getpid, kill_process};

    /// The points that can still kill in this process, each with the hits that do.
    static ARMED: LazyLock<Mutex<HashMap<String, Vec<usize>>>> = LazyLock::new(|| {
        let points = std::env::var("HOLDFAST_CRASH_POINTS").unwrap_or_default();
        Mutex::new(points.split(';').filter(|point| !point.is_empty()).map(parse_point).collect())
    });

    fn parse_point(point: &str) -> (String, Vec<usize>) {
        let (name, hits) = point.split_once(':').expect("a crash point is `name:hit,hit`");
        let hits = hits.split(',').map(|hit| hit.parse().expect("a hit is a number"));
        (name.to_string(), hits.collect())
    }

    /// Handles one hit of a point. Hits are serialised: of two that kill, the second must not be logged.
    pub fn hit(point: &'static str) {
        let mut armed = ARMED.lock();
        let Some(hits) = armed.get(point) else { return };
        let nth = record_hit(point, hits).expect("HOLDFAST_CRASH_LOG can be written");
        if hits.contains(&nth) {
            let _ = kill_process(getpid(), Signal::KILL);
        }
        if hits.iter().all(|hit| *hit <= nth) {
            armed.remove(point);
        }
    }

    /// Writes a hit to the log; returns its number.
    fn record_hit(point: &str, hits: &[usize]) -> std::io::Result<usize> {
        let path = std::env::var("HOLDFAST_CRASH_LOG").expect("crash points need a log");
        let mut log = File::options().create(true).read(true).append(true).open(path)?;
        // Other instances count here too. The lock goes with the process.
        log.lock()?;
        let mut text = String::new();
        log.seek(SeekFrom::Start(0))?;
        log.read_to_string(&mut text)?;
        let earlier = text.lines().filter(|line| line.split(' ').next() == Some(point)).count();
        let nth = earlier + 1;
        let what = if hits.contains(&nth) { "kills" } else { "passes" };
        log.write_all(format!("{point} {nth} {what} {}\n", std::process::id()).as_bytes())?;
        Ok(nth)
    }
}

#[cfg(feature = "crash-points")]
pub use armed::hit;

#[cfg(feature = "crash-points")]
#[macro_export]
macro_rules! crash_point {
    ($point:expr) => {
        $crate::crash_point::hit($point)
    };
    ($point:expr, $if:expr) => {
        if $if {
            $crate::crash_point::hit($point)
        }
    };
}

#[cfg(not(feature = "crash-points"))]
#[macro_export]
macro_rules! crash_point {
    ($point:literal $(, $if:expr)?) => {};
    // Without this use the name would be dead code.
    ($point:expr, $if:expr) => {
        let _ = $point;
    };
}
