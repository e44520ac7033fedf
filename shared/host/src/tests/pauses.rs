//! An operator pauses the consumer, for every instance, and an operator resumes it.

use messaging::consumer::pause::{
    PAUSE_POLL_INTERVAL, pause_by_circuit_breaker, wait_while_paused,
};
use messaging::consumer::wait::LoopWait;
use serde_json::{Value, json};

use super::admin_client::{OPERATOR, get, post, refused};
use super::*;

/// Within this time every instance knows of a pause: it checks between two batches, and waits for a batch as long as
/// for a check.
const PAUSE_KNOWN_AFTER: Duration =
    Duration::from_secs(2 * PAUSE_POLL_INTERVAL.as_secs()).saturating_add(QUIET_PERIOD);

/// Events of as many tills, in every partition.
const EVENTS: i64 = 30;

async fn publish_events<const TEST: u32>(fixture: &Fixture<TEST>) {
    let events = (0..EVENTS).map(|till| counted(&format!("till {till}"), 1));
    fixture.deliver(&Vec::from_iter(events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_by_an_operator_holds_for_every_instance_until_it_is_resumed() {
    let fixture = Fixture::<620>::create_with_contracts().await;
    let relaying = fixture.start_relay();
    let (one, two) = (fixture.start_consumer(), fixture.start_consumer());
    publish_events(&fixture).await;
    eventually("all is handled", async || fixture.counted().await == EVENTS).await;

    let admin = fixture.admin_router();
    let (status, paused) = post(&admin, "/consumer/pause", json!({"reason": " a copy "})).await;
    assert_eq!((status, &paused["cause"]), (200, &json!("operator")), "{paused}");
    assert_eq!((&paused["reason"], &paused["actor"]), (&json!("a copy"), &json!(OPERATOR)));
    assert_eq!(get(&admin, "/consumer").await, paused);
    sleep(PAUSE_KNOWN_AFTER).await;
    publish_events(&fixture).await;
    sleep(QUIET_PERIOD).await;
    assert_eq!(fixture.counted().await, EVENTS, "an instance has not paused");

    // The pause outlives the processes.
    one.stop().await;
    two.stop().await;
    let (one, two) = (fixture.start_consumer(), fixture.start_consumer());
    sleep(PAUSE_KNOWN_AFTER).await;
    assert_eq!(fixture.counted().await, EVENTS, "an instance has forgotten the pause");

    let (status, resumed) = post(&admin, "/consumer/resume", Value::Null).await;
    let reads = json!({"paused_at": null, "cause": null, "reason": null, "actor": null});
    assert_eq!((status, resumed), (200, reads));
    eventually("all is handled", async || fixture.counted().await == 2 * EVENTS).await;
    one.stop().await;
    two.stop().await;
    relaying.stop().await;
}

#[tokio::test]
async fn a_pause_by_the_circuit_breaker_outranks_one_by_an_operator() {
    let fixture = Fixture::<621>::create().await;
    let admin = fixture.admin_router();
    let by_operator = json!({"reason": "a copy"});
    pause_by_circuit_breaker(&fixture.db, "bad").await.unwrap();
    let by_circuit_breaker = get(&admin, "/consumer").await;
    assert_eq!(by_circuit_breaker["cause"], "circuit_breaker");
    assert_eq!(post(&admin, "/consumer/pause", by_operator.clone()).await.1, by_circuit_breaker);
    post(&admin, "/consumer/resume", Value::Null).await;

    let paused = post(&admin, "/consumer/pause", by_operator).await.1;
    let again = post(&admin, "/consumer/pause", json!({"reason": "another"})).await.1;
    assert_eq!(again, paused, "the first pause stays");
    pause_by_circuit_breaker(&fixture.db, "20 events").await.unwrap();
    let paused = get(&admin, "/consumer").await;
    assert_eq!(
        (&paused["cause"], &paused["reason"]),
        (&json!("circuit_breaker"), &json!("20 events"))
    );
    assert_eq!(paused["actor"], Value::Null);
}

/// The log is no record of an act: its lines may be lost.
#[tokio::test]
async fn a_pause_and_a_resume_are_recorded_with_their_actor_or_refused() {
    let fixture = Fixture::<624>::create().await;
    let admin = fixture.admin_router();
    let pause = json!({"reason": " a copy\0 "});
    let acts = async || -> Vec<(String, Option<String>, Option<String>)> {
        let acts = "select act, request, actor from chassis.operator_acts order by act_id";
        sqlx::query_as(acts).fetch_all(&fixture.db).await.unwrap()
    };
    post(&admin, "/consumer/pause", pause.clone()).await;
    post(&admin, "/consumer/resume", Value::Null).await;
    let by_operator = |act: &str, request: Option<&str>| {
        (act.to_owned(), request.map(str::to_owned), Some(OPERATOR.to_owned()))
    };
    assert_eq!(acts().await, [by_operator("pause", Some("a copy")), by_operator("resume", None)]);

    let stop = "alter table chassis.operator_acts add check (act = 'none') not valid";
    fixture.execute_as_superuser(stop).await;
    assert_eq!(post(&admin, "/consumer/pause", pause).await.0, 500);
    assert_eq!(get(&admin, "/consumer").await["paused_at"], Value::Null);
    assert_eq!(acts().await.len(), 2);
}

#[tokio::test]
async fn a_pause_needs_a_reason() {
    let fixture = Fixture::<622>::create().await;
    let admin = fixture.admin_router();
    for reason in ["", " \n", &"x".repeat(1_001)] {
        let body = json!({"reason": reason});
        refused(&admin, "/consumer/pause", body, (422, "invalid-value")).await;
    }
    assert_eq!(get(&admin, "/consumer").await["paused_at"], Value::Null);
}

/// In the one thread of this runtime, so that it has metrics of its own.
#[tokio::test]
async fn the_metric_tells_who_paused_the_consumer() {
    let fixture = Fixture::<623>::create().await;
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    let (heartbeats, stop) = (Heartbeats::default(), CancellationToken::new());
    let heartbeat = heartbeats.register("consumer", TEST_TIMEOUT);
    let wait = LoopWait { heartbeat: &heartbeat, wakeups: &fixture.wakeups, stop: &stop };
    let shows = async |by_operator: u8, by_circuit_breaker: u8| {
        let wanted = [("operator", by_operator), ("circuit_breaker", by_circuit_breaker)]
            .map(|(cause, value)| format!("consumer_paused{{cause=\"{cause}\"}} {value}\n"));
        eventually("the metric", async || {
            let text = recorder.handle().render();
            wanted.iter().all(|line| text.contains(line))
        })
        .await;
    };
    let admin = fixture.admin_router();
    let act = async {
        shows(1, 0).await;
        pause_by_circuit_breaker(&fixture.db, "20 events").await.unwrap();
        shows(0, 1).await;
        post(&admin, "/consumer/resume", Value::Null).await;
    };
    post(&admin, "/consumer/pause", json!({"reason": "a copy"})).await;
    tokio::join!(wait_while_paused(&fixture.db, &wait), act);
    shows(0, 0).await;
}
