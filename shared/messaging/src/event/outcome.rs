//! The outcome of a decision: what it wants done beside its rows. It publishes events, sets timers and asks for calls.
//!
//! Promise: the events of a decision have the same ids when it is made once more, also by another version. Their ids
//! therefore depend neither on their order nor on their number.

use uuid::Uuid;

use crate::event::call::CallChange;
use crate::event::handler::keyed_id;
use crate::event::timer::TimerChange;
use crate::event::{Event, HandlerContext, Outgoing, Topic};

/// What a handler or a command wants done: an event, a [`SetTimer`] or a [`CancelTimer`], a [`MakeCall`] or
/// [`SettleCalls`], `()` for nothing, an `Option` or a tuple of outcomes, or a type with `#[derive(Outcome)]`. An enum is
/// one of several outcomes. A tuple or a struct is several outcomes together.
///
/// [`SetTimer`]: crate::event::SetTimer
/// [`CancelTimer`]: crate::event::CancelTimer
/// [`MakeCall`]: crate::event::MakeCall
/// [`SettleCalls`]: crate::event::SettleCalls
#[diagnostic::on_unimplemented(
    note = "outcomes are events, timers, calls, `()`, options and tuples of them, and types with `#[derive(Outcome)]`"
)]
pub trait Outcome {
    /// The number of its events, at most. An event of a tuple or a struct that may hold two has the id
    /// [`HandlerContext::id_of`], and any other event the id [`HandlerContext::event_id`].
    const EVENTS_MAX: usize;

    /// Adds what it holds, events in the order in which they are published.
    fn collect(self, effects: &mut Effects);
}

#[diagnostic::do_not_recommend]
impl<E: Event> Outcome for E {
    const EVENTS_MAX: usize = 1;

    fn collect(self, effects: &mut Effects) {
        effects.add(Outgoing::from_event(&self));
    }
}

impl Outcome for () {
    const EVENTS_MAX: usize = 0;

    fn collect(self, _: &mut Effects) {}
}

impl<O: Outcome> Outcome for Option<O> {
    const EVENTS_MAX: usize = O::EVENTS_MAX;

    fn collect(self, effects: &mut Effects) {
        self.into_iter().for_each(|outcome| outcome.collect(effects));
    }
}

macro_rules! tuple_is_outcome {
    ($($outcome:ident $nth:tt),+) => {
        impl<$($outcome: Outcome),+> Outcome for ($($outcome),+) {
            const EVENTS_MAX: usize = 0 $(+ $outcome::EVENTS_MAX)+;

            fn collect(self, effects: &mut Effects) {
                effects.may_hold(Self::EVENTS_MAX);
                $(self.$nth.collect(effects);)+
            }
        }
    };
}
tuple_is_outcome!(A 0, B 1);
tuple_is_outcome!(A 0, B 1, C 2);
tuple_is_outcome!(A 0, B 1, C 2, D 3);

/// The largest of some numbers, for the code that `#[derive(Outcome)]` writes.
#[doc(hidden)]
pub const fn largest(numbers: &[usize]) -> usize {
    let (mut largest, mut nth) = (0, 0);
    while nth < numbers.len() {
        if numbers[nth] > largest {
            largest = numbers[nth];
        }
        nth += 1;
    }
    largest
}

/// What an outcome holds, in its order.
#[derive(Debug, Default)]
pub struct Effects {
    events: Vec<Outgoing>,
    pub(crate) timers: Vec<TimerChange>,
    pub(crate) calls: Vec<CallChange>,
    have_keyed_ids: bool,
}

impl Effects {
    /// Collects what an outcome holds.
    pub fn of(outcome: impl Outcome) -> Effects {
        let mut effects = Effects::default();
        outcome.collect(&mut effects);
        effects
    }

    /// For a tuple or a struct that may hold so many events. If it may hold two, each event gets the id
    /// [`HandlerContext::id_of`].
    pub fn may_hold(&mut self, events: usize) {
        self.have_keyed_ids |= events > 1;
    }

    fn add(&mut self, event: Outgoing) {
        let Outgoing { topic: Topic { name, .. }, key, .. } = &event;
        let is_new = |other: &Outgoing| other.topic.name != *name || other.key != *key;
        let is_new = self.events.iter().all(is_new);
        assert!(is_new, "its outcome has two events of {name} with the key {key}");
        let is_alone = self.events.is_empty();
        assert!(is_alone || self.have_keyed_ids, "its outcome has two events with one id");
        self.events.push(event);
    }

    /// Adds a change of a timer. Of two changes of one timer the last one counts.
    pub(crate) fn change_timer(&mut self, change: TimerChange) {
        self.timers.push(change);
    }

    /// Adds what is wanted of calls.
    pub(crate) fn change_call(&mut self, change: CallChange) {
        self.calls.push(change);
    }

    pub(crate) fn has_no_event(&self) -> bool {
        self.events.is_empty()
    }

    /// # Panics
    /// If another service is the publisher of a topic. This service has not stored its schema, so the relay would
    /// back off that topic for ever.
    pub(crate) fn assert_published_by(&self, service: &str) {
        for Outgoing { topic: Topic { name, publisher: by, .. }, .. } in &self.events {
            assert!(*by == service, "{name} is published by {by} and not by {service}");
        }
    }

