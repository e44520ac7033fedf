//! Refusals: Kafka, the database or the registry does not accept the password of this service, or its rights. A retry
//! does not help, and a refused client looks like an idle one. So each refusal is counted, and one log line a minute
//! names it.
//!
//! Promise: a process that Kafka has refused and never accepted is not ready, so an orchestrator that brings a wrong
//! password keeps the instances that have the right one. A process that Kafka has accepted once stays ready: it stores
//! the commands that it accepts, and without it no commands would be accepted.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::counter;
use parking_lot::Mutex;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::error;

use crate::telemetry::log_throttle::LogThrottle;

pub const COUNTER: &str = "access_refused_total";

/// The labels of the counter: who refuses, and what.
pub const SYSTEMS: [&str; 3] = [KAFKA, POSTGRES, REGISTRY];
pub const KINDS: [&str; 2] = [AUTHENTICATION, AUTHORIZATION];

const KAFKA: &str = "kafka";
const POSTGRES: &str = "postgres";
const REGISTRY: &str = "registry";
const AUTHENTICATION: &str = "authentication";
const AUTHORIZATION: &str = "authorization";

static LOG_THROTTLE: LazyLock<Mutex<LogThrottle>> = LazyLock::new(Default::default);
static KAFKA_ACCESS: KafkaAccess = KafkaAccess::new();

/// Whether Kafka ever accepted this process, and whether it refused it.
struct KafkaAccess {
    accepted: AtomicBool,
    refused: AtomicBool,
}

impl KafkaAccess {
    const fn new() -> KafkaAccess {
        KafkaAccess { accepted: AtomicBool::new(false), refused: AtomicBool::new(false) }
    }

    fn is_denied(&self) -> bool {
        self.refused.load(Ordering::Relaxed) && !self.accepted.load(Ordering::Relaxed)
    }
}

/// Whether Kafka has refused the password of this process and never accepted it.
pub fn kafka_denies_access() -> bool {
    KAFKA_ACCESS.is_denied()
}

pub(crate) fn note_kafka_accepts() {
    KAFKA_ACCESS.accepted.store(true, Ordering::Relaxed);
}

/// Reports an error of a client of Kafka if it is a refusal. Returns whether it is one.
pub(crate) fn report_kafka(error: &KafkaError, text: &str) -> bool {
    let Some(kind) = error.rdkafka_error_code().and_then(kafka_refusal) else { return false };
    if kind == AUTHENTICATION {
        KAFKA_ACCESS.refused.store(true, Ordering::Relaxed);
    }
    report(KAFKA, kind, text);
    true
}

fn kafka_refusal(code: RDKafkaErrorCode) -> Option<&'static str> {
    use RDKafkaErrorCode::*;
    match code {
        Authentication | SaslAuthenticationFailed => Some(AUTHENTICATION),
        TopicAuthorizationFailed | GroupAuthorizationFailed | ClusterAuthorizationFailed => {
            Some(AUTHORIZATION)
        }
        _ => None,
    }
}

/// Reports an error of the database if it is a refusal: of the password (28P01), of the login (28000), or of a right
/// (42501).
pub fn report_postgres(error: &sqlx::Error) {
    let Some(refusal) = error.as_database_error() else { return };
    if let Some(kind) = refusal.code().and_then(|code| postgres_refusal(&code)) {
        report(POSTGRES, kind, refusal.message());
    }
}

fn postgres_refusal(code: &str) -> Option<&'static str> {
    match code {
        "28P01" | "28000" => Some(AUTHENTICATION),
        "42501" => Some(AUTHORIZATION),
        _ => None,
    }
}

pub(crate) fn report_registry(status: Option<u32>, text: &str) {
    match status {
        Some(401) => report(REGISTRY, AUTHENTICATION, text),
        Some(403) => report(REGISTRY, AUTHORIZATION, text),
        _ => {}
    }
}

fn report(system: &'static str, kind: &'static str, text: &str) {
    counter!(COUNTER, "system" => system, "kind" => kind).increment(1);
    if LOG_THROTTLE.lock().should_log(&format!("{system} {kind}"), "") {
        error!(system, kind, "this service was denied access: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_kafka_accepted_once_stays_ready() {
        let access = KafkaAccess::new();
        assert!(!access.is_denied(), "nothing is known yet, as while Kafka is away");
        access.refused.store(true, Ordering::Relaxed);
        assert!(access.is_denied());
        access.accepted.store(true, Ordering::Relaxed);
        assert!(!access.is_denied());
    }

    #[test]
    fn only_refusals_are_refusals() {
        use RDKafkaErrorCode::*;
        assert_eq!(kafka_refusal(Authentication), Some(AUTHENTICATION));
        assert_eq!(kafka_refusal(SaslAuthenticationFailed), Some(AUTHENTICATION));
        assert_eq!(kafka_refusal(GroupAuthorizationFailed), Some(AUTHORIZATION));
        for code in [BrokerTransportFailure, AllBrokersDown, UnknownTopicOrPartition, SSL] {
            assert_eq!(kafka_refusal(code), None, "{code:?}");
        }
        assert_eq!(postgres_refusal("28P01"), Some(AUTHENTICATION));
        assert_eq!(postgres_refusal("42501"), Some(AUTHORIZATION));
        for code in ["57P03", "42P01", "08006", "23505"] {
            assert_eq!(postgres_refusal(code), None, "{code}");
        }
    }

    #[test]
    fn a_refusal_is_counted_by_who_refuses_and_what() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            report_registry(Some(403), "no");
            report_registry(Some(404), "nothing there");
            report_registry(None, "no answer");
            let denied = KafkaError::MessageConsumption(RDKafkaErrorCode::TopicAuthorizationFailed);
            assert!(report_kafka(&denied, "no"));
            let away = KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
            assert!(!report_kafka(&away, "away"));
        });
        let counted = recorder.handle().render();
        for system in [REGISTRY, KAFKA] {
            let line = format!("{COUNTER}{{system=\"{system}\",kind=\"authorization\"}} 1");
            assert!(counted.contains(&line), "{counted}");
        }
        assert_eq!(counted.matches(COUNTER).count(), 3, "its type, and two lines: {counted}");
    }
}
