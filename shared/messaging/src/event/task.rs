//! Tasks: what a person has to decide. A decision opens one, an operator answers it, and a handler decides on the answer.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::event::call::{CallChange, NewCall};
use crate::event::{MakeCall, SettleCalls};

/// A question to an operator. The struct is what the decision knew, and its handler gets it back with the answer. It is
/// stored as JSON: a version that adds a field gives it a default, since tasks of the version before are open.
pub trait Task: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `task/` and what is to be decided: `task/lost-parcel`. One of the service's own; it stays as long as a task is
    /// open.
    const NAME: &'static str;

    /// An enum with a unit variant for each answer.
    type Answer: DeserializeOwned + Send + Sync + 'static;

    /// What it is about: by it the service finds its tasks again, and an operator too.
    fn key(&self) -> String;

    /// The question, with the answers that are allowed.
    fn question(&self) -> Question;

    /// Opens the task. It stays open until an operator answers it or a decision closes it.
    ///
    /// # Panics
    /// If an allowed answer is no `Answer`, or its JSON or that of its question is longer than 64 KiB.
    fn open(&self) -> OpenTask {
        let question = self.question();
        for Choice { answer, .. } in &question.choices {
            let is_answer = serde_json::from_value::<Self::Answer>(json!(answer)).is_ok();
            assert!(is_answer, "{answer} is no answer to {}", Self::NAME);
        }
        NewCall::outcome(Self::NAME, self.key(), false, self, &question)
    }

    /// Closes the tasks of a key: what they ask is decided, or no longer matters.
    fn close(key: impl ToString) -> CloseTasks {
        SettleCalls(CallChange::Settle { name: Self::NAME, key: key.to_string() })
    }
}

/// The outcome that opens a task.
pub type OpenTask = MakeCall;

/// The outcome that closes tasks.
pub type CloseTasks = SettleCalls;

/// A question to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Question {
    /// The question, as the operator reads it.
    pub text: String,
    /// The answers that are allowed.
    pub choices: Vec<Choice>,
}

/// An answer that an operator may give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Choice {
    /// The name of its variant, as serde writes it.
    pub answer: String,
    /// What follows, as the operator reads it.
    pub consequence: String,
}

impl Question {
    /// A question without an answer yet.
    pub fn new(text: impl Into<String>) -> Question {
        Question { text: text.into(), choices: Vec::new() }
    }

    /// The same with one more answer and what follows from it.
    pub fn choice(mut self, answer: impl Into<String>, consequence: impl Into<String>) -> Question {
        let choice = Choice { answer: answer.into(), consequence: consequence.into() };
        self.choices.push(choice);
        self
    }
}

/// A task with the answer of an operator.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "T: Task")]
pub struct AnsweredTask<T: Task> {
    /// The task, as it was decided.
    #[serde(rename = "call")]
    pub task: T,
    /// The answer.
    #[serde(rename = "result")]
    pub answer: T::Answer,
}
