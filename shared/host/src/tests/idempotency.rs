//! A command that is repeated with its idempotency key gets the stored answer and has one effect.

use std::ops::Range;

use futures::future::join_all;
use messaging::commands::idempotency;
use messaging::db;

use super::commands::{idempotent, read_response};
use super::*;

/// The other executor has the duplicate, which waits for the row that the first command changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_concurrent_duplicate_gets_the_same_answer_though_alone_it_would_be_rejected() {
    let fixture = Fixture::<218>::create().await;
    let (commands, writing) = fixture.commands();
    let only_once: DecideFn<218, _> = |request, tills, at| {
        let counted = tills.tallies.get(&request.till).map_or(0, |tally| tally.counted);
        match counted > 0 {
            true => Err(Problem::invalid("till", "it was counted into before")),
            false => request.decide(tills, at),
        }
    };
    fixture.execute_as_superuser("insert into tallies values ('a', 0, 0)").await;
    let lock = fixture.lock_tally("a").await;
    let request = counted::<218>("a", 5);
    let run = async || {
        read_response(
            commands.execute(idempotent("key", &request).map(|it| Deciding(it, only_once))).await,
        )
        .await
    };
    let second = async {
        fixture.wait_for_blocked(1).await;
        run().await
    };
    let unlock = async {
        fixture.wait_for_blocked(1).await;
        wait_for_both(&fixture).await;
        lock.rollback().await.unwrap();
    };
    let (first, second, ()) = tokio::join!(run(), second, unlock);
    assert_eq!((first.0, &first), (201, &second));
    assert_eq!(fixture.tallies().await["a"], (1, 5));
    writing.stop().await;
}

#[tokio::test]
async fn many_commands_with_the_same_key_have_one_effect_and_are_answered_together() {
    let fixture = Fixture::<233>::create().await;
    fixture.execute_as_superuser("create extension pg_stat_statements").await;
    let (commands, writing) = fixture.commands();
    let request = counted::<233>("a", 5);
    let run = |_| commands.execute(idempotent("key", &request));
    let answers = join_all(join_all((0..200).map(run)).await.into_iter().map(read_response)).await;
    assert_eq!(answers[0].0, 201);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(fixture.tallies().await["a"], (1, 5));
    let lookups = key_lookups(&fixture).await;
    assert!((2..5).contains(&lookups), "{lookups} lookups");
    writing.stop().await;
}

/// The executors have had no duplicate for a while, and no longer query keys first.
#[tokio::test]
async fn an_unexpected_duplicate_gets_the_stored_answer_though_it_would_now_be_decided_differently()
{
    let fixture = Fixture::<234>::create().await;
    fixture.execute_as_superuser("create extension pg_stat_statements").await;
    let (commands, writing) = fixture.commands();
    // The first time the command counts. A second decision would count again, refuse, panic, or be too much.
    let by_name: DecideFn<234, _> = |request, tills, at| {
        let first = tills.tallies.get(&request.till).is_none();
        match request.till.as_str() {
            "refused" if !first => Err(Problem::invalid("till", "it was counted into before")),
            "panics" if !first => panic!("it was counted into before"),
            _ => request.decide(tills, at),
        }
    };
    let run = async |name: &str, amount| {
        let request = counted::<234>(name, amount);
        read_response(
            commands.execute(idempotent(name, &request).map(|it| Deciding(it, by_name))).await,
        )
        .await
    };
    let fresh = async |of: &str, nths: Range<u32>| {
        for nth in nths {
            assert_eq!(run(&format!("{of} {nth}"), 5).await.0, 201);
        }
    };
    for (name, amount) in [("again", 5), ("refused", 5), ("panics", 5), ("too much", 600_000)] {
        let first = run(name, amount).await;
        assert_eq!(first.0, 201, "{first:?}");
        fresh(name, 0..8).await;
        let lookups = key_lookups(&fixture).await;
        fresh(name, 8..12).await;
        assert_eq!(key_lookups(&fixture).await, lookups, "a duplicate was expected");
        // An unrelated command runs beside it.
        let (repeat, ()) = tokio::join!(run(name, amount), fresh(name, 12..13));
        assert_eq!(repeat, first);
        assert!(key_lookups(&fixture).await > lookups);
    }
    assert_eq!(fixture.tallies().await["again"], (1, 5));

    // The same key with another request, and the same key after its reply was pruned.
    fresh("other", 0..8).await;
    assert_eq!(run("again", 6).await.0, 422);
    let_a_day_pass(&fixture).await;
    fresh("over", 0..8).await;
    assert_eq!(run("again", 5).await.0, 201);
    assert_eq!(fixture.tallies().await["again"], (2, 10));

    // As long as duplicates arrive, both executors expect them.
    let failures = rollbacks(&fixture).await;
    for _ in 0..20 {
        assert_eq!(run("again", 5).await.0, 201);
    }
    assert!(rollbacks(&fixture).await - failures <= 2);
    assert_eq!(fixture.tallies().await["again"], (2, 10));
    writing.stop().await;
}

