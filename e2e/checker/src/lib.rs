#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod compare; // the rules, as pure functions
mod records; // reads topics
mod rows; // reads databases
mod verdict;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chassis::Topic;

pub use verdict::Verdict;

const QUIESCENCE_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What to compare: topics, and the databases of services.
pub struct System {
    kafka: String,
    topics: &'static [&'static Topic],
    databases: BTreeMap<String, String>,
    queries: BTreeMap<&'static str, &'static str>,
}

impl System {
    /// These topics, on brokers at this address (`host:port`).
    pub fn new(kafka: &str, topics: &'static [&'static Topic]) -> System {
        let (databases, queries) = (BTreeMap::new(), BTreeMap::new());
        System { kafka: kafka.to_owned(), topics, databases, queries }
    }

    /// Compares a service too, by the URL of its database. The role needs the right to read its tables.
    pub fn database(mut self, service: &str, url: &str) -> System {
        self.databases.insert(service.to_owned(), url.to_owned());
        self
    }

    /// Compares a topic with the rows of its publisher: the query returns the id of each event that a row records, in
    /// one column.
    pub fn rows(mut self, topic: &'static str, query: &'static str) -> System {
        self.queries.insert(topic, query);
        self
    }

    /// Waits for up to a minute until nothing is pending, then compares. Whatever is still pending is a violation.
    ///
    /// # Errors
    /// If a database or Kafka cannot be read, or a topic with a query is not declared.
    pub async fn check(&self) -> Result<Verdict> {
        let databases = rows::connect(&self.databases).await?;
        let mut verdict = Verdict::default();
        let began = Instant::now();
        let pending = loop {
            let mut pending = rows::pending(&databases).await?;
            pending.extend(records::find_lag(&self.kafka, self.topics, &self.databases).await?);
            if pending.is_empty() || began.elapsed() > QUIESCENCE_TIMEOUT {
                break pending;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        pending.into_iter().for_each(|what| verdict.add("not quiescent", || what));

        let records = records::read(&self.kafka, self.topics).await?;
        verdict.records = records.len() as u64;
        let events = compare::events(&records, &mut verdict);
        compare::check_arrival(&records, &mut verdict);
        for (service, db) in &databases {
            let subscribed = self.topics.iter().filter(|topic| {
                topic.subscribers.contains(&service.as_str())
                    && topic.retention != chassis::Retention::Compact
            });
            let subscribed = Vec::from_iter(subscribed.map(|topic| topic.name));
            let handled = rows::handled(db, service).await?;
            compare::check_subscriber(&subscribed, &records, &events, &handled, &mut verdict);
        }
        for (name, query) in &self.queries {
            let topic = self.topics.iter().find(|topic| topic.name == *name);
            let topic = topic.with_context(|| format!("{name} is no declared topic"))?;
            let db = databases.get(topic.publisher);
            let db = db.with_context(|| format!("{} has no database here", topic.publisher))?;
            compare::check_publisher(
                name,
                &rows::event_ids(db, query).await?,
                &events,
                &mut verdict,
            );
        }
        Ok(verdict)
    }
}
