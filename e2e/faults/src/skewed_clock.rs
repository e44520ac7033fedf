//! A clock that is wrong and jumps: components of a stack read another time of day.
//!
//! The monotonic clock stays correct, as it does when a host sleeps or its time is set. The kernel
//! only knows the true time, so a component that waits for a moment of the wrong clock would wait
//! as long as the two differ. Kafka's client does that with the time of `gettimeofday`, so this
//! library leaves `gettimeofday` unchanged for a service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use launcher::Stack;
use launcher::directories::create_public_directory;

/// Adds the seconds in a file to each time of day that is read.
const LIBRARY_SOURCE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(const char *variable) {
    int before = errno;
    long seconds = 0;
    char text[32];
    const char *file = getenv(variable);
    long opened = file ? syscall(SYS_openat, AT_FDCWD, file, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (opened >= 0) {
        long length = syscall(SYS_read, opened, text, sizeof text - 1);
        if (length > 0) {
            text[length] = 0;
            seconds = atol(text);
        }
        syscall(SYS_close, opened);
    }
    errno = before;
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset("CLOCK_OFFSET_FILE");
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exactly;
    (void)zone;
    if (syscall(SYS_clock_gettime, CLOCK_REALTIME, &exactly))
        return -1;
    now->tv_sec = exactly.tv_sec + offset("CLOCK_OF_DAY_OFFSET_FILE");
    now->tv_usec = exactly.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timeval exactly;
    gettimeofday(&exactly, 0);
    if (now)
        *now = exactly.tv_sec;
    return exactly.tv_sec;
}
"#;

/// A clock for components of a stack; it is correct until it is set.
pub struct SkewedClock {
    library: PathBuf,
    offset_file: PathBuf,
}

impl SkewedClock {
    /// Compiles the library in the stack's directory, with the compiler that also builds Kafka's
    /// client.
    ///
    /// # Errors
    /// If there is no `cc`, or the file cannot be written.
    pub fn new(stack: &Stack, name: &str) -> Result<SkewedClock> {
        let directory = stack.directory().join("clock");
        // A database runs as another user, and must be able to read both files.
        create_public_directory(&directory)?;
        let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
        if !library.exists() {
            fs::write(&source, LIBRARY_SOURCE)?;
            let mut cc = Command::new("cc");
            let made = cc.args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]);
            ensure!(
                made.status().context("cc")?.success(),
                "the library for a wrong clock does not compile"
            );
        }
        let clock = SkewedClock { library, offset_file: directory.join(name) };
        clock.set_offset(0)?;
        Ok(clock)
    }

    /// Attaches the clock to a component, a service or a database, from its next start on.
    ///
    /// # Errors
    /// If the stack is not native or has no such component.
    pub fn apply_to(&self, stack: &Stack, component: &str) -> Result<()> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        stack.set_environment(component, "LD_PRELOAD", Some(&text(&self.library)))?;
        stack.set_environment(component, "CLOCK_OFFSET_FILE", Some(&text(&self.offset_file)))?;
        if component.ends_with("-db") {
            let offset = text(&self.offset_file);
            stack.set_environment(component, "CLOCK_OF_DAY_OFFSET_FILE", Some(&offset))?;
        }
        Ok(())
    }

    /// Makes the clock jump: from now on it is wrong by this number of seconds.
    pub fn set_offset(&self, seconds: i64) -> Result<()> {
        // A rename replaces the file atomically: an empty file would be a correct clock for a
        // moment.
        let next = self.offset_file.with_extension("next");
        fs::write(&next, seconds.to_string())?;
        Ok(fs::rename(next, &self.offset_file)?)
    }
}
