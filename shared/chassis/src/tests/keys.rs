//! A command that comes again with its key is answered as before, and has its effect once.

use std::ops::Range;

use futures::future::join_all;

use super::commands::{once, told};
use super::*;
use crate::{db, idempotency};

/// It is with the other writer, and waits for the row that the first one is about to change.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_at_the_same_time_is_answered_the_same_though_alone_it_would_be_refused() {
    let till = Till::<218>::open().await;
    let (commands, writing) = till.commands();
    let only_once = |wish: &Counted<218>, drawer: &mut Drawer, at| match drawer
        .tallies
        .get(&wish.till)
        .is_some_and(|tally| tally.counted > 0)
    {
        true => Err(Problem::invalid("till", "it was counted into before")),
        false => count(wish, drawer, at),
    };
    till.force("insert into tallies values ('a', 0, 0)").await;
    let lock = till.lock("a").await;
    let wish = counted::<218>("a", 5);
    let run = async || told(commands.run(wish.clone(), once("key", &wish), only_once).await).await;
    let second = async {
        till.blocked(1).await;
        run().await
    };
    let unlock = async {
        till.blocked(2).await;
        lock.rollback().await.unwrap();
    };
    let (first, second, ()) = tokio::join!(run(), second, unlock);
    assert_eq!((first.0, &first), (201, &second));
    assert_eq!(till.tallies().await["a"], (1, 5));
    writing.stop().await;
}

#[tokio::test]
async fn of_many_with_the_same_key_one_has_its_effect_and_the_others_are_answered_together() {
    let till = Till::<233>::open().await;
    till.force("create extension pg_stat_statements").await;
    let (commands, writing) = till.commands();
    let wish = counted::<233>("a", 5);
    let run = |_| commands.run(wish.clone(), once("key", &wish), count);
    let answers = join_all(join_all((0..200).map(run)).await.into_iter().map(told)).await;
    assert_eq!(answers[0].0, 201);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(till.tallies().await["a"], (1, 5));
    let looks = looks_for_keys(&till).await;
    assert!((2..5).contains(&looks), "{looks} rounds");
    writing.stop().await;
}

/// Once the writers have met none for a while, and look no key up any more.
#[tokio::test]
async fn a_repeat_that_nobody_expects_is_answered_as_before_though_it_would_now_be_decided_otherwise()
 {
    let till = Till::<234>::open().await;
    till.force("create extension pg_stat_statements").await;
    let (commands, writing) = till.commands();
    // The first time it counts; then it counts again, is refused, panics, or is too much.
    let by_name = |wish: &Counted<234>, drawer: &mut Drawer, at| {
        let first = drawer.tallies.get(&wish.till).is_none();
        match wish.till.as_str() {
            "refused" if !first => Err(Problem::invalid("till", "it was counted into before")),
            "panics" if !first => panic!("it was counted into before"),
            _ => count(wish, drawer, at),
        }
    };
    let run = async |name: &str, amount| {
        let wish = counted::<234>(name, amount);
        told(commands.run(wish.clone(), once(name, &wish), by_name).await).await
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
        let looks = looks_for_keys(&till).await;
        fresh(name, 8..12).await;
        assert_eq!(looks_for_keys(&till).await, looks, "a repeat was expected");
        // Beside it somebody whom it does not concern.
        let (repeat, ()) = tokio::join!(run(name, amount), fresh(name, 12..13));
        assert_eq!(repeat, first);
        assert!(looks_for_keys(&till).await > looks);
    }
    assert_eq!(till.tallies().await["again"], (1, 5));

    // With another wish; and once its day is over and it was pruned.
    fresh("other", 0..8).await;
    assert_eq!(run("again", 6).await.0, 422);
    a_day_passes(&till).await;
    fresh("over", 0..8).await;
    assert_eq!(run("again", 5).await.0, 201);
    assert_eq!(till.tallies().await["again"], (2, 10));

    // As long as they come, they are expected, by either writer.
    let failures = rollbacks(&till).await;
    for _ in 0..20 {
        assert_eq!(run("again", 5).await.0, 201);
    }
    assert!(rollbacks(&till).await - failures <= 2);
    assert_eq!(till.tallies().await["again"], (2, 10));
    writing.stop().await;
}

