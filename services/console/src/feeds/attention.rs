//! What an operator has to know in addition to the rows of dead letters: the consumers that are paused, and how many
//! dead letters wait.

use std::collections::BTreeMap;
use std::time::Duration;

use chassis::{CachedAnswer, Problem};
use futures::future::join_all;
use ops_client::{ConsumerState, DeadLetterFilter, ServiceError, Services};

use crate::metrics::snapshot::KnownSum;
use crate::operators::Operator;

/// How old the answer is, at most.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// The answer that all viewers share.
pub type AttentionFeed = CachedAnswer<Attention>;

#[derive(Clone, Debug, Default)]
pub struct Attention {
    /// The consumers that are paused, each with the pause in a sentence.
    pub paused: Vec<(String, String)>,
    /// The dead letters that wait, by service; nothing for one that does not answer.
    pub waiting: BTreeMap<String, Option<f64>>,
}

impl Attention {
    /// The dead letters that wait in one service, or in all of them if it has no name.
    pub fn waiting(&self, service: &str) -> KnownSum {
        let meant = self.waiting.iter().filter(|(name, _)| service.is_empty() || *name == service);
        KnownSum::new(meant.map(|(name, number)| (&**name, *number)))
    }
}

/// Asks all services, unless another viewer has just done so.
pub async fn read(feed: &AttentionFeed, services: &Services, operator: &Operator) -> Attention {
    let ask = async { Ok::<_, Problem>(ask(services, operator).await) };
    feed.get(REFRESH_INTERVAL, ask).await.map(|(answer, _)| answer).unwrap_or_default()
}

async fn ask(services: &Services, operator: &Operator) -> Attention {
    let (ops, all) = (operator.ask(services), DeadLetterFilter::default());
    let waiting = join_all(services.names.iter().map(async |service| {
        let page = ops.dead_letters(service, &all, 1).await;
        (service.clone(), page.ok().map(|page| page.waiting as f64))
    }));
    let (consumers, waiting) = tokio::join!(read_consumers(services, operator), waiting);
    let paused =
        consumers.into_iter().filter_map(|(name, state)| Some((name, state.ok()?.pause()?)));
    Attention { paused: paused.collect(), waiting: waiting.into_iter().collect() }
}

/// The state of a consumer, as its service answers.
pub type Consumer = (String, Result<ConsumerState, ServiceError>);

/// Asks every service for its consumer.
pub async fn read_consumers(services: &Services, operator: &Operator) -> Vec<Consumer> {
    let ops = operator.ask(services);
    let asked = services.names.iter().map(async |name| (name.clone(), ops.consumer(name).await));
    join_all(asked).await
}
