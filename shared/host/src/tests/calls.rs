//! Outside calls: each is made with the decision that asks for it, tried until its outcome is known, and heard once in
//! effect.
//!
//! A count books its amount at a bank outside, and the answer adds the amount to the till.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::post;
use axum::{Json, Router};
use messaging::call_loop::{CallLoop, CallPolicy, Target, is_final_status};
use messaging::event::{Answered, Call, CallResult, MakeCall, Request, SettleCalls};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;

use super::*;
use crate::http::call_target::HttpTarget;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Book<const TEST: u32> {
    till: String,
    amount: i64,
}

/// A call with this amount only reads, which the bank answers with 500.
const READ: i64 = 77;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Booked {
    booking: String,
}

impl<const TEST: u32> Call for Book<TEST> {
    const NAME: &'static str = "call/bank.book";
    const IN_ORDER: bool = true;
    type Answer = Booked;

    fn key(&self) -> String {
        self.till.clone()
    }

    fn request(&self) -> Request {
        let path = ["tills", &self.till, "bookings"];
        match self.amount {
            READ => Request::get(path),
            amount => Request::post(path).json(&json!({ "amount": amount })),
        }
    }
}

impl<const TEST: u32> Loads<Answered<Book<TEST>>> for Tills {
    fn keys(Answered { call, .. }: &Answered<Book<TEST>>, keys: &mut BTreeSet<String>) {
        keys.insert(call.till.clone());
    }
}

type Wants = (Option<MakeCall>, Option<SettleCalls>);

/// Asks for a call, or takes back those of the till if the amount is 1.
fn book_or_settle<const TEST: u32>(
    Counted { till, amount, .. }: &Counted<TEST>,
    _: &mut Tills,
    _: HandlerContext,
) -> Result<Accepted<Value, Wants>, Problem> {
    let call = Book::<TEST> { till: till.clone(), amount: *amount };
    let wants = match amount {
        1 => (None, Some(Book::<TEST>::settle(till))),
        _ => (Some(call.make()), None),
    };
    Ok(Accepted { event: Some(wants), ..accepted(Value::Null) })
}

/// What came back → nothing. A tally shows what it was: the amount of a booking, and less for what is none.
fn note_answer<const TEST: u32>(
    Answered { call, result }: &Answered<Book<TEST>>,
    tills: &mut Tills,
    _: HandlerContext,
) -> HandlerResult<()> {
    let amount = match result {
        CallResult::Done(Booked { .. }) => call.amount,
        CallResult::Refused(refused) => -i64::from(refused.status),
        CallResult::Unknown(_) => -1,
        CallResult::DoneLate(_) => 1_000 + call.amount,
    };
    tills.add(&call.till, amount);
    Ok(None)
}

/// The bank: it answers each request to a till with the next of its statuses, and 200 after them.
#[derive(Clone, Default)]
struct Bank {
    statuses: Arc<Mutex<BTreeMap<String, Vec<u16>>>>,
    requests: Arc<Mutex<Vec<BankRequest>>>,
    under_way: Arc<AtomicUsize>,
    most_under_way: Arc<AtomicUsize>,
}

struct BankRequest {
    till: String,
    key: String,
    traceparent: String,
    amount: i64,
}

/// No answer, an answer that is no booking, and a redirect to the bank itself.
const SILENT: u16 = 1;
const STRANGE: u16 = 2;
const ELSEWHERE: u16 = 302;

async fn book_at_bank(
    State(bank): State<Bank>,
    Path(till): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let under_way = bank.under_way.fetch_add(1, Ordering::SeqCst) + 1;
    bank.most_under_way.fetch_max(under_way, Ordering::SeqCst);
    let header = |name: &str| headers[name].to_str().unwrap().to_string();
    bank.requests.lock().push(BankRequest {
        till: till.clone(),
        key: header("idempotency-key"),
        traceparent: header("traceparent"),
        amount: body["amount"].as_i64().unwrap(),
    });
    let status = {
        let mut statuses = bank.statuses.lock();
        let of_till = statuses.entry(till).or_default();
        if of_till.is_empty() { 200 } else { of_till.remove(0) }
    };
    let answer = match status {
        200 => {
            sleep(Duration::from_millis(20)).await;
            Json(json!({ "booking": "b" })).into_response()
        }
        SILENT => {
            sleep(Duration::from_secs(30)).await;
            ().into_response()
        }
        STRANGE => "it is done".into_response(),
        ELSEWHERE => Redirect::temporary("/tills/elsewhere/bookings").into_response(),
        status => (StatusCode::from_u16(status).unwrap(), "no").into_response(),
    };
    bank.under_way.fetch_sub(1, Ordering::SeqCst);
    answer
}

