//! A loop's dedicated connection: reused for each batch, and closed if a transaction did not end on it.

use super::*;

async fn backend_pid(session: &mut DedicatedConnection) -> i32 {
    let mut tx = session.begin().await.unwrap();
    let backend = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    backend
}

async fn insert_tally(tx: &mut PgConnection, till: &str) -> sqlx::Result<()> {
    let count = "insert into tallies values ($1, 1, 1)";
    sqlx::query(count).bind(till).execute(tx).await.map(drop)
}

#[tokio::test]
async fn a_connection_is_reused_with_the_planner_settings_of_batches() {
    let fixture = Fixture::<220>::create().await;
    let mut session = DedicatedConnection::new(&fixture.db);
    let first = backend_pid(&mut session).await;
    let mut tx = session.begin().await.unwrap();
    let settings = "select current_setting('enable_seqscan'), current_setting('plan_cache_mode')";
    let planned: (String, String) = sqlx::query_as(settings).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(planned, ("off".into(), "force_generic_plan".into()));
    insert_tally(&mut tx, "rolled back").await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = session.begin().await.unwrap();
    insert_tally(&mut tx, "committed").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(backend_pid(&mut session).await, first);
    assert_eq!(Vec::from_iter(fixture.tallies().await.into_keys()), ["committed"]);
}

#[tokio::test]
async fn an_unfinished_transaction_is_never_continued() {
    let fixture = Fixture::<221>::create().await;
    let mut session = DedicatedConnection::new(&fixture.db);
    let first = backend_pid(&mut session).await;
    let mut tx = session.begin().await.unwrap();
    insert_tally(&mut tx, "given up").await.unwrap();
    drop(tx);
    assert_ne!(backend_pid(&mut session).await, first);
    assert_eq!(fixture.tallies().await.len(), 0);
}

#[tokio::test]
async fn a_backend_terminated_between_two_batches_fails_neither_of_them() {
    let fixture = Fixture::<222>::create().await;
    let mut session = DedicatedConnection::new(&fixture.db);
    let first = backend_pid(&mut session).await;
    fixture.execute_as_superuser(&format!("select pg_terminate_backend({first}, 5000)")).await;
    assert_ne!(backend_pid(&mut session).await, first);
}

/// This happens on a former primary that returns as a standby: its transactions cannot write.
#[tokio::test]
async fn a_connection_that_became_read_only_is_replaced_before_the_next_transaction() {
    let fixture = Fixture::<224>::create().await;
    let mut session = DedicatedConnection::new(&fixture.db);
    let first = backend_pid(&mut session).await;
    let mut tx = session.begin().await.unwrap();
    let read_only = "set session characteristics as transaction read only";
    sqlx::raw_sql(read_only).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_ne!(backend_pid(&mut session).await, first, "a new connection");
}

#[tokio::test]
async fn a_connection_opened_while_the_database_was_read_only_does_not_stay_read_only() {
    let fixture = Fixture::<229>::create().await;
    let database = fixture.superuser.get_database().unwrap();
    let alter =
        async |how| fixture.execute_as_superuser(&format!("alter database {database} {how}")).await;
    let mut session = DedicatedConnection::new(&fixture.db);
    alter("set default_transaction_read_only = on").await;
    assert!(session.begin().await.is_err());
    alter("reset default_transaction_read_only").await;
    let mut tx = session.begin().await.unwrap();
    insert_tally(&mut tx, "written").await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_respond_times_out() {
    let fixture = Fixture::<223>::create().await;
    let (proxied, proxy) = fixture.with_database_proxy().await;
    let mut session = DedicatedConnection::new(&proxied.db);
    backend_pid(&mut session).await;
    proxy.set_mode(ProxyMode::Blackhole);
    let began = Instant::now();
    let begun = session.begin().await.map(drop);
    assert!(begun.is_err(), "begun after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    proxy.set_mode(ProxyMode::PassThrough);
    backend_pid(&mut session).await;
}
