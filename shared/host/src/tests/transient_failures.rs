//! Transient failures are retried: no event becomes a dead letter, and order is kept.

use messaging::consumer::rebalance;
use rdkafka::consumer::CommitMode;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::postgres::PgPoolOptions;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn while_an_event_waits_for_a_locked_row_others_are_handled_and_the_offset_stays_before_it() {
    let fixture = Fixture::<6>::create_with_contracts().await;
    // Its statements time out soon, so that a locked row splits its batches. A single event does not wait for the
    // lock.
    let impatient = Fixture { db: impatient_pool(&fixture).await, ..fixture.clone() };
    let statement = "insert into tallies select 'till ' || n, 0, 0 from generate_series(0, 7) n";
    fixture.execute_as_superuser(statement).await;
    let producer: FutureProducer =
        kafka::producer_config(fixture.service, &fixture.config.kafka.connection())
            .create()
            .unwrap();
    let events: Vec<Counted<6>> = (0..8).map(|nth| counted(&format!("till {nth}"), 1)).collect();
    for message in fixture.to_records(&events).await {
        let mut record = FutureRecord::<[u8], [u8]>::to(message.topic()).partition(0);
        (record.payload, record.headers) = (message.payload(), message.headers().cloned());
        producer.send(record, TEST_TIMEOUT).await.unwrap();
    }
    // A session without a timeout for idle transactions.
    let mut other = fixture.superuser_connection().await;
    let locked = "begin; select counted from tallies where till = 'till 1' for update";
    sqlx::raw_sql(locked).execute(&mut other).await.unwrap();
    let stepped = impatient.stepped_consumer();
    let client = stepped.client.clone();
    let mut partition = TopicPartitionList::new();
    partition.add_partition_offset(names(6).counted.name, 0, Offset::Beginning).unwrap();
    client.assign(&partition).unwrap();
    let mut batch = Vec::new();
    while batch.len() < events.len() {
        batch.push(client.recv().await.unwrap().detach());
    }
    let mut batches = stepped.batches();
    let assigned = client.context().assignment();
    tokio::time::timeout(TEST_TIMEOUT, batches.handle(batch, &assigned))
        .await
        .expect("others go on");
    assert!(batches.next_due().is_some(), "one event waits");
    assert_eq!(fixture.query_number("select sum(counted)::bigint from tallies").await, 7);
    batches.retry_deferred().await;
    // The process dies here. In the best case the stored offsets are still committed.
    let last = move || {
        rebalance::store_offsets(&*client, None);
        client.commit_consumer_state(CommitMode::Sync)
    };
    let _ = tokio::task::spawn_blocking(last).await.unwrap();
    assert_eq!(committed_offsets(&fixture).await, [1]);
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();

    fixture.catch_up().await;
    let tallies = fixture.tallies().await;
    assert!(tallies.values().all(|counted| *counted == (1, 1)), "{tallies:?}");
    assert_eq!(fixture.dead_letters().await.len(), 0);
}

