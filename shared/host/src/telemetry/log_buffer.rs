//! The buffer of the log: lines wait in it, and a dedicated thread writes them.
//!
//! Promise: nothing that logs waits for the reader of the log. Standard output is a pipe nearly everywhere, and a reader
//! that stalls would stop each task that logs. So when the buffer is full, lines are lost and counted, the least severe
//! ones first, and one line reports the loss once the log is read again. Code that writes to standard output or to
//! standard error while the process serves breaks the promise.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use metrics::counter;
use parking_lot::{Condvar, Mutex};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::waiting_lines::{LEVELS, LineCounts, WaitingLines, add, severity};

pub(crate) const LOST_COUNTER: &str = "log_lines_lost_total";

/// Bytes that the thread takes out of the buffer and writes at a time, unless one line has more. None of them is lost
/// for a more severe line any more.
const WRITE_BYTES_MAX: usize = 16 * 1024;

/// How often a loss is reported, at most, while lines are lost all the time.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How often a write is tried again that an output in non-blocking mode had no room for.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// For how long the end of the process, and a panic, wait until the log is written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static LOG: OnceLock<LogBuffer> = OnceLock::new();

/// Writes the end of the log when the process ends, also by a panic of its main thread.
pub(crate) struct LogFlush;

impl Drop for LogFlush {
    fn drop(&mut self) {
        if let Some(log) = LOG.get() {
            log.flush(FLUSH_TIMEOUT);
        }
    }
}

/// Writes the log at a panic, which may end the process or not.
pub(super) fn flush_at_panic() {
    if let Some(log) = LOG.get() {
        log.flush_unless_stalled(FLUSH_TIMEOUT);
    }
}

/// The lines that wait. A clone is the same buffer.
#[derive(Clone, Default)]
pub(super) struct LogBuffer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    lines: Mutex<WaitingLines>,
    /// Wakes the thread that writes.
    added: Condvar,
    /// Wakes those who wait for the end of a write.
    written: Condvar,
}

fn count_lost(lost: &LineCounts) {
    for (level, lost) in LEVELS.into_iter().zip(lost).filter(|(_, lost)| **lost > 0) {
        counter!(LOST_COUNTER, "level" => level).increment(*lost);
    }
}

/// The file behind standard output. Rust's own handle has a lock and a buffer, which a thread that cannot write keeps.
pub(super) fn standard_output() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

impl LogBuffer {
    /// Starts the thread that writes the lines. It calls `report` with all that were lost so far, after a write that
    /// shows that the log is read again.
    pub fn start(
        output: impl Write + Send + 'static,
        report: impl Fn(&LineCounts) + Send + 'static,
    ) -> io::Result<LogBuffer> {
        let buffer = LogBuffer::default();
        let of_thread = buffer.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || of_thread.write_forever(output, report))?;
        Ok(buffer)
    }

    /// Makes this the log that is written when the process ends.
    pub fn keep_for_flush(self) {
        let _ = LOG.set(self);
    }

    fn write_forever(&self, mut output: impl Write, report: impl Fn(&LineCounts)) {
        let mut reported = LineCounts::default();
        let mut reported_at = None::<Instant>;
        loop {
            let (bytes, counts) = self.take();
            if write_whole(&mut output, &bytes).is_ok() {
                let mut lines = self.0.lines.lock();
                lines.is_stalled = false;
                let (lost, is_empty) = (lines.lost, lines.count == 0);
                drop(lines);
                let is_due = reported_at.is_none_or(|at| at.elapsed() > REPORT_INTERVAL);
                if lost != reported && (is_due || is_empty) {
                    reported = lost;
                    reported_at = Some(Instant::now());
                    report(&lost);
                }
            } else {
                add(&mut self.0.lines.lock().lost, &counts);
                count_lost(&counts);
            }
            self.0.lines.lock().is_writing = false;
            self.0.written.notify_all();
        }
    }

    /// Waits for lines and takes the oldest ones. Returns their bytes, and how many they are.
    fn take(&self) -> (Vec<u8>, LineCounts) {
        let (mut bytes, mut counts) = (Vec::new(), LineCounts::default());
        let mut lines = self.0.lines.lock();
        while lines.count == 0 {
            self.0.added.wait(&mut lines);
        }
        while let Some((severity, size)) = lines.oldest()
            && (bytes.is_empty() || bytes.len() + size <= WRITE_BYTES_MAX)
        {
            bytes.extend(lines.pop(severity).unwrap_or_default());
            counts[severity] += 1;
        }
        lines.is_writing = true;
        (bytes, counts)
    }

    fn push(&self, severity: usize, line: &[u8]) {
        let lost = self.0.lines.lock().push(severity, line);
        self.0.added.notify_one();
        count_lost(&lost);
    }

    /// Waits until all lines are written, for so long at most.
    fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut lines = self.0.lines.lock();
        while lines.count > 0 || lines.is_writing {
            if self.0.written.wait_until(&mut lines, deadline).timed_out() {
                lines.is_stalled = true;
                return;
            }
        }
    }

    /// The same, but while the log is not read only the first call waits: the handler of each record may panic.
    fn flush_unless_stalled(&self, timeout: Duration) {
        if !self.0.lines.lock().is_stalled {
            self.flush(timeout);
        }
    }
}

