//! Who consumes which topics.

use crate::event::Topic;

/// The services of a system, each with the topics that it consumes. Its handlers say them, so nothing lists them by
/// hand.
#[derive(Clone, Debug, Default)]
pub struct Subscriptions(Vec<(&'static str, Vec<&'static Topic>)>);

impl Subscriptions {
    /// Each service with what it consumes: `("order", order::handlers().topics())`.
    pub fn new(
        services: impl IntoIterator<Item = (&'static str, Vec<&'static Topic>)>,
    ) -> Subscriptions {
        Subscriptions(services.into_iter().collect())
    }

    /// The services, in the order in which they were given.
    pub fn services(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(service, _)| *service)
    }

    /// The services that consume a topic, in the same order.
    pub fn subscribers(&self, topic: &Topic) -> Vec<&'static str> {
        let consumes = |topics: &[&Topic]| topics.iter().any(|it| it.name == topic.name);
        let subscribers = self.0.iter().filter(|(_, topics)| consumes(topics));
        subscribers.map(|(service, _)| *service).collect()
    }

    /// The topics that a service consumes.
    pub fn topics(&self, service: &str) -> &[&'static Topic] {
        let topics = self.0.iter().find(|(name, _)| *name == service);
        topics.map_or(&[], |(_, topics)| topics)
    }
}
