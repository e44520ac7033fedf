//! The headers of an event, from a client's command to the event that another service publishes in response; and the
//! lines of the log on that way.

use messaging::telemetry::labels::{Labels, label_request};
use opentelemetry::trace::FutureExt;
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::captured_log::CapturedLog;
use super::*;
use messaging::telemetry;

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_command_continues_through_kafka_into_the_published_answer() {
    crate::telemetry::install_tracer_provider(&SdkTracerProvider::builder().build());
    let fixture = Fixture::<301>::create_with_contracts().await;
    let (relay, consumer) = (fixture.relay(), fixture.consumer());
    let relaying = RunningLoop::start(|stop| relay.run(stop));
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    let (commands, writing) = fixture.commands();

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let (parent, state) = (format!("00-{trace}-00f067aa0ba902b7-01"), "rojo=1,congo=t61rcWkgMzE");
    let caller = telemetry::parse_trace(Some(&parent), Some(state));
    commands.execute(once(counted::<301>("a", 1))).with_context(caller).await.unwrap();
    eventually("the answer is published", async || {
        !fixture.records(names(301).tallied).await.is_empty()
    })
    .await;
    for running in [writing, consuming, relaying] {
        running.stop().await;
    }

    let counted = &fixture.records(names(301).counted).await[0];
    let tallied = &fixture.records(names(301).tallied).await[0];
    for (record, topic) in [(counted, names(301).counted), (tallied, names(301).tallied)] {
        assert_eq!(&header(record, "traceparent").unwrap()[3..35], trace);
        assert_eq!(header(record, "tracestate"), Some(state));
        assert_eq!(header(record, "ce_type"), Some(topic.name));
        assert_eq!(header(record, "ce_specversion"), Some("1.0"));
        assert_eq!(header(record, "ce_source").unwrap(), format!("/{}", fixture.service));
        assert!(
            header(record, "ce_time").unwrap().parse::<chrono::DateTime<chrono::Utc>>().is_ok()
        );
        assert_eq!(record.key(), Some(b"a".as_slice()));
    }
    assert_eq!(header(tallied, "ce_causationid"), header(counted, "ce_id"));
    assert_eq!(header(counted, "ce_causationid"), None);
}

/// A record with this trace context in its headers.
fn with_traceparent(record: &OwnedMessage, traceparent: &str) -> OwnedMessage {
    let header = Header { key: "traceparent", value: Some(traceparent) };
    let headers = record.headers().cloned().map(|headers| headers.insert(header));
    record.clone().replace_headers(headers)
}

/// On one thread, so that the whole service logs to the subscriber of the test.
#[tokio::test]
async fn the_log_of_a_command_and_of_a_dead_letter_names_the_trace_and_what_each_is_about() {
    let log = CapturedLog::default();
    let _logging = tracing::subscriber::set_default(log.json_subscriber());
    // With one subscriber alone, a line that another test meets first is off for all threads.
    let _second = tracing::Dispatch::new(CapturedLog::default().json_subscriber());
    let fixture = Fixture::<302>::create_with_contracts().await;
    let (command_trace, command_span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let event_trace = "4bf92f3577b34da6a3ce929d0e0e4736";

    let (commands, writing) = fixture.commands();
    let request = format!("00-{command_trace}-{command_span}-01");
    let request = telemetry::parse_trace(Some(&request), None).with_value(Labels::default());
    let command = async {
        label_request("till", "a");
        commands.execute(once(counted::<302>("a", -1))).await
    };
    command.with_context(request).await.unwrap_err();
    writing.stop().await;

    let record = &fixture.to_records(&[counted::<302>("b", -1)]).await[0];
    let traceparent = format!("00-{event_trace}-00f067aa0ba902b7-01");
    fixture.handle(vec![with_traceparent(record, &traceparent)]).await;

    let lines = log.json_lines();
    let line_with = |text: &str| {
        let line = lines.iter().find(|line| line["message"].as_str().unwrap().contains(text));
        line.unwrap_or_else(|| panic!("{text}: {lines:#?}"))
    };
    let refused = line_with("a command failed");
    assert_eq!((&refused["trace_id"], &refused["till"]), (&command_trace.into(), &"a".into()));
    assert_eq!(refused["span_id"], command_span);
    let dead_letter = line_with("is a dead letter");
    assert_eq!((&dead_letter["trace_id"], &dead_letter["key"]), (&event_trace.into(), &"b".into()));
    assert_eq!(dead_letter["topic"], names(302).counted.name);
    assert_eq!(dead_letter["event_id"].as_str(), header(record, "ce_id"));
}