impl Bank {
    fn new(statuses: &[(&str, &[u16])]) -> Bank {
        let statuses = statuses.iter().map(|(till, of_till)| (till.to_string(), of_till.to_vec()));
        Bank { statuses: Arc::new(Mutex::new(statuses.collect())), ..Bank::default() }
    }

    /// Serves it; returns its address.
    async fn open(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route(
            "/tills/{till}/bookings",
            post(book_at_bank).get(async || StatusCode::INTERNAL_SERVER_ERROR),
        );
        tokio::spawn(axum::serve(listener, router.with_state(self.clone())).into_future());
        address
    }

    /// The idempotency keys of the requests to a till.
    fn keys(&self, till: &str) -> Vec<String> {
        let requests = self.requests.lock();
        let of_till = requests.iter().filter(|request| request.till == till);
        of_till.map(|request| request.key.clone()).collect()
    }
}

impl<const TEST: u32> Fixture<TEST> {
    async fn decide(&self, commands: &Commands<Tills>, till: &str, amount: i64) {
        let command = Deciding(counted::<TEST>(till, amount), book_or_settle);
        commands.execute(once(command)).await.unwrap();
    }

    /// The loop of calls to the bank, and the consumer that hears what comes back.
    fn start_calls(&self, bank: &str, total_age: Duration) -> [RunningLoop; 2] {
        let timeout = Duration::from_millis(700);
        let policy = CallPolicy {
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_millis(300),
            timeout,
            total_age,
            concurrency: 4,
            is_final: is_final_status,
        };
        let client = HttpTarget::new(bank, "NO_SUCH_TOKEN".into(), timeout).unwrap();
        let target = Target { policy, performer: Arc::new(client) };
        let heartbeat = Heartbeats::default().register("calls", Duration::from_secs(60));
        let targets = BTreeMap::from([("bank", target)]);
        let calls = CallLoop { db: self.db.clone(), heartbeat, targets };
        let consumer = self.consumer_of(Handlers::new().on_answer(note_answer::<TEST>));
        [RunningLoop::start(|stop| calls.run(stop)), RunningLoop::start(|stop| consumer.run(stop))]
    }

    async fn wait_for_tally(&self, till: &str, counted: i64, total: i64) {
        eventually(&format!("till {till} to have {total}"), async || {
            self.tallies().await.get(till) == Some(&(counted, total))
        })
        .await;
    }
}

