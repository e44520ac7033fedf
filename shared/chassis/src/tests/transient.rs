//! What will pass is waited for: nothing is set aside, and nothing later goes first.

use rdkafka::consumer::CommitMode;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::postgres::PgPoolOptions;

use super::*;
use crate::offsets;

#[tokio::test(flavor = "multi_thread")]
async fn while_an_event_waits_for_a_locked_row_others_are_handled_and_the_offset_stays_before_it() {
    let till = Till::<6>::open_with_contracts().await;
    // A locked row splits its batches, whose statements take too long. What is tried alone waits for a lock no longer.
    let hasty = Till { db: impatient(&till).await, ..till.clone() };
    till.force("insert into tallies select 'till ' || n, 0, 0 from generate_series(0, 7) n").await;
    let producer: FutureProducer =
        kafka::producer(till.service, &till.config.kafka).create().unwrap();
    let events: Vec<Counted<6>> = (0..8).map(|nth| counted(&format!("till {nth}"), 1)).collect();
    for message in till.delivered(&events).await {
        let mut record = FutureRecord::<[u8], [u8]>::to(message.topic()).partition(0);
        (record.payload, record.headers) = (message.payload(), message.headers().cloned());
        producer.send(record, WITHIN).await.unwrap();
    }
    // A session that may idle in its transaction.
    let mut other = till.session().await;
    let locked = "begin; select counted from tallies where till = 'till 1' for update";
    sqlx::raw_sql(locked).execute(&mut other).await.unwrap();
    let (consumer, client, stop) = (hasty.consumer(), till.client(), CancellationToken::new());
    let mut partition = TopicPartitionList::new();
    partition.add_partition_offset(names(6).counted.name, 0, Offset::Beginning).unwrap();
    client.assign(&partition).unwrap();
    let mut batch = Vec::new();
    while batch.len() < events.len() {
        batch.push(client.recv().await.unwrap().detach());
    }
    let mut batches = consumer.batches(&client, &stop);
    let assigned = client.context().assigned();
    tokio::time::timeout(WITHIN, batches.handle(batch, &assigned)).await.expect("others go on");
    assert!(batches.next_due().is_some(), "one event waits");
    assert_eq!(till.number("select sum(counted)::bigint from tallies").await, 7);
    batches.retry_deferred().await;
    // The process dies here; at best, what was stored and not yet committed still is.
    let last = move || {
        offsets::store(&*client, None);
        client.commit_consumer_state(CommitMode::Sync)
    };
    let _ = tokio::task::spawn_blocking(last).await.unwrap();
    assert_eq!(committed(&till).await, [1]);
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();

    till.catch_up().await;
    let tallies = till.tallies().await;
    assert!(tallies.values().all(|counted| *counted == (1, 1)), "{tallies:?}");
    assert_eq!(till.letters().await.len(), 0);
}

/// A pool that gives up a statement long before it gives up a lock.
async fn impatient<const TEST: u32>(till: &Till<TEST>) -> PgPool {
    let options = till.db.connect_options().as_ref().clone();
    let options = options.options([("statement_timeout", "200ms"), ("lock_timeout", "0")]);
    PgPoolOptions::new().connect_with(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_will_pass_is_waited_for_and_never_makes_a_dead_letter() {
    let till = Till::<7>::open_with_contracts().await;
    let role =
        till.config.database_url.expose().split(['/', '@']).nth(2).unwrap().replace("%20", " ");
    let database: String = till.cluster.get_database().unwrap().into();
    let end_sessions = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = '{database}' and usename = '{role}'"
    );
    let troubles = [
        (
            format!("revoke insert on tallies from \"{role}\""),
            format!("grant insert on tallies to \"{role}\""),
        ),
        (
            format!("alter database {database} set default_transaction_read_only = on"),
            format!("alter database {database} reset default_transaction_read_only"),
        ),
        (
            "alter table inbox rename column topic to topic_2".into(),
            "alter table inbox rename column topic_2 to topic".into(),
        ),
    ];
    for (nth, (trouble, cure)) in troubles.iter().enumerate() {
        till.force(trouble).await;
        till.force(&end_sessions).await;
        let batch = till.delivered(&[counted(&format!("till {nth}"), 1), counted("b", 1)]).await;
        let mut handling = std::pin::pin!(till.handle(batch));
        let early = tokio::time::timeout(MEANWHILE, &mut handling).await;
        assert!(early.is_err(), "not waited for: {trouble}");
        till.force(cure).await;
        let late = tokio::time::timeout(WITHIN, handling).await;
        late.unwrap_or_else(|_| panic!("waited for in vain, though: {cure}"));
        assert_eq!(till.tallies().await[&format!("till {nth}")], (1, 1));
    }

    // Its session is ended in the middle of a batch.
    let mut other = till.session().await;
    sqlx::raw_sql("begin; lock table tallies in access exclusive mode")
        .execute(&mut other)
        .await
        .unwrap();
    let batch = till.delivered(&[counted("c", 1), counted("c", 1)]).await;
    tokio::join!(till.handle(batch), async {
        till.blocked(1).await;
        till.force(&format!("{end_sessions} and wait_event_type = 'Lock'")).await;
        sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    });
    assert_eq!(till.tallies().await["c"], (2, 2));
    assert_eq!(till.letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_went_silent_in_the_middle_of_a_batch_is_given_up() {
    let till = Till::<11>::open_with_contracts().await;
    let (proxied, proxy) = till.with_database_proxy().await;
    let batch = till.delivered(&[counted("a", 1), counted("a", 1)]).await;
    let lock = till.lock("a").await;
    tokio::join!(proxied.handle(batch), async {
        till.blocked(1).await;
        proxy.set(Way::Silent);
        sleep(MEANWHILE).await;
        proxy.set(Way::Open);
        lock.rollback().await.unwrap();
    });
    assert_eq!(till.tallies().await["a"], (2, 2));
    assert_eq!(till.letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_registry_is_away_events_wait_and_none_becomes_a_dead_letter() {
    let till = Till::<8>::open_with_contracts().await;
    let batch = till.delivered(&[counted("a", 1)]).await;
    let (away, proxy) = till.with_registry_proxy().await;
    proxy.set(Way::Shut);
    let mut handling = std::pin::pin!(away.handle(batch));
    assert!(tokio::time::timeout(MEANWHILE, &mut handling).await.is_err());
    proxy.set(Way::Open);
    handling.await;
    assert_eq!(till.tallies().await["a"], (1, 1));
    assert_eq!(till.letters().await.len(), 0);
}
