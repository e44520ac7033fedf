//! What waits for the world outside: the calls whose outcome is not known, and the tasks that a person has to answer.

use axum::Form;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};
use futures::future::join_all;
use maud::{Markup, html};
use ops_client::{Port, ServiceError};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::format;
use crate::operators::Operator;
use crate::pages::{self, Notice, Section};

const PATH: &str = "/waiting";

/// A call, as its service lists it.
#[derive(Deserialize)]
struct Call {
    call_id: Uuid,
    name: String,
    key: String,
    created_at: DateTime<Utc>,
    next_try_at: Option<DateTime<Utc>>,
    tries: i32,
    is_uncertain: bool,
    last_error: Option<String>,
}

#[derive(Deserialize)]
struct Calls {
    calls: Vec<Call>,
}

/// A task, as its service lists it.
#[derive(Deserialize)]
struct Task {
    task_id: Uuid,
    name: String,
    key: String,
    opened_at: DateTime<Utc>,
    question: Question,
}

#[derive(Deserialize)]
struct Question {
    text: String,
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    answer: String,
    consequence: String,
}

#[derive(Deserialize)]
struct Tasks {
    tasks: Vec<Task>,
}

/// What waits in one service.
struct Waiting<'a> {
    service: &'a str,
    read: Result<(Vec<Call>, Vec<Task>), ServiceError>,
}

pub async fn show(State(app): State<App>, operator: Operator, headers: HeaderMap) -> Response {
    let services = join_all(app.services.names.iter().map(async |service| {
        let (ops, place) = (operator.ask(&app.services), (&**service, Port::Admin));
        let calls = ops.get::<Calls>(place, "/calls");
        let read = tokio::try_join!(calls, ops.get::<Tasks>(place, "/tasks"));
        Waiting { service, read: read.map(|(calls, tasks)| (calls.calls, tasks.tasks)) }
    }));
    pages::page(&headers, Section::Waiting, "Waiting", body(&services.await, Utc::now()))
}

