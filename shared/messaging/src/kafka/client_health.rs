//! The health of a Kafka client: its logs and statistics, and the conditions under which it must be replaced.

use parking_lot::Mutex;
use rdkafka::Statistics;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::statistics::ConsumerGroup;
use tracing::{debug, warn};

use crate::flow::reload;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::refusals;

/// Consecutive statistics, ten seconds apart, in which a partition is assigned and not fetched, after which the
/// client must be replaced. A client finds a coordinator that moved in less time.
const UNFETCHED_CHECKS_MAX: u32 = 3;

/// Polls without a result, a second each ([`crate::consumer::prefetch`]), since the last statistics, after which
/// the client must be replaced. A client reports statistics every ten seconds, even while Kafka is unreachable.
const SILENT_POLLS_MAX: u32 = 60;

/// Consecutive checks, three seconds apart, with an empty prefetch queue and no poll that returned, after which
/// the client counts as stuck. A poll of a healthy client returns every ten seconds at the latest.
const STUCK_CHECKS_MAX: u32 = 20;

/// Consecutive statistics, ten seconds apart, in which a client is at the same step of the same rebalance, after
/// which it counts as stuck. Its own steps take moments; for other members it waits until Kafka continues
/// without those that do not join, which is after `max.poll.interval.ms`.
const JOIN_STEP_CHECKS_MAX: u32 = 6;
const JOIN_WAIT_CHECKS_MAX: u32 = 36;

/// librdkafka's name of the log message that another cluster answers than at first.
const CLUSTER_CHANGED: &str = "CLUSTERID";

/// librdkafka's source of a broker that stands for a role, such as the group's coordinator.
const LOGICAL_BROKER: &str = "logical";

/// librdkafka's state of a broker that has accepted the client.
const BROKER_UP: &str = "UP";

/// librdkafka's states of a group whose coordinator is connected, and of a membership without a rebalance.
const GROUP_UP: &str = "up";
const JOIN_STEADY: &str = "steady";

/// librdkafka's states of a client that waits until its topics exist, and of one that waits for other members.
const JOIN_INIT: &str = "init";
const JOIN_WAITS: [&str; 2] = ["wait-join", "wait-sync"];

/// The health of one client. While its brokers are unreachable, a client logs that several times a second. The
/// service logs one warning, since the client recovers by itself.
#[derive(Default)]
pub(crate) struct ClientHealth(Mutex<Observations>);

#[derive(Default)]
struct Observations {
    log_throttle: LogThrottle,
    cluster_changed: bool,
    no_broker_known: bool,
    /// Consecutive statistics with a partition that is assigned and not fetched.
    unfetched_checks: u32,
    /// Polls without a result since the last statistics.
    silent_polls: u32,
    /// Checks that found the prefetch queue empty since the last poll that returned.
    stuck_checks: u32,
    join_progress: JoinProgress,
}

/// Consecutive statistics in which a client was joining its group, at the same step, after the same number of
/// rebalances.
#[derive(Default)]
struct JoinProgress {
    checks: u32,
    step: String,
    rebalances: i64,
}

impl JoinProgress {
    fn record(&mut self, group: &ConsumerGroup) {
        let ConsumerGroup { join_state, rebalance_cnt, .. } = group;
        let has_topics = *rebalance_cnt > 0 || join_state != JOIN_INIT;
        let same = self.step == *join_state && self.rebalances == *rebalance_cnt;
        self.checks = match group.state == GROUP_UP && join_state != JOIN_STEADY && has_topics {
            true if same => self.checks + 1,
            true => 1,
            false => 0,
        };
        (self.step, self.rebalances) = (join_state.clone(), *rebalance_cnt);
    }

    fn is_stuck(&self) -> bool {
        let others = JOIN_WAITS.contains(&&*self.step);
        self.checks >= if others { JOIN_WAIT_CHECKS_MAX } else { JOIN_STEP_CHECKS_MAX }
    }
}

impl ClientHealth {
    pub(crate) fn on_error(&self, error: &KafkaError, text: &str) {
        if refusals::report_kafka(error, text) {
            // The password in the file may be a newer one.
            reload::request();
        } else {
            self.on_log(RDKafkaLogLevel::Error, &error.to_string(), text);
        }
    }

