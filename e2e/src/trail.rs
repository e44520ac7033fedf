//! A saga, shown: every event of one order across the services, where it lies, how long it waited
//! where, who heard it after how many tries, and what the order is waiting for now.
//!
//! It reads what it needs: the rows of the order, and each topic from the time of the order on. All
//! of its partitions: after some were added a key's older records lie in another than its newer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use chassis::announce;
use chassis::event::{Retention, Topic};
use chrono::{DateTime, TimeDelta, Utc};
use events::TOPICS;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::checks::{Case, Expected, OrderRow, PaymentRow, ReservationRow, expected};
use crate::client::Client;
use crate::findings::Findings;
use crate::topics;
use crate::topology::SERVICES;

const REQUEST_WITHIN: Duration = Duration::from_secs(10);
const SILENT_MAX: Duration = Duration::from_secs(30);

/// How far the clocks of a database and of the broker may be apart.
const CLOCKS_APART: TimeDelta = TimeDelta::seconds(60);

/// A record of the order.
#[derive(Clone, Debug)]
struct Found {
    partition: i32,
    offset: i64,
    appended_at: DateTime<Utc>,
    announced: bool,
    /// The subscribers whose groups have gone on behind it.
    passed_by: Vec<&'static str>,
}

/// One event, with all that is known of its way.
struct Step {
    topic: &'static Topic,
    decided_at: DateTime<Utc>,
    /// The first is the one that counts; further ones are repeats.
    records: Vec<Found>,
    in_outbox: bool,
    /// When each subscriber handled it, and after how many tries.
    handled: HashMap<&'static str, (DateTime<Utc>, i32)>,
    letters: Vec<Letter>,
}

#[derive(Clone, Debug, sqlx::FromRow)]
struct Letter {
    #[sqlx(skip)]
    service: &'static str,
    letter_id: i64,
    event_id: Option<Uuid>,
    state: String,
    reason: String,
}

/// Tells the story of an order, line by line.
pub async fn run(client: &Client, order_id: Uuid) -> Result<Vec<String>> {
    let mut databases = BTreeMap::new();
    for service in SERVICES {
        let db = PgConnection::connect(&client.addresses.databases[service]).await;
        databases
            .insert(service, db.with_context(|| format!("the database of {service} is away"))?);
    }
    let case = case(&mut databases, order_id).await?;
    let order = case.order.clone().with_context(|| format!("there is no order {order_id}"))?;
    let mut expected = expected(&case, &mut Findings::default());
    expected.sort_by_key(|event| event.at);
    let ids: Vec<Uuid> = expected.iter().map(|event| event.event_id).collect();
    let (kafka, since) = (client.addresses.kafka.clone(), order.created_at - CLOCKS_APART);
    let key = order_id.to_string();
    let found = tokio::task::spawn_blocking(move || records(&kafka, &key, since)).await??;

    let mut steps: Vec<Step> = expected.iter().map(|event| Step::of(event, &found)).collect();
    for (service, db) in &mut databases {
        let waiting: Vec<Uuid> =
            sqlx::query_scalar("select event_id from outbox where event_id = any($1)")
                .bind(&ids)
                .fetch_all(&mut *db)
                .await?;
        let handled: Vec<(Uuid, DateTime<Utc>, i32)> = sqlx::query_as(
            "select event_id, received_at, attempts from inbox where event_id = any($1)",
        )
        .bind(&ids)
        .fetch_all(&mut *db)
        .await?;
        let letters: Vec<Letter> = sqlx::query_as(
            "select letter_id, event_id, state, reason from dead_letters where event_id = any($1)",
        )
        .bind(&ids)
        .fetch_all(&mut *db)
        .await?;
        for (step, event) in steps.iter_mut().zip(&expected) {
            step.in_outbox |= step.topic.publisher == *service && waiting.contains(&event.event_id);
            let handled = handled.iter().find(|(event_id, ..)| *event_id == event.event_id);
            if let Some((_, at, tries)) = handled {
                step.handled.insert(service, (*at, *tries));
            }
            let of_event = letters.iter().filter(|l| l.event_id == Some(event.event_id));
            step.letters.extend(of_event.map(|l| Letter { service, ..l.clone() }));
        }
    }
    Ok(lines(&order, &case, &steps))
}

