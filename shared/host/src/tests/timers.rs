//! Timers: each is set, moved or cancelled with the decision that wants it, and fires once in effect.
//!
//! A timer that is due adds its amount to its till, and publishes the total.

use chrono::{DateTime, TimeDelta, Utc};
use messaging::event::{CancelTimer, SetTimer, Timer, response_id};
use messaging::scheduled;
use serde_json::{Value, json};

use super::admin_client::{admin_of, as_operator, get, outcome};
use super::*;

/// An amount that is counted when it is due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Due<const TEST: u32, const GUARDED: bool = false> {
    till: String,
    amount: i64,
}

impl<const TEST: u32, const GUARDED: bool> Timer for Due<TEST, GUARDED> {
    const NAME: &'static str = if GUARDED { "timer/guarded" } else { "timer/due" };
    const MEASURED: bool = GUARDED;
    const CAUGHT_UP: bool = GUARDED;

    fn key(&self) -> String {
        self.till.clone()
    }
}

impl<const TEST: u32, const GUARDED: bool> Loads<Due<TEST, GUARDED>> for Tills {
    fn keys(due: &Due<TEST, GUARDED>, keys: &mut BTreeSet<String>) {
        keys.insert(due.till.clone());
    }
}

fn due<const TEST: u32, const GUARDED: bool>(till: &str, amount: i64) -> Due<TEST, GUARDED> {
    Due { till: till.to_string(), amount }
}

/// A timer → `till.tallied`
fn count_due<const TEST: u32, const GUARDED: bool>(
    Due { till, amount }: &Due<TEST, GUARDED>,
    tills: &mut Tills,
    context: HandlerContext,
) -> HandlerResult<Tallied<TEST>> {
    tally(&counted::<TEST>(till, *amount), tills, context)
}

fn timers<const TEST: u32>() -> Handlers<Tills> {
    Handlers::new().on_due(count_due::<TEST, false>).on_due(count_due::<TEST, true>)
}

/// A command that sets a timer: its note says in how many milliseconds, and without one it cancels the timer.
type SetOrCancel<const TEST: u32> = (Option<SetTimer>, Option<CancelTimer>);

fn set_or_cancel<const TEST: u32>(
    Counted { till, amount, note }: &Counted<TEST>,
    _: &mut Tills,
    context: HandlerContext,
) -> Result<Accepted<Value, SetOrCancel<TEST>>, Problem> {
    let timer = due::<TEST, false>(till, *amount);
    let after = note.as_ref().map(|note| TimeDelta::milliseconds(note.parse().unwrap()));
    let event = match after {
        Some(after) => (Some(timer.at(context.now + after)), None),
        None => (None, Some(Due::<TEST>::cancel(till))),
    };
    Ok(Accepted { event: Some(event), ..accepted(Value::Null) })
}

impl<const TEST: u32> Fixture<TEST> {
    /// Sets the timer of a till, or cancels it.
    async fn set(
        &self,
        commands: &Commands<Tills>,
        till: &str,
        amount: i64,
        after_ms: Option<i64>,
    ) {
        let note = after_ms.map(|ms| ms.to_string());
        let command = Counted { note, ..counted::<TEST>(till, amount) };
        commands.execute(once(Deciding(command, set_or_cancel))).await.unwrap();
    }

    /// Sets timers that are due now.
    async fn set_all<const GUARDED: bool>(&self, amounts: &[(&str, i64)]) {
        let (now, since) = (Utc::now(), Utc::now() - TimeDelta::milliseconds(1));
        let timers = amounts.iter().map(|(till, amount)| due::<TEST, GUARDED>(till, *amount));
        let timers = timers.map(|timer| (timer.at(now), since));
        scheduled::set_since(&self.db, timers).await.unwrap();
    }

    fn start_timers(&self) -> RunningLoop {
        let consumer = self.consumer_of(timers::<TEST>());
        RunningLoop::start(|stop| consumer.run(stop))
    }

    async fn wait_for_pending(&self, rows: i64) {
        eventually("the timers to fire", async || self.count("chassis.scheduled").await == rows)
            .await;
    }
}

