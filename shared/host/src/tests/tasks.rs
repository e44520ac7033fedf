//! Tasks: each is opened with the decision that asks, stays open until a person answers or a decision closes it, and its
//! answer is heard once in effect.
//!
//! A count asks whether it may be counted, and the answer says how often.

use messaging::event::{AnsweredTask, CloseTasks, OpenTask, Question, Task};
use serde_json::{Value, json};

use super::admin_client::{admin_of, as_operator, get, post, refused};
use super::*;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct MayCount<const TEST: u32> {
    till: String,
    amount: i64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Once,
    Twice,
    Never,
}

impl<const TEST: u32> Task for MayCount<TEST> {
    const NAME: &'static str = "task/may-count";
    type Answer = Answer;

    fn key(&self) -> String {
        self.till.clone()
    }

    fn question(&self) -> Question {
        Question::new(format!("May {} be counted into {}?", self.amount, self.till))
            .choice("once", "It is counted.")
            .choice("twice", "It is counted twice.")
            .choice("never", "It is dropped.")
    }
}

impl<const TEST: u32> Loads<AnsweredTask<MayCount<TEST>>> for Tills {
    fn keys(answered: &AnsweredTask<MayCount<TEST>>, keys: &mut BTreeSet<String>) {
        keys.insert(answered.task.till.clone());
    }
}

type Wants = (Option<OpenTask>, Option<CloseTasks>);

/// Opens a task, or closes those of the till if the amount is 1.
fn ask_or_close<const TEST: u32>(
    Counted { till, amount, .. }: &Counted<TEST>,
    _: &mut Tills,
    _: HandlerContext,
) -> Result<Accepted<Value, Wants>, Problem> {
    let task = MayCount::<TEST> { till: till.clone(), amount: *amount };
    let wants = match amount {
        1 => (None, Some(MayCount::<TEST>::close(till))),
        _ => (Some(task.open()), None),
    };
    Ok(Accepted { event: Some(wants), ..accepted(Value::Null) })
}

/// An answer → `till.tallied`
fn count_answer<const TEST: u32>(
    AnsweredTask { task, answer }: &AnsweredTask<MayCount<TEST>>,
    tills: &mut Tills,
    context: HandlerContext,
) -> HandlerResult<Tallied<TEST>> {
    let times = match answer {
        Answer::Once => 1,
        Answer::Twice => 2,
        Answer::Never => return Ok(None),
    };
    tally(&counted::<TEST>(&task.till, times * task.amount), tills, context)
}

#[tokio::test]
async fn a_task_is_answered_by_one_operator_and_heard_once() {
    let fixture = Fixture::<851>::create().await;
    let (commands, executors) = fixture.commands();
    for (till, amount) in [("a", 5), ("b", 7), ("closed", 9), ("closed", 1)] {
        let command = Deciding(counted::<851>(till, amount), ask_or_close);
        commands.execute(once(command)).await.unwrap();
    }
    let consumer = fixture.consumer_of(Handlers::new().on_task(count_answer::<851>));
    let admin = as_operator(admin_of(&consumer));
    let running = RunningLoop::start(|stop| consumer.run(stop));
    let listed = get(&admin, "/tasks").await;
    let tasks = listed["tasks"].as_array().unwrap();
    let of = |task: &Value| (task["key"].clone(), task["question"]["text"].clone());
    let expected = [("a", 5), ("b", 7)].map(|(till, amount)| {
        (json!(till), json!(format!("May {amount} be counted into {till}?")))
    });
    assert_eq!(tasks.iter().map(of).collect::<Vec<_>>(), expected, "{listed}");
    let choice = json!({"answer": "twice", "consequence": "It is counted twice."});
    assert_eq!(tasks[0]["question"]["choices"][1], choice);
    let trace = "select traceparent from chassis.calls where key = 'a'";
    let trace: String = sqlx::query_scalar(trace).fetch_one(&fixture.db).await.unwrap();

    let path = |nth: usize| format!("/tasks/{}/answer", tasks[nth]["task_id"].as_str().unwrap());
    let answer = |answer: &str| json!({"answer": answer, "reason": "seen"});
    let detail = refused(&admin, &path(0), answer("thrice"), (422, "invalid-value")).await;
    assert_eq!(detail, "It must be one of these: once, twice, never.");
    refused(&admin, &path(0), json!({"answer": "once", "reason": ""}), (422, "invalid-value"))
        .await;
    let path_of_a = path(0);
    let (one, other) = tokio::join!(
        post(&admin, &path_of_a, answer("twice")),
        post(&admin, &path_of_a, answer("never"))
    );
    let mut statuses = [one.0, other.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 404], "one of two operators: {one:?} {other:?}");
    let expected =
        if one.0 == 200 { BTreeMap::from([("a".into(), (1, 10))]) } else { BTreeMap::new() };
    eventually("it to be heard", async || fixture.count("chassis.scheduled").await == 0).await;
    assert_eq!(fixture.tallies().await, expected);

    assert_eq!(post(&admin, &path(1), answer("once")).await.0, 200);
    eventually("it to be heard", async || fixture.tallies().await.get("b") == Some(&(1, 7))).await;
    assert_eq!(get(&admin, "/tasks").await["tasks"], json!([]));
    let acts =
        "select count(*) from chassis.operator_acts where act = 'answer_task' and actor = 'ann'";
    assert_eq!(fixture.query_number(acts).await, 2);
    let published: Vec<String> =
        sqlx::query_scalar("select traceparent from chassis.outbox order by event_id")
            .fetch_all(&fixture.db)
            .await
            .unwrap();
    if one.0 == 200 {
        assert_eq!(published[0][..35], trace[..35], "one trace");
    }
    running.stop().await;
    executors.stop().await;
}
