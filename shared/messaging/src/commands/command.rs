//! A command as its service writes it: one type says what it reads, decides, answers and publishes.

use serde::Serialize;

use crate::commands::reply::Reply;
use crate::event::{HandlerContext, Outcome};
use crate::unit_of_work::Loads;

/// A request of a client that changes rows.
pub trait Command: Sized + Send + Sync + 'static {
    /// The rows that it reads and changes. Its [`Loads`] names them.
    type Aggregate: Loads<Self>;
    /// The body of the answer, as JSON.
    type Output: Serialize;
    /// What it may publish; `()` for a command that never publishes.
    type Event: Outcome;
    /// Why it may be refused. The host has to know how to answer it.
    type Refusal;

    /// Reads the rows, decides, changes the rows and answers. It is a pure function, like a handler.
    ///
    /// It refuses before it changes anything: a refusal after a change is a programming error, answered 500, and
    /// nothing of it is stored.
    ///
    /// After a commit that was cut, it is called again, on rows that may have its effect already. With a key, the
    /// chassis finds the first answer. Without one, it has to recognise the effect by a row of its own whose id was
    /// generated before the command ran, or has to have the same effect when it is repeated, as a cancellation has.
    /// Otherwise the route generates a key.
    ///
    /// # Errors
    /// It is refused.
    fn decide(&self, rows: &mut Self::Aggregate, context: HandlerContext) -> Decision<Self>;

    /// It is accepted, and the answer is 200.
    fn ok(output: Self::Output) -> Accepted<Self::Output, Self::Event> {
        Accepted { output, event: None, location: None }
    }

    /// It is accepted, and the answer is 201, with the location of what was created.
    fn created(location: String, output: Self::Output) -> Accepted<Self::Output, Self::Event> {
        Accepted { location: Some(location), ..Self::ok(output) }
    }
}

/// What a command decides.
pub type Decision<C> =
    Result<Accepted<<C as Command>::Output, <C as Command>::Event>, <C as Command>::Refusal>;

/// The answer to an accepted command, and what it publishes.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted<O, E> {
    /// The body of the answer.
    pub output: O,
    /// What is published with the command's effect.
    pub event: Option<E>,
    /// The location of what was created: the status is then 201, and 200 without it.
    pub location: Option<String>,
}

impl<O, E> Accepted<O, E> {
    /// Publishes this, if there is something to publish.
    pub fn publishing(self, event: Option<E>) -> Self {
        Accepted { event, ..self }
    }
}

impl<O: Serialize, E> Accepted<O, E> {
    /// The answer as it is sent and stored, and what is published.
    pub(crate) fn into_parts(self) -> (Reply, Option<E>) {
        let Accepted { output, event, location } = self;
        let status = location.as_ref().map_or(200, |_| 201);
        let body = serde_json::to_vec(&output).expect("answers are plain JSON");
        (Reply { status, location, body }, event)
    }
}
