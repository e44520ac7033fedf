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

/// What was the primary came back as a standby, or a name still leads to it: the session must not stay
/// there for ever. That a server is a standby is told by a function of the test's, found first.
#[tokio::test]
async fn a_server_that_is_a_standby_is_left_at_once_and_not_begun_with() {
    let till = Till::<224>::open().await;
    till.force(
        "create schema told; create table told.standby (true_now boolean not null);
         insert into told.standby values (false);
         create function told.pg_is_in_recovery() returns boolean
             language sql as 'select true_now from told.standby';
         grant usage on schema told to public; grant select on told.standby to public;
         do $$ begin execute format('alter database %I set search_path = told, pg_catalog, public',
                                    current_database()); end $$",
    )
    .await;
    let mut session = Session::of(&till.db);
    let first = backend(&mut session).await;
    till.force("update told.standby set true_now = true").await;
    assert!(session.begin().await.is_err());
    till.force("update told.standby set true_now = false").await;
    assert_ne!(backend(&mut session).await, first, "on a connection of its own");
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
