//! No record is skipped, whatever the group's committed offset says, and what cannot be read any more is reported.

use messaging::consumer::rewind::{self, RewindRequest, RewindTo};
use metrics_exporter_prometheus::PrometheusBuilder;
use rdkafka::consumer::CommitMode;
use tracing::subscriber::set_default;

use super::captured_log::CapturedLog;
use super::*;

/// Publishes one event into each of three tills, and puts them into the topic.
async fn publish<const TEST: u32>(fixture: &Fixture<TEST>, amount: i64) {
    fixture.publish(&["a", "b", "c"].map(|till| counted(till, amount))).await;
    fixture.relay_all().await;
}

async fn total<const TEST: u32>(fixture: &Fixture<TEST>) -> i64 {
    fixture.tallies().await.values().map(|(_, total)| total).sum()
}

/// The ends of the partitions of the topic.
async fn ends<const TEST: u32>(fixture: &Fixture<TEST>) -> TopicPartitionList {
    let client = fixture.group_client();
    let query = move || {
        let mut ends = TopicPartitionList::new();
        for partition in 0..names(TEST).counted.partitions {
            let of = client.fetch_watermarks(names(TEST).counted.name, partition, TEST_TIMEOUT);
            let end = Offset::Offset(of.unwrap().1);
            ends.add_partition_offset(names(TEST).counted.name, partition, end).unwrap();
        }
        ends
    };
    tokio::task::spawn_blocking(query).await.unwrap()
}

/// Commits the ends of the topic for the group, as another program does that reads in it, or as a reset.
async fn commit_ends<const TEST: u32>(fixture: &Fixture<TEST>) {
    let (client, ends) = (fixture.group_client(), ends(fixture).await);
    let commit = move || client.commit(&ends, CommitMode::Sync).unwrap();
    tokio::task::spawn_blocking(commit).await.unwrap();
}

/// Runs a consumer until it has a position in each partition.
async fn begin_reading<const TEST: u32>(fixture: &Fixture<TEST>) {
    let consuming = fixture.start_consumer();
    eventually("each partition has a position", async || {
        let positions = "select count(*) from chassis.consumer_positions";
        fixture.query_number(positions).await == i64::from(names(TEST).counted.partitions)
    })
    .await;
    consuming.stop().await;
}

async fn delete_records<const TEST: u32>(fixture: &Fixture<TEST>) {
    let ends = ends(fixture).await;
    let deleted = fixture.admin_client().delete_records(&ends, &AdminOptions::new()).await.unwrap();
    deleted.elements().iter().for_each(|place| place.error().unwrap());
}

/// The positions in the database, added up.
const POSITIONS: &str =
    "select coalesce(sum(next_offset), 0)::bigint from chassis.consumer_positions";

/// Runs a consumer until its positions are the ends of the topic. Returns the lines at ERROR that it logged.
async fn errors_while_catching_up<const TEST: u32>(fixture: &Fixture<TEST>) -> Vec<String> {
    let log = CapturedLog::default();
    let _logging = set_default(log.json_subscriber());
    let ends = ends(fixture).await;
    let ends: i64 = ends.elements().iter().map(|place| place.offset().to_raw().unwrap()).sum();
    let consuming = fixture.start_consumer();
    eventually("it is at the ends", async || fixture.query_number(POSITIONS).await == ends).await;
    consuming.stop().await;
    let lines = log.json_lines();
    let errors = lines.iter().filter(|line| line["level"] == "ERROR");
    errors.map(|line| line["message"].as_str().unwrap().to_string()).collect()
}

#[tokio::test]
async fn what_another_program_of_the_group_skipped_is_handled_and_reported() {
    let fixture = Fixture::<701>::create_with_contracts().await;
    publish(&fixture, 1).await;
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0]);
    publish(&fixture, 10).await;
    commit_ends(&fixture).await;
    let consumer = fixture.consumer();
    let group = consumer.lag();
    assert!(group.caught_up().await.is_none(), "no client has joined");

    let recorder = PrometheusBuilder::new().build_recorder();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    let errors = errors_while_catching_up(&fixture).await;
    assert_eq!(total(&fixture).await, 33);
    let tills = fixture.records(names(701).counted).await;
    let partitions: BTreeSet<i32> = tills.iter().map(Message::partition).collect();
    assert_eq!(errors.len(), partitions.len(), "{errors:?}");
    assert!(errors.iter().all(|line| line.contains("had not been handled")), "{errors:?}");
    let counted = recorder.handle().render();
    let skipped = counted.lines().find(|line| line.contains("cause=\"skipped\"")).unwrap();
    assert!(skipped.starts_with("consumer_gaps_total"), "{skipped}");
    assert!(skipped.ends_with(&format!(" {}", partitions.len())), "{skipped}");
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0], "it is reported once");
}

/// Nothing was ever handled of the partitions.
#[tokio::test]
async fn what_was_skipped_before_the_first_record_was_handled_is_handled_too() {
    let fixture = Fixture::<702>::create_with_contracts().await;
    begin_reading(&fixture).await;
    publish(&fixture, 1).await;
    commit_ends(&fixture).await;
    fixture.catch_up().await;
    assert_eq!(total(&fixture).await, 3);
}