#[tokio::test]
async fn a_timer_fires_once_at_its_time_in_the_trace_of_what_set_it() {
    let fixture = Fixture::<811>::create().await;
    let (commands, executors) = fixture.commands();
    let began = Instant::now();
    fixture.set(&commands, "a", 5, Some(1_200)).await;
    let row = "select event_id, traceparent from chassis.scheduled";
    let (timer, trace): (Uuid, String) = sqlx::query_as(row).fetch_one(&fixture.db).await.unwrap();
    let running = fixture.start_timers();
    fixture.wait_for_pending(0).await;
    let after = began.elapsed();
    assert!((Duration::from_millis(1_200)..Duration::from_secs(4)).contains(&after), "{after:?}");
    assert_eq!(fixture.tallies().await, BTreeMap::from([("a".into(), (1, 5))]));
    let event = "select event_id, traceparent, causation_id from chassis.outbox";
    let (event_id, traceparent, cause): (Uuid, String, Option<Uuid>) =
        sqlx::query_as(event).fetch_one(&fixture.db).await.unwrap();
    assert_eq!((event_id, cause), (response_id(fixture.service, timer), None));
    assert_eq!(traceparent[..35], trace[..35], "one trace");
    assert_eq!(
        fixture.query_number("select count(*) from chassis.inbox where topic = 'timer/due'").await,
        1
    );
    running.stop().await;
    executors.stop().await;
}

#[tokio::test]
async fn a_timer_is_moved_by_setting_it_again_and_a_cancelled_one_never_fires() {
    let fixture = Fixture::<812>::create().await;
    let (commands, executors) = fixture.commands();
    for (till, amount, after_ms) in [
        ("moved", 1, Some(0)),
        ("moved", 2, Some(1_500)),
        ("cancelled", 4, Some(0)),
        ("cancelled", 0, None),
        ("set again", 8, Some(0)),
        ("set again", 0, None),
        ("set again", 16, Some(0)),
        ("never set", 0, None),
    ] {
        fixture.set(&commands, till, amount, after_ms).await;
    }
    let running = fixture.start_timers();
    fixture.wait_for_pending(1).await;
    assert_eq!(fixture.tallies().await, BTreeMap::from([("set again".into(), (1, 16))]));
    fixture.wait_for_pending(0).await;
    let both = BTreeMap::from([("moved".into(), (1, 2)), ("set again".into(), (1, 16))]);
    assert_eq!(fixture.tallies().await, both);
    running.stop().await;
    executors.stop().await;
}

/// A timer that fires sets another one, moves its own, and cancels one that is due with it.
#[tokio::test]
async fn of_timers_that_are_due_together_one_that_another_cancels_does_not_fire() {
    fn chain(
        Due { till, amount }: &Due<813>,
        tills: &mut Tills,
        context: HandlerContext,
    ) -> HandlerResult<(Option<SetTimer>, Option<CancelTimer>)> {
        tills.add(till, *amount);
        let next = (*amount < 3).then(|| due::<813, false>(till, amount + 1).at(context.now));
        Ok(Some((next, (till == "a").then(|| Due::<813>::cancel("b")))))
    }
    let fixture = Fixture::<813>::create().await;
    fixture.set_all::<false>(&[("a", 1), ("b", 1)]).await;
    let consumer = fixture.consumer_of(Handlers::new().on_due(chain));
    let running = RunningLoop::start(|stop| consumer.run(stop));
    fixture.wait_for_pending(0).await;
    assert_eq!(fixture.tallies().await, BTreeMap::from([("a".into(), (3, 6))]));
    running.stop().await;
}

