//! A loop's own connection: kept from batch to batch, and closed where a transaction did not end on it.

use super::*;

async fn backend(session: &mut Session) -> i32 {
    let mut tx = session.begin().await.unwrap();
    let backend = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    backend
}

async fn count_one(tx: &mut PgConnection, till: &str) -> sqlx::Result<()> {
    let count = "insert into tallies values ($1, 1, 1)";
    sqlx::query(count).bind(till).execute(tx).await.map(drop)
}

#[tokio::test]
async fn it_is_kept_and_planned_as_batches_are() {
    let till = Till::<220>::open().await;
    let mut session = Session::of(&till.db);
    let first = backend(&mut session).await;
    let mut tx = session.begin().await.unwrap();
    let settings = "select current_setting('enable_seqscan'), current_setting('plan_cache_mode')";
    let planned: (String, String) = sqlx::query_as(settings).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(planned, ("off".into(), "force_generic_plan".into()));
    count_one(&mut tx, "rolled back").await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = session.begin().await.unwrap();
    count_one(&mut tx, "committed").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(backend(&mut session).await, first);
    assert_eq!(Vec::from_iter(till.tallies().await.into_keys()), ["committed"]);
}

#[tokio::test]
async fn a_transaction_that_nobody_ended_is_never_gone_on_with() {
    let till = Till::<221>::open().await;
    let mut session = Session::of(&till.db);
    let first = backend(&mut session).await;
    let mut tx = session.begin().await.unwrap();
    count_one(&mut tx, "given up").await.unwrap();
    drop(tx);
    assert_ne!(backend(&mut session).await, first);
    assert_eq!(till.tallies().await.len(), 0);
}

#[tokio::test]
async fn a_backend_that_was_ended_between_two_batches_costs_none_of_them() {
    let till = Till::<222>::open().await;
    let mut session = Session::of(&till.db);
    let first = backend(&mut session).await;
    till.force(&format!("select pg_terminate_backend({first}, 5000)")).await;
    assert_ne!(backend(&mut session).await, first);
}

/// As on what was the primary and came back as a standby: its transactions can't write, and never will.
#[tokio::test]
async fn a_connection_that_can_write_no_more_is_left_at_once_and_not_begun_with() {
    let till = Till::<224>::open().await;
    let mut session = Session::of(&till.db);
    let first = backend(&mut session).await;
    let mut tx = session.begin().await.unwrap();
    let read_only = "set session characteristics as transaction read only";
    sqlx::raw_sql(read_only).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_ne!(backend(&mut session).await, first, "on a connection of its own");
}

#[tokio::test]
async fn what_was_connected_while_the_database_was_read_only_does_not_stay_so() {
    let till = Till::<229>::open().await;
    let database = till.cluster.get_database().unwrap();
    let alter = async |how| till.force(&format!("alter database {database} {how}")).await;
    let mut session = Session::of(&till.db);
    alter("set default_transaction_read_only = on").await;
    assert!(session.begin().await.is_err());
    alter("reset default_transaction_read_only").await;
    let mut tx = session.begin().await.unwrap();
    count_one(&mut tx, "written").await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let till = Till::<223>::open().await;
    let (proxied, proxy) = till.with_database_proxy().await;
    let mut session = Session::of(&proxied.db);
    backend(&mut session).await;
    proxy.set(Way::Silent);
    let asked = Instant::now();
    let begun = session.begin().await.map(drop);
    assert!(begun.is_err(), "begun after {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
    proxy.set(Way::Open);
    backend(&mut session).await;
}
