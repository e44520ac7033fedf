//! The answer to a command is true: applied once and durable, rejected and nothing stored, or unknown.

use axum::response::IntoResponse;
use futures::future::join_all;
use http_body_util::BodyExt;

use super::*;

/// Status and body of the response.
pub async fn read_response(answer: Result<Reply, Problem>) -> (u16, String) {
    let response = answer.into_response();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn assert_nothing_stored(answer: Result<Reply, Problem>) {
    let (status, problem) = read_response(answer).await;
    assert_eq!((status, problem.contains("nothing was stored")), (503, true), "{problem}");
}

pub fn idempotent<const TEST: u32>(
    key: &str,
    request: &Counted<TEST>,
) -> Idempotent<Counted<TEST>> {
    Idempotent::new(&format!("/tills/{}/counts", request.till), key, request.clone())
}

#[tokio::test]
async fn a_single_command_is_committed_at_once_and_queued_commands_share_a_transaction() {
    let fixture = Fixture::<201>::create().await;
    let (commands, writing) = fixture.commands();
    // The row of one command is locked. The command waits in a batch of its own.
    let lock = fixture.lock_tally("locked").await;
    let stuck = commands.execute(once(counted::<201>("locked", 1)));
    let alone = async {
        fixture.wait_for_blocked(1).await;
        commands.execute(once(counted::<201>("alone", 1))).await.unwrap();
        lock.commit().await.unwrap();
    };
    let (stuck, ()) = tokio::join!(stuck, alone);
    stuck.unwrap();

    // On one thread, all of these are queued before an executor wakes.
    let many = join_all((0..100).map(|nth| {
        let request = counted::<201>(&format!("till {nth}"), 1);
        commands.execute(once(request))
    }));
    assert!(many.await.iter().all(Result::is_ok));
    let transactions = "select count(distinct xmin::text) from tallies where till like 'till %'";
    assert_eq!(fixture.query_number(transactions).await, 1);
    writing.stop().await;
}

#[tokio::test]
async fn commands_yield_to_a_busy_consumer_and_do_not_wait_for_a_stuck_one() {
    let fixture = Fixture::<212>::create().await;
    let (commands, writing) = fixture.commands();
    let run = |name| commands.execute(once(counted::<212>(name, 1)));
    fixture.wakeups.consumer_backpressure.report_busy(true);
    let began = Instant::now();
    run("while it is stuck").await.unwrap();
    assert!(began.elapsed() > Duration::from_millis(150), "{:?}", began.elapsed());

    let waiting = run("while it is at work");
    let batch = async {
        let began = Instant::now();
        let early = fixture.count("tallies where till like '%at work'").await;
        // The command runs in any case, a little later.
        assert!(early == 0 || began.elapsed() > Duration::from_millis(150), "it did not wait");
        fixture.wakeups.consumer_backpressure.report_busy(false);
    };
    let (answer, ()) = tokio::join!(waiting, batch);
    answer.unwrap();
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_commit_has_one_effect_and_the_caller_gets_the_true_outcome() {
    let fixture = Fixture::<203>::create().await;
    let (proxied, proxy) = fixture.with_database_proxy().await;
    let (commands, writing) = proxied.commands();
    let request = counted::<203>("a", 5);
    for (nth, cut) in [ProxyMode::DropCommitReply, ProxyMode::DropCommit].into_iter().enumerate() {
        proxy.set_mode(cut);
        let answer = commands.execute(idempotent(&format!("key {nth}"), &request)).await;
        assert_eq!(*proxy.mode.borrow(), ProxyMode::PassThrough, "a commit was cut");
        let total = 5 * (nth as i64 + 1);
        let (status, body) = read_response(answer).await;
        assert_eq!((status, body.contains(&format!(r#""total":{total}"#))), (201, true), "{body}");
        assert_eq!(fixture.tallies().await["a"], (nth as i64 + 1, total));
        assert_eq!(fixture.count("chassis.outbox").await, nth as i64 + 1);
    }

    // An unsettled outcome is reported as unknown. A retry with the same key gets it later.
    proxy.set_mode(ProxyMode::DropCommitReplyAndRefuse);
    let began = Instant::now();
    let answer = commands.execute(idempotent("unsettled", &request)).await;
    let (status, problem) = read_response(answer).await;
    assert!(status == 503 && problem.contains("outcome-unknown"), "{status} {problem}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    proxy.set_mode(ProxyMode::PassThrough);
    let (status, body) =
        read_response(commands.execute(idempotent("unsettled", &request)).await).await;
    assert_eq!((status, body.contains(r#""total":15"#)), (201, true), "{body}");
    assert_eq!(fixture.tallies().await["a"], (3, 15));
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_after_an_interrupted_commit_does_not_prove_that_nothing_was_stored() {
    let fixture = Fixture::<214>::create().await;
    let (proxied, proxy) = fixture.with_database_proxy().await;
    let (commands, writing) = proxied.commands();
    let open_once: DecideFn<214, _> = |request, tills, at| match tills.tallies.get("a") {
        Some(_) => Err(Problem::conflict("open", "the till is open")),
        None => request.decide(tills, at),
    };
    proxy.set_mode(ProxyMode::DropCommitReply);
    let answer = commands.execute(once(Deciding(counted("a", 5), open_once))).await;
    let (status, problem) = read_response(answer).await;
    assert!(status == 503 && problem.contains("outcome-unknown"), "{status} {problem}");
    let answer = commands.execute(once(Deciding(counted("a", 5), open_once))).await;
    assert_eq!(read_response(answer).await.0, 409, "nothing is in doubt any more");
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_a_command_fails_in_time_and_reports_that_nothing_was_stored() {
    let fixture = Fixture::<204>::create().await;
    let (proxied, proxy) = fixture.with_database_proxy().await;
    let (commands, writing) = proxied.commands();
    commands.execute(once(counted::<204>("a", 1))).await.unwrap();
    for (nth, away) in [ProxyMode::Refuse, ProxyMode::Blackhole].into_iter().enumerate() {
        proxy.set_mode(away);
        let began = Instant::now();
        assert_nothing_stored(commands.execute(once(counted::<204>("a", 1))).await).await;
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        proxy.set_mode(ProxyMode::PassThrough);
        commands.execute(once(counted::<204>("a", 1))).await.unwrap();
        assert_eq!(fixture.tallies().await["a"], (nth as i64 + 2, nth as i64 + 2));
    }

    // The same in the middle of a transaction, which only the timeout of the attempt ends.
    let lock = fixture.lock_tally("a").await;
    let began = Instant::now();
    let (answer, ()) = tokio::join!(commands.execute(once(counted::<204>("a", 1))), async {
        fixture.wait_for_blocked(1).await;
        proxy.set_mode(ProxyMode::Blackhole);
    });
    assert_nothing_stored(answer).await;
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    lock.rollback().await.unwrap();
    proxy.set_mode(ProxyMode::PassThrough);
    eventually("commands are served again", async || {
        commands.execute(once(counted::<204>("a", 1))).await.is_ok()
    })
    .await;
    assert_eq!(fixture.tallies().await["a"], (4, 4));
    writing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn executors_replace_a_connection_that_stopped_responding() {
    let fixture = Fixture::<208>::create().await;
    let (proxied, proxy) = fixture.with_database_proxy().await;
    let (commands, writing) = proxied.commands();
    commands.execute(once(counted::<208>("a", 1))).await.unwrap();
    let lock = fixture.lock_tally("a").await;
    let (answer, ()) = tokio::join!(commands.execute(once(counted::<208>("a", 1))), async {
        fixture.wait_for_blocked(1).await;
        proxy.set_mode(ProxyMode::Blackhole);
    });
    assert_eq!(status(&answer), StatusCode::SERVICE_UNAVAILABLE);
    lock.rollback().await.unwrap();
    // New connections pass. The old connection transfers nothing more.
    proxy.set_mode(ProxyMode::PassThrough);
    eventually("commands are served again", async || {
        commands.execute(once(counted::<208>("a", 1))).await.is_ok()
    })
    .await;
    writing.stop().await;
}

#[tokio::test]
async fn commands_beyond_the_queue_limit_are_rejected_at_once_and_not_stored() {
    let fixture = Fixture::<205>::create().await;
    let beat = Heartbeats::default().register("command executor", TEST_TIMEOUT);
    let (commands, writers) =
        command_channel(fixture.service, fixture.db.clone(), fixture.wakeups.clone(), beat);
    // No executor runs yet: the queue only fills.
    let waiting = (0..4_096).map(|_| commands.execute(once(counted::<205>("waiting", 1))));
    let waiting = join_all(waiting);
    let more = async {
        let began = Instant::now();
        assert_nothing_stored(commands.execute(once(counted::<205>("more", 1))).await).await;
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        RunningLoop::start(|stop| writers.run(stop))
    };
    let (waited, writing) = tokio::join!(waiting, more);
    // Queued commands are served. On a slow machine, a command that does not begin in time is refused.
    let served = waited.iter().filter(|answer| answer.is_ok()).count() as i64;
    assert!(served >= 256, "{served} were served");
    for answer in waited.into_iter().filter(Result::is_err) {
        assert_nothing_stored(answer).await;
    }
    let tallies = fixture.tallies().await;
    assert_eq!(tallies["waiting"], (served, served));
    assert_eq!(tallies.get("more"), None);
    writing.stop().await;
}

#[tokio::test]
async fn a_command_that_panics_or_that_the_database_rejects_is_a_500_for_its_caller_only() {
    let fixture = Fixture::<206>::create().await;
    let (commands, writing) = fixture.commands();
    let amounts = [1, 1, -1, 1, 1_000_000, 1, 1];
    let answers = join_all(amounts.iter().enumerate().map(|(nth, amount)| {
        let request = counted::<206>(&format!("till {nth}"), *amount);
        commands.execute(once(request))
    }));
    let answers: Vec<u16> = answers.await.iter().map(|answer| status(answer).as_u16()).collect();
    assert_eq!(answers, [201, 201, 500, 201, 500, 201, 201]);
    assert_eq!(fixture.counted().await, 5);
    assert_eq!(fixture.count("chassis.outbox").await, 5);
    writing.stop().await;
}

#[tokio::test]
async fn a_command_rejected_after_it_changed_rows_is_a_500_and_not_stored() {
    let fixture = Fixture::<225>::create().await;
    let (commands, writing) = fixture.commands();
    let refuses_late: DecideFn<225, ()> = |_, tills, _| {
        tills.add("a", 5);
        Err(Problem::invalid("amount", "is not taken"))
    };
    let half_done = commands.execute(once(Deciding(counted("a", 5), refuses_late)));
    let (half_done, whole) =
        tokio::join!(half_done, commands.execute(once(counted::<225>("b", 7))));
    assert_eq!(
        (status(&half_done), status(&whole)),
        (500.try_into().unwrap(), 201.try_into().unwrap())
    );
    assert_eq!(fixture.tallies().await.into_keys().collect::<Vec<_>>(), ["b"]);
    writing.stop().await;
}

#[tokio::test]
async fn a_command_that_needs_an_unrequested_row_or_publishes_to_a_foreign_topic_is_a_500() {
    let fixture = Fixture::<226>::create().await;
    let (commands, writing) = fixture.commands();
    let adds_to_another: DecideFn<226, ()> =
        |request, tills, _| Ok(accepted(tills.add("another", request.amount).into()));
    let unnamed = commands.execute(once(Deciding(counted("a", 1), adds_to_another)));
    let publishes_to_another: DecideFn<226, _> = |request, tills, _| {
        tills.add(&request.till, request.amount);
        Ok(accepted(().into()).publishing(Some(counted::<1>("b", 2))))
    };
    let of_another = commands.execute(once(Deciding(counted("b", 2), publishes_to_another)));
    let good = commands.execute(once(counted::<226>("c", 3)));
    let (unnamed, of_another, good) = tokio::join!(unnamed, of_another, good);
    let answers = [unnamed, of_another, good].map(|answer| status(&answer).as_u16());
    assert_eq!(answers, [500, 500, 201]);
    assert_eq!(fixture.tallies().await.into_keys().collect::<Vec<_>>(), ["c"]);
    assert_eq!(fixture.count("chassis.outbox").await, 1);
    writing.stop().await;
}

#[tokio::test]
async fn a_locked_row_delays_only_the_commands_that_need_it() {
    let fixture = Fixture::<227>::create().await;
    fixture.execute_as_superuser("insert into tallies values ('held', 0, 0)").await;
    let mut holder = fixture.db.begin().await.unwrap();
    let hold = sqlx::query("select from tallies where till = 'held' for update");
    hold.execute(&mut *holder).await.unwrap();
    let beat = Heartbeats::default().register("command executor", TEST_TIMEOUT);
    let (commands, writers) =
        command_channel(fixture.service, fixture.db.clone(), fixture.wakeups.clone(), beat);
    // All are queued before an executor runs, so they share a batch.
    let names_of_tills =
        (0..12).map(|nth| if nth < 8 { "held".into() } else { format!("till {nth}") });
    let run = |name: String| commands.execute(once(counted::<227>(&name, 1)));
    let all = join_all(names_of_tills.map(run));
    let start = async { RunningLoop::start(|stop| writers.run(stop)) };
    let (answers, writing) = tokio::join!(all, start);
    let answers: Vec<u16> = answers.iter().map(|answer| status(answer).as_u16()).collect();
    assert_eq!(answers, [vec![503; 8], vec![201; 4]].concat());
    // More commands than there are executors, one after the other: each waits for 3 s.
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
            // The database would end a session that is idle for long.
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
