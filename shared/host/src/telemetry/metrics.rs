//! The catalogue of the metrics: what each one means, and the buckets of the histograms.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use messaging::telemetry::refusals;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::telemetry::{log_buffer, trace_export, waiting_lines};

/// How often the exporter drops the samples of histograms that have left its window.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const SECONDS_BUCKETS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0];
const SIZE_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Installs the recorder of this process and describes every metric. Once a process.
pub(super) fn install() -> anyhow::Result<PrometheusHandle> {
    let metrics = prometheus_builder()?.install_recorder().context("metrics were set up before")?;
    describe_metrics();
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            upkeep.run_upkeep();
        }
    });
    Ok(metrics)
}

/// Which version this process is, and since when it runs.
pub(crate) fn record_process(version: &'static str) {
    metrics::gauge!("build_info", "version" => version).set(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics::gauge!("process_start_time_seconds").set(now.as_secs_f64());
}

pub(super) fn prometheus_builder() -> anyhow::Result<PrometheusBuilder> {
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &SIZE_BUCKETS)?)
}

/// Counters that exist from the start: an alert on an increase cannot see the first increment of a new counter.
const COUNTERS_FROM_ZERO: [(&str, &str); 11] = [
    ("commands_refused_total", "Commands refused because too many were waiting."),
    ("consumer_clients_replaced_total", "Kafka consumers replaced after a fatal error."),
    ("consumer_retries_total", "Parts of batches that were retried."),
    ("events_republished_total", "Events republished on request of an operator."),
    (
        "http_server_errors_total",
        "Requests answered with a 500: a fault of the service and not of the client.",
    ),
    ("relay_producers_replaced_total", "Producers replaced after a fatal error."),
    (
        "relay_possibly_persisted_total",
        "Records sent again because they were only possibly persisted: no broker acknowledged them.",
    ),
    (
        trace_export::LOST_COUNTER,
        "Spans that were lost because the collector of traces did not take them in time.",
    ),
    (
        "schema_id_conflicts_total",
        "Records and answers of the registry that show that a schema id means another schema than before.",
    ),
    ("change_feed_polls_total", "Polls of the database by the change feed."),
    (
        "change_feed_refused_total",
        "Clients refused because the change feed has too many subscribers, or too many of one caller.",
    ),
];

const COUNTERS: [(&str, &str); 13] = [
    (
        refusals::COUNTER,
        "Times that another system refused this service, by system and kind: its password or its rights.",
    ),
    (
        log_buffer::LOST_COUNTER,
        "Lines of the log that were lost because nothing read it in time, by level.",
    ),
    ("calls_tried_total", "Tries of outside calls, by call and what each met."),
    ("webhook_deliveries_total", "Deliveries of webhooks, by webhook and outcome."),
    ("http_requests_total", "Requests answered, by method, route and status."),
    ("http_requests_refused_total", "Requests refused because of their access token, by reason."),
    (
        "dead_letters_total",
        "Records stored as dead letters because they can never be handled, by topic.",
    ),
    ("events_handled_total", "Events that had their effect, by topic."),
    (
        "events_deduplicated_total",
        "Events dropped as duplicates because they had their effect before, by topic.",
    ),
    ("events_published_total", "Events that the broker acknowledged, by topic."),
    (
        "consumer_gaps_total",
        "Times that records were skipped or deleted before they were handled, by topic and cause.",
    ),
    (
        "consumer_log_truncated_total",
        "Times that a partition's log lost records at its end that were read before, by topic.",
    ),
    ("relay_topic_backoffs_total", "Times that a topic's events were backed off, by topic."),
];

const GAUGES: [(&str, &str); 19] = [
    ("build_info", "1, with the version of the service."),
    (
        "consumer_events_deferred",
        "Events that are deferred: each waits by itself, and all others are handled.",
    ),
    ("consumer_lag", "Records of a topic that are not handled yet, here."),
    (
        "consumer_partitions",
        "Partitions of a topic that this instance fetches from a reachable broker.",
    ),
    (
        "consumer_paused",
        "1 while the consumer waits for an operator to resume it, by the cause of its pause.",
    ),
    ("dead_letters_waiting", "Dead letters that wait for an operator, up to 1,000."),
    ("call_oldest_seconds", "For how long the oldest call to a target has been pending."),
    ("scheduler_active", "1 in the instance that fires the timers of the service."),
    (
        "timer_oldest_due_seconds",
        "For how long the earliest timer of a name has been due and has not fired.",
    ),
    ("task_oldest_seconds", "For how long the oldest task has been open."),
    ("outbox_oldest_seconds", "How long the oldest event has been waiting to be published."),
    (
        "outbox_slot_active",
        "1 while the connector reads the log of the database, in the instance that stands by for it.",
    ),
    (
        "outbox_slot_free_bytes",
        "How much the database may write until an absent connector has lost its place.",
    ),
    ("outbox_slot_lag_bytes", "How much of the log the connector has not confirmed."),
    (
        "outbox_slot_lag_seconds",
        "Age of the oldest heartbeat that the connector has not confirmed.",
    ),
    (
        "outbox_slot_missing_seconds",
        "How long the connector has had no slot: the relay carries what is new, and older events may be missing in Kafka.",
    ),
    ("process_start_time_seconds", "When the process began, as a Unix time."),
    (
        "relay_active",
        "1 in the instance whose relay is the active one, or stands by for a connector.",
    ),
    (
        "change_feed_subscribers",
        "Subscribers of the change feed: clients that wait for a change or follow a stream.",
    ),
];

const HISTOGRAMS: [(&str, &str); 6] = [
    (
        "http_request_duration_seconds",
        "From the end of a request's header to the start of its answer, including the time that the client asked it \
         to wait.",
    ),
    ("command_batch_size", "Commands that shared a transaction."),
    ("consumer_batch_size", "Records that were handled together."),
    (
        "event_decision_seconds",
        "From the time in an event's key, if that is a UUID of version 7, to the event's decision, by topic.",
    ),
    ("event_delivery_seconds", "From an event's decision to its effect here, by topic."),
    ("outbox_wait_seconds", "From an event's decision to the broker's acknowledgement, by topic."),
];

fn describe_metrics() {
    for (name, meaning) in COUNTERS_FROM_ZERO {
        metrics::describe_counter!(name, meaning);
        metrics::counter!(name).increment(0);
    }
    for (name, meaning) in COUNTERS {
        metrics::describe_counter!(name, meaning);
    }
    for system in refusals::SYSTEMS {
        for kind in refusals::KINDS {
            metrics::counter!(refusals::COUNTER, "system" => system, "kind" => kind).increment(0);
        }
    }
    for level in waiting_lines::LEVELS {
        metrics::counter!(log_buffer::LOST_COUNTER, "level" => level).increment(0);
    }
    for (name, meaning) in GAUGES {
        metrics::describe_gauge!(name, meaning);
    }
    for (name, meaning) in HISTOGRAMS {
        metrics::describe_histogram!(name, meaning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_buckets_and_every_metric_a_meaning() {
        let recorder = prometheus_builder().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe_metrics();
            metrics::histogram!("http_request_duration_seconds").record(0.003);
            metrics::counter!("http_requests_total").increment(1);
        });
        let text = recorder.handle().render();
        assert!(text.contains("http_request_duration_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("# HELP http_requests_total "), "{text}");
        let refused = "access_refused_total{system=\"postgres\",kind=\"authentication\"} 0";
        assert!(text.contains(refused), "an alert sees the first refusal: {text}");
    }
}
