//! How the relay handles delivery reports: records that are rejected, lost, or possibly persisted.

use messaging::event::avro::BODY_BYTES_MAX;
use messaging::outbox::producer::{DeliveryStatus, Producer};
use rdkafka::admin::{AlterConfig, ResourceSpecifier};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_with_a_fatal_error_is_replaced_and_loses_nothing() {
    let (fixture, mock) = Fixture::<108>::create_with_mock_kafka().await;
    let relaying = fixture.start_relay();
    let events = |range: std::ops::RangeInclusive<i64>| -> Vec<Counted<108>> {
        range.flat_map(|nth| ["a", "b", "c"].map(|till| counted(till, nth))).collect()
    };
    fixture.deliver(&events(1..=5)).await;
    let beyond_repair = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    mock.request_errors(RDKafkaApiKey::Produce, &[beyond_repair]);
    fixture.deliver(&events(6..=20)).await;
    relaying.stop().await;
    let arrivals = first_arrivals(&fixture).await;
    assert_eq!(arrivals.values().map(Vec::len).sum::<usize>(), 60);
    assert!(in_order(&arrivals), "{arrivals:?}");
}

/// Sends until the outbox is empty.
async fn send_all<const TEST: u32>(sender: &mut SteppedSender, fixture: &Fixture<TEST>) {
    eventually("all are sent", async || {
        sender.send(1_000).await;
        fixture.count("chassis.outbox").await == 0
    })
    .await;
}

/// A broker behaves so when a producer is new to a partition: it rejects requests until the partition's log exists,
/// and accepts the next one, whatever its sequence number. The client then reports the rejected records as
/// delivered too.
#[tokio::test(flavor = "multi_thread")]
async fn a_possibly_persisted_record_is_sent_again_though_the_client_reports_it_delivered() {
    let (fixture, mock) = Fixture::<116>::create_with_mock_kafka().await;
    let mut sender = fixture.sender().await;
    let events = |way: &str| -> Vec<Counted<116>> {
        (0..20).map(|nth| counted(&format!("{way} {nth}"), 1)).collect()
    };
    fixture.publish(&events("connected")).await;
    send_all(&mut sender, &fixture).await;
    // The first request to each partition is refused, and by then the second one is on its way.
    mock.broker_round_trip_time(1, Duration::from_secs(1)).unwrap();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
    let of_each = vec![refusal; names(116).counted.partitions as usize];
    mock.request_errors(RDKafkaApiKey::Produce, &of_each);
    fixture.publish(&events("following")).await;
    for _ in 0..10 {
        assert_eq!(sender.send(2).await, 2);
        sleep(Duration::from_millis(5)).await; // the client lingers for 1 ms
    }
    let mut possibly_persisted = 0;
    for _ in 0..20 {
        let report = sender.producer.next_report().await.unwrap();
        possibly_persisted += usize::from(matches!(report.1, DeliveryStatus::PossiblyPersisted));
        sender.on_delivery(report).unwrap();
    }
    assert!(possibly_persisted > 0, "the client assumed nothing");
    mock.broker_round_trip_time(1, Duration::ZERO).unwrap();
    send_all(&mut sender, &fixture).await;
    let arrivals = first_arrivals(&fixture).await;
    let missing: Vec<_> = ["connected", "following"]
        .into_iter()
        .flat_map(|way| (0..20).map(move |nth| format!("{way} {nth}")))
        .filter(|key| !arrivals.contains_key(key))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Two brokers take turns: the second stands for the first after it lost its disk. Its acknowledgement to a
/// producer that began with the first proves nothing, since the next producer may get the same id.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_recreated_cluster_acknowledges_to_an_old_producer_are_sent_again() {
    // Of the producer's two clients, one sends the records of a batch, and the other a record that comes alone.
    send_to_a_recreated_cluster::<112>(&["a", "b"]).await;
    send_to_a_recreated_cluster::<709>(&["a"]).await;
}

/// Each time one record of each key is sent, so that one client sends them all.
async fn send_to_a_recreated_cluster<const TEST: u32>(keys: &[&str]) {
    let fixture = Fixture::<TEST>::create().await;
    let (old, new) = (with_mock_kafka(&fixture).await.1, with_mock_kafka(&fixture).await.1);
    let addresses = format!("{},{}", old.bootstrap_servers(), new.bootstrap_servers());
    let fixture = fixture.with_config(|config| config.kafka.kafka_bootstrap_servers = addresses);
    new.broker_down(-1).unwrap();
    let mut sender = fixture.sender().await;
    let events = |nth| -> Vec<Counted<TEST>> { keys.iter().map(|key| counted(key, nth)).collect() };
    fixture.publish(&events(1)).await;
    send_all(&mut sender, &fixture).await;

    old.broker_down(-1).unwrap();
    fixture.publish(&events(2)).await;
    assert_eq!(sender.send(1_000).await, keys.len());
    new.broker_up(-1).unwrap();
    eventually("the producer is replaced", async || sender.try_send(1_000).await.is_err()).await;
    let left = fixture.count("chassis.outbox").await;
    assert_eq!(left, keys.len() as i64, "none is certain to be written");
    drop(sender);

    fixture.relay_all().await;
    let there = fixture
        .with_config(|config| config.kafka.kafka_bootstrap_servers = new.bootstrap_servers());
    let arrivals = first_arrivals(&there).await;
    assert_eq!(arrivals.len(), keys.len());
    keys.iter().for_each(|key| assert_eq!(arrivals[*key][..], [2], "{key}"));
}

