//! What the relay makes of what its producer is told: records that are refused, lost, or only taken for
//! written.

use rdkafka::admin::{AlterConfig, ResourceSpecifier};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::relay::{first_arrivals, in_order, on_a_mock};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_beyond_repair_is_replaced_and_loses_nothing() {
    let till = Till::<108>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let events = |range: std::ops::RangeInclusive<i64>| -> Vec<Counted<108>> {
        range.flat_map(|nth| ["a", "b", "c"].map(|till| counted(till, nth))).collect()
    };
    till.publish(&events(1..=5)).await;
    till.outbox_is_empty().await;
    let beyond_repair = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    mock.request_errors(RDKafkaApiKey::Produce, &[beyond_repair]);
    till.publish(&events(6..=20)).await;
    till.outbox_is_empty().await;
    relaying.stop().await;
    let arrivals = first_arrivals(&till).await;
    assert_eq!(arrivals.values().map(Vec::len).sum::<usize>(), 60);
    assert!(in_order(&arrivals), "{arrivals:?}");
}

/// As a broker does that hears of a producer in a partition for the first time: it refuses what comes before
/// the partition's log is there, and takes what comes then, whatever number it begins with. The client
/// takes the former for written as well.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_broker_acknowledged_is_sent_again_though_the_client_takes_it_for_written() {
    let till = Till::<116>::open().await;
    let (till, mock) = on_a_mock(&till).await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let events = |way: &str| -> Vec<Counted<116>> {
        (0..20).map(|nth| counted(&format!("{way} {nth}"), 1)).collect()
    };
    till.publish(&events("connected")).await;
    till.outbox_is_empty().await;
    // What follows is under way before the refusal is back.
    mock.broker_round_trip_time(1, Duration::from_secs(1)).unwrap();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
    let of_each = vec![refusal; names(116).counted.partitions as usize];
    mock.request_errors(RDKafkaApiKey::Produce, &of_each);
    till.publish(&events("refused")).await;
    sleep(Duration::from_millis(200)).await;
    till.publish(&events("taken")).await;
    till.outbox_is_empty().await;
    mock.broker_round_trip_time(1, Duration::ZERO).unwrap();
    relaying.stop().await;
    let arrivals = first_arrivals(&till).await;
    let missing: Vec<_> = ["connected", "refused", "taken"]
        .into_iter()
        .flat_map(|way| (0..20).map(move |nth| format!("{way} {nth}")))
        .filter(|key| !arrivals.contains_key(key))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Two brokers stand at one address each and are never there at once: the second is the first after
/// it lost its disk. What it acknowledges to a producer that had begun with the first proves
/// nothing, since the next producer may be given the same id.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_cluster_made_anew_acknowledges_to_a_producer_of_the_old_one_is_sent_again() {
    let till = Till::<112>::open().await;
    let (old, new) = (on_a_mock(&till).await.1, on_a_mock(&till).await.1);
    let addresses = format!("{},{}", old.bootstrap_servers(), new.bootstrap_servers());
    let till = till.with(|config| config.kafka.kafka_bootstrap_servers = addresses);
    new.broker_down(-1).unwrap();
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    till.publish(&[counted("a", 1)]).await;
    eventually("the old cluster has it", async || {
        round.turn(&mut db, 1_000).await.unwrap();
        till.number("select count(*) from outbox").await == 0
    })
    .await;

    old.broker_down(-1).unwrap();
    till.publish(&[counted("a", 2), counted("b", 1)]).await;
    assert_eq!(round.turn(&mut db, 1_000).await.unwrap(), 2);
    new.broker_up(-1).unwrap();
    eventually("the producer is given up", async || round.turn(&mut db, 1_000).await.is_err())
        .await;
    assert_eq!(till.number("select count(*) from outbox").await, 2, "none of them is sure");
    drop(round);

    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    till.outbox_is_empty().await;
    relaying.stop().await;
    let there = till.with(|config| config.kafka.kafka_bootstrap_servers = new.bootstrap_servers());
    let arrivals = first_arrivals(&there).await;
    assert_eq!((&arrivals["a"][..], &arrivals["b"][..]), (&[2][..], &[1][..]));
}

/// The operator raises the bound for which a topic refused records.
async fn takes_more<const TEST: u32>(till: &Till<TEST>, topic: &Topic) {
    let larger =
        AlterConfig::new(ResourceSpecifier::Topic(topic.name)).set("max.message.bytes", "9999");
    till.admin().alter_configs([&larger], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_broker_refuses_holds_its_own_key_only() {
    let till = Till::<109>::open().await;
    let topic = names(109).counted;
    till.create_topic(topic, &[("max.message.bytes", "1000")]).await;
    till.register(topic, topic.schema).await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    // Not to be compressed into what the broker takes.
    let noise: String = (0..3_000).map(|_| rand::random_range('!'..='~')).collect();
    // Keys of different partitions: a refusal is about all that lies in one request together.
    let (held, free) = ("abc", "b");
    till.publish(&[Counted { note: Some(noise), ..counted::<109>(held, 1) }]).await;
    for nth in 1..=5 {
        till.publish(&[counted(held, nth + 1), counted(free, nth)]).await;
        eventually("the other key goes on", async || {
            till.number("select count(*) from outbox where key = 'b'").await == 0
        })
        .await;
    }
    assert_eq!(till.number("select count(*) from outbox").await, 6);
    takes_more(&till, topic).await;
    till.outbox_is_empty().await;
    relaying.stop().await;
    let arrivals = first_arrivals(&till).await;
    assert_eq!((arrivals[held].len(), arrivals[free].len()), (6, 5));
    assert!(in_order(&arrivals), "{arrivals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_broker_refuses_every_record_their_topic_is_held_and_not_each_of_their_keys() {
    let till = Till::<117>::open().await;
    let topic = names(117).counted;
    till.create_topic(topic, &[("max.message.bytes", "100")]).await;
    till.register(topic, topic.schema).await;
    let (registry, mut db) = (till.registry(), till.db.acquire().await.unwrap());
    let mut round = till.round(&registry);
    let events: Vec<Counted<117>> = (0..1_500).map(|nth| counted(&nth.to_string(), 1)).collect();
    till.publish(&events).await;
    eventually("the topic is held", async || {
        round.turn(&mut db, 1_000).await.unwrap();
        round.held_up()
    })
    .await;
    takes_more(&till, topic).await;
    eventually("all are published", async || {
        round.turn(&mut db, 1_000).await.unwrap();
        till.number("select count(*) from outbox").await == 0
    })
    .await;
    assert_eq!(first_arrivals(&till).await.len(), 1_500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_to_the_partition_where_a_java_client_would_put_it() {
    let till = Till::<110>::open_with_contracts().await;
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    // Key and hash as Kafka's own tests of murmur2 have them.
    let vectors = [
        ("21", -973932308_i32),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ];
    till.publish(&vectors.map(|(key, _)| counted(key, 1))).await;
    till.outbox_is_empty().await;
    relaying.stop().await;
    for record in till.records(names(110).counted).await {
        let key = std::str::from_utf8(record.key().unwrap()).unwrap();
        let (_, hash) = vectors.iter().find(|(vector, _)| *vector == key).unwrap();
        assert_eq!(record.partition(), (hash & i32::MAX) % 3, "{key}");
    }
}