#[tokio::test]
async fn what_is_due_together_fires_once_though_two_schedulers_read_it() {
    let fixture = Fixture::<814>::create().await;
    let tills = Vec::from_iter((0..1_500).map(|nth| format!("till {nth}")));
    let amounts = Vec::from_iter(tills.iter().map(|till| (till.as_str(), 1)));
    fixture.set_all::<false>(&amounts).await;
    // The lease of the first one ends in the middle, as if it had been frozen. It goes on nevertheless.
    let first = fixture.start_timers();
    eventually("the first to fire", async || fixture.count("tallies").await > 0).await;
    let end = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'
               and database = (select oid from pg_database where datname = current_database())";
    fixture.execute_as_superuser(end).await;
    let second = fixture.start_timers();
    fixture.wait_for_pending(0).await;
    let once = "select count(*) from tallies where counted = 1 and total = 1";
    assert_eq!(fixture.query_number(once).await, 1_500);
    assert_eq!(fixture.count("chassis.inbox").await, 1_500);
    assert_eq!(fixture.count("chassis.outbox").await, 1_500);
    first.stop().await;
    second.stop().await;
}

/// It was restored from a backup with its row, and its event was published before.
#[tokio::test]
async fn a_timer_that_a_backup_restores_publishes_the_same_id() {
    let fixture = Fixture::<815>::create().await;
    fixture.set_all::<false>(&[("a", 5)]).await;
    let backup = "create table backup as select * from chassis.scheduled";
    fixture.execute_as_superuser(backup).await;
    let running = fixture.start_timers();
    fixture.wait_for_pending(0).await;
    let restore = "insert into chassis.scheduled overriding system value select * from backup;
                   delete from chassis.inbox; delete from tallies";
    fixture.execute_as_superuser(restore).await;
    fixture.wait_for_pending(0).await;
    let ids = "select count(distinct event_id) from chassis.outbox";
    assert_eq!((fixture.count("chassis.outbox").await, fixture.query_number(ids).await), (2, 1));
    // With its inbox it does not even fire.
    fixture
        .execute_as_superuser(
            "insert into chassis.scheduled overriding system value select * from backup",
        )
        .await;
    fixture.wait_for_pending(0).await;
    assert_eq!(fixture.tallies().await, BTreeMap::from([("a".into(), (1, 5))]));
    running.stop().await;
}

#[tokio::test]
async fn an_impossible_timer_becomes_a_dead_letter_and_is_replayed_once() {
    let fixture = Fixture::<816>::create().await;
    // 0 is unprocessable, the database refuses a million, and the handler panics at -1.
    fixture.set_all::<false>(&[("a", 1), ("b", 0), ("c", 1_000_000), ("d", -1), ("e", 1)]).await;
    let foreign = "update chassis.scheduled set body = '{\"till\": 7}' where key = 'e'";
    fixture.execute_as_superuser(foreign).await;
    let consumer = fixture.consumer_of(timers::<816>());
    let admin = as_operator(admin_of(&consumer));
    let running = RunningLoop::start(|stop| consumer.run(stop));
    fixture.wait_for_pending(0).await;
    assert_eq!(fixture.tallies().await, BTreeMap::from([("a".into(), (1, 1))]));
    let letters = "select key, kind from (select convert_from(key, 'UTF8') as key, kind, topic
                   from chassis.dead_letters where cluster = 'scheduled' and topic = 'timer/due') as letters
                   order by key";
    let letters: Vec<(String, String)> =
        sqlx::query_as(letters).fetch_all(&fixture.db).await.unwrap();
    let kinds = letters.iter().map(|(key, kind)| (key.as_str(), kind.as_str())).collect::<Vec<_>>();
    assert_eq!(
        kinds,
        [
            ("b", "unprocessable"),
            ("c", "handler_failed"),
            ("d", "handler_failed"),
            ("e", "undecodable")
        ]
    );
    fixture.execute_as_superuser("alter table tallies drop constraint tallies_total_check").await;
    let id = fixture
        .query_number("select dead_letter_id from chassis.dead_letters where key = 'c'")
        .await;
    let shown = get(&admin, &format!("/dead-letters/{id}")).await;
    assert_eq!(shown["event"], json!({"till": "c", "amount": 1_000_000}), "{shown}");
    assert_eq!(
        shown["discard_impact"]["consequence"],
        format!("Its effect is lost: {} never handles this timer/due.", fixture.service)
    );
    for expected in ["replayed", "done_before"] {
        let settled = outcome(&admin, &format!("/dead-letters/{id}/replay"), Value::Null).await;
        assert_eq!(settled, expected);
    }
    assert_eq!(fixture.tallies().await["c"], (1, 1_000_000));
    running.stop().await;
}