/// Raises the size limit for which a topic refused records, as an operator does.
async fn raise_max_message_bytes<const TEST: u32>(fixture: &Fixture<TEST>, topic: &Topic) {
    let larger =
        AlterConfig::new(ResourceSpecifier::Topic(topic.name)).set("max.message.bytes", "999999");
    fixture.admin_client().alter_configs([&larger], &AdminOptions::new()).await.unwrap()[0]
        .as_ref()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_broker_rejects_delays_only_its_own_key() {
    let fixture = Fixture::<109>::create().await;
    let topic = names(109).counted;
    fixture.create_topic(topic, &[("max.message.bytes", "1000")]).await;
    fixture.register_schema(topic, topic.schema).await;
    let relaying = fixture.start_relay();
    // Noise, so that compression does not make the record small enough.
    let noise: String = (0..3_000).map(|_| rand::random_range('!'..='~')).collect();
    // Keys of different partitions, because a refusal concerns a whole request.
    let (held, free) = ("abc", "b");
    fixture.publish(&[Counted { note: Some(noise), ..counted::<109>(held, 1) }]).await;
    for nth in 1..=5 {
        fixture.publish(&[counted(held, nth + 1), counted(free, nth)]).await;
        let left = async || fixture.count("chassis.outbox where key = 'b'").await;
        eventually("the other key goes on", async || left().await == 0).await;
    }
    assert_eq!(fixture.count("chassis.outbox").await, 6);
    raise_max_message_bytes(&fixture, topic).await;
    fixture.wait_for_empty_outbox().await;
    relaying.stop().await;
    let arrivals = first_arrivals(&fixture).await;
    assert_eq!((arrivals[held].len(), arrivals[free].len()), (6, 5));
    assert!(in_order(&arrivals), "{arrivals:?}");
}

/// `contracts apply` sets this limit. The client makes one batch of what waits for a partition; here it waits on purpose.
#[tokio::test(flavor = "multi_thread")]
async fn no_batch_of_a_backlog_is_larger_than_its_topic_accepts() {
    let fixture = Fixture::<128>::create().await;
    let topic = names(128).counted;
    let limit = kafka::RECORD_BYTES_MAX.to_string();
    fixture.create_topic(topic, &[("max.message.bytes", &limit)]).await;
    let mut settings = kafka::producer_config(fixture.service, &fixture.config.kafka.connection());
    let producer: FutureProducer = settings.set("linger.ms", "1000").create().unwrap();
    // Noise, so that compression does not make a batch small enough.
    let noise: Vec<u8> = (0..BODY_BYTES_MAX).map(|_| rand::random()).collect();
    let records = noise.chunks(BODY_BYTES_MAX / 100).chain([&noise[..]]);
    let send = |body| {
        let record = FutureRecord::<(), [u8]>::to(topic.name).partition(0).payload(body);
        producer.send_result(record).map_err(|(error, _)| error).unwrap()
    };
    for sent in records.map(send).collect::<Vec<_>>() {
        sent.await.unwrap().map_err(|(error, _)| error).unwrap();
    }
}

/// The records of a batch wait here for longer than any stall of the machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_comes_alone_does_not_wait_for_others() {
    const WAIT: Duration = Duration::from_secs(4);
    let fixture = Fixture::<708>::create_with_contracts().await;
    let mut settings = kafka::producer_config(fixture.service, &fixture.config.kafka.connection());
    settings.set("linger.ms", WAIT.as_millis().to_string());
    let mut sender = fixture.sender().await;
    sender.producer = Producer::with_settings(&settings).unwrap();
    for number in [1, 2, 1] {
        let till = |nth| format!("{number} of {nth}");
        let events: Vec<Counted<708>> = (0..number).map(|nth| counted(&till(nth), 1)).collect();
        fixture.publish(&events).await;
        let handed_over_at = Instant::now();
        assert_eq!(sender.send(1_000).await, number);
        for _ in 0..number {
            sender.next_delivery().await;
        }
        assert_eq!(handed_over_at.elapsed() >= WAIT, number == 2, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn if_the_broker_rejects_every_record_their_topic_backs_off_and_not_each_key() {
    let fixture = Fixture::<117>::create().await;
    let topic = names(117).counted;
    fixture.create_topic(topic, &[("max.message.bytes", "100")]).await;
    fixture.register_schema(topic, topic.schema).await;
    let mut sender = fixture.sender().await;
    let events: Vec<Counted<117>> = (0..1_500).map(|nth| counted(&nth.to_string(), 1)).collect();
    fixture.publish(&events).await;
    eventually("the topic backs off", async || {
        sender.send(1_000).await;
        sender.has_backoff()
    })
    .await;
    raise_max_message_bytes(&fixture, topic).await;
    eventually("all are published", async || {
        sender.send(1_000).await;
        fixture.count("chassis.outbox").await == 0
    })
    .await;
    assert_eq!(first_arrivals(&fixture).await.len(), 1_500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_to_the_partition_where_a_java_client_would_put_it() {
    let fixture = Fixture::<110>::create_with_contracts().await;
    let relaying = fixture.start_relay();
    // Keys and hashes from Kafka's own tests of murmur2.
    let vectors = [
        ("21", -973932308_i32),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ];
    fixture.deliver(&vectors.map(|(key, _)| counted(key, 1))).await;
    relaying.stop().await;
    for record in fixture.records(names(110).counted).await {
        let key = std::str::from_utf8(record.key().unwrap()).unwrap();
        let (_, hash) = vectors.iter().find(|(vector, _)| *vector == key).unwrap();
        assert_eq!(record.partition(), (hash & i32::MAX) % 3, "{key}");
    }
}
