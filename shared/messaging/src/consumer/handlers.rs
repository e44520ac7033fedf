//! The handlers of a service, as a value: they say which topics the service consumes, also where the service does not
//! run.

use crate::consumer::router::{
    BoundHandler, DecodeFn, DiscardFn, EventRouter, HandlerFn, Route, Routes,
};
use crate::dead_letter::discard_impact::DiscardImpact;
use crate::event::{Event, HandlerContext, HandlerResult, Outcome, Topic};
use crate::unit_of_work::{Loads, UnitOfWork};

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

    /// The topics that the service consumes, in the order of their names.
    pub fn topics(&self) -> Vec<&'static Topic> {
        self.routes.values().map(|route| route.topic).collect()
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
        let topic = E::topic();
        let decode: DecodeFn<R> = Box::new(move |service, written, body| {
            let event: E = topic.codec().decode(written, body)?;
            Ok(Box::new(BoundHandler { service, event, handler, on_discard }))
        });
        let earlier = self.routes.insert(topic.name, Route { topic, decode });
        assert!(earlier.is_none(), "{} has two handlers", topic.name);
        self
    }
}