async fn case(
    databases: &mut BTreeMap<&'static str, PgConnection>,
    order_id: Uuid,
) -> Result<Case> {
    let mut case = Case { order_id, ..Case::default() };
    for (service, db) in databases {
        match *service {
            "order" => {
                let row = sqlx::query_as::<_, OrderRow>("select * from orders where order_id = $1");
                case.order = row.bind(order_id).fetch_optional(db).await?;
            }
            "payment" => {
                let row =
                    sqlx::query_as::<_, PaymentRow>("select * from payments where order_id = $1");
                case.payment = row.bind(order_id).fetch_optional(db).await?;
            }
            "stock" => {
                let row = sqlx::query_as::<_, ReservationRow>(
                    "select * from reservations where order_id = $1",
                );
                case.reservation = row.bind(order_id).fetch_optional(db).await?;
            }
            // It keeps rows of its own, and its inbox says what it heard.
            _ => {}
        }
    }
    Ok(case)
}

/// The records of a key by event, from a time on.
fn records(
    kafka: &str,
    key: &str,
    since: DateTime<Utc>,
) -> Result<HashMap<(&'static str, Uuid), Vec<Found>>> {
    let mut found: HashMap<_, Vec<Found>> = HashMap::new();
    let again = announce::traceparent(key);
    let client = topics::reader(kafka, "trail")?;
    for topic in TOPICS.into_iter().filter(|topic| topic.retention != Retention::Compact) {
        read(&client, topic, since, |message| {
            if message.key() != Some(key.as_bytes()) {
                return;
            }
            let Some(headers) = topics::headers(message) else { return };
            let header = |name| {
                let header = headers.iter().find(|header| header.key == name)?;
                std::str::from_utf8(header.value?).ok()
            };
            let Some(event_id) = header("ce_id").and_then(|id| id.parse().ok()) else { return };
            let millis = message.timestamp().to_millis().unwrap_or_default();
            found.entry((topic.name, event_id)).or_default().push(Found {
                partition: message.partition(),
                offset: message.offset(),
                appended_at: DateTime::from_timestamp_millis(millis).unwrap_or_default(),
                announced: header("traceparent") == Some(&*again),
                passed_by: Vec::new(),
            });
        })
        .with_context(|| format!("reading {}", topic.name))?;
    }
    // Asked before the inboxes are: what a group has passed by then, its inbox knows already.
    for service in SERVICES {
        let group = topics::reader(kafka, service)?;
        for topic in TOPICS.into_iter().filter(|topic| topic.subscribers.contains(&service)) {
            if !found.keys().any(|(name, _)| *name == topic.name) {
                continue;
            }
            let behind = topics::behind(&group, topic.name)?;
            let of_topic = found.iter_mut().filter(|((name, _), _)| *name == topic.name);
            for record in of_topic.flat_map(|(_, records)| records) {
                let next = usize::try_from(record.partition).ok().and_then(|nth| behind.get(nth));
                if next.is_some_and(|(next, _)| record.offset < *next) {
                    record.passed_by.push(service);
                }
            }
        }
    }
    // Partitions come as they like.
    found.values_mut().for_each(|records| records.sort_by_key(|it| (it.appended_at, it.offset)));
    Ok(found)
}