    /// Each event with its id.
    pub fn with_ids(self, context: HandlerContext) -> impl Iterator<Item = (Uuid, Outgoing)> {
        let Effects { events, have_keyed_ids, .. } = self;
        events.into_iter().map(move |event| match have_keyed_ids {
            true => (keyed_id(context.event_id, event.topic.name, &event.key), event),
            false => (context.event_id, event),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use chrono::DateTime;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::telemetry::panics::catch_panic;
    use derive::Outcome;

    const EVENT_ID: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_cdef);

    const SCHEMA: &str =
        r#"{"type": "record", "name": "Done", "fields": [{"name": "key", "type": "string"}]}"#;

    static TOPICS: [Topic; 4] = [
        Topic::new("shop.a", "shop", SCHEMA),
        Topic::new("shop.b", "shop", SCHEMA),
        Topic::new("shop.c", "shop", SCHEMA),
        Topic::new("bank.d", "bank", SCHEMA),
    ];

    /// An event of the topic with this index.
    #[derive(Clone, Serialize, Deserialize)]
    struct Done<const TOPIC: usize> {
        key: String,
    }

    impl<const TOPIC: usize> Event for Done<TOPIC> {
        fn topic() -> &'static Topic {
            &TOPICS[TOPIC]
        }
        fn key(&self) -> String {
            self.key.clone()
        }
    }

    #[derive(Outcome)]
    enum Answer {
        One(Done<0>),
        Both((Done<0>, Done<1>)),
        Silent,
    }

    #[derive(Outcome)]
    struct Shipment {
        first: Done<0>,
        second: Option<Answer>,
    }

    /// By hand, and without `may_hold`.
    struct Careless(Done<0>, Done<1>);

    impl Outcome for Careless {
        const EVENTS_MAX: usize = 2;

        fn collect(self, effects: &mut Effects) {
            self.0.collect(effects);
            self.1.collect(effects);
        }
    }

    fn done<const TOPIC: usize>(key: &str) -> Done<TOPIC> {
        Done { key: key.to_string() }
    }

    fn context() -> HandlerContext {
        HandlerContext { now: DateTime::UNIX_EPOCH, event_id: EVENT_ID, causation_id: None }
    }

    /// The name of the topic, the key and the id of each event.
    fn published(outcome: impl Outcome) -> Vec<(&'static str, String, Uuid)> {
        let events = Effects::of(outcome).with_ids(context());
        events.map(|(event_id, event)| (event.topic.name, event.key, event_id)).collect()
    }

    /// The same of one event, as a handler states it.
    fn keyed<E: Event>(event: E) -> (&'static str, String, Uuid) {
        (E::topic().name, event.key(), context().id_of(&event))
    }

    fn panic_of(outcome: impl Outcome) -> String {
        catch_panic(|| Effects::of(outcome)).unwrap_err()
    }

    #[test]
    fn an_event_that_is_alone_or_one_of_several_has_the_id_of_the_context() {
        let alone = vec![("shop.a", "x".to_string(), EVENT_ID)];
        assert_eq!(published(done::<0>("x")), alone);
        assert_eq!(published(Some(done::<0>("x"))), alone);
        assert_eq!(published(Answer::One(done("x"))), alone);
        for nothing in [published(()), published(None::<Done<0>>), published(Answer::Silent)] {
            assert!(nothing.is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn an_event_with_others_has_the_same_id_in_any_order_and_with_any_others() {
        let (a, b, c) = (keyed(done::<0>("x")), keyed(done::<1>("x")), keyed(done::<2>("x")));
        assert_eq!(published((done::<0>("x"), done::<1>("x"))), [a.clone(), b.clone()]);
        assert_eq!(published((done::<1>("x"), done::<0>("x"))), [b.clone(), a.clone()]);
        assert_eq!(published(((), None::<Done<1>>, done::<0>("x"))), from_ref(&a));
        let four = (done::<2>("x"), (), (done::<1>("x"), ()), Answer::One(done("x")));
        assert_eq!(published(four), [c, b.clone(), a.clone()]);
        assert_eq!(published(Answer::Both((done("x"), done("x")))), [a.clone(), b]);
        let ids = [done::<0>("x"), done("y")].map(|event| context().id_of(&event));
        assert!(ids[0] != ids[1] && !ids.contains(&EVENT_ID), "{ids:?}");
        assert_eq!(published((done::<0>("x"), done::<0>("y"))), [a, keyed(done::<0>("y"))]);
    }

    #[test]
    fn a_struct_is_the_outcomes_of_its_fields_in_their_order() {
        let shipment = |second| published(Shipment { first: done("x"), second });
        let (first, other) = (keyed(done::<0>("x")), keyed(done::<0>("y")));
        assert_eq!(shipment(None), from_ref(&first));
        assert_eq!(shipment(Some(Answer::One(done("y")))), [first, other]);
    }

    #[test]
    fn two_events_of_one_topic_and_key_are_refused_in_any_outcome() {
        let expected = "its outcome has two events of shop.a with the key x";
        assert_eq!(panic_of((done::<0>("x"), done::<0>("x"))), expected);
        let second = Some(Answer::One(done("x")));
        assert_eq!(panic_of(Shipment { first: done("x"), second }), expected);
        let careless = panic_of(Careless(done("x"), done("x")));
        assert_eq!(careless, "its outcome has two events with one id");
    }

    #[test]
    fn each_event_has_to_be_of_a_topic_of_its_service() {
        let foreign = Effects::of((done::<0>("x"), done::<3>("x")));
        let panic = catch_panic(|| foreign.assert_published_by("shop")).unwrap_err();
        assert_eq!(panic, "bank.d is published by bank and not by shop");
        Effects::of((done::<0>("x"), done::<1>("x"))).assert_published_by("shop");
    }
}
