//! Which crash points there are. The chassis says what one is, and where each stands
//! (`shared/chassis/src/crash.rs`); a test holds these lists against its code.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What a program with crash points reads from its environment.
pub const POINTS: &str = "HOLDFAST_CRASH_POINTS";
pub const LOG: &str = "HOLDFAST_CRASH_LOG";

/// A batch of clients' commands: taken, its rows loaded and locked, all written, committed.
pub const COMMANDS: [&str; 4] =
    ["commands.taken", "commands.loaded", "commands.prepared", "commands.committed"];

/// Rows on their way to Kafka: taken, some of them sent, all sent, acknowledged, deleted.
pub const RELAY: [&str; 5] =
    ["relay.taken", "relay.sending", "relay.sent", "relay.acknowledged", "relay.deleted"];

/// Events on their way in: polled, told from repeats, rows loaded and locked, decided, all written,
/// committed, offsets stored.
pub const CONSUMER: [&str; 7] = [
    "consumer.polled",
    "effect.admitted",
    "effect.loaded",
    "effect.decided",
    "consumer.prepared",
    "consumer.committed",
    "consumer.stored",
];

/// A dead letter: written, committed.
pub const LETTERS: [&str; 2] = ["letters.set_aside", "letters.kept"];

/// What an operator does about it: replayed, and committed; discarded.
pub const REPLAY: [&str; 2] = ["replay.prepared", "replay.committed"];
pub const DISCARD: [&str; 1] = ["discard.prepared"];

/// `migrate`: the tables are there, and the serving role may not use them yet; all is done.
pub const MIGRATE: [&str; 2] = ["schema.migrated", "schema.granted"];

/// A stop that was asked for: begun, the API drained, the loops ended.
pub const STOP: [&str; 3] = ["service.stopping", "service.drained", "service.stopped"];

/// Partitions that go to another instance.
pub const REVOKE: [&str; 1] = ["group.revoked"];

/// The deadline's sweep cancels through the same batches as clients do: decided, not committed.
pub const SWEEP: [&str; 1] = ["commands.prepared"];

/// Each of them, once.
pub fn all() -> Vec<&'static str> {
    let lists: [&[&str]; 8] =
        [&COMMANDS, &RELAY, &CONSUMER, &LETTERS, &REPLAY, &DISCARD, &MIGRATE, &STOP];
    lists.concat().into_iter().chain(REVOKE).collect()
}

/// What of crash points a program holds: their names, and those of their variables. Asked of `grep`,
/// which goes through such a file in no time.
pub fn found_in(program: &Path) -> Result<BTreeSet<String>> {
    let names = all().into_iter().chain([POINTS, LOG]).flat_map(|name| ["-e", name]);
    let found = Command::new("grep")
        .args(["-a", "-o", "-F"])
        .args(names)
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("grep")?;
    // Its status is 1 where it found nothing.
    ensure!(found.status.code().is_some_and(|code| code < 2), "cannot read {}", program.display());
    Ok(String::from_utf8_lossy(&found.stdout).lines().map(str::to_string).collect())
}
