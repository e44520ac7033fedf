//! A look at the outbox: the relay's one statement, the rows that it answers, and what travels beside the
//! body of each.

use chrono::{DateTime, SecondsFormat, Utc};
use futures::{Stream, TryStreamExt};
use rdkafka::message::{Header, OwnedHeaders};
use uuid::Uuid;

/// Bytes of the bodies that a look brings, at most: a thousand rows may have 256 MiB. A service that has less
/// memory than that would never get past them.
pub(crate) const TAKEN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A row of the outbox.
#[derive(sqlx::FromRow)]
pub(crate) struct Row {
    pub position: i64,
    pub event_id: Uuid,
    pub topic: String,
    pub key: String,
    pub schema_fingerprint: Vec<u8>,
    pub body: Vec<u8>,
    pub traceparent: Option<String>,
    pub cause: Option<Uuid>,
    pub occurred_at: DateTime<Utc>,
}

/// Deletes what was acknowledged, if that is wanted, and reads what may be sent: not what was
/// acknowledged, $1, nor what is below the floor, $2, nor what is of a key that is busy or held, $3; $4
/// rows at most, and nothing that is held up by topics, $5.
///
/// `not in`, and not `not exists`: hashed, it is asked of each row in order of the index, and the look ends
/// with its last row. A join would be made of the whole outbox, and sorted: of a million rows, the first
/// thousand took 630 ms, and not 4.
pub(crate) fn look(deletes: bool, topics_held: bool) -> String {
    let and_deletes = match deletes {
        true => "with acknowledged as (delete from outbox where position = any($1))",
        false => "",
    };
    // A row that its topic holds up holds up its key too: a later row of the key must not overtake it.
    // Without held topics, which is nearly always, that clause is left out.
    let and_not_held = match topics_held {
        false => "",
        true => {
            "and topic <> all($5) and not exists (
                 select from outbox as earlier
                 where earlier.topic = any($5) and earlier.key = outbox.key
                   and earlier.position <= outbox.position)"
        }
    };
    format!(
        "{and_deletes}
         select position, event_id, topic, key, schema_fingerprint, body, traceparent, cause,
                occurred_at
         from outbox
         where position > $2
           and position not in (select unnest($1::bigint[]))
           and key not in (select unnest($3::text[]))
           {and_not_held}
         order by position limit $4"
    )
}

/// The first rows of a look, as far as there is memory for their bodies, and how many were passed over.
pub(crate) async fn read(
    mut looked: impl Stream<Item = sqlx::Result<Row>> + Unpin,
) -> sqlx::Result<(Vec<Row>, usize)> {
    let (mut rows, mut passed_over, mut bytes) = (Vec::new(), 0, 0);
    while let Some(row) = looked.try_next().await? {
        bytes += row.body.len();
        if bytes <= TAKEN_BYTES_MAX {
            rows.push(row);
        } else {
            passed_over += 1;
        }
    }
    Ok((rows, passed_over))
}

/// The envelope as record headers: CloudEvents' Kafka binding in binary mode, the W3C trace context,
/// and the id of the cause.
pub(crate) fn headers(source: &str, row: &Row) -> OwnedHeaders {
    let (id, time) =
        (row.event_id.to_string(), row.occurred_at.to_rfc3339_opts(SecondsFormat::Micros, true));
    let cause = row.cause.map(|cause| cause.to_string());
    let headers = [
        ("ce_specversion", Some("1.0")),
        ("ce_id", Some(id.as_str())),
        ("ce_type", Some(row.topic.as_str())),
        ("ce_source", Some(source)),
        ("ce_time", Some(time.as_str())),
        ("content-type", Some("application/avro")),
        ("traceparent", row.traceparent.as_deref()),
        ("ce_causeid", cause.as_deref()),
    ];
    headers
        .into_iter()
        .filter(|(_, value)| value.is_some())
        .fold(OwnedHeaders::new_with_capacity(8), |headers, (key, value)| {
            headers.insert(Header { key, value })
        })
}