    pub(crate) fn on_log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        if level as i32 > RDKafkaLogLevel::Warning as i32 {
            debug!("Kafka's client: {text}");
            return;
        }
        let mut observed = self.0.lock();
        observed.cluster_changed |= kind == CLUSTER_CHANGED;
        // While brokers are unreachable, the lines of the brokers alternate and contain times.
        if observed.log_throttle.should_log(kind, "") {
            warn!("Kafka's client: {text}");
        }
    }

    /// Records the statistics of the client: whether its list of brokers is empty, and whether it is joining its
    /// group.
    ///
    /// After a freeze, or at the end of a graceful stop, a single broker answers with an empty list of brokers.
    /// librdkafka then removes the broker and should return to the bootstrap servers. If the connection ends at the
    /// same moment, it does not, and never connects to any broker again (its issue 5301). Such a client must be
    /// replaced.
    pub(crate) fn on_statistics(&self, statistics: &Statistics) {
        let mut observed = self.0.lock();
        if statistics.brokers.values().any(|broker| broker.state == BROKER_UP) {
            refusals::note_kafka_accepts();
        }
        let mut brokers = statistics.brokers.values();
        observed.no_broker_known = brokers.all(|broker| broker.source == LOGICAL_BROKER);
        observed.silent_polls = 0;
        if let Some(group) = &statistics.cgrp {
            observed.join_progress.record(group);
        }
    }

    pub(crate) fn poll_timed_out(&self) {
        self.0.lock().silent_polls += 1;
    }

    pub(crate) fn poll_returned(&self) {
        self.0.lock().stuck_checks = 0;
    }

    pub(crate) fn prefetch_empty(&self) {
        self.0.lock().stuck_checks += 1;
    }

    /// Records whether every assigned partition is fetched.
    ///
    /// If the group's coordinator moves while a client requests the committed offsets, librdkafka treats the error
    /// as an answer and never fetches the partition (its issue 5586).
    pub(crate) fn all_partitions_fetched(&self, all: bool) {
        let mut observed = self.0.lock();
        observed.unfetched_checks = if all { 0 } else { observed.unfetched_checks + 1 };
    }

    /// Why this client must be replaced, if it must.
    pub(crate) fn fatal_reason(&self) -> Option<&'static str> {
        let observed = self.0.lock();
        let reasons = [
            (observed.cluster_changed, "the Kafka cluster was replaced"),
            (
                observed.unfetched_checks >= UNFETCHED_CHECKS_MAX,
                "an assigned partition is not fetched",
            ),
            (observed.silent_polls >= SILENT_POLLS_MAX, "it reports no statistics"),
            (observed.stuck_checks >= STUCK_CHECKS_MAX, "its poll does not return"),
            (observed.join_progress.is_stuck(), "it is stuck while joining its group"),
            (observed.no_broker_known, "its metadata lists no broker"),
        ];
        reasons.into_iter().find_map(|(applies, reason)| applies.then_some(reason))
    }

    /// Whether another cluster answers than the one to which the client connected first.
    ///
    /// The positions, epochs and sequence numbers in the client's memory are then about records that do not exist
    /// any more. librdkafka continues with them, and would skip records of a new topic that has grown longer than
    /// the old one was. Such a client must be replaced. The client detects the new cluster as soon as it is
    /// connected, since it requests metadata first.
    pub(crate) fn cluster_changed(&self) -> bool {
        self.0.lock().cluster_changed
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::Broker;

    use super::*;

    #[test]
    fn a_client_that_knows_no_broker_but_a_logical_one_is_unusable_until_it_does() {
        let health = ClientHealth::default();
        let fatal_reason_with = |sources: &[&str]| {
            let broker = |source: &&str| Broker { source: source.to_string(), ..Broker::default() };
            let brokers = sources.iter().map(|source| (source.to_string(), broker(source)));
            health
                .on_statistics(&Statistics { brokers: brokers.collect(), ..Statistics::default() });
            health.fatal_reason()
        };
        assert_eq!(fatal_reason_with(&["configured"]), None);
        assert_eq!(fatal_reason_with(&["learned", LOGICAL_BROKER]), None);
        assert!(
            fatal_reason_with(&[LOGICAL_BROKER])
                .is_some_and(|because| because.contains("no broker"))
        );
        assert!(fatal_reason_with(&[]).is_some());
        assert_eq!(fatal_reason_with(&["configured", LOGICAL_BROKER]), None);
    }

    fn with_a_broker() -> Statistics {
        let broker = Broker { source: "learned".into(), ..Broker::default() };
        Statistics { brokers: [("broker".to_string(), broker)].into(), ..Statistics::default() }
    }

    #[test]
    fn a_client_that_is_stuck_while_joining_its_group_is_replaced_in_time() {
        let checks_until_fatal = |state: &str, join_state: &str, rebalances: fn(u32) -> i64| {
            let health = ClientHealth::default();
            (1..100).find(|nth| {
                let group = ConsumerGroup {
                    state: state.to_string(),
                    join_state: join_state.to_string(),
                    rebalance_cnt: rebalances(*nth),
                    ..ConsumerGroup::default()
                };
                health.on_statistics(&Statistics { cgrp: Some(group), ..with_a_broker() });
                health.fatal_reason().is_some()
            })
        };
        assert_eq!(checks_until_fatal("up", "wait-unassign-call", |_| 4), Some(6));
        assert_eq!(checks_until_fatal("up", "init", |_| 4), Some(6));
        assert_eq!(checks_until_fatal("up", "init", |_| 0), None, "there are no topics");
        assert_eq!(checks_until_fatal("up", "wait-join", |_| 0), Some(36));
        assert_eq!(
            checks_until_fatal("up", "wait-sync", |nth| nth.into()),
            None,
            "it makes progress"
        );
        assert_eq!(checks_until_fatal("wait-coord", "init", |_| 4), None, "Kafka is unreachable");
        assert_eq!(checks_until_fatal("up", "steady", |_| 4), None);
    }

    #[test]
    fn a_client_without_statistics_for_a_minute_is_replaced() {
        let health = ClientHealth::default();
        for _ in 1..SILENT_POLLS_MAX {
            health.poll_timed_out();
        }
        assert_eq!(health.fatal_reason(), None);
        health.poll_timed_out();
        assert!(health.fatal_reason().is_some_and(|because| because.contains("statistics")));
        health.on_statistics(&with_a_broker());
        assert_eq!(health.fatal_reason(), None, "it was only slow");
    }

    #[test]
    fn a_client_whose_poll_hangs_for_a_minute_is_replaced() {
        let health = ClientHealth::default();
        for _ in 1..STUCK_CHECKS_MAX {
            health.prefetch_empty();
        }
        health.poll_returned();
        for _ in 1..STUCK_CHECKS_MAX {
            health.prefetch_empty();
        }
        assert_eq!(health.fatal_reason(), None, "a poll returned");
        health.prefetch_empty();
        assert!(health.fatal_reason().is_some_and(|because| because.contains("poll")));
    }
}
