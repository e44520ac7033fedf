//! The consumer brings other services' events in.
//!
//! It joins the service's group, reads ahead, and hands batches on to be handled; see
//! [`crate::batches`] for what is promised of them.

pub(crate) mod deferred;
pub(crate) mod progress;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use futures::future::try_join_all;
use metrics::{counter, gauge};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::ahead::{self, Ahead};
use crate::batches::{Batches, PAUSED_LOOK_EVERY};
use crate::config::Kafka;
use crate::event::{Answer, At, Event, Isolation, Outcome};
use crate::group::Group;
use crate::inbox;
use crate::kafka;
use crate::loss::Loss;
use crate::member::{self, Reports};
use crate::operator;
use crate::pace::{Crowd, Wait};
use crate::probes::Heartbeat;
use crate::registry::Registry;
use crate::replay::Letters;
use crate::route::Routes;
use crate::rows::{Rows, Touches};
use crate::wake::Wake;

/// Records in one batch, at most.
const BATCH_MAX: usize = 1_000;

/// Records read ahead and not yet taken into a batch, at most.
const AHEAD_MAX: usize = 2_000;

/// So many records in one batch are a crowd: the two answers to one command are none.
const CROWD: usize = 3;

/// Within this wait the pieces of what was committed together come, one from each partition.
const WAIT: Wait = Wait { at_most: Duration::from_millis(12), in_vain: Duration::from_millis(6) };

/// How long leaving the group may take; correctness does not need it to succeed.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// One of the three loops of a service.
pub struct Consumer<R: Rows> {
    pub(crate) service: &'static str,
    config: Kafka,
    pub(crate) db: PgPool,
    pub(crate) registry: Arc<Registry>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) routes: Arc<Routes<R>>,
    pub(crate) group: Group,
}

impl<R: Rows> Consumer<R> {
    /// A consumer without handlers; add each with [`Consumer::on`].
    pub(crate) fn new(
        service: &'static str,
        config: &Kafka,
        db: PgPool,
        registry: Arc<Registry>,
        wake: Arc<Wake>,
        heartbeat: Heartbeat,
    ) -> Consumer<R> {
        let config = config.clone();
        let (routes, group) = (Arc::new(Routes::of(service)), Group::default());
        Consumer { service, config, db, registry, wake, heartbeat, routes, group }
    }

