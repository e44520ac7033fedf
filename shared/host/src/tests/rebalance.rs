//! Membership of the consumer group, and its lag.

use messaging::consumer::prefetch;
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::mpsc;

use super::*;

/// It is stopped at several moments of the rebalance that its start causes, and without work. If a member leaves
/// without a LeaveGroup request, the group waits ten seconds until its session ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_stopped_during_a_rebalance_or_while_idle_leaves_its_group_at_once() {
    let fixture = Fixture::<21>::create_with_contracts().await;
    let start = || fixture.start_consumer();
    let members = async || {
        let config = fixture.config.kafka.client_config(fixture.service);
        let asked = move || {
            let client: BaseConsumer = config.create().unwrap();
            let groups = client.fetch_group_list(Some(names(21).service), TEST_TIMEOUT).ok()?;
            Some(groups.groups().iter().map(|group| group.members().len()).sum::<usize>())
        };
        tokio::task::spawn_blocking(asked).await.unwrap()
    };
    let is_late = async |member: RunningLoop, left: usize| {
        let began = Instant::now();
        member.stop().await;
        eventually("it is gone", async || members().await == Some(left)).await;
        began.elapsed() > Duration::from_secs(7)
    };

    let mut staying = vec![start()];
    eventually("one is in the group", async || members().await == Some(1)).await;
    for after in [0, 150, 300, 500, 750, 1_000, 1_250, 1_500].map(Duration::from_millis) {
        let comes_and_is_late = async || {
            let coming = start();
            eventually("another one has come", async || members().await == Some(2)).await;
            sleep(after).await;
            is_late(coming, 1).await
        };
        // The machine may stall for some seconds once, but not twice.
        let twice = comes_and_is_late().await && comes_and_is_late().await;
        assert!(!twice, "{after:?} after it had come");
    }
    // More than there are partitions.
    staying.extend([start(), start(), start(), start()]);
    eventually("all have come", async || members().await == Some(5)).await;
    sleep(QUIET_PERIOD * 2).await;
    let mut late = 0;
    while let Some(member) = staying.pop() {
        late += u32::from(is_late(member, staying.len()).await);
    }
    assert!(late < 2, "{late} of five that left one after the other");
}

/// librdkafka loses a resume that coincides with a rebalance. The test has the same effect: it pauses the
/// partitions right after they were assigned, and right after the reader has resumed them.
#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_partition_is_read_though_librdkafka_lost_the_resume() {
    let fixture = Fixture::<22>::create_with_contracts().await;
    let client = fixture.group_client();
    client.subscribe(&[names(22).counted.name]).unwrap();
    let (ahead, mut records) = mpsc::channel(1);
    let reading = tokio::spawn(prefetch::prefetch(client.clone(), fixture.db.clone(), ahead));
    let pause = || client.pause(&client.assignment().unwrap()).unwrap();
    let relaying = fixture.start_relay();
    let events: Vec<_> = (0..5).map(|nth| counted("a", nth)).collect();

    let is_given = async || client.assignment().is_ok_and(|given| given.count() > 0);
    eventually("it has partitions", is_given).await;
    // The reader detects the assignment a moment later, and resumes the partitions.
    sleep(QUIET_PERIOD / 10).await;
    pause();
    fixture.publish(&events).await;
    let first = tokio::time::timeout(TEST_TIMEOUT, records.recv()).await;
    first.expect("it was resumed").unwrap();

    fixture.wait_for_empty_outbox().await;
    let ends = || client.context().end_offsets.lock().values().sum::<i64>();
    let of_all = events.len() as i64;
    eventually("what it does not fetch counts as behind too", async || ends() == of_all).await;
    let second = tokio::time::timeout(TEST_TIMEOUT, records.recv()).await;
    second.expect("it was resumed at all").unwrap();
    eventually("it is fetched again", async || ends() == 0).await;
    pause();
    fixture.publish(&events).await;
    for nth in 2..2 * events.len() {
        let record = tokio::time::timeout(TEST_TIMEOUT, records.recv()).await;
        record.unwrap_or_else(|_| panic!("it was resumed: {nth}")).unwrap();
    }
    reading.abort();
    relaying.stop().await;
    let _ = kafka::close_in_background(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_paused_when_a_rebalance_revoked_it_is_read_once_it_is_assigned_again() {
    let fixture = Fixture::<13>::create_with_contracts().await;
    let topic = names(13).counted.name;
    let assigned = |client: &StreamConsumer<GroupContext>| {
        let assigned = client.assignment().unwrap();
        assigned.elements().iter().map(|element| element.partition()).collect::<BTreeSet<i32>>()
    };
    let received: Arc<Mutex<BTreeSet<i32>>> = Arc::default();
    let reading = |client: Arc<StreamConsumer<GroupContext>>| {
        let received = received.clone();
        tokio::spawn(async move {
            loop {
                if let Ok(message) = client.recv().await {
                    received.lock().insert(message.partition());
                }
            }
        })
    };
    let (one, other) = (fixture.group_client(), fixture.group_client());
    one.subscribe(&[topic]).unwrap();
    let _reading = reading(one.clone());
    eventually("all are its own", async || assigned(&one).len() == 3).await;
    one.pause(&one.assignment().unwrap()).unwrap();

    other.subscribe(&[topic]).unwrap();
    let leaving = reading(other.clone());
    eventually("some went to another", async || !assigned(&other).is_empty()).await;
    let moved = assigned(&other);
    leaving.abort();
    let _ = leaving.await;
    tokio::task::spawn_blocking(move || drop(other)).await.unwrap();
    eventually("they are back", async || assigned(&one).len() == 3).await;

    let producer: FutureProducer =
        kafka::producer_config(fixture.service, &fixture.config.kafka.connection())
            .create()
            .unwrap();
    for partition in &moved {
        let record = FutureRecord::<str, str>::to(topic).partition(*partition).payload("news");
        producer.send(record, TEST_TIMEOUT).await.unwrap();
    }
    eventually("each is read", async || moved.is_subset(&received.lock())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_a_missing_topic_has_not_caught_up() {
    let fixture = Fixture::<18>::create().await;
    fixture.create_topic(names(18).counted, &[]).await;
    let consumer = fixture.consumer_of(fixture.handlers().on(ignore_tallied::<18>));
    let group = consumer.lag();
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    let until = Instant::now() + 3 * QUIET_PERIOD;
    while Instant::now() < until {
        assert!(group.caught_up().await.is_none(), "there may be something in it");
        sleep(Duration::from_millis(100)).await;
    }
    fixture.create_topic(names(18).tallied, &[]).await;
    eventually("it is there, and empty", async || group.caught_up().await.is_some()).await;
    consuming.stop().await;
}

/// A request of an idle client waits half a second behind its fetch.
#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_group_is_known_within_seconds_for_any_number_of_partitions() {
    let fixture = Fixture::<15>::create_with_contracts().await;
    let more = NewPartitions::new(names(15).counted.name, 24);
    let made =
        fixture.admin_client().create_partitions([&more], &AdminOptions::new()).await.unwrap();
    made[0].as_ref().unwrap();
    let consumer = fixture.consumer();
    let group = consumer.lag();
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    eventually("nothing is left to read", async || group.caught_up().await.is_some()).await;

    eventually("it is known in time", async || {
        let began = Instant::now();
        group.caught_up().await.is_some() && began.elapsed() < Duration::from_secs(5)
    })
    .await;
    consuming.stop().await;
}