fn body(services: &[Waiting<'_>], now: DateTime<Utc>) -> Markup {
    let (mut tasks, mut calls) = (Vec::new(), Vec::new());
    for Waiting { service, read } in services {
        if let Ok((of_service, open)) = read {
            calls.extend(of_service.iter().map(|call| (*service, call)));
            tasks.extend(open.iter().map(|task| (*service, task)));
        }
    }
    tasks.sort_by_key(|(_, task)| task.opened_at);
    calls.sort_by_key(|(_, call)| call.created_at);
    html! {
        div.title { h1 { "Waiting" } }
        @for Waiting { read, .. } in services {
            @if let Err(error) = read { p.notice.is-bad role="alert" { (error) } }
        }
        section aria-label="Tasks" {
            h2 { "Tasks for a person" }
            @if tasks.is_empty() { p.quiet { "No task is open." } }
            @for (service, task) in tasks { (task_panel(service, task, now)) }
        }
        section aria-label="Calls" {
            h2 { "Calls to systems outside" }
            @if calls.is_empty() { p.quiet { "The outcome of every call is known." } }
            @for (service, call) in calls { (call_panel(service, call, now)) }
        }
    }
}

fn task_panel(service: &str, task: &Task, now: DateTime<Utc>) -> Markup {
    let Task { task_id, name, key, opened_at, question } = task;
    html! {
        article.panel {
            h3 { (question.text) " " span.legend { (service) " · " (name) " · " (format::ago(*opened_at, now)) } }
            p { "About " code { (key) } }
            form method="post" action={ (PATH) "/" (service) "/tasks/" (task_id) } {
                @for (nth, Choice { answer, consequence }) in question.choices.iter().enumerate() {
                    label.check { input type="radio" name="answer" value=(answer) required[nth == 0];
                        span { strong { (answer) } ": " (consequence) } }
                }
                (reason(&task_id.to_string()))
                button.primary type="submit" { "Answer" }
            }
        }
    }
}

fn call_panel(service: &str, call: &Call, now: DateTime<Utc>) -> Markup {
    let Call { call_id, name, key, created_at, next_try_at, tries, is_uncertain, last_error } =
        call;
    let action = |word: &str| format!("{PATH}/{service}/calls/{call_id}/{word}");
    html! {
        article.panel {
            h3 { (name) " " span.legend { (service) " · " (format::ago(*created_at, now)) } }
            dl.facts {
                dt { "About" } dd { code { (key) } }
                dt { "Tries" } dd { (tries) @if next_try_at.is_none() { ", and no further one by itself" } }
                dt { "State" } dd {
                    @if *is_uncertain { "It may have been done." } @else { "It was not done yet." }
                }
                @if let Some(error) = last_error { dt { "Last error" } dd { (error) } }
            }
            form method="post" action=(action("try"))
                data-question="The target gets the same key once more. If it has forgotten the key, it may do the call a second time. Try it?" {
                button type="submit" { "Try now" }
            }
            details {
                summary { "Settle it by what you know" }
                form method="post" action=(action("settle")) {
                    label.check { input type="radio" name="known" value="not_done" required;
                        span { strong { "Not done" } ": the service may undo what it did for it. If the target does it later, the service does not hear of it." } }
                    label.check { input type="radio" name="known" value="done";
                        span { strong { "Done" } ": the service goes on as if the target had answered this." } }
                    label for={ "answer-" (call_id) } { "The answer, as JSON, if it was done" }
                    textarea id={ "answer-" (call_id) } name="answer" rows="2" {}
                    (reason(&call_id.to_string()))
                    button.danger type="submit" { "Settle" }
                }
            }
        }
    }
}

fn reason(id: &str) -> Markup {
    html! {
        label for={ "reason-" (id) } { "Reason" }
        textarea id={ "reason-" (id) } name="reason" rows="2" maxlength="1000" required {}
    }
}

/// Back to the list, with what the service answered.
fn answer(answered: Result<Value, ServiceError>, done: &str) -> Response {
    pages::redirect(PATH, answered.map_or_else(Notice::failed, |_| Notice::done(done)))
}

#[derive(Deserialize)]
pub struct TaskForm {
    answer: String,
    reason: String,
}

pub async fn answer_task(
    State(app): State<App>,
    operator: Operator,
    Path((service, id)): Path<(String, Uuid)>,
    Form(TaskForm { answer: chosen, reason }): Form<TaskForm>,
) -> Response {
    let (ops, path) = (operator.ask(&app.services), format!("/tasks/{id}/answer"));
    let body = json!({ "answer": chosen, "reason": reason.trim() });
    let answered = ops.post((&service, Port::Admin), &path, Some(&body)).await;
    answer(answered, "The task is answered.")
}

pub async fn try_call(
    State(app): State<App>,
    operator: Operator,
    Path((service, id)): Path<(String, Uuid)>,
) -> Response {
    let (ops, path) = (operator.ask(&app.services), format!("/calls/{id}/try"));
    let tried = ops.post((&service, Port::Admin), &path, None::<&()>).await;
    answer(tried, "The call is tried within a second.")
}

#[derive(Deserialize)]
pub struct SettleForm {
    known: String,
    answer: String,
    reason: String,
}

pub async fn settle_call(
    State(app): State<App>,
    operator: Operator,
    Path((service, id)): Path<(String, Uuid)>,
    Form(form): Form<SettleForm>,
) -> Response {
    let body = match &*form.known {
        "done" => match serde_json::from_str::<Value>(&form.answer) {
            Ok(done) => json!({ "done": done, "reason": form.reason.trim() }),
            Err(_) => return pages::redirect(PATH, Notice::failed("The answer is no JSON.")),
        },
        _ => json!({ "not_done": true, "reason": form.reason.trim() }),
    };
    let (ops, path) = (operator.ask(&app.services), format!("/calls/{id}/settle"));
    let settled = ops.post((&service, Port::Admin), &path, Some(&body)).await;
    answer(settled, "The call is settled.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_each_answer_with_its_consequence_and_escapes_what_was_asked() {
        let now = DateTime::UNIX_EPOCH;
        let task = json!({
            "task_id": Uuid::nil(), "name": "task/lost-parcel", "key": "k", "opened_at": now,
            "question": {"text": "Is <it> lost?", "choices": [
                {"answer": "wait", "consequence": "The carrier is asked again."},
                {"answer": "lost", "consequence": "The shipment fails."}]},
        });
        let call = json!({
            "call_id": Uuid::nil(), "name": "call/carrier.book", "key": "k", "created_at": now,
            "next_try_at": null, "tries": 9, "is_uncertain": true, "unknown_since": now, "last_error": "it answered 500",
        });
        let read = Ok((
            vec![serde_json::from_value(call).unwrap()],
            vec![serde_json::from_value(task).unwrap()],
        ));
        let page = body(&[Waiting { service: "shipping", read }], now).into_string();
        for part in [
            "Is &lt;it&gt; lost?",
            "The carrier is asked again.",
            "The shipment fails.",
            "/waiting/shipping/tasks/00000000-0000-0000-0000-000000000000",
            "9, and no further one by itself",
            "It may have been done.",
            "it answered 500",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        let empty = body(&[Waiting { service: "order", read: Ok((vec![], vec![])) }], now);
        assert!(empty.into_string().contains("No task is open."));
    }
}