/// A pool whose statements time out soon, and whose locks do not.
async fn impatient_pool<const TEST: u32>(fixture: &Fixture<TEST>) -> PgPool {
    let options = fixture.db.connect_options().as_ref().clone();
    let options = options.options([("statement_timeout", "200ms"), ("lock_timeout", "0")]);
    PgPoolOptions::new().connect_with(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_failure_is_retried_and_never_makes_a_dead_letter() {
    let fixture = Fixture::<7>::create_with_contracts().await;
    let options = fixture.db.connect_options();
    let role = options.get_username();
    let database: String = fixture.superuser.get_database().unwrap().into();
    let end_sessions = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = '{database}' and usename = '{role}'"
    );
    let faults = [
        (
            format!("revoke insert on tallies from \"{role}\""),
            format!("grant insert on tallies to \"{role}\""),
        ),
        (
            format!("alter database {database} set default_transaction_read_only = on"),
            format!("alter database {database} reset default_transaction_read_only"),
        ),
        (
            "alter table chassis.inbox rename column topic to topic_2".into(),
            "alter table chassis.inbox rename column topic_2 to topic".into(),
        ),
    ];
    for (nth, (fault, repair)) in faults.iter().enumerate() {
        fixture.execute_as_superuser(fault).await;
        fixture.execute_as_superuser(&end_sessions).await;
        let batch =
            fixture.to_records(&[counted(&format!("till {nth}"), 1), counted("b", 1)]).await;
        let mut handling = std::pin::pin!(fixture.handle(batch));
        let early = tokio::time::timeout(QUIET_PERIOD, &mut handling).await;
        assert!(early.is_err(), "not waited for: {fault}");
        fixture.execute_as_superuser(repair).await;
        let late = tokio::time::timeout(TEST_TIMEOUT, handling).await;
        late.unwrap_or_else(|_| panic!("not handled after: {repair}"));
        assert_eq!(fixture.tallies().await[&format!("till {nth}")], (1, 1));
    }

    // The session of the consumer is terminated in the middle of a batch.
    let mut other = fixture.superuser_connection().await;
    sqlx::raw_sql("begin; lock table tallies in access exclusive mode")
        .execute(&mut other)
        .await
        .unwrap();
    let batch = fixture.to_records(&[counted("c", 1), counted("c", 1)]).await;
    tokio::join!(fixture.handle(batch), async {
        fixture.wait_for_blocked(1).await;
        fixture.execute_as_superuser(&format!("{end_sessions} and wait_event_type = 'Lock'")).await;
        sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    });
    assert_eq!(fixture.tallies().await["c"], (2, 2));
    assert_eq!(fixture.dead_letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stops_responding_during_a_batch_is_replaced() {
    let fixture = Fixture::<11>::create_with_contracts().await;
    let (proxied, proxy) = fixture.with_database_proxy().await;
    let batch = fixture.to_records(&[counted("a", 1), counted("a", 1)]).await;
    let lock = fixture.lock_tally("a").await;
    tokio::join!(proxied.handle(batch), async {
        fixture.wait_for_blocked(1).await;
        proxy.set_mode(ProxyMode::Blackhole);
        sleep(QUIET_PERIOD).await;
        proxy.set_mode(ProxyMode::PassThrough);
        lock.rollback().await.unwrap();
    });
    assert_eq!(fixture.tallies().await["a"], (2, 2));
    assert_eq!(fixture.dead_letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_events_wait_then_share_a_transaction_and_none_becomes_a_dead_letter()
{
    let fixture = Fixture::<8>::create_with_contracts().await;
    let batch = fixture.to_records(&[1, 2, 3].map(|amount| counted("a", amount))).await;
    let (away, proxy) = fixture.with_registry_proxy().await;
    let stepped = away.stepped_consumer();
    let mut batches = stepped.batches();
    proxy.set_mode(ProxyMode::Refuse);
    batches.handle(batch, &Assignment::default()).await;
    assert!(batches.next_due().is_some(), "they wait");
    proxy.set_mode(ProxyMode::PassThrough);
    while batches.next_due().is_some() {
        // Longer than the pauses after a first and a second attempt: all of them are due.
        sleep(Duration::from_secs(2)).await;
        batches.retry_deferred().await;
    }
    assert_eq!(fixture.tallies().await["a"], (3, 6));
    let transactions = "select count(distinct xmin::text) from chassis.inbox";
    assert_eq!(fixture.query_number(transactions).await, 1);
    assert_eq!(fixture.dead_letters().await.len(), 0);
}

/// It has twenty seconds to stop, and a thousand events with a transaction each take longer than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_consumer_leaves_the_events_that_it_has_not_begun() {
    let fixture = Fixture::<60>::create_with_contracts().await;
    let records = fixture.to_records(&[counted("a", 1), counted("a", 2)]).await;
    let (stopped, running) = (fixture.stepped_consumer(), fixture.stepped_consumer());
    stopped.stop.cancel();
    for (stepped, expected) in [(stopped, 0), (running, 2)] {
        stepped.batches().handle(records.clone(), &Assignment::default()).await;
        assert_eq!(fixture.count("chassis.inbox").await, expected);
    }
}
