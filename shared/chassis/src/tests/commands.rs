//! What a client is told is true: done once and durable, refused and nothing stored, or unknown.

use axum::response::IntoResponse;
use futures::future::join_all;
use http_body_util::BodyExt;

use super::*;
use crate::idempotency::{self, Once};
use crate::{db, inbox};

/// Status and body, as the client reads them.
pub async fn told(answer: Result<Reply, Problem>) -> (u16, String) {
    let response = answer.into_response();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

pub fn once<const TEST: u32>(key: &str, wish: &Counted<TEST>) -> Option<Once> {
    Some(Once::new(format!("/tills/{}/counts", wish.till), key, wish))
}

#[tokio::test]
async fn a_lone_command_waits_for_nobody_and_those_that_wait_together_share_a_transaction() {
    let till = Till::<201>::open().await;
    let (commands, writing) = till.commands();
    // Another command's row is locked: it waits, in a batch of its own.
    let lock = till.lock("locked").await;
    let stuck = commands.run(counted::<201>("locked", 1), None, count);
    let alone = async {
        till.blocked(1).await;
        commands.run(counted::<201>("alone", 1), None, count).await.unwrap();
        lock.commit().await.unwrap();
    };
    let (stuck, ()) = tokio::join!(stuck, alone);
    stuck.unwrap();

    // On one thread, all of these are waiting before a writer is woken.
    let many = join_all((0..100).map(|nth| {
        let wish = counted::<201>(&format!("till {nth}"), 1);
        commands.run(wish, None, count)
    }));
    assert!(many.await.iter().all(Result::is_ok));
    let transactions = "select count(distinct xmin::text) from tallies where till like 'till %'";
    assert_eq!(till.number(transactions).await, 1);
    writing.stop().await;
}

#[tokio::test]
async fn commands_take_turns_with_a_loop_that_is_behind_and_do_not_wait_for_one_that_is_stuck() {
    let till = Till::<212>::open().await;
    let (commands, writing) = till.commands();
    let run = |name| commands.run(counted::<212>(name, 1), None, count);
    till.wake.consuming.taken(true);
    let began = Instant::now();
    run("while it is stuck").await.unwrap();
    assert!(began.elapsed() > Duration::from_millis(150), "{:?}", began.elapsed());

    let waiting = run("while it is at work");
    let batch = async {
        let asked = Instant::now();
        let early = till.number("select count(*) from tallies where till like '%at work'").await;
        // Its turn comes in any case, a little later.
        assert!(early == 0 || asked.elapsed() > Duration::from_millis(150), "it did not wait");
        till.wake.consuming.taken(false);
    };
    let (answer, ()) = tokio::join!(waiting, batch);
    answer.unwrap();
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_cut_settles_to_one_effect_and_the_caller_learns_the_truth() {
    let till = Till::<203>::open().await;
    let (proxied, proxy) = till.with_database_proxy().await;
    let (commands, writing) = proxied.commands();
    let wish = counted::<203>("a", 5);
    for (nth, cut) in [Way::LosesAnswer, Way::LosesCommit].into_iter().enumerate() {
        proxy.set(cut);
        let answer = commands.run(wish.clone(), once(&format!("key {nth}"), &wish), count).await;
        assert_eq!(*proxy.way.borrow(), Way::Open, "a commit was cut");
        let total = 5 * (nth as i64 + 1);
        let (status, body) = told(answer).await;
        assert_eq!((status, body.contains(&format!(r#""total":{total}"#))), (201, true), "{body}");
        assert_eq!(till.tallies().await["a"], (nth as i64 + 1, total));
        assert_eq!(till.number("select count(*) from outbox").await, nth as i64 + 1);
    }

    // Without a key of the client's, one of its own does the same.
    proxy.set(Way::LosesAnswer);
    let once_by_itself = Once::by_itself("/tills/a/counts", &wish);
    let (status, body) = told(commands.run(wish.clone(), Some(once_by_itself), count).await).await;
    assert_eq!((status, body.contains(r#""total":15"#)), (201, true), "{body}");
    assert_eq!(till.tallies().await["a"], (3, 15));

    // What stays unsettled is said to be unknown, and the same key tells later.
    proxy.set(Way::LosesAnswerAndShuts);
    let asked = Instant::now();
    let answer = commands.run(wish.clone(), once("unsettled", &wish), count).await;
    let (status, problem) = told(answer).await;
    assert!(status == 503 && problem.contains("outcome-unknown"), "{status} {problem}");
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    proxy.set(Way::Open);
    let (status, body) =
        told(commands.run(wish.clone(), once("unsettled", &wish), count).await).await;
    assert_eq!((status, body.contains(r#""total":20"#)), (201, true), "{body}");
    assert_eq!(till.tallies().await["a"], (4, 20));
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_a_commit_that_was_cut_is_no_proof_that_nothing_was_stored() {
    let till = Till::<214>::open().await;
    let (proxied, proxy) = till.with_database_proxy().await;
    let (commands, writing) = proxied.commands();
    let open_once = |wish: &Counted<214>, drawer: &mut Drawer, at: At| match drawer.tallies.get("a")
    {
        Some(_) => Err(Problem::conflict("open", "the till is open")),
        None => count(wish, drawer, at),
    };
    proxy.set(Way::LosesAnswer);
    let answer = commands.run(counted::<214>("a", 5), None, open_once).await;
    let (status, problem) = told(answer).await;
    assert!(status == 503 && problem.contains("outcome-unknown"), "{status} {problem}");
    let answer = commands.run(counted::<214>("a", 5), None, open_once).await;
    assert_eq!(told(answer).await.0, 409, "nothing is in doubt any more");
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_a_caller_is_told_in_time_that_nothing_was_stored() {
    let till = Till::<204>::open().await;
    let (proxied, proxy) = till.with_database_proxy().await;
    let (commands, writing) = proxied.commands();
    commands.run(counted::<204>("a", 1), None, count).await.unwrap();
    for (nth, away) in [Way::Shut, Way::Silent].into_iter().enumerate() {
        proxy.set(away);
        let asked = Instant::now();
        let (status, problem) = told(commands.run(counted::<204>("a", 1), None, count).await).await;
        assert_eq!((status, problem.contains("nothing was stored")), (503, true), "{problem}");
        assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
        proxy.set(Way::Open);
        commands.run(counted::<204>("a", 1), None, count).await.unwrap();
        assert_eq!(till.tallies().await["a"], (nth as i64 + 2, nth as i64 + 2));
    }

    // The same in the middle of a transaction, which nothing but the bound on a try ends.
    let lock = till.lock("a").await;
    let asked = Instant::now();
    let (answer, ()) = tokio::join!(commands.run(counted::<204>("a", 1), None, count), async {
        till.blocked(1).await;
        proxy.set(Way::Silent);
    });
    let (status, problem) = told(answer).await;
    assert_eq!((status, problem.contains("nothing was stored")), (503, true), "{problem}");
    assert!(asked.elapsed() < Duration::from_secs(12), "{:?}", asked.elapsed());
    lock.rollback().await.unwrap();
    proxy.set(Way::Open);
    eventually("commands are served again", async || {
        commands.run(counted::<204>("a", 1), None, count).await.is_ok()
    })
    .await;
    assert_eq!(till.tallies().await["a"], (4, 4));
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_whose_connection_went_silent_go_on_with_another() {
    let till = Till::<208>::open().await;
    let (proxied, proxy) = till.with_database_proxy().await;
    let (commands, writing) = proxied.commands();
    commands.run(counted::<208>("a", 1), None, count).await.unwrap();
    let lock = till.lock("a").await;
    let (answer, ()) = tokio::join!(commands.run(counted::<208>("a", 1), None, count), async {
        till.blocked(1).await;
        proxy.set(Way::Silent);
    });
    assert_eq!(status(&answer), StatusCode::SERVICE_UNAVAILABLE);
    lock.rollback().await.unwrap();
    // New connections go through, the silent one stays silent.
    proxy.set(Way::Open);
    eventually("commands are served again", async || {
        commands.run(counted::<208>("a", 1), None, count).await.is_ok()
    })
    .await;
    writing.stop().await;
}

#[tokio::test]
async fn more_than_can_wait_is_refused_at_once_and_nothing_of_it_is_stored() {
    let till = Till::<205>::open().await;
    let beat = Heartbeats::new().register("writers", WITHIN);
    let (commands, writers) = commands(till.service, till.db.clone(), till.wake.clone(), beat);
    // No writer runs yet: the queue only fills.
    let waiting = (0..4_096).map(|_| commands.run(counted::<205>("waiting", 1), None, count));
    let waiting = join_all(waiting);
    let more = async {
        let asked = Instant::now();
        let (status, problem) =
            told(commands.run(counted::<205>("more", 1), None, count).await).await;
        assert_eq!((status, problem.contains("nothing was stored")), (503, true), "{problem}");
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
        Running::start(|stop| writers.run(stop))
    };
    let (waited, writing) = tokio::join!(waiting, more);
    // Those that waited are served; what could not be begun in time is refused, on a slow machine.
    let served = waited.iter().filter(|answer| answer.is_ok()).count() as i64;
    assert!(served >= 256, "{served} were served");
    for answer in waited.into_iter().filter(Result::is_err) {
        let (status, problem) = told(answer).await;
        assert_eq!((status, problem.contains("nothing was stored")), (503, true), "{problem}");
    }
    let tallies = till.tallies().await;
    assert_eq!(tallies["waiting"], (served, served));
    assert_eq!(tallies.get("more"), None);
    writing.stop().await;
}

#[tokio::test]
async fn a_command_that_panics_or_that_the_database_refuses_is_a_500_for_its_caller_alone() {
    let till = Till::<206>::open().await;
    let (commands, writing) = till.commands();
    let amounts = [1, 1, -1, 1, 1_000_000, 1, 1];
    let answers = join_all(amounts.iter().enumerate().map(|(nth, amount)| {
        let wish = counted::<206>(&format!("till {nth}"), *amount);
        commands.run(wish, None, count)
    }));
    let answers: Vec<u16> = answers.await.iter().map(|answer| status(answer).as_u16()).collect();
    assert_eq!(answers, [201, 201, 500, 201, 500, 201, 201]);
    assert_eq!(till.tallies().await.values().map(|(counted, _)| counted).sum::<i64>(), 5);
    assert_eq!(till.number("select count(*) from outbox").await, 5);
    writing.stop().await;
}

#[tokio::test]
async fn a_command_that_is_refused_after_it_changed_rows_is_a_500_and_nothing_of_it_is_stored() {
    let till = Till::<225>::open().await;
    let (commands, writing) = till.commands();
    let half_done = commands.run(counted::<225>("a", 5), None, |_, drawer, _| {
        drawer.add("a", 5);
        Err(Problem::invalid("amount", "is not taken"))
    });
    let (half_done, whole) =
        tokio::join!(half_done, commands.run(counted::<225>("b", 7), None, count));
    assert_eq!(
        (status(&half_done), status(&whole)),
        (500.try_into().unwrap(), 201.try_into().unwrap())
    );
    assert_eq!(till.tallies().await.into_keys().collect::<Vec<_>>(), ["b"]);
    writing.stop().await;
}

#[tokio::test]
async fn a_command_that_needs_a_row_that_nobody_named_or_says_what_another_service_says_is_a_500() {
    let till = Till::<226>::open().await;
    let (commands, writing) = till.commands();
    let unnamed = commands.run(counted::<226>("a", 1), None, |wish, drawer, _| {
        Ok(Reply::ok(&drawer.add("another", wish.amount)))
    });
    let of_another = commands.run(counted::<226>("b", 2), None, |wish, drawer, _| {
        drawer.add(&wish.till, wish.amount);
        Ok(Reply::ok(&()).publishing(Some(counted::<1>("b", 2))))
    });
    let good = commands.run(counted::<226>("c", 3), None, count);
    let (unnamed, of_another, good) = tokio::join!(unnamed, of_another, good);
    let answers = [unnamed, of_another, good].map(|answer| status(&answer).as_u16());
    assert_eq!(answers, [500, 500, 201]);
    assert_eq!(till.tallies().await.into_keys().collect::<Vec<_>>(), ["c"]);
    assert_eq!(till.number("select count(*) from outbox").await, 1);
    writing.stop().await;
}

#[tokio::test]
async fn a_row_that_somebody_holds_is_waited_for_by_whoever_needs_it_and_by_nobody_else() {
    let till = Till::<227>::open().await;
    till.force("insert into tallies values ('held', 0, 0)").await;
    let mut holder = till.db.begin().await.unwrap();
    let hold = sqlx::query("select from tallies where till = 'held' for update");
    hold.execute(&mut *holder).await.unwrap();
    let beat = Heartbeats::new().register("writers", WITHIN);
    let (commands, writers) = commands(till.service, till.db.clone(), till.wake.clone(), beat);
    // All are there before a writer is, so they go together.
    let wishes = (0..12).map(|nth| if nth < 8 { "held".into() } else { format!("till {nth}") });
    let run = |name: String| commands.run(counted::<227>(&name, 1), None, count);
    let asked = join_all(wishes.map(run));
    let start = async { Running::start(|stop| writers.run(stop)) };
    let (answers, writing) = tokio::join!(asked, start);
    let answers: Vec<u16> = answers.iter().map(|answer| status(answer).as_u16()).collect();
    assert_eq!(answers, [vec![503; 8], vec![201; 4]].concat());
    // One after the other, more of them than there are writers: each of these waits for 3 s.
    let waits = async |nth: u64| {
        sleep(Duration::from_millis(700 * nth)).await;
        for _ in 0..3 {
            assert_eq!(status(&run("held".into()).await), 503);
        }
    };
    let mut passed = 0;
    let others = async {
        loop {
            assert_eq!(status(&run(format!("till {passed}")).await), 201);
            passed += 1;
            // Silent for long, its session would be ended.
            sqlx::query("select").execute(&mut *holder).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        _ = join_all((0..4).map(waits)) => {}
        () = others => {}
    }
    assert!(passed >= 12, "{passed} passed by them in 10 s");
    holder.rollback().await.unwrap();
    assert_eq!(status(&run("held".into()).await), 201);
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_enough_is_pruned_a_bounded_number_at_a_time_and_nothing_else() {
    let till = Till::<207>::open().await;
    till.force(
        "insert into clock_ticks (tick, elapsed_ms)
         select days, days * 86400000::bigint from generate_series(1, 40) as days;
         insert into inbox (event_id, topic, tick)
         select gen_random_uuid(), 't', 9 from generate_series(1, 1001);
         insert into inbox (event_id, topic, tick) values (gen_random_uuid(), 't', 10);
         insert into inbox (event_id, topic, tick)
         values ('019aa000-0000-7000-8000-000000000001', 't', 9);
         insert into dead_letters (cluster, topic, partition, \"offset\", hash, event_id, headers,
                                   kind, reason, state, settled_at)
         values ('c', 't', 0, 0, '', '019aa000-0000-7000-8000-000000000001', '{}', 'failing', 'r',
                 'discarded', now() - interval '31 days');
         insert into idempotency_keys (path, key, request_hash, status, answer, tick)
         values ('/old', 'k', '', 200, '', 38), ('/new', 'k', '', 200, '', 39)",
    )
    .await;
    for gone in [1_000, 1, 0] {
        let pruned = db::prune_some(&till.db, inbox::PRUNE, inbox::KEPT).await;
        assert_eq!(pruned.unwrap(), gone);
    }
    let pruned = db::prune_some(&till.db, idempotency::PRUNE, idempotency::KEPT).await;
    assert_eq!(pruned.unwrap(), 1);
    // What is young, and what was discarded.
    assert_eq!(till.number("select count(*) from inbox").await, 2);
    assert_eq!(till.number("select count(*) from idempotency_keys where path = '/new'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_whose_other_end_vanished_give_their_place_in_the_pool_back() {
    let till = Till::<213>::open().await;
    let small = till.with(|config| config.database_pool_size = 1);
    let (proxied, proxy) = small.with_database_proxy().await;
    let mut tx = proxied.db.begin().await.unwrap();
    proxy.set(Way::Silent);
    let asked = sqlx::query("select from tallies").execute(&mut *tx);
    assert!(tokio::time::timeout(MEANWHILE, asked).await.is_err(), "the other end is gone");
    drop(tx);
    // New connections go through, the silent one stays silent.
    proxy.set(Way::Open);
    eventually("the pool serves again", async || {
        sqlx::query("select from tallies").execute(&proxied.db).await.is_ok()
    })
    .await;
}

/// As it is left by whoever gives up waiting for the answer to `begin`.
#[tokio::test]
async fn a_connection_that_comes_back_in_the_middle_of_a_transaction_is_closed() {
    let till = Till::<209>::open().await;
    let only_one = till.db.options().clone().max_connections(1);
    let db = only_one.connect_lazy_with(till.db.connect_options().as_ref().clone());
    let mut connection = db.acquire().await.unwrap();
    let backend = "select pg_backend_pid()";
    let first: i32 = sqlx::query_scalar(backend).fetch_one(&mut *connection).await.unwrap();
    drop(connection);
    let mut again = db.acquire().await.unwrap();
    let second: i32 = sqlx::query_scalar(backend).fetch_one(&mut *again).await.unwrap();
    assert_eq!(first, second, "one that is at rest is kept");
    sqlx::raw_sql("begin").execute(&mut *again).await.unwrap();
    drop(again);
    let third: i32 = sqlx::query_scalar(backend).fetch_one(&db).await.unwrap();
    assert_ne!(second, third);
}
