//! What a client of Kafka says of itself, and when it is of no more use.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::Statistics;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::statistics::ConsumerGroup;
use tracing::{debug, warn};

use crate::news::News;

/// So many statistics in a row, ten seconds apart, in which a partition is assigned and not fetched: a
/// coordinator that moves is found anew within less.
const UNFETCHED_MAX: u32 = 3;

/// So many polls that nothing came of, a second each ([`crate::ahead`]), since a client last told of
/// itself, as it does every ten seconds, whatever becomes of Kafka.
const SILENT_MAX: u32 = 60;

/// So many looks in a row, three seconds apart, at which nothing had been read ahead and the reader had
/// not come round, as it does every ten seconds at the latest: its client keeps it waiting.
const STUCK_MAX: u32 = 20;

/// So many statistics in a row, ten seconds apart, in which a client is at the same step of the same
/// rebalance. What it has to do itself takes moments; for the others it waits until Kafka goes on
/// without those who do not join, which is after `max.poll.interval.ms`.
const JOINING_MAX: u32 = 6;
const JOINING_OTHERS_MAX: u32 = 36;

/// What librdkafka calls its message that another cluster answers than the one it found first.
const ANOTHER_CLUSTER: &str = "CLUSTERID";

/// What librdkafka calls a broker that stands for a role, such as the group's coordinator.
const LOGICAL: &str = "logical";

/// What librdkafka calls a group whose coordinator is known and connected, and one that has settled.
const UP: &str = "up";
const STEADY: &str = "steady";

/// What librdkafka calls the steps at which a client waits for its topics to be made, and for the other
/// members of its group.
const BEFORE_JOINING: &str = "init";
const WAITING_FOR_OTHERS: [&str; 2] = ["wait-join", "wait-sync"];

/// What a client says of itself. While its brokers are away it says so several times a second; that
/// it waits is one fact, and a warning: it goes on by itself.
#[derive(Default)]
pub(crate) struct Sayings {
    news: Mutex<News>,
    cluster_replaced: AtomicBool,
    knows_no_broker: AtomicBool,
    /// How often in a row a partition was seen that is assigned and not fetched.
    seen_unfetched: AtomicU32,
    /// How many polls nothing came of since it told of itself.
    silent_for: AtomicU32,
    /// How many looks found nothing read ahead since the reader came round.
    stuck_for: AtomicU32,
    joining: Mutex<Joining>,
}

/// How often in a row a client was seen on its way into its group, at the same step, after the same
/// number of rebalances.
#[derive(Default)]
struct Joining {
    seen: u32,
    step: String,
    rebalances: i64,
}

impl Joining {
    fn seen(&mut self, group: &ConsumerGroup) {
        let ConsumerGroup { join_state, rebalance_cnt, .. } = group;
        let has_topics = *rebalance_cnt > 0 || join_state != BEFORE_JOINING;
        let same = self.step == *join_state && self.rebalances == *rebalance_cnt;
        self.seen = match group.state == UP && join_state != STEADY && has_topics {
            true if same => self.seen + 1,
            true => 1,
            false => 0,
        };
        (self.step, self.rebalances) = (join_state.clone(), *rebalance_cnt);
    }

    fn gets_nowhere(&self) -> bool {
        let others = WAITING_FOR_OTHERS.contains(&&*self.step);
        self.seen >= if others { JOINING_OTHERS_MAX } else { JOINING_MAX }
    }
}

impl Sayings {
    pub(crate) fn say(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        if level as i32 > RDKafkaLogLevel::Warning as i32 {
            debug!("Kafka's client: {text}");
            return;
        }
        if kind == ANOTHER_CLUSTER {
            self.cluster_replaced.store(true, Ordering::Relaxed);
        }
        // While brokers are away each of them says so by turns, with the times.
        if self.news.lock().unwrap_or_else(PoisonError::into_inner).is_news(kind, "") {
            warn!("Kafka's client: {text}");
        }
    }

    /// Notes that the client tells of itself: whether it knows of any broker still, and whether it is
    /// on its way into its group.
    ///
    /// A lone broker that takes itself for dead, as when it wakes from a freeze or at the end of a
    /// graceful stop, answers that there is none. librdkafka then drops it, and should begin again
    /// with the bootstrap servers; but where the connection ends at the same moment, it takes that
    /// back, and never connects to anybody again (its issue 5301). Such a client is given up.
    pub(crate) fn counted(&self, statistics: &Statistics) {
        let known = statistics.brokers.values().any(|broker| broker.source != LOGICAL);
        self.knows_no_broker.store(!known, Ordering::Relaxed);
        self.silent_for.store(0, Ordering::Relaxed);
        if let Some(group) = &statistics.cgrp {
            self.joining.lock().unwrap_or_else(PoisonError::into_inner).seen(group);
        }
    }