/// Writes all bytes, also to an output in non-blocking mode.
fn write_whole(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(WRITE_RETRY_INTERVAL);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) struct LineWriter {
    buffer: LogBuffer,
    severity: usize,
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.buffer.push(self.severity, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogBuffer {
    type Writer = LineWriter;

    fn make_writer(&self) -> LineWriter {
        LineWriter { buffer: self.clone(), severity: severity(Level::INFO) }
    }

    fn make_writer_for(&self, metadata: &Metadata<'_>) -> LineWriter {
        LineWriter { buffer: self.clone(), severity: severity(*metadata.level()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A log into a pipe, and the losses that it reports.
    fn log_into_pipe() -> (LogBuffer, PipeReader, mpsc::Receiver<LineCounts>) {
        let (reader, writer) = pipe().unwrap();
        let (reported, reports) = mpsc::channel();
        let log = LogBuffer::start(writer, move |lost| reported.send(*lost).unwrap()).unwrap();
        (log, reader, reports)
    }

    /// Runs a closure that must not wait for the reader of the log.
    fn without_waiting(run: impl FnOnce() + Send + 'static) {
        let (done, ended) = mpsc::channel();
        thread::spawn(move || {
            run();
            done.send(()).unwrap();
        });
        ended.recv_timeout(SOON).expect("it ends although nothing reads the log");
    }

    /// Reads a pipe until nothing has come for a moment, in a thread of its own.
    fn read_in_background(mut reader: PipeReader) -> mpsc::Receiver<Vec<u8>> {
        let (sent, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read) = reader.read(&mut piece)
                && sent.send(piece[..read].to_vec()).is_ok()
            {}
        });
        pieces
    }

    #[test]
    fn a_reader_that_stalls_stops_no_task_and_errors_are_lost_last() {
        const ERRORS: u64 = 600;
        const OTHERS: u64 = 40_000;
        let (log, reader, reports) = log_into_pipe();
        let to_log = log.clone();
        without_waiting(move || {
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(to_log);
            tracing::subscriber::with_default(subscriber.finish(), || {
                (0..OTHERS / 2).for_each(|nth| tracing::info!(nth, "of no importance"));
                (0..ERRORS).for_each(|nth| tracing::error!(nth, "of importance"));
                (0..OTHERS / 2).for_each(|nth| tracing::info!(nth, "of no importance"));
            });
        });
        let pieces = read_in_background(reader);
        let lost = reports.recv_timeout(SOON).expect("a report of the loss");
        log.flush(SOON);
        let mut text = Vec::new();
        while let Ok(piece) = pieces.recv_timeout(Duration::from_millis(300)) {
            text.extend(piece);
        }
        let text = String::from_utf8(text).unwrap();
        let read = |level: &str| text.lines().filter(|line| line.contains(level)).count() as u64;
        assert_eq!((read("ERROR"), lost[0]), (ERRORS, 0));
        assert!(lost[2] > 0 && read("INFO") + lost[2] == OTHERS, "{lost:?}, {}", read("INFO"));
        assert_eq!(lost[1] + lost[3] + lost[4], 0, "{lost:?}");
        assert!(text.lines().all(|line| line.contains("nth=")), "a line is whole or lost");
    }

    #[test]
    fn a_flush_ends_when_all_is_written_and_in_time_if_nothing_reads() {
        let (log, reader, _reports) = log_into_pipe();
        let line = [b'x'; 1024];
        (0..500).for_each(|_| log.push(2, &line));
        let timeout = Duration::from_millis(200);
        for waits in [true, false] {
            let began = Instant::now();
            log.flush_unless_stalled(timeout);
            assert_eq!(began.elapsed() >= timeout, waits, "only the first panic waits");
        }
        let pieces = read_in_background(reader);
        log.flush(SOON);
        let bytes = || pieces.recv_timeout(SOON).unwrap().len();
        let mut read = 0;
        while read < 500 * line.len() {
            read += bytes();
        }
        log.push(0, b"a panic");
        log.flush_unless_stalled(SOON);
        assert_eq!(bytes(), 7);
    }

    #[test]
    fn lines_are_lost_and_counted_when_the_reader_is_gone() {
        let (log, reader, _reports) = log_into_pipe();
        drop(reader);
        log.push(1, b"a line");
        log.flush(SOON);
        assert_eq!(log.0.lines.lock().lost, [0, 1, 0, 0, 0]);
    }
}
