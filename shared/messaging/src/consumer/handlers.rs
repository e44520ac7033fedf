//! The handlers of a service, as a value: they say which topics the service consumes, also where the service does not
//! run.

use crate::consumer::router::{
    BoundHandler, DecodeFn, DiscardFn, EventRouter, HandlerFn, JsonDecodeFn, Route, Routes, topics,
};
use crate::dead_letter::discard_impact::DiscardImpact;
use crate::event::avro::Undecodable;
use crate::event::call::PERSON;
use crate::event::timer::Guard;
use crate::event::{
    Answered, AnsweredTask, CALL_PREFIX, Call, Event, HandlerContext, HandlerResult, Outcome,
    TASK_PREFIX, TIMER_PREFIX, Task, Timer, Topic, WEBHOOK_PREFIX, Webhook, target_of,
};
use crate::transaction::incoming_record::Source;
use crate::unit_of_work::{Loads, UnitOfWork};
use serde::de::DeserializeOwned;

/// The handlers of a service. `R` is its unit of work.
pub struct Handlers<R: UnitOfWork> {
    routes: Routes<R>,
}

impl<R: UnitOfWork> Default for Handlers<R> {
    fn default() -> Handlers<R> {
        Handlers { routes: Routes::new() }
    }
}

impl<R: UnitOfWork> Handlers<R> {
    /// No handlers; add each with [`Handlers::on`] or [`Handlers::on_with`].
    pub fn new() -> Handlers<R> {
        Handlers::default()
    }

    /// Adds the handler of a topic. The handler's type determines the topic, its schema and the rows.
    ///
    /// Events of different topics arrive in any order, and so do replayed and republished ones. The rows must
    /// end the same for every order, and an event that is merely early is not unprocessable. A topic of state
    /// has no inbox: its handler is called for every delivery, and does nothing unless the record's version is
    /// higher than the row's.
    ///
    /// # Panics
    /// If the topic already has a handler.
    pub fn on<E: Event, O: Outcome + 'static>(
        self,
        handler: fn(&E, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Handlers<R>
    where
        R: Loads<E>,
    {
        self.add(handler, None)
    }

    /// Adds the handler of a topic as [`Handlers::on`] does, and states what it costs to discard one of its events
    /// that became a dead letter: its consequence, a remedy, and what is written off. Without such a statement, the
    /// operator reads that the event was never handled here.
    ///
    /// # Panics
    /// As [`Handlers::on`] does.
    pub fn on_with<E: Event, O: Outcome + 'static>(
        self,
        handler: fn(&E, &mut R, HandlerContext) -> HandlerResult<O>,
        on_discard: fn(&E, &R) -> DiscardImpact,
    ) -> Handlers<R>
    where
        R: Loads<E>,
    {
        self.add(handler, Some(on_discard))
    }

    /// Adds the handler of a timer, which is called when the timer is due. Its type determines the name.
    ///
    /// A timer fires once in effect, at its time or later: never if it was cancelled or moved before, by another
    /// decision that committed first. The handler looks at the rows, which may have changed since the timer was set.
    ///
    /// # Panics
    /// If the name has a handler already, or is none of a timer.
    pub fn on_due<T: Timer, O: Outcome + 'static>(
        self,
        handler: fn(&T, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Handlers<R>
    where
        R: Loads<T>,
    {
        self.on_scheduled((TIMER_PREFIX, T::NAME), Guard::of::<T>(), handler, from_json)
    }

    /// Adds the handler of what comes back of a call. Its type determines the name.
    ///
    /// It hears each result once in effect: *done*, *refused* or *unknown*, and after *unknown* perhaps *done late*.
    ///
    /// # Panics
    /// If the name has a handler already, or is none of a call.
    pub fn on_answer<C: Call, O: Outcome + 'static>(
        self,
        handler: fn(&Answered<C>, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Handlers<R>
    where
        R: Loads<Answered<C>>,
    {
        assert_ne!(target_of(C::NAME), PERSON, "a task is for a person");
        self.on_scheduled((CALL_PREFIX, C::NAME), Guard::NONE, handler, from_json)
    }

    /// Adds the handler of the answers to a task. Its type determines the name. It hears one answer, once in effect.
    ///
    /// # Panics
    /// If the name has a handler already, or is none of a task.
    pub fn on_task<T: Task, O: Outcome + 'static>(
        self,
        handler: fn(&AnsweredTask<T>, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Handlers<R>
    where
        R: Loads<AnsweredTask<T>>,
    {
        self.on_scheduled((TASK_PREFIX, T::NAME), Guard::NONE, handler, from_json)
    }

    /// Adds the handler of a webhook, which is called for each delivery, once in effect. Its type determines the name.
    ///
    /// Deliveries come in any order, and one of them may never come.
    ///
    /// # Panics
    /// If the name has a handler already, or is none of a webhook.
    pub fn on_delivery<W: Webhook, O: Outcome + 'static>(
        self,
        handler: fn(&W, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Handlers<R>
    where
        R: Loads<W>,
    {
        let guard = Guard { patience: W::PATIENCE, ..Guard::NONE };
        // It is stored as it came: as a text.
        let decode = |body: &[u8]| {
            serde_json::from_slice::<String>(body).and_then(|text| serde_json::from_str(&text))
        };
        self.on_scheduled((WEBHOOK_PREFIX, W::NAME), guard, handler, decode)
    }

    fn on_scheduled<T: Send + Sync + 'static, O: Outcome + 'static>(
        mut self,
        (prefix, name): (&str, &'static str),
        guard: Guard,
        handler: HandlerFn<R, T, O>,
        decode: fn(&[u8]) -> serde_json::Result<T>,
    ) -> Handlers<R>
    where
        R: Loads<T>,
    {
        assert!(name.starts_with(prefix), "{name} does not begin with {prefix}");
        let source = Source::Scheduled(name);
        let decode: JsonDecodeFn<R> = Box::new(move |service, body| {
            let event =
                decode(body).map_err(|error| Undecodable(format!("it is no {name}: {error}")))?;
            Ok(Box::new(BoundHandler { service, source, event, handler, on_discard: None }))
        });
        self.insert(name, Route::Scheduled(name, guard, decode));
        self
    }

    /// The topics that the service consumes, in the order of their names.
    pub fn topics(&self) -> Vec<&'static Topic> {
        topics(&self.routes).collect()
    }

    /// The router of the records of this service.
    pub fn into_router(self, service: &'static str) -> EventRouter<R> {
        EventRouter::new(service, self.routes)
    }

    fn add<E: Event, O: Outcome + 'static>(
        mut self,
        handler: HandlerFn<R, E, O>,
        on_discard: Option<DiscardFn<R, E>>,
    ) -> Handlers<R>
    where
        R: Loads<E>,
    {
        let (topic, source) = (E::topic(), Source::Topic(E::topic()));
        let decode: DecodeFn<R> = Box::new(move |service, written, body| {
            let event: E = topic.codec().decode(written, body)?;
            Ok(Box::new(BoundHandler { service, source, event, handler, on_discard }))
        });
        self.insert(topic.name, Route::Topic(topic, decode));
        self
    }

    fn insert(&mut self, name: &'static str, route: Route<R>) {
        let earlier = self.routes.insert(name, route);
        assert!(earlier.is_none(), "{name} has two handlers");
    }
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(body)
}
