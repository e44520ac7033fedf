//! What a service hears beside events: timers that are due, answers to its calls and tasks, and deliveries of webhooks.

use chassis::event::{
    Answered, AnsweredTask, HandlerContext, HandlerResult, Outcome, Task, Unprocessable, Webhook,
};
use chassis::{Call, CallResult, Handlers, Loads, Timer, UnitOfWork};
use chrono::{DateTime, Utc};
use messaging::scheduled::DueRow;
use messaging::transaction::incoming_record::IncomingRecord;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::TestService;

/// Each of the methods with a handler delivers in one transaction, and returns the ids of the events that were published
/// in response. Its error is the reason, if the handler found one of them unprocessable; then nothing is left behind. It
/// panics if the database refuses what the handler wrote.
#[allow(clippy::missing_errors_doc, clippy::missing_panics_doc)]
impl<R: UnitOfWork> TestService<R> {
    /// Fires timers, each with its id, as if they had been set and were due.
    pub async fn fire<T: Timer, O: Outcome + 'static>(
        &self,
        timers: &[(Uuid, &T)],
        handler: fn(&T, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Result<Vec<Uuid>, Unprocessable>
    where
        R: Loads<T>,
    {
        let due = timers.iter().map(|(id, timer)| (*id, timer.key(), json!(timer)));
        self.hear(Handlers::new().on_due(handler), T::NAME, due).await
    }

    /// Answers calls, each answer with its id. Unless it is *unknown*, no call of this name and key is pending any more.
    pub async fn answer<C: Call, O: Outcome + 'static>(
        &self,
        answers: &[(Uuid, &Answered<C>)],
        handler: fn(&Answered<C>, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Result<Vec<Uuid>, Unprocessable>
    where
        R: Loads<Answered<C>>,
    {
        for (_, answer) in answers {
            if !matches!(answer.result, CallResult::Unknown(_)) {
                self.settle(C::NAME, answer.call.key()).await;
            }
        }
        let due = answers.iter().map(|(id, answer)| (*id, answer.call.key(), json!(answer)));
        self.hear(Handlers::new().on_answer(handler), C::NAME, due).await
    }

    /// Answers a task as an operator does, by the name of the answer. The answer has this id.
    pub async fn answer_task<T: Task, O: Outcome + 'static>(
        &self,
        (id, task, answer): (Uuid, &T, &str),
        handler: fn(&AnsweredTask<T>, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Result<Vec<Uuid>, Unprocessable>
    where
        R: Loads<AnsweredTask<T>>,
    {
        let choices = task.question().choices;
        assert!(choices.iter().any(|it| it.answer == answer), "{answer} is no choice: {choices:?}");
        self.settle(T::NAME, task.key()).await;
        let due = [(id, task.key(), json!({ "call": task, "result": answer }))];
        self.hear(Handlers::new().on_task(handler), T::NAME, due).await
    }

    /// Receives deliveries of a webhook, each with its id, as if they had been verified.
    pub async fn receive<W: Webhook, O: Outcome + 'static>(
        &self,
        deliveries: &[(Uuid, Value)],
        handler: fn(&W, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Result<Vec<Uuid>, Unprocessable>
    where
        R: Loads<W>,
    {
        let due =
            deliveries.iter().map(|(id, body)| (*id, id.to_string(), json!(body.to_string())));
        self.hear(Handlers::new().on_delivery(handler), W::NAME, due).await
    }

    /// The timers that are pending: name, key and when each is due.
    pub async fn timers(&self) -> Vec<(String, String, DateTime<Utc>)> {
        let timers =
            "select source, key, due_at from chassis.scheduled order by source, due_at, key";
        sqlx::query_as(timers).fetch_all(&self.db).await.expect("the schedule")
    }

    /// The calls that are pending and the tasks that are open: name, key, and the call or the task.
    pub async fn calls(&self) -> Vec<(String, String, Value)> {
        let calls = "select name, key, call from chassis.calls order by name, key, created_at";
        sqlx::query_as(calls).fetch_all(&self.db).await.expect("the calls")
    }

    async fn settle(&self, name: &str, key: String) {
        let settle = sqlx::query("delete from chassis.calls where name = $1 and key = $2");
        settle.bind(name).bind(key).execute(&self.db).await.expect("the calls");
    }

    async fn hear(
        &self,
        handlers: Handlers<R>,
        name: &str,
        due: impl IntoIterator<Item = (Uuid, String, Value)>,
    ) -> Result<Vec<Uuid>, Unprocessable> {
        let routes = handlers.into_router(self.service);
        let items = due.into_iter().map(|(id, key, body)| {
            let row = DueRow::now(name, key, id, body);
            IncomingRecord { timer: None, ..routes.parse_due(row) }
        });
        let items = Vec::from_iter(items);
        let unreadable = items.iter().find_map(IncomingRecord::as_dead_letter);
        assert!(unreadable.is_none(), "{name} can't be read: {:?}", unreadable.map(|it| it.2));
        let before = self.outbox_entries().await.len();
        self.apply_items(&items).await?;
        let published = self.outbox_entries().await.split_off(before);
        Ok(published.into_iter().map(|(_, _, event_id)| event_id).collect())
    }
}
