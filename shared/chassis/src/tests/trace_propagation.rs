//! The headers of an event, from a client's command to the event that another service publishes in response.

use opentelemetry::trace::FutureExt;
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::*;
use crate::telemetry;

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_command_continues_through_kafka_into_the_published_answer() {
    telemetry::install_tracer_provider(&SdkTracerProvider::builder().build());
    let fixture = Fixture::<301>::create_with_contracts().await;
    let (relay, consumer) = (fixture.relay(), fixture.consumer());
    let relaying = RunningLoop::start(|stop| relay.run(stop));
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    let (commands, writing) = fixture.commands();

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let caller = telemetry::parse_traceparent(Some(&format!("00-{trace}-00f067aa0ba902b7-01")));
    commands.execute(counted::<301>("a", 1), None, count).with_context(caller).await.unwrap();
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
