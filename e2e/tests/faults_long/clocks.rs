//! F37. Time is the databases'; a service's own clock decides nothing.

use chrono::{DateTime, Utc};

use super::*;

/// In seconds.
const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 24 * HOUR;

/// Whoever asks for the time of day is told another one. Nobody who waits for a moment by that clock is:
/// the kernel knows the true time only, and would have him wait for as long as the two are apart.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    const char *off = getenv("CLOCK_OFF_SECONDS");
    if (!failed && clock == CLOCK_REALTIME && off)
        now->tv_sec += atol(off);
    return failed;
}
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn services_whose_clocks_are_an_hour_or_a_year_off_lose_and_repeat_nothing() -> Result<()> {
    on_its_own(wrong_clocks).await
}

async fn wrong_clocks(stack: &Stack) -> Result<()> {
    let client = own_stack(stack).await?;
    let library = library(stack.directory())?;
    for (service, off) in [("order", HOUR), ("payment", -HOUR), ("stock", YEAR), ("order", -YEAR)] {
        stack.set_environment(service, "LD_PRELOAD", Some(&library))?;
        stack.set_environment(service, "CLOCK_OFF_SECONDS", Some(&off.to_string()))?;
        stack.stop(service).await?;
        stack.start(service).await?;
        let is_off = (clock_of(stack, service).await? - Utc::now()).num_seconds();
        ensure!(
            is_off.abs_diff(off) < SOON.as_secs(),
            "the clock of {service} is off by {is_off} s"
        );
        all_end(&client, &place_all(&client, 20).await?).await?;
    }
    verified(&client).await
}

/// Made by the compiler that also made Kafka's client.
fn library(directory: &Path) -> Result<String> {
    let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
    std::fs::write(&source, CLOCK)?;
    let made =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    ensure!(made.context("cc")?.success(), "no library for a wrong clock");
    Ok(library.to_string_lossy().into_owned())
}

/// What a service takes for the time, by the date of its answers.
async fn clock_of(stack: &Stack, service: &str) -> Result<DateTime<Utc>> {
    let answer = reqwest::get(format!("{}/openapi.json", stack.url(service)?)).await?;
    let date = answer.headers().get("date").context("an answer has a date")?.to_str()?;
    Ok(DateTime::parse_from_rfc2822(date)?.to_utc())
}