#[tokio::test]
async fn a_timer_whose_row_is_locked_waits_by_itself_and_an_unknown_one_for_another_version() {
    let fixture = Fixture::<817>::create().await;
    fixture.set_all::<false>(&[("free", 1), ("locked", 1)]).await;
    let unknown = "insert into chassis.scheduled (source, key, event_id, body, due_at, traceparent, tick)
                   select 'timer/of-another-version', key, gen_random_uuid(), body, due_at, traceparent, 0
                   from chassis.scheduled where key = 'free'";
    fixture.execute_as_superuser(unknown).await;
    let lock = fixture.lock_tally("locked").await;
    let running = fixture.start_timers();
    fixture.wait_for_pending(2).await;
    assert_eq!(fixture.tallies().await, BTreeMap::from([("free".into(), (1, 1))]));
    eventually("it to be deferred", async || {
        fixture.query_number("select max(attempts)::bigint from chassis.scheduled").await > 0
    })
    .await;
    drop(lock);
    fixture.wait_for_pending(1).await;
    assert_eq!(fixture.tallies().await["locked"], (1, 1));
    assert_eq!(fixture.count("chassis.dead_letters").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_guarded_timer_waits_for_the_measured_time_and_for_what_was_published_before() {
    let fixture = Fixture::<818>::create_with_contracts().await;
    fixture.publish(&[counted("busy", 1)]).await;
    fixture.relay_all().await;
    let lock = fixture.lock_tally("busy").await;
    let (day, now): (TimeDelta, DateTime<Utc>) = (TimeDelta::days(1), Utc::now());
    // By the clock it was set a day ago.
    let timer = |till| due::<818, true>(till, 1);
    let timers =
        [("measured", now - day), ("short", now)].map(|(till, at)| (timer(till).at(now), at));
    scheduled::set_since(&fixture.db, timers).await.unwrap();
    let handlers = timers_and_tally();
    let consumer = fixture.consumer_of(handlers);
    let running = RunningLoop::start(|stop| consumer.run(stop));
    // The lock holds up the event, and the event holds up both timers.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(fixture.count("chassis.scheduled").await, 2);
    drop(lock);
    fixture.wait_for_pending(1).await;
    assert_eq!(fixture.tallies().await.get("short"), Some(&(1, 1)));
    assert_eq!(fixture.tallies().await.get("measured"), None);
    // A process that ran for a day has measured it.
    let measured = "insert into chassis.clock_ticks (tick, elapsed_ms)
                    select max(tick) + 1, max(elapsed_ms) + 86400000 from chassis.clock_ticks";
    fixture.execute_as_superuser(measured).await;
    fixture.wait_for_pending(0).await;
    running.stop().await;
}

fn timers_and_tally() -> Handlers<Tills> {
    timers::<818>().on(tally::<818>)
}

/// The scheduler has read both timers, and waits for the row of a till.
#[tokio::test(flavor = "multi_thread")]
async fn a_timer_that_is_cancelled_or_moved_after_it_was_read_does_not_fire() {
    let fixture = Fixture::<819>::create().await;
    fixture.set_all::<false>(&[("cancelled", 1), ("moved", 1)]).await;
    let lock = fixture.lock_tally("cancelled").await;
    let running = fixture.start_timers();
    fixture.wait_for_blocked(1).await;
    let change = "delete from chassis.scheduled where key = 'cancelled';
                  update chassis.scheduled set event_id = gen_random_uuid(), due_at = now() + interval '1 hour'";
    fixture.execute_as_superuser(change).await;
    drop(lock);
    fixture.set_all::<false>(&[("later", 1)]).await;
    fixture.wait_for_pending(1).await;
    assert_eq!(fixture.tallies().await, BTreeMap::from([("later".into(), (1, 1))]));
    running.stop().await;
}