/// Reads a topic from a time on to where its partitions ended when this began.
fn read(
    client: &BaseConsumer,
    topic: &Topic,
    since: DateTime<Utc>,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<()> {
    let ends: BTreeMap<i32, i64> = (0..)
        .zip(topics::watermarks(client, topic.name)?)
        .map(|(nth, (_, end))| (nth, end))
        .collect();
    let (mut asked, mut from) = (TopicPartitionList::new(), TopicPartitionList::new());
    for partition in ends.keys() {
        let millis = Offset::Offset(since.timestamp_millis());
        asked.add_partition_offset(topic.name, *partition, millis)?;
    }
    let mut unread = BTreeSet::new();
    for first in client.offsets_for_times(asked, REQUEST_WITHIN)?.elements() {
        // Where nothing was written since, there is no such offset.
        if let Offset::Offset(offset) = first.offset()
            && offset < ends[&first.partition()]
        {
            from.add_partition_offset(topic.name, first.partition(), first.offset())?;
            unread.insert(first.partition());
        }
    }
    client.assign(&from)?;
    while !unread.is_empty() {
        match client.poll(SILENT_MAX) {
            Some(Ok(message)) => {
                let end = ends[&message.partition()];
                if message.offset() < end {
                    each(&message);
                }
                if message.offset() + 1 >= end {
                    unread.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unread.remove(&partition);
            }
            Some(Err(error)) => return Err(error.into()),
            None => anyhow::bail!("Kafka is silent"),
        }
    }
    // Whoever still waits for records is answered nothing else meanwhile.
    Ok(client.unassign()?)
}

impl Step {
    fn of(event: &Expected, found: &HashMap<(&'static str, Uuid), Vec<Found>>) -> Step {
        let records = found.get(&(event.topic.name, event.event_id)).cloned();
        Step {
            topic: event.topic,
            decided_at: event.at,
            records: records.unwrap_or_default(),
            in_outbox: false,
            handled: HashMap::new(),
            letters: Vec::new(),
        }
    }

    /// What has not happened yet, or went wrong: who waits for whom.
    fn waits(&self) -> Vec<String> {
        let name = self.topic.name;
        let mut waits = Vec::new();
        if self.in_outbox && self.records.is_empty() {
            waits.push(format!(
                "{name} waits in the outbox of {} for Kafka to acknowledge it",
                self.topic.publisher
            ));
        } else if self.records.is_empty() {
            waits.push(format!(
                "{name} is in no topic: older than its retention, or lost with a broker's disk"
            ));
        }
        for service in self.topic.subscribers {
            let letter = self.letters.iter().find(|letter| letter.service == *service);
            match letter {
                Some(Letter { letter_id, state, reason, .. }) => waits.push(format!(
                    "{name} is a dead letter of {service}, number {letter_id}, {state}: {reason}"
                )),
                None if self.records.is_empty() || self.handled.contains_key(service) => {}
                None if self.was_passed_by(service) => waits.push(format!(
                    "{name} was passed by {service} and not handled: `make announce KEY=…` with the \
                     order's id brings it again"
                )),
                None => waits.push(format!("{name} waits for {service} to handle it")),
            }
        }
        waits
    }

    /// Whether a service has gone on behind every record of it.
    fn was_passed_by(&self, service: &str) -> bool {
        let mut records = self.records.iter();
        !self.records.is_empty() && records.all(|record| record.passed_by.contains(&service))
    }

    fn lines(&self) -> Vec<String> {
        let first = self.records.first();
        let place = first.map_or("-".into(), |r| format!("{}@{}", r.partition, r.offset));
        let waited = first.map_or("-".into(), |r| span(r.appended_at - self.decided_at));
        let heard = |service: &&'static str| match (self.handled.get(service), first) {
            (Some((at, tries)), Some(record)) => {
                // Of an announced record the inbox may have known since before.
                let waited = *at - record.appended_at;
                let known = waited < -CLOCKS_APART;
                let waited = if known { "before".into() } else { span(waited) };
                (service.to_string(), waited, tries.to_string())
            }
            (Some((_, tries)), None) => (service.to_string(), "-".into(), tries.to_string()),
            (None, _) if self.was_passed_by(service) => {
                (service.to_string(), "passed".into(), "-".into())
            }
            (None, _) => (service.to_string(), "waits".into(), "-".into()),
        };
        let mut subscribers = self.topic.subscribers.iter().map(heard);
        let nobody = ("nobody".into(), String::new(), String::new());
        let (by, topic, tries) = subscribers.next().unwrap_or(nobody);
        let mut lines = vec![row(
            &self.decided_at.format("%H:%M:%S%.3f").to_string(),
            self.topic.name,
            &place,
            &waited,
            [&by, &topic, &tries],
        )];
        for (by, topic, tries) in subscribers {
            lines.push(row("", "", "", "", [&by, &topic, &tries]));
        }
        for again in self.records.iter().skip(1) {
            let how = if again.announced { "announced again" } else { "a repeat" };
            let place = format!("{}@{}", again.partition, again.offset);
            let at = again.appended_at.format("%H:%M:%S%.3f");
            lines.push(format!("                {how} at {place}, {at}"));
        }
        lines
    }
}

/// At most 100 columns.
fn row(decided: &str, event: &str, place: &str, outbox: &str, heard: [&str; 3]) -> String {
    let [by, topic, tries] = heard;
    let line = format!(
        "  {decided:<12}  {event:<18}  {place:<13}  {outbox:>9}  {by:<10}  {topic:>9}  {tries:>5}"
    );
    line.trim_end().to_string()
}

/// A span of time, to the digit that matters.
fn span(span: TimeDelta) -> String {
    let millis = span.num_milliseconds().max(0);
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", millis as f64 / 1_000.0),
        60_000..3_600_000 => format!("{} min {} s", millis / 60_000, millis / 1_000 % 60),
        _ => format!("{} h {} min", millis / 3_600_000, millis / 60_000 % 60),
    }
}

fn lines(order: &OrderRow, case: &Case, steps: &[Step]) -> Vec<String> {
    let mut lines = vec![
        format!("order {} of {}", order.order_id, order.created_at.format("%Y-%m-%d, UTC")),
        String::new(),
        row("DECIDED", "EVENT", "PLACE", "IN OUTBOX", ["HEARD BY", "IN TOPIC", "TRIES"]),
    ];
    lines.extend(steps.iter().flat_map(Step::lines));
    lines.push(String::new());
    let reason = order.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let mut state = format!(
        "  status {}{reason}, payment {}, stock {}",
        order.status, order.payment, order.stock
    );
    if let Some(ended_at) = order.ended_at {
        let _ =
            write!(state, "; decided {} after it was placed", span(ended_at - order.created_at));
    }
    lines.push(state);
    let mut waits: Vec<String> = steps.iter().flat_map(Step::waits).collect();
    let open = [
        ("payment", case.payment.is_none(), order.payment == "waiting"),
        ("stock", case.reservation.is_none(), order.stock == "waiting"),
    ];
    for (service, no_row, waiting) in open {
        if waiting && no_row {
            waits.push(format!("the order waits for an answer of {service}"));
        }
    }
    if waits.is_empty() && order.status != "pending" {
        waits.push("nothing is waited for".into());
    }
    lines.extend(waits.into_iter().map(|wait| format!("  {wait}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_consumer_has_passed_without_handling_it_does_not_wait_for_it() {
        let record = |passed_by: &[&'static str]| Found {
            partition: 0,
            offset: 8,
            appended_at: Utc::now(),
            announced: false,
            passed_by: passed_by.to_vec(),
        };
        let says = |records| {
            let step = Step {
                topic: &events::payments::VERIFIED,
                decided_at: Utc::now(),
                records,
                in_outbox: false,
                handled: HashMap::new(),
                letters: Vec::new(),
            };
            (step.waits().join("; "), step.lines().join("; "))
        };
        let (why, line) = says(vec![record(&["order"])]);
        assert!(why.contains("passed by order") && line.contains("passed"), "{why}: {line}");
        for records in [vec![record(&[])], vec![record(&["order"]), record(&[])]] {
            let (why, line) = says(records);
            assert!(why.contains("waits for order") && line.contains("waits"), "{why}: {line}");
        }
    }

    #[test]
    fn a_line_fits_into_100_columns() {
        let long = row(
            "23:59:59.999",
            "payments.refunded",
            "11@1234567890",
            "59 min 59 s",
            ["payment", "59 min 59 s", "1000"],
        );
        assert!(long.chars().count() <= 100, "{}", long.len());
        assert_eq!(span(TimeDelta::milliseconds(61_500)), "1 min 1 s");
        assert_eq!(span(TimeDelta::milliseconds(-3)), "0 ms");
    }
}