#[tokio::test]
async fn records_that_were_deleted_before_they_were_handled_are_reported() {
    let fixture = Fixture::<703>::create_with_contracts().await;
    publish(&fixture, 1).await;
    fixture.catch_up().await;
    delete_records(&fixture).await;
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0], "they were handled");
    publish(&fixture, 10).await;
    delete_records(&fixture).await;

    let errors = errors_while_catching_up(&fixture).await;
    assert!(!errors.is_empty());
    let ends = ends(&fixture).await;
    for place in ends.elements() {
        let end = place.offset().to_raw().unwrap();
        let told = format!("[{}]: records were deleted", place.partition());
        let told = errors.iter().filter(|line| line.contains(&told)).collect::<Vec<_>>();
        assert_eq!(told.len(), usize::from(end > 0), "{errors:?}");
        let offset = format!("the log begins at {end} now");
        assert!(told.iter().all(|line| line.contains(&offset)), "{errors:?}");
    }
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0], "they are reported once");
    publish(&fixture, 100).await;
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0]);
    assert_eq!(total(&fixture).await, 303);
}

/// A consumer that is killed may have committed an offset, and not yet its position in the database.
#[tokio::test]
async fn records_that_are_in_the_inbox_are_no_gap() {
    let fixture = Fixture::<704>::create_with_contracts().await;
    publish(&fixture, 1).await;
    fixture.catch_up().await;
    assert_eq!(fixture.query_number(POSITIONS).await, 3);
    fixture.execute_as_superuser("update chassis.consumer_positions set next_offset = 0").await;
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0]);
    assert_eq!(total(&fixture).await, 3);
}

/// Kafka deletes the group's offsets with the topic. A group that was deleted looks the same.
#[tokio::test]
async fn a_topic_that_was_created_again_is_read_from_its_beginning_without_a_report() {
    let fixture = Fixture::<705>::create_with_contracts().await;
    for _ in 0..3 {
        publish(&fixture, 1).await;
    }
    fixture.catch_up().await;
    let (topic, options) = (names(705).counted, AdminOptions::new());
    fixture.admin_client().delete_topics(&[topic.name], &options).await.unwrap();
    eventually("it is gone", async || {
        let new = NewTopic::new(topic.name, topic.partitions, TopicReplication::Fixed(1));
        let made = fixture.admin_client().create_topics([&new], &options).await.unwrap();
        made[0].is_ok()
    })
    .await;
    publish(&fixture, 10).await;
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0]);
    assert_eq!(total(&fixture).await, 39);
}

/// Records that arrive while the database is away may lie behind a gap.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_before_the_database_tells_where_reading_begins() {
    let fixture = Fixture::<706>::create_with_contracts().await;
    begin_reading(&fixture).await;
    publish(&fixture, 1).await;
    commit_ends(&fixture).await;
    publish(&fixture, 10).await;
    let (fixture, proxy) = fixture.with_database_proxy().await;
    let consumer = fixture.consumer();
    proxy.set_mode(ProxyMode::Refuse);
    let consuming = RunningLoop::start(|stop| consumer.run(stop));
    sleep(QUIET_PERIOD * 3).await;
    proxy.set_mode(ProxyMode::PassThrough);
    eventually("all are handled", async || total(&fixture).await == 33).await;
    consuming.stop().await;
}

/// The inbox absorbs what is read again. The test empties it, so that a second effect shows.
#[tokio::test]
async fn an_operator_moves_the_consumer_back_or_ahead_and_that_is_no_gap() {
    let fixture = Fixture::<707>::create_with_contracts().await;
    let log = CapturedLog::default();
    let _logging = set_default(log.json_subscriber());
    let request = async |topic, to| {
        let (reason, partition) = ("a bug in the handler", None);
        let asked = RewindRequest { topic, partition, to, reason, actor: Some("operator") };
        rewind::request(&fixture.db, asked).await.unwrap()
    };
    publish(&fixture, 1).await;
    let consuming = fixture.start_consumer();
    eventually("it is handled", async || total(&fixture).await == 3).await;
    eventually("the positions are written", async || fixture.query_number(POSITIONS).await == 3)
        .await;
    let rewound = request(None, RewindTo::Time(chrono::DateTime::UNIX_EPOCH)).await;
    let absorbed = serde_json::to_value(&rewound).unwrap();
    assert_eq!(absorbed["inbox"][0]["events"], 3, "{absorbed}");
    let moved = "an operator moved the consumer to offset 0";
    let lines = |what: &str| log.text().lines().filter(|line| line.contains(what)).count();
    eventually("each partition was moved", async || lines(moved) == 3).await;
    eventually("it is at the ends again", async || fixture.query_number(POSITIONS).await == 3)
        .await;
    assert_eq!(total(&fixture).await, 3, "the inbox knows them");

    fixture.execute_as_superuser("delete from chassis.inbox").await;
    request(Some("another"), RewindTo::Offset(0)).await;
    request(Some(names(707).counted.name), RewindTo::Offset(0)).await;
    eventually("they are handled again", async || total(&fixture).await == 6).await;
    consuming.stop().await;

    publish(&fixture, 10).await;
    request(None, RewindTo::Offset(i64::MAX)).await;
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0]);
    publish(&fixture, 100).await;
    assert_eq!(errors_while_catching_up(&fixture).await, [""; 0]);
    assert_eq!(total(&fixture).await, 306, "what was skipped is not handled");
    assert_eq!(lines("ERROR"), 0, "{}", log.text());
    assert_eq!(fixture.count("chassis.rewinds").await, 4);
}