/// How many transactions were given up; needs the extension `pg_stat_statements`.
async fn rollbacks<const TEST: u32>(till: &Till<TEST>) -> i64 {
    till.number(
        "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
         where query = 'ROLLBACK'
           and dbid = (select oid from pg_database where datname = current_database())",
    )
    .await
}

/// How often commands were asked whether they came before; needs the extension `pg_stat_statements`.
async fn looks_for_keys<const TEST: u32>(till: &Till<TEST>) -> i64 {
    till.number(
        "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
         where query like '%join idempotency_keys%'
           and dbid = (select oid from pg_database where datname = current_database())",
    )
    .await
}

#[tokio::test]
async fn the_same_key_is_answered_the_same_and_has_one_effect() {
    let till = Till::<202>::open().await;
    let (commands, writing) = till.commands();
    let run = async |key: &str, wish: &Counted<202>| {
        told(commands.run(wish.clone(), once(key, wish), count).await).await
    };
    let (five, six) = (counted("a", 5), counted("a", 6));
    let first = run("key", &five).await;
    assert_eq!(first.0, 201);
    assert_eq!(run("key", &five).await, first, "the first answer, not the newest state");
    let (status, problem) = run("key", &six).await;
    assert!(status == 422 && problem.contains("idempotency-key-reused"), "{problem}");
    assert_eq!(run("key", &counted("b", 5)).await.0, 201, "the same key, elsewhere");
    assert_eq!(till.tallies().await["a"], (1, 5));

    // At once, in one batch; and at once, in two transactions, of which one waits for the other.
    let together = tokio::join!(run("together", &five), run("together", &five));
    assert_eq!(together.0, together.1);
    assert_eq!(till.tallies().await["a"], (2, 10));
    let lock = till.lock("a").await;
    let second = async {
        till.blocked(1).await;
        let (answer, ()) = tokio::join!(run("two", &five), async {
            till.blocked(2).await;
            lock.commit().await.unwrap();
        });
        answer
    };
    let (first, second) = tokio::join!(run("two", &five), second);
    assert_eq!((first.0, &first), (201, &second));
    assert_eq!(till.tallies().await["a"], (3, 15));

    // A refusal is not remembered; and an answer for a day, whatever the clock says.
    assert_eq!(run("refused", &counted("a", 0)).await.0, 422);
    let refused = "select count(*) from idempotency_keys where key = 'refused'";
    assert_eq!(till.number(refused).await, 0);
    assert_eq!(run("refused", &five).await.0, 201);
    till.force("update idempotency_keys set created_at = now() - interval '25 hours'").await;
    assert_eq!(prune(&till).await, 0);
    assert_eq!(run("key", &five).await.0, 201);
    assert_eq!(till.tallies().await["a"], (4, 20));
    a_day_passes(&till).await;
    assert_eq!(run("key", &five).await.0, 201);
    assert_eq!(till.tallies().await["a"], (5, 25));
    writing.stop().await;
}

async fn prune<const TEST: u32>(till: &Till<TEST>) -> u64 {
    db::prune_some(&till.db, idempotency::PRUNE, idempotency::KEPT).await.unwrap()
}

/// Since a tick that comes now; and what is that old is pruned.
async fn a_day_passes<const TEST: u32>(till: &Till<TEST>) {
    till.force(
        "insert into clock_ticks (tick, elapsed_ms)
         select max(tick) + more, max(elapsed_ms) + more * 86400000 from clock_ticks,
                generate_series(1, 2) as more group by more",
    )
    .await;
    assert!(prune(till).await > 0);
}
