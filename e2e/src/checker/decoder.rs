//! Decodes records topic by topic, with the schema that the registry has for them.

use apache_avro::types::Value;
use chassis::event::{Event, Topic};
use checker::WriterSchema;
use chrono::{DateTime, Utc};
use events::stock::StockItem;
use serde_json::Value as Json;
use uuid::Uuid;

use crate::checker::balances::ItemDescription;
use crate::checker::content_hash::content_hash;
use crate::checker::erasures::personal_hashes;
use crate::checker::expected_records::compared_topics;
use crate::checker::record::PersonalHashes;

/// The decoded body of a record.
pub(crate) struct DecodedRecord {
    /// The key that the record must have.
    pub(crate) key: String,
    pub(crate) occurred_at: DateTime<Utc>,
    pub(crate) content: RecordContent,
}

pub(crate) enum RecordContent {
    /// An event of an order, with the hash of its content, and of its personal fields if it has some.
    Order(Uuid, u64, Option<PersonalHashes>),
    Item(ItemDescription),
    /// An event of a fork's own topic that has no query in `expected_records.rs`. Only its publisher
    /// knows how the key follows from the content.
    Other,
}

/// Decodes a body twice: as a record of its writer's schema, and with the chassis's codec as an event of
/// the schema that this checker knows. So fields that are newer than the checker do not count.
pub(crate) fn decode_record(
    topic: &'static Topic,
    writer: &WriterSchema,
    body: &[u8],
    key: &str,
) -> Result<DecodedRecord, String> {
    let fields = writer.read_fields(body)?;
    let is_item = topic.name == StockItem::topic().name;
    if !is_item && !compared_topics().any(|compared| compared.name == topic.name) {
        return decode_other(&fields, key);
    }
    let mut event: Json = topic.codec().decode(writer.codec(), body).map_err(|error| error.0)?;
    let occurred_at = event.as_object_mut().and_then(|event| event.remove("occurred_at"));
    let occurred_at = time(occurred_at.and_then(|micros| micros.as_i64()))?;
    if is_item {
        let item: ItemDescription =
            serde_json::from_value(event).map_err(|error| error.to_string())?;
        let key = item.sku.clone();
        return Ok(DecodedRecord { key, content: RecordContent::Item(item), occurred_at });
    }
    for (name, value) in &fields {
        // A symbol that this checker does not know was decoded as the default of its enum.
        if let (Value::Enum(_, symbol), Some(decoded)) = (value, event.get_mut(name))
            && *decoded != symbol.as_str()
        {
            *decoded = Json::Null;
        }
    }
    let order_id = event["order_id"].as_str().and_then(|id| id.parse::<Uuid>().ok());
    let order_id = order_id.ok_or("it names no order")?;
    let hashes = (content_hash(&event), personal_hashes(topic, &event));
    let content = RecordContent::Order(order_id, hashes.0, hashes.1);
    Ok(DecodedRecord { key: order_id.to_string(), content, occurred_at })
}

/// Of an event of a fork's own topic, only the time of its decision is known here.
fn decode_other(fields: &[(String, Value)], key: &str) -> Result<DecodedRecord, String> {
    let occurred_at = fields.iter().find_map(|(name, value)| match value {
        Value::TimestampMicros(micros) if name == "occurred_at" => Some(*micros),
        _ => None,
    });
    let (key, content) = (key.to_string(), RecordContent::Other);
    Ok(DecodedRecord { key, content, occurred_at: time(occurred_at)? })
}

fn time(micros: Option<i64>) -> Result<DateTime<Utc>, String> {
    let micros = micros.ok_or("it has no field occurred_at")?;
    Ok(DateTime::from_timestamp_micros(micros).ok_or("a time out of range")?)
}

#[cfg(test)]
mod tests {
    use contracts::samples;
    use events::orders::{OrderCancelled, OrderCreated, OrderLine};
    use serde_json::json;

    use super::*;
    use crate::checker::test_cases::id;

    #[test]
    fn a_body_that_is_not_exactly_one_record_is_refused() {
        let topic = OrderCreated::topic();
        let writer = WriterSchema::new(topic.schema).unwrap();
        let line = |sku: &str| OrderLine { sku: sku.into(), quantity: 2, unit_price_cents: 150 };
        let order = OrderCreated {
            order_id: Uuid::now_v7(),
            customer_id: Uuid::now_v7(),
            lines: vec![line("pen"), line("ink")],
            total_cents: 600,
            currency: "EUR".into(),
            also_asks: Vec::new(),
            occurred_at: DateTime::from_timestamp_micros(1_795_132_800_123_456).unwrap(),
        };
        let body = topic.codec().encode(&order).unwrap();
        let decoded = decode_record(topic, &writer, &body, "").unwrap();
        assert_eq!(decoded.key, order.order_id.to_string());
        assert_eq!(decoded.occurred_at, order.occurred_at);
        for end in 0..body.len() {
            assert!(decode_record(topic, &writer, &body[..end], "").is_err(), "cut at {end}");
        }
        assert!(decode_record(topic, &writer, &[&body[..], &[0]].concat(), "").is_err());
    }
    #[test]
    fn fields_and_symbols_that_are_newer_than_the_checker_do_not_count() {
        let topic = OrderCancelled::topic();
        let channel = r#"{"name": "channel", "type": ["null", "string"], "default": null}"#;
        let newer = topic.schema.replace(r#""deadline","#, r#""deadline", "changed_mind","#);
        let newer = newer.replacen(r#""fields": ["#, &format!(r#""fields": [{channel},"#), 1);
        let writer = WriterSchema::new(&newer).unwrap();
        for (reason, read) in [("deadline", Some("deadline")), ("changed_mind", None)] {
            let event =
                json!({"channel": "shop", "order_id": id(1), "reason": reason, "occurred_at": 7});
            let body = samples::encode(&newer, event).unwrap();
            let decoded = decode_record(topic, &writer, &body, "").unwrap();
            let RecordContent::Order(_, hash, _) = decoded.content else {
                panic!("no event of an order")
            };
            assert_eq!(hash, content_hash(&json!({"order_id": id(1), "reason": read})), "{reason}");
        }
    }
}
