//! Outside calls: requests to systems that know no Kafka, such as a payment provider. A decision asks for one, a loop
//! performs it, and a handler decides on what came back.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::{Effects, Outcome};

/// Every name of a call begins with this. A Kafka topic cannot have such a name.
pub const CALL_PREFIX: &str = "call/";

/// Every name of a task begins with this.
pub const TASK_PREFIX: &str = "task/";

/// The target of a task, where a call has a system outside.
pub(crate) const PERSON: &str = "person";

/// The longest call or task, and the longest request or question, in bytes of JSON.
const JSON_BYTES_MAX: usize = 64 * 1024;

/// A request to a system outside. The struct is what the decision knew, and its handler gets it back with the answer. It
/// is stored as JSON: a version that adds a field gives it a default, since calls of the version before are pending.
///
/// The same call may reach its target more than once, each time with the same `Idempotency-Key`.
pub trait Call: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `call/`, the target, a dot and what is asked of it: `call/carrier.book`. One of the service's own; it stays as
    /// long as a call is pending.
    const NAME: &'static str;

    /// Whether a call waits until no earlier one of its name and key is pending.
    const IN_ORDER: bool = false;

    /// The body of a success, as JSON.
    type Answer: Serialize + DeserializeOwned + Send + Sync + 'static;

    /// What it is about: by it the service finds its calls again, and an operator too.
    fn key(&self) -> String;

    /// The request. It is made when the call is decided, and every try sends the same one.
    fn request(&self) -> Request;

    /// Asks for the call.
    ///
    /// # Panics
    /// If its JSON, or that of its request, is longer than 64 KiB.
    fn make(&self) -> MakeCall {
        NewCall::outcome(Self::NAME, self.key(), Self::IN_ORDER, self, &self.request())
    }

    /// Takes the calls of a key back: their outcome is known from elsewhere, or no longer matters. One that is under way
    /// may still reach its target, and its answer is dropped.
    fn settle(key: impl ToString) -> SettleCalls {
        SettleCalls(CallChange::Settle { name: Self::NAME, key: key.to_string() })
    }
}

/// A request without its host, which belongs to the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// The segments of its path. Each is encoded, so that none reaches beyond its place.
    pub path: Vec<String>,
    /// The parameters of its query.
    pub query: Vec<(String, String)>,
    /// Its body, which is sent as JSON.
    pub body: Option<Value>,
}

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Request {
    /// A request to a path of these segments.
    pub fn new<S: ToString>(method: Method, path: impl IntoIterator<Item = S>) -> Request {
        let path = path.into_iter().map(|segment| segment.to_string()).collect();
        Request { method, path, query: Vec::new(), body: None }
    }

    /// `GET` of a path of these segments.
    pub fn get<S: ToString>(path: impl IntoIterator<Item = S>) -> Request {
        Request::new(Method::Get, path)
    }

    /// `POST` to a path of these segments.
    pub fn post<S: ToString>(path: impl IntoIterator<Item = S>) -> Request {
        Request::new(Method::Post, path)
    }

    /// The same with this body.
    ///
    /// # Panics
    /// If it is no plain JSON.
    pub fn json(self, body: &impl Serialize) -> Request {
        let body = Some(serde_json::to_value(body).expect("bodies are plain JSON"));
        Request { body, ..self }
    }

    /// The same with one more parameter.
    pub fn query(mut self, name: impl ToString, value: impl ToString) -> Request {
        self.query.push((name.to_string(), value.to_string()));
        self
    }
}

/// A call with what came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "C: Call")]
pub struct Answered<C: Call> {
    /// The call, as it was decided.
    pub call: C,
    /// What came back.
    pub result: CallResult<C::Answer>,
}

/// What came back of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallResult<A> {
    /// It was done.
    Done(A),
    /// The target refused it for good, and no earlier try may have been done.
    Refused(Refused),
    /// It may have been done or not, and is not tried any more. Nothing may be decided as if it had not been done: ask
    /// the target, or a person. A *done* may still follow.
    Unknown(Unknown),
    /// It was done after all, and its handler has heard *unknown* before.
    DoneLate(A),
}

/// Why a target refused a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The status of its answer.
    pub status: u16,
    /// The beginning of its body.
    pub detail: String,
}

/// Why the outcome of a call is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// How often it was tried.
    pub tries: i32,
    /// What the last try met.
    pub detail: String,
}

/// The outcome that asks for a call.
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub struct MakeCall(pub(crate) CallChange);

/// The outcome that takes calls back.
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub struct SettleCalls(pub(crate) CallChange);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CallChange {
    Make(NewCall),
    Settle { name: &'static str, key: String },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewCall {
    pub name: &'static str,
    pub key: String,
    pub in_order: bool,
    pub call: Value,
    /// The request of a call, or the question of a task.
    pub request: Value,
}

impl NewCall {
    /// The outcome that makes it.
    ///
    /// # Panics
    /// If a part of it is too long.
    pub fn outcome(
        name: &'static str,
        key: String,
        in_order: bool,
        call: &impl Serialize,
        request: &impl Serialize,
    ) -> MakeCall {
        let call = serde_json::to_value(call).expect("calls and tasks are plain JSON");
        let request = serde_json::to_value(request).expect("requests are plain JSON");
        let bytes = call.to_string().len().max(request.to_string().len());
        assert!(bytes <= JSON_BYTES_MAX, "{name} has {bytes} bytes of {JSON_BYTES_MAX}");
        MakeCall(CallChange::Make(NewCall { name, key, in_order, call, request }))
    }
}

/// The target of a call: the part of its name up to the dot. A task is for a person.
pub fn target_of(name: &str) -> &str {
    if name.starts_with(TASK_PREFIX) {
        return PERSON;
    }
    let name = name.strip_prefix(CALL_PREFIX).unwrap_or(name);
    name.split_once('.').map_or(name, |(target, _)| target)
}

impl Outcome for MakeCall {
    const EVENTS_MAX: usize = 0;

    fn collect(self, effects: &mut Effects) {
        effects.change_call(self.0);
    }
}

impl Outcome for SettleCalls {
    const EVENTS_MAX: usize = 0;

    fn collect(self, effects: &mut Effects) {
        effects.change_call(self.0);
    }
}
