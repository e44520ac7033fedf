//! The lines of the log that wait, and which of them are lost when there are too many: the least severe ones first.

use std::collections::VecDeque;

use tracing::Level;

/// Lines that wait, and their bytes, at most.
const LINES_MAX: usize = 10_000;
const BYTES_MAX: usize = 1024 * 1024;

/// The levels, the most severe one first, as labels of the counter of lost ones.
pub(crate) const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// A number of lines for each of [`LEVELS`].
pub(super) type LineCounts = [u64; LEVELS.len()];

/// The place of a level in [`LEVELS`].
pub(super) fn severity(level: Level) -> usize {
    [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE]
        .iter()
        .position(|known| *known == level)
        .unwrap_or(LEVELS.len() - 1)
}

#[derive(Default)]
pub(super) struct WaitingLines {
    /// By severity, each with its number in the log.
    by_severity: [VecDeque<(u64, Vec<u8>)>; LEVELS.len()],
    pub count: usize,
    bytes: usize,
    next: u64,
    /// All lines that were lost so far.
    pub lost: LineCounts,
    pub is_writing: bool,
    /// Whether a flush was given up, and nothing was written since.
    pub is_stalled: bool,
}

impl WaitingLines {
    /// Adds a line. Without room for it, less severe lines are lost for it, or it is lost itself. Returns what was lost.
    pub fn push(&mut self, severity: usize, line: &[u8]) -> LineCounts {
        let mut lost = LineCounts::default();
        while self.count >= LINES_MAX || self.bytes + line.len() > BYTES_MAX {
            let mut less_severe = (severity + 1..LEVELS.len()).rev();
            let least = less_severe.find(|it| !self.by_severity[*it].is_empty());
            let Some(least) = least.filter(|_| line.len() <= BYTES_MAX) else {
                lost[severity] += 1;
                break;
            };
            self.pop(least);
            lost[least] += 1;
        }
        if lost[severity] == 0 {
            self.by_severity[severity].push_back((self.next, line.to_vec()));
            self.count += 1;
            self.bytes += line.len();
            self.next += 1;
        }
        add(&mut self.lost, &lost);
        lost
    }

    pub fn pop(&mut self, severity: usize) -> Option<Vec<u8>> {
        let (_, line) = self.by_severity[severity].pop_front()?;
        self.count -= 1;
        self.bytes -= line.len();
        Some(line)
    }

    pub fn oldest(&self) -> Option<(usize, usize)> {
        let fronts = self.by_severity.iter().enumerate();
        let fronts = fronts.filter_map(|(severity, lines)| Some((severity, lines.front()?)));
        let (severity, (_, line)) = fronts.min_by_key(|(_, (nth, _))| *nth)?;
        Some((severity, line.len()))
    }
}

pub(super) fn add(sum: &mut LineCounts, more: &LineCounts) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_severe_lines_are_lost_first_and_the_bounds_hold() {
        let mut lines = WaitingLines::default();
        let line = [b'x'; 1024];
        for _ in 0..BYTES_MAX / line.len() / 2 {
            assert_eq!(lines.push(3, &line), LineCounts::default());
            assert_eq!(lines.push(2, &line), LineCounts::default());
        }
        assert_eq!(lines.push(4, &line), [0, 0, 0, 0, 1], "it is the least severe one itself");
        assert_eq!(lines.push(0, &line), [0, 0, 0, 1, 0]);
        assert_eq!(lines.push(0, &[b'x'; 1025]), [0, 0, 0, 2, 0], "two make room for a larger one");
        assert_eq!(lines.push(0, &[b'x'; BYTES_MAX + 1]), [1, 0, 0, 0, 0], "it can never fit");
        while lines.lost[0] == 1 {
            lines.push(0, &line);
            assert!(lines.bytes <= BYTES_MAX);
        }
        assert!(lines.by_severity[1..].iter().all(VecDeque::is_empty), "errors are lost last");
        let mut lines = WaitingLines::default();
        (0..LINES_MAX).for_each(|_| assert_eq!(lines.push(1, b""), LineCounts::default()));
        assert_eq!(lines.push(1, b""), [0, 1, 0, 0, 0]);
    }
}
