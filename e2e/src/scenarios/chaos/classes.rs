//! The classes of faults of a chaos run: a row each, with all that a run needs to know of it. The faults that a seed
//! draws depend on the order of the rows.

use std::ops::Range;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use faults::database_faults as databases;
use faults::faulty_network::Toxics;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fault::Victims::{self, *};
use super::fault::{Fault, FaultClass, Inject};
use super::inject::one;
use crate::admin::republish::{self, RepublishOptions};
use crate::checker::coverage::Situation;
use crate::client::operator::Operator;
use crate::scenarios::redelivery;

/// Without a duration.
const NONE: Range<u64> = 0..1;

/// Records of a topic that are written again, at most.
const DUPLICATES_MAX: i64 = 600;

const LOST_RESPONSES: &str = "half open: responses don't arrive";
const LOST_COMMITS: &str = "half of all commits lose their response";
const BAD_MIGRATION: &str = "a bad migration; then its dead letters are replayed";
const EXPIRED_DEADLINE: &str = "orders have a deadline while stock is frozen";

const KILL: Inject = |on, fault| on.end(fault, on.kill(fault));
const PAUSE: Inject = |on, fault| one(on.pause(fault));

/// The kills, and then the others.
pub static CLASSES: [FaultClass; 34] = [
    row("F11", "a service is killed", 2..40, Instances, KILL).kill(62),
    row("F12", "Kafka is killed", 2..25, Only("kafka"), KILL).kill(7),
    row("F17", "the registry is killed", 2..40, Only("registry"), KILL).kill(5),
    row("F13", "a database is killed", 2..25, Databases, KILL).kill(10),
    row("F13", "a postmaster is killed, its backends are not", 2..25, Databases, |on, fault| {
        on.end(fault, on.stack.kill_main_process(&fault.victim))
    })
    .kill(8),
    row("F13", "a database's backend is killed", NONE, Databases, |on, fault| {
        one(databases::kill_backend(on.stack, fault.service()))
    })
    .kill(8),
    // Longer and shorter than the session with Kafka and the relay's session with its database.
    row("F21", "a service is frozen", 20..160, Instances, PAUSE),
    row("F12", "Kafka is frozen", 20..80, Only("kafka"), PAUSE),
    row("F18", "the registry is frozen", 20..80, Only("registry"), PAUSE),
    row("F13", "a database is frozen", 20..80, Databases, PAUSE),
    row("F10", "a service is stopped by SIGTERM", 2..25, Instances, |on, fault| {
        on.end(fault, on.stop(&fault.victim))
    }),
    row("F13", "a database is stopped at once", 2..25, Databases, |on, fault| {
        on.end(fault, on.stack.stop_immediately(&fault.victim))
    }),
    row("F22", "a further instance comes and goes", 50..120, FurtherInstances, |on, fault| {
        one(on.join_and_leave(fault))
    }),
    row("F39", "200 ms of latency, give or take 100", 50..120, Links, |on, fault| {
        let (latency, jitter) = (Duration::from_millis(200), Duration::from_millis(100));
        on.disturb(fault, Toxics { latency, jitter, ..Toxics::default() })
    }),
    row("F39", "a black hole", 20..150, Links, |on, fault| on.disturb(fault, Toxics::black_hole())),
    row("F39", "half open: requests don't arrive", 20..150, Links, |on, fault| {
        on.disturb(fault, Toxics { holds_requests: true, ..Toxics::default() })
    }),
    row("F39", LOST_RESPONSES, 20..150, Links, |on, fault| {
        on.disturb(fault, Toxics { holds_responses: true, ..Toxics::default() })
    }),
    row("F09, F39", "connections are reset", NONE, Links, |on, fault| {
        on.disturb_and_reset(fault, Toxics::default())
    }),
    row("F39", "connections are refused", 20..60, Links, |on, fault| {
        on.disturb_and_reset(fault, Toxics { refuses_connections: true, ..Toxics::default() })
    }),
    row("F39", "20 kB/s", 50..120, Links, |on, fault| {
        on.disturb(fault, Toxics { bytes_per_second: Some(20_000), ..Toxics::default() })
    }),
    row("F15", LOST_COMMITS, 20..60, DatabaseLinks, |on, fault| {
        on.disturb(fault, Toxics { commit_cut_percent: 50, ..Toxics::default() })
    }),
    row("F13", "a database is read-only", 10..50, Databases, |on, fault| {
        one(on.make_read_only(fault))
    }),
    row("F13", "a database ends its sessions", NONE, Databases, |on, fault| {
        Box::pin(databases::terminate_sessions(on.stack, fault.service()))
    }),
    row("F32", "the relay's session is ended", NONE, Databases, |on, fault| {
        Box::pin(databases::terminate_relay_session(on.stack, fault.service()))
    }),
    row("F13", "a table is locked", 10..50, Databases, |on, fault| {
        one(databases::lock_outbox(on.stack, fault.service(), fault.duration))
    }),
    row("F40", "an old snapshot is held", 80..150, Databases, |on, fault| {
        one(databases::hold_snapshot(on.stack, fault.service(), fault.duration))
    }),
    row("F30", "a group is set back to offset 0", NONE, Services, |on, fault| {
        let reset =
            async move || redelivery::reset_offsets(on.client, fault.service(), i64::MAX).await;
        Box::pin(on.change_offsets(fault.service(), reset))
    })
    .and(&["kafka"]),
    row("F29", "a group's offsets are deleted", NONE, Services, |on, fault| {
        let delete = async move || redelivery::delete_offsets(on.client, fault.service()).await;
        Box::pin(on.change_offsets(fault.service(), delete))
    })
    .and(&["kafka"]),
    row(
        "F20",
        "records are written again, once to three times",
        NONE,
        Only("kafka"),
        |on, fault| {
            Box::pin(async move {
                redelivery::produce_again(on.client, DUPLICATES_MAX, &mut fault.rng()).await
            })
        },
    )
    .and(&["registry"]),
    row("F24", "bytes that are no event", NONE, Only("kafka"), |on, fault| {
        Box::pin(on.poison(fault))
    })
    .and(&["registry"]),
    row("F25", "unprocessable events", NONE, Only("kafka"), |on, _| one(on.send_unprocessable()))
        .and(&["registry"]),
    row("F26", BAD_MIGRATION, 20..60, OnlyService("payment"), |on, fault| {
        Box::pin(on.migrate_badly(fault))
    })
    .and(&["payment-db"])
    .causes(Situation::DeadLetterReplayed),
    row("F20", "a service republishes", NONE, Services, |on, fault| {
        Box::pin(async move {
            let since = Some(Utc::now() - TimeDelta::seconds(10));
            let options = RepublishOptions { since, ..RepublishOptions::default() };
            let operator = Operator::for_stack(on.stack)?;
            republish::republish_service(&operator, fault.service(), &options).await
        })
    }),
    // The sweep runs every five seconds, and cancels nothing before its third run.
    row("F38", EXPIRED_DEADLINE, 100..120, OnlyService("order"), |on, fault| {
        Box::pin(on.expire_deadline(fault))
    })
    .and(&["stock", "stock-2", "stock-3", "kafka"])
    .causes(Situation::Deadline),
];

