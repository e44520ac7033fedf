//! A saga, shown: every event of one order across the services, where it lies, how long it waited
//! where, who heard it after how many tries, and what the order is waiting for now.
//!
//! It reads what it needs: the rows of the order, and of each topic the one partition that the key
//! belongs to, from the time of the order on.

use std::collections::{BTreeMap, HashMap};
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

/// The records of a key by event, from a time on: of each topic one partition.
fn records(
    kafka: &str,
    key: &str,
    since: DateTime<Utc>,
) -> Result<HashMap<(&'static str, Uuid), Vec<Found>>> {
    let mut found: HashMap<_, Vec<Found>> = HashMap::new();
    let again = announce::traceparent(key);
    let client = topics::reader(kafka, "trail")?;
    for topic in TOPICS.into_iter().filter(|topic| topic.retention != Retention::Compact) {
        let count = topics::partitions(&client, topic.name)?;
        let partition = partition_of(key.as_bytes(), count);
        read(&client, topic, partition, since, |message| {
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
                partition,
                offset: message.offset(),
                appended_at: DateTime::from_timestamp_millis(millis).unwrap_or_default(),
                announced: header("traceparent") == Some(&*again),
            });
        })
        .with_context(|| format!("reading {}", topic.name))?;
    }
    Ok(found)
}

/// Reads a partition from a time on to where it ended when this began.
fn read(
    client: &BaseConsumer,
    topic: &Topic,
    partition: i32,
    since: DateTime<Utc>,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<()> {
    let (_, end) = client.fetch_watermarks(topic.name, partition, REQUEST_WITHIN)?;
    let mut asked = TopicPartitionList::new();
    let millis = Offset::Offset(since.timestamp_millis());
    asked.add_partition_offset(topic.name, partition, millis)?;
    let from = client.offsets_for_times(asked, REQUEST_WITHIN)?;
    match from.elements().first().map(|place| place.offset()) {
        Some(Offset::Offset(first)) if first < end => {}
        // Nothing was written since.
        _ => return Ok(()),
    }
    client.assign(&from)?;
    loop {
        match client.poll(SILENT_MAX) {
            Some(Ok(message)) if message.offset() < end => {
                each(&message);
                if message.offset() + 1 >= end {
                    return Ok(());
                }
            }
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            None => anyhow::bail!("Kafka is silent"),
        }
    }
}

/// Where a Java client puts a key, and so where our relays do.
fn partition_of(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & i32::MAX) % partitions.max(1)
}

/// MurmurHash2 as Kafka's Java clients have it.
fn murmur2(bytes: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (nth, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * nth);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
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
                None if !self.records.is_empty() && !self.handled.contains_key(service) => {
                    waits.push(format!("{name} waits for {service} to handle it"));
                }
                None => {}
            }
        }
        waits
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
    fn a_key_is_looked_for_where_a_java_client_puts_it() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
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