async fn stop(running: impl IntoIterator<Item = RunningLoop>) {
    for running in running {
        running.stop().await;
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn a_call_is_made_with_its_decision_and_its_answer_is_heard_once_in_its_trace() {
    let fixture = Fixture::<831>::create().await;
    let (commands, executors) = fixture.commands();
    let bank = Bank::new(&[("b", &[500, SILENT, 429])]);
    let running = fixture.start_calls(&bank.open().await, HOUR);
    for till in ["a", "b"] {
        fixture.decide(&commands, till, 5).await;
        fixture.wait_for_tally(till, 1, 5).await;
    }
    let keys = bank.keys("b");
    assert_eq!((bank.keys("a").len(), keys.len()), (1, 4));
    assert!(keys.iter().all(|key| *key == keys[0]), "every try has one key");
    let traces: BTreeSet<_> =
        bank.requests.lock().iter().map(|it| it.traceparent[..35].to_string()).collect();
    assert_eq!(traces.len(), 2, "each call has the trace of its decision: {traces:?}");
    assert_eq!(fixture.count("chassis.calls").await, 0);
    assert_eq!(fixture.count("chassis.inbox").await, 2);
    stop(running.into_iter().chain([executors])).await;
}

#[tokio::test]
async fn a_refusal_is_believed_only_if_no_earlier_try_may_have_been_done() {
    let fixture = Fixture::<832>::create().await;
    let (commands, executors) = fixture.commands();
    let bank = Bank::new(&[
        ("refused", &[422]),
        ("full, then refused", &[429, 422]),
        ("uncertain", &[500, 422]),
        ("silent", &[SILENT, 422]),
        ("redirected", &[ELSEWHERE, ELSEWHERE]),
    ]);
    let running = fixture.start_calls(&bank.open().await, HOUR);
    for till in ["refused", "full, then refused", "uncertain", "silent", "redirected"] {
        fixture.decide(&commands, till, 5).await;
    }
    fixture.wait_for_tally("refused", 1, -422).await;
    fixture.wait_for_tally("full, then refused", 1, -422).await;
    fixture.wait_for_tally("uncertain", 1, -1).await;
    fixture.wait_for_tally("silent", 1, -1).await;
    // A redirect is followed nowhere.
    fixture.wait_for_tally("redirected", 1, 5).await;
    assert!(bank.keys("elsewhere").is_empty());
    // Two stay, until an operator has them tried again: then they are done late.
    assert_eq!(fixture.count("chassis.calls").await, 2);
    fixture.execute_as_superuser("update chassis.calls set next_try_at = now()").await;
    fixture.wait_for_tally("uncertain", 2, 1_004).await;
    fixture.wait_for_tally("silent", 2, 1_004).await;
    assert_eq!(fixture.count("chassis.calls").await, 0);
    stop(running.into_iter().chain([executors])).await;
}

#[tokio::test]
async fn a_call_is_given_up_before_its_target_forgets_its_key() {
    let fixture = Fixture::<833>::create().await;
    let (commands, executors) = fixture.commands();
    let bank = Bank::new(&[("uncertain", &[500; 100])]);
    let address = bank.open().await;
    let running = fixture.start_calls(&address, Duration::from_secs(2));
    fixture.decide(&commands, "uncertain", 5).await;
    fixture.decide(&commands, "read", READ).await;
    fixture.wait_for_tally("uncertain", 1, -1).await;
    fixture.wait_for_tally("read", 1, 0).await;
    stop(running).await;
    // Nothing listens here, so nothing can have been done.
    let running = fixture.start_calls("http://127.0.0.1:9/", Duration::from_secs(2));
    fixture.decide(&commands, "never reached", 5).await;
    fixture.wait_for_tally("never reached", 1, 0).await;
    stop(running.into_iter().chain([executors])).await;
}

/// Its process was killed while a try was under way.
#[tokio::test]
async fn a_try_that_was_lost_may_have_been_done() {
    let fixture = Fixture::<834>::create().await;
    let (commands, executors) = fixture.commands();
    fixture.decide(&commands, "lost", 5).await;
    fixture.execute_as_superuser("update chassis.calls set tries = 1, trying_since = now()").await;
    let bank = Bank::new(&[("lost", &[422])]);
    let running = fixture.start_calls(&bank.open().await, HOUR);
    fixture.wait_for_tally("lost", 1, -1).await;
    stop(running.into_iter().chain([executors])).await;
}

#[tokio::test]
async fn calls_are_bounded_in_number_kept_in_order_and_taken_back() {
    let fixture = Fixture::<835>::create().await;
    let (commands, executors) = fixture.commands();
    for nth in 0..20 {
        fixture.decide(&commands, &format!("till {nth}"), 7).await;
    }
    for amount in [2, 3, 4] {
        fixture.decide(&commands, "in order", amount).await;
    }
    fixture.decide(&commands, "taken back", 5).await;
    fixture.decide(&commands, "taken back", 1).await;
    assert_eq!(fixture.count("chassis.calls").await, 23);
    let bank = Bank::new(&[("in order", &[500])]);
    let running = fixture.start_calls(&bank.open().await, HOUR);
    fixture.wait_for_tally("in order", 3, 9).await;
    eventually("every call to end", async || fixture.count("chassis.calls").await == 0).await;
    let in_order = |request: &&BankRequest| request.till == "in order";
    let amounts: Vec<i64> =
        bank.requests.lock().iter().filter(in_order).map(|request| request.amount).collect();
    assert_eq!(amounts, [2, 2, 3, 4]);
    assert!(bank.keys("taken back").is_empty());
    let most = bank.most_under_way.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most}");
    stop(running.into_iter().chain([executors])).await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_is_a_dead_letter_and_a_segment_stays_in_its_place() {
    let fixture = Fixture::<836>::create().await;
    let (commands, executors) = fixture.commands();
    let bank = Bank::new(&[("strange", &[STRANGE])]);
    let running = fixture.start_calls(&bank.open().await, HOUR);
    fixture.decide(&commands, "strange", 5).await;
    eventually("a dead letter", async || fixture.count("chassis.dead_letters").await == 1).await;
    fixture.decide(&commands, "a/../b?c#d", 5).await;
    fixture.wait_for_tally("a/../b?c#d", 1, 5).await;
    assert_eq!(bank.keys("a/../b?c#d").len(), 1);
    fixture.decide(&commands, "..", 5).await;
    eventually("it to be tried", async || {
        fixture
            .query_number("select count(*) from chassis.calls where last_error like '%no segment%'")
            .await
            == 1
    })
    .await;
    stop(running.into_iter().chain([executors])).await;
}