const fn row(
    number: &'static str,
    description: &'static str,
    duration: Range<u64>,
    victims: Victims,
    inject: Inject,
) -> FaultClass {
    let (kill_percent, also_touches, causes) = (0, &[] as &[&str], None);
    FaultClass {
        number,
        description,
        duration,
        victims,
        inject,
        kill_percent,
        also_touches,
        causes,
    }
}

impl FaultClass {
    const fn kill(self, kill_percent: u32) -> FaultClass {
        FaultClass { kill_percent, ..self }
    }

    const fn and(self, also_touches: &'static [&'static str]) -> FaultClass {
        FaultClass { also_touches, ..self }
    }

    const fn causes(self, situation: Situation) -> FaultClass {
        FaultClass { causes: Some(situation), ..self }
    }

    pub fn described(description: &str) -> Option<&'static FaultClass> {
        CLASSES.iter().find(|class| class.description == description)
    }
}

impl Fault {
    /// A proxy cannot find the responses to commits in what is encrypted, so responses of every kind are lost.
    pub fn adapt_to_encryption(&mut self) {
        if self.class.description == LOST_COMMITS {
            self.class = FaultClass::described(LOST_RESPONSES).unwrap_or(self.class);
        }
    }
}

/// The saved state of a run has the descriptions.
impl Serialize for FaultClass {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.description)
    }
}

impl<'de> Deserialize<'de> for &'static FaultClass {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = FaultClass::described(&text);
        found.ok_or_else(|| D::Error::custom(format!("unknown class of faults: {text}")))
    }
}
