//! The names of the crash points. `shared/messaging/src/crash_point.rs` defines what one is, and a
//! test compares these lists with the code of the chassis.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The environment variables of a program with crash points.
pub const POINTS_VARIABLE: &str = "HOLDFAST_CRASH_POINTS";
pub const LOG_VARIABLE: &str = "HOLDFAST_CRASH_LOG";

/// A batch of commands: taken, rows loaded and locked, deduplicated, decided, all written, committed.
pub const COMMANDS: [&str; 6] = [
    "commands.taken",
    "commands.loaded",
    "commands.deduplicated",
    "commands.decided",
    "commands.prepared",
    "commands.committed",
];

/// Outbox rows: taken, some of them sent, all sent, acknowledged, deleted.
pub const RELAY: [&str; 5] =
    ["relay.taken", "relay.sending", "relay.sent", "relay.acknowledged", "relay.deleted"];

/// Events: polled, rows loaded and locked, deduplicated, decided, all written, committed, offsets
/// stored.
pub const CONSUMER: [&str; 7] = [
    "consumer.polled",
    "transaction.loaded",
    "transaction.deduplicated",
    "transaction.decided",
    "consumer.prepared",
    "consumer.committed",
    "consumer.stored",
];

/// A dead letter: written, committed.
pub const DEAD_LETTERS: [&str; 2] = ["dead_letters.stored", "dead_letters.committed"];

/// The settling of a dead letter: replayed and committed; discarded.
pub const REPLAY: [&str; 2] = ["replay.prepared", "replay.committed"];
pub const DISCARD: [&str; 1] = ["discard.prepared"];

/// `migrate`: tables created, while the serving role has no rights yet; grants done.
pub const MIGRATE: [&str; 2] = ["schema.migrated", "schema.granted"];

/// A graceful stop: begun, API drained, loops ended.
pub const STOP: [&str; 3] = ["service.stopping", "service.drained", "service.stopped"];

/// Partitions that move to another instance.
pub const REVOKE: [&str; 1] = ["group.revoked"];

/// Timers that are due: all written, committed.
pub const SCHEDULER: [&str; 2] = ["scheduler.prepared", "scheduler.committed"];

/// An outside call: its try begun, answered, what follows written, committed. A delivery of a webhook and the answer to a
/// task: written, committed.
pub const OUTSIDE: [&str; 8] = [
    "calls.begun",
    "calls.answered",
    "calls.prepared",
    "calls.committed",
    "deliveries.prepared",
    "deliveries.committed",
    "tasks.prepared",
    "tasks.committed",
];

/// All of them, each once.
pub fn all() -> Vec<&'static str> {
    let lists: [&[&str]; 10] = [
        &COMMANDS,
        &RELAY,
        &CONSUMER,
        &DEAD_LETTERS,
        &REPLAY,
        &DISCARD,
        &MIGRATE,
        &STOP,
        &SCHEDULER,
        &OUTSIDE,
    ];
    lists.concat().into_iter().chain(REVOKE).collect()
}

/// The names of crash points and of their variables in a program. `grep` finds them quickly in a
/// large file.
pub fn names_in(program: &Path) -> Result<BTreeSet<String>> {
    let names =
        all().into_iter().chain([POINTS_VARIABLE, LOG_VARIABLE]).flat_map(|name| ["-e", name]);
    let found = Command::new("grep")
        .args(["-a", "-o", "-F"])
        .args(names)
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("grep")?;
    // The status of `grep` is 1 without a match.
    ensure!(found.status.code().is_some_and(|code| code < 2), "cannot read {}", program.display());
    Ok(String::from_utf8_lossy(&found.stdout).lines().map(str::to_string).collect())
}
