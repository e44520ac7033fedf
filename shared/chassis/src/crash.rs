//! Crash points: places where a process can be made to die, as by SIGKILL at the worst moment.
//!
//! `crash::point!("relay.sent")` is nothing at all unless the chassis is built with the feature
//! `crash-points`, which nothing that ships has. With it, two variables say what happens:
//! `HOLDFAST_CRASH_POINTS=relay.sent:1,2,7;consumer.polled:1` names points, and which of their hits
//! kill; in the file `HOLDFAST_CRASH_LOG` stands a line for each hit of those, written before the
//! kill. Hits are counted in that file, so across restarts, and across instances that share it. A
//! point that can't kill any more is not written down any longer.
//!
//! A point stands right behind the step that it is named after, and may have a condition:
//! `crash::point!("relay.sending", sent > 0)`.

#[cfg(feature = "crash-points")]
mod armed {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::sync::{LazyLock, Mutex, PoisonError};

    use rustix::process::{Signal, getpid, kill_process};

    /// The points that can still kill in this process, each with the hits that do.
    static ARMED: LazyLock<Mutex<HashMap<String, Vec<usize>>>> = LazyLock::new(|| {
        let points = std::env::var("HOLDFAST_CRASH_POINTS").unwrap_or_default();
        Mutex::new(points.split(';').filter(|point| !point.is_empty()).map(read).collect())
    });

    fn read(point: &str) -> (String, Vec<usize>) {
        let (name, hits) = point.split_once(':').expect("a crash point is `name:hit,hit`");
        let hits = hits.split(',').map(|hit| hit.parse().expect("a hit is a number"));
        (name.to_string(), hits.collect())
    }

    /// One hit of a point. One at a time: of two that kill, the second is not to be written down.
    pub(crate) fn hit(point: &'static str) {
        let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hits) = armed.get(point) else { return };
        let nth = count(point, hits).expect("HOLDFAST_CRASH_LOG can be written");
        if hits.contains(&nth) {
            let _ = kill_process(getpid(), Signal::KILL);
        }
        if hits.iter().all(|hit| *hit <= nth) {
            armed.remove(point);
        }
    }

    /// Enters a hit in the log; answers which one it is.
    fn count(point: &str, hits: &[usize]) -> std::io::Result<usize> {
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
pub(crate) use armed::hit;

#[cfg(feature = "crash-points")]
macro_rules! crash_point {
    ($point:literal) => {
        $crate::crash::hit($point)
    };
    ($point:literal, $if:expr) => {
        if $if {
            $crate::crash::hit($point)
        }
    };
}

#[cfg(not(feature = "crash-points"))]
macro_rules! crash_point {
    ($point:literal $(, $if:expr)?) => {};
}

pub(crate) use crash_point as point;
