//! The pool of database connections.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn connections_whose_peer_vanished_free_their_slot_in_the_pool() {
    let fixture = Fixture::<213>::create().await;
    let small = fixture.with_config(|config| config.database_pool_size = 1);
    let (proxied, proxy) = small.with_database_proxy().await;
    let mut tx = proxied.db.begin().await.unwrap();
    proxy.set_mode(ProxyMode::Blackhole);
    let asked = sqlx::query("select from tallies").execute(&mut *tx);
    assert!(tokio::time::timeout(QUIET_PERIOD, asked).await.is_err(), "the other end is gone");
    drop(tx);
    // New connections pass. The old connection transfers nothing more.
    proxy.set_mode(ProxyMode::PassThrough);
    eventually("the pool serves again", async || {
        sqlx::query("select from tallies").execute(&proxied.db).await.is_ok()
    })
    .await;
}

/// A caller that stops waiting for the reply to `begin` leaves such a connection.
#[tokio::test]
async fn a_connection_returned_to_the_pool_inside_a_transaction_is_closed() {
    let fixture = Fixture::<209>::create().await;
    let only_one = fixture.db.options().clone().max_connections(1);
    let db = only_one.connect_lazy_with(fixture.db.connect_options().as_ref().clone());
    let mut connection = db.acquire().await.unwrap();
    let backend = "select pg_backend_pid()";
    let first: i32 = sqlx::query_scalar(backend).fetch_one(&mut *connection).await.unwrap();
    drop(connection);
    let mut again = db.acquire().await.unwrap();
    let second: i32 = sqlx::query_scalar(backend).fetch_one(&mut *again).await.unwrap();
    assert_eq!(first, second, "an idle one is kept");
    sqlx::raw_sql("begin").execute(&mut *again).await.unwrap();
    drop(again);
    let third: i32 = sqlx::query_scalar(backend).fetch_one(&db).await.unwrap();
    assert_ne!(second, third);
}