    /// Notes that a poll took its whole time and nothing came of it.
    pub(crate) fn nothing_came(&self) {
        self.silent_for.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the reader was not kept waiting.
    pub(crate) fn reader_came_round(&self) {
        self.stuck_for.store(0, Ordering::Relaxed);
    }

    /// Notes that nothing was read ahead for a while.
    pub(crate) fn nothing_was_read(&self) {
        self.stuck_for.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes whether all that the client was given is fetched.
    ///
    /// Where the group's coordinator moves while a client asks it how far the group has come,
    /// librdkafka takes the refusal for an answer, and never fetches the partition (its issue 5586).
    pub(crate) fn fetches_all(&self, all: bool) {
        if all {
            self.seen_unfetched.store(0, Ordering::Relaxed);
        } else {
            self.seen_unfetched.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Why this client is of no more use, if that is so.
    pub(crate) fn beyond_repair(&self) -> Option<&'static str> {
        if self.cluster_replaced() {
            return Some("Kafka's cluster was made anew");
        }
        if self.seen_unfetched.load(Ordering::Relaxed) >= UNFETCHED_MAX {
            return Some("a partition that it was given is not fetched");
        }
        if self.silent_for.load(Ordering::Relaxed) >= SILENT_MAX {
            return Some("it has fallen silent");
        }
        if self.stuck_for.load(Ordering::Relaxed) >= STUCK_MAX {
            return Some("it keeps its reader waiting");
        }
        if self.joining.lock().unwrap_or_else(PoisonError::into_inner).gets_nowhere() {
            return Some("it does not get into its group");
        }
        self.knows_no_broker.load(Ordering::Relaxed).then_some("it knows of no broker any more")
    }

    /// Whether the cluster that the client found first is gone, and one that was made anew answers
    /// in its place.
    ///
    /// Whatever the client has in memory is then about records that are gone: positions, epochs,
    /// sequence numbers. librdkafka goes on with them, and would step over records where a new topic
    /// has grown longer than the old one was. Such a client is given up. It has heard of it as soon
    /// as it has a connection: metadata is the first thing that it asks for.
    pub(crate) fn cluster_replaced(&self) -> bool {
        self.cluster_replaced.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::Broker;

    use super::*;

    #[test]
    fn a_client_that_knows_of_no_broker_but_in_a_role_is_beyond_repair_until_it_does() {
        let sayings = Sayings::default();
        let knowing = |sources: &[&str]| {
            let broker = |source: &&str| Broker { source: source.to_string(), ..Broker::default() };
            let brokers = sources.iter().map(|source| (source.to_string(), broker(source)));
            sayings.counted(&Statistics { brokers: brokers.collect(), ..Statistics::default() });
            sayings.beyond_repair()
        };
        assert_eq!(knowing(&["configured"]), None);
        assert_eq!(knowing(&["learned", LOGICAL]), None);
        assert!(knowing(&[LOGICAL]).is_some_and(|because| because.contains("no broker")));
        assert!(knowing(&[]).is_some());
        assert_eq!(knowing(&["configured", LOGICAL]), None);
    }

    fn with_a_broker() -> Statistics {
        let broker = Broker { source: "learned".into(), ..Broker::default() };
        Statistics { brokers: [("broker".to_string(), broker)].into(), ..Statistics::default() }
    }

    #[test]
    fn a_client_that_gets_nowhere_on_its_way_into_its_group_is_given_up_in_time() {
        let given_up_after = |state: &str, join_state: &str, rebalances: fn(u32) -> i64| {
            let sayings = Sayings::default();
            (1..100).find(|nth| {
                let group = ConsumerGroup {
                    state: state.to_string(),
                    join_state: join_state.to_string(),
                    rebalance_cnt: rebalances(*nth),
                    ..ConsumerGroup::default()
                };
                sayings.counted(&Statistics { cgrp: Some(group), ..with_a_broker() });
                sayings.beyond_repair().is_some()
            })
        };
        assert_eq!(given_up_after("up", "wait-unassign-call", |_| 4), Some(6));
        assert_eq!(given_up_after("up", "init", |_| 4), Some(6));
        assert_eq!(given_up_after("up", "init", |_| 0), None, "there are no topics");
        assert_eq!(given_up_after("up", "wait-join", |_| 0), Some(36));
        assert_eq!(given_up_after("up", "wait-sync", |nth| nth.into()), None, "it gets along");
        assert_eq!(given_up_after("wait-coord", "init", |_| 4), None, "Kafka is away");
        assert_eq!(given_up_after("up", "steady", |_| 4), None);
    }

    #[test]
    fn a_client_that_says_nothing_of_itself_for_a_minute_is_given_up() {
        let sayings = Sayings::default();
        for _ in 1..SILENT_MAX {
            sayings.nothing_came();
        }
        assert_eq!(sayings.beyond_repair(), None);
        sayings.nothing_came();
        assert!(sayings.beyond_repair().is_some_and(|because| because.contains("silent")));
        sayings.counted(&with_a_broker());
        assert_eq!(sayings.beyond_repair(), None, "it was only slow");
    }

    #[test]
    fn a_client_that_keeps_its_reader_waiting_for_a_minute_is_given_up() {
        let sayings = Sayings::default();
        for _ in 1..STUCK_MAX {
            sayings.nothing_was_read();
        }
        sayings.reader_came_round();
        for _ in 1..STUCK_MAX {
            sayings.nothing_was_read();
        }
        assert_eq!(sayings.beyond_repair(), None, "it came round");
        sayings.nothing_was_read();
        assert!(sayings.beyond_repair().is_some_and(|because| because.contains("waiting")));
    }
}