    /// Handles a topic. Which one, with which schema and which rows, is read off the handler's type.
    /// Beside it stands what it would cost to discard such an event, should it ever lie among the
    /// dead letters.
    ///
    /// Events of different topics come in any order, and so do those that are replayed or announced:
    /// whichever of two comes first, the rows must end the same. One that is merely early is not
    /// impossible. A topic of state has no inbox: its handler is called for every delivery, and does
    /// nothing unless the record's version is higher than the row's.
    ///
    /// # Panics
    /// If the topic has a handler already, or does not name this service among its subscribers, or
    /// the operators' port was made before: mistakes of wiring, found at the first start.
    pub fn on<E: Event, O: Outcome + 'static>(
        mut self,
        handler: fn(&E, &mut R, At) -> Answer<O>,
        if_discarded: fn(&E, &R) -> Loss,
    ) -> Self
    where
        R: Touches<E>,
    {
        let routes = Arc::get_mut(&mut self.routes).expect("handlers come before the operators");
        routes.add(handler, if_discarded);
        self.registry.declare(E::topic());
        self
    }

    /// A handle that tells whether this service's group has read everything there is.
    pub fn group(&self) -> Group {
        self.group.clone()
    }

    /// What operators may do about this consumer and its dead letters.
    pub fn operator(&self) -> Router {
        let (db, registry) = (self.db.clone(), self.registry.clone());
        let (routes, wake) = (self.routes.clone(), self.wake.clone());
        operator::router(Letters { db, registry, routes, wake })
    }

    /// Runs until stopped. Whatever fails and may pass is tried again, for ever.
    ///
    /// # Errors
    /// What does not pass: a client of Kafka can't be made of its settings or can't subscribe, or
    /// the task that reads ahead has ended.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let pruning = tokio::spawn(inbox::prune(self.db.clone()));
        // How a client isolates holds for all that it reads: topics of another isolation have another client,
        // which is a member of the same group.
        let topics = self.routes.topics();
        self.group.joined_by_all(topics.keys().copied()).await;
        let read = |(isolation, topics): (&Isolation, &Vec<&'static str>)| {
            let (this, stop, isolation, topics) = (&self, &stop, *isolation, topics.clone());
            async move {
                while !stop.is_cancelled() {
                    this.read(isolation, &topics, stop).await?;
                }
                Ok(())
            }
        };
        let ended = try_join_all(topics.iter().map(read)).await.map(drop);
        pruning.abort();
        ended
    }

    /// Reads with one client, until stopped or until that is of no more use, as when the cluster that it
    /// found was replaced by one that was made anew. The next client goes on from what is committed,
    /// and reads a cluster made anew from its beginning.
    async fn read(
        &self,
        isolation: Isolation,
        topics: &[&'static str],
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        for topic in topics {
            // Until the client tells that it reads some: what it does not read has no lag here.
            gauge!("consumer_partitions", "topic" => *topic).set(0);
        }
        let client: StreamConsumer<Reports> =
            kafka::consumer(self.service, &self.config, isolation)
                .create_with_context(Reports::new(isolation))?;
        let client = Arc::new(client);
        client.subscribe(topics)?;
        let plain = kafka::client(self.service, &self.config);
        self.group.joined_by(isolation, &client, plain).await;
        let (ahead, mut records) = mpsc::channel(AHEAD_MAX);
        let reading = tokio::spawn(ahead::read(client.clone(), ahead));

        let mut batches = self.batches(&client, stop);
        batches.paused_looked_at().await;
        let mut batch: Vec<Ahead> = Vec::with_capacity(BATCH_MAX);
        let mut looked_at = Instant::now();
        let mut crowd = Crowd::of(CROWD);
        while !stop.is_cancelled() && member::beyond_repair(&client).is_none() {
            self.heartbeat.beat();
            if looked_at.elapsed() > PAUSED_LOOK_EVERY {
                batches.paused_looked_at().await;
                looked_at = Instant::now();
            }
            let due_at = batches.next_due();
            let due = async {
                match due_at {
                    Some(due_at) => tokio::time::sleep_until(due_at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = due => batches.retry_deferred().await,
                taken = records.recv_many(&mut batch, BATCH_MAX) => {
                    anyhow::ensure!(taken > 0, "the reading task ended");
                    crowd.fill(&mut batch, BATCH_MAX, &mut records, WAIT).await;
                    let behind = batch.len() == BATCH_MAX;
                    let assigned = client.context().assigned();
                    let (messages, memory): (Vec<_>, Vec<_>) = batch
                        .drain(..)
                        .filter(|ahead| ahead.is_of(&assigned))
                        .map(|ahead| (ahead.message, ahead.memory))
                        .unzip();
                    batches.handle(messages, &assigned).await;
                    self.wake.consuming.taken(behind);
                    drop(memory);
                }
                // Nothing came for a while: it is not behind, though the last batch was full.
                () = tokio::time::sleep(PAUSED_LOOK_EVERY) => {
                    self.wake.consuming.taken(false);
                    client.context().sayings.nothing_was_read();
                }
            }
        }
        if !stop.is_cancelled()
            && let Some(because) = member::beyond_repair(&client)
        {
            warn!("the consumer goes on with a new client: {because}");
            counter!("consumer_clients_rebuilt_total").increment(1);
        }
        if stop.is_cancelled() {
            // The reader goes on meanwhile: it answers for the group.
            member::unsubscribed(&client).await;
        }
        reading.abort();
        self.group.left(isolation).await;
        // Once nobody else has it: it commits what is stored and leaves the group, so that others take
        // over at once. Where it hangs, its session ends by itself; or after `max.poll.interval.ms`, where
        // it still sends heartbeats.
        if tokio::time::timeout(LEAVE_WITHIN, kafka::closed(client)).await.is_err() {
            warn!("the consumer group could not be left in time");
        }
        Ok(())
    }

    /// The loop's one step, apart from where its batches come from.
    pub(crate) fn batches<'a>(
        &'a self,
        client: &'a Arc<StreamConsumer<Reports>>,
        stop: &'a CancellationToken,
    ) -> Batches<'a, R> {
        Batches::of(self, client, stop)
    }
}
