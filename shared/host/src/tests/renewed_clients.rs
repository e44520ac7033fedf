//! The clients of Kafka are replaced when their credentials change.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::empty_metadata::with_broker_proxy;
use super::*;

/// The old settings lead through a proxy, so its connections are those of clients with the old settings.
#[tokio::test(flavor = "multi_thread")]
async fn clients_with_changed_settings_are_replaced_and_each_event_is_sent_once_and_has_one_effect()
{
    let fixture = Fixture::<280>::create_with_contracts().await;
    let (proxy, there) = with_broker_proxy(&fixture).await;
    let kafka = watch::Sender::new(there.config.kafka.connection());
    let relay = there.relay_with(kafka.subscribe());
    let relaying = RunningLoop::start(|stop| relay.run(stop));
    let consumer = there.consumer_with(kafka.subscribe(), Handlers::new().on(tally::<280>));
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    let done = Arc::new(AtomicBool::new(false));
    let (publisher, is_done) = (there.clone(), done.clone());
    let publishing = tokio::spawn(async move {
        let mut published = Vec::new();
        while !is_done.load(Ordering::Relaxed) {
            let till = format!("till {}", published.len() % 7);
            published.extend(publisher.publish(&[counted(&till, 1)]).await);
            sleep(Duration::from_millis(5)).await;
        }
        published
    });
    eventually("events are handled", async || fixture.counted().await > 20).await;
    assert!(proxy.connections() > 0);
    kafka.send_replace(fixture.config.kafka.connection());
    eventually("no client has the old settings", async || proxy.connections() == 0).await;
    let before = fixture.counted().await;
    eventually("events are handled", async || fixture.counted().await > before + 20).await;
    done.store(true, Ordering::Relaxed);
    let published = publishing.await.unwrap();
    let events = published.len() as i64;
    fixture.wait_for_empty_outbox().await;
    eventually("all are handled", async || fixture.counted().await >= events).await;
    relaying.stop().await;
    consuming.stop().await;
    assert_eq!(fixture.counted().await, events);
    let mut arrived: Vec<Uuid> =
        fixture.published().await.into_iter().map(|(event_id, ..)| event_id).collect();
    arrived.sort_unstable();
    assert_eq!(arrived, published, "an event is lost, or was sent twice");
}