/// The number of transactions that were rolled back; needs the extension `pg_stat_statements`.
async fn rollbacks<const TEST: u32>(fixture: &Fixture<TEST>) -> i64 {
    fixture
        .query_number(
            "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
         where query = 'ROLLBACK'
           and dbid = (select oid from pg_database where datname = current_database())",
        )
        .await
}

/// The number of lookups of idempotency keys; needs the extension `pg_stat_statements`.
async fn key_lookups<const TEST: u32>(fixture: &Fixture<TEST>) -> i64 {
    fixture
        .query_number(
            "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
         where query like '%join chassis.idempotency_keys%'
           and dbid = (select oid from pg_database where datname = current_database())",
        )
        .await
}

#[tokio::test]
async fn the_same_key_gets_the_same_answer_and_has_one_effect() {
    let fixture = Fixture::<202>::create().await;
    let (commands, writing) = fixture.commands();
    let run = async |key: &str, request: &Counted<202>| {
        read_response(commands.execute(idempotent(key, request)).await).await
    };
    let (five, six) = (counted("a", 5), counted("a", 6));
    let first = run("key", &five).await;
    assert_eq!(first.0, 201);
    assert_eq!(run("key", &five).await, first, "the first answer, not the newest state");
    let (status, problem) = run("key", &six).await;
    assert!(status == 422 && problem.contains("idempotency-key-reused"), "{problem}");
    assert_eq!(run("key", &counted("b", 5)).await.0, 201, "the same key, elsewhere");
    assert_eq!(fixture.tallies().await["a"], (1, 5));

    // Two at once in one batch, and two at once in two transactions, of which one waits for the other.
    let together = tokio::join!(run("together", &five), run("together", &five));
    assert_eq!(together.0, together.1);
    assert_eq!(fixture.tallies().await["a"], (2, 10));
    let lock = fixture.lock_tally("a").await;
    let second = async {
        fixture.wait_for_blocked(1).await;
        let (answer, ()) = tokio::join!(run("two", &five), async {
            wait_for_both(&fixture).await;
            lock.commit().await.unwrap();
        });
        answer
    };
    let (first, second) = tokio::join!(run("two", &five), second);
    assert_eq!((first.0, &first), (201, &second));
    assert_eq!(fixture.tallies().await["a"], (3, 15));

    // A refusal is not stored; a reply is stored for a day, even if the clock jumps.
    assert_eq!(run("refused", &counted("a", 0)).await.0, 422);
    let refused = "select count(*) from chassis.idempotency_keys where key = 'refused'";
    assert_eq!(fixture.query_number(refused).await, 0);
    assert_eq!(run("refused", &five).await.0, 201);
    let statement = "update chassis.idempotency_keys set created_at = now() - interval '25 hours'";
    fixture.execute_as_superuser(statement).await;
    assert_eq!(prune(&fixture).await, 0);
    assert_eq!(run("key", &five).await.0, 201);
    assert_eq!(fixture.tallies().await["a"], (4, 20));
    let_a_day_pass(&fixture).await;
    assert_eq!(run("key", &five).await.0, 201);
    assert_eq!(fixture.tallies().await["a"], (5, 25));
    writing.stop().await;
}

/// Waits until two commands wait for locks. On a busy machine both are deferred by then to one executor, which tries
/// them in turn: so the wait ends after a second.
async fn wait_for_both<const TEST: u32>(fixture: &Fixture<TEST>) {
    let _ = tokio::time::timeout(Duration::from_secs(1), fixture.wait_for_blocked(2)).await;
}

async fn prune<const TEST: u32>(fixture: &Fixture<TEST>) -> u64 {
    db::retention::prune_batch(&fixture.db, idempotency::PRUNE_STATEMENT, idempotency::RETENTION)
        .await
        .unwrap()
}

/// Adds ticks for a day, and prunes what is older.
async fn let_a_day_pass<const TEST: u32>(fixture: &Fixture<TEST>) {
    let statement = "insert into chassis.clock_ticks (tick, elapsed_ms)
         select max(tick) + more, max(elapsed_ms) + more * 86400000 from chassis.clock_ticks,
                generate_series(1, 2) as more group by more";
    fixture.execute_as_superuser(statement).await;
    assert!(prune(fixture).await > 0);
}
